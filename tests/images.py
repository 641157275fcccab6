"""Bootable images made in Python: small, valid, and of every format that has headers. For the loaders' tests."""

from __future__ import annotations

import struct
from dataclasses import dataclass

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FOUR_GIB = 4 * GIB
PT_LOAD, PT_NOTE = 1, 4
HEADER_SIZE = {32: 52, 64: 64}
PROGRAM_HEADER_SIZE = {32: 32, 64: 56}
CODE = b"\xf4".ljust(64, b"\x90")

Span = tuple[int, int]


def ram(size: int) -> list[Span]:
    """Return the ranges of a guest with `size` bytes of memory."""
    low = min(size, 3 * GIB)
    return [(0, low)] + ([(FOUR_GIB, FOUR_GIB + size - low)] if size > low else [])


@dataclass(frozen=True)
class Segment:
    """One program header, and its bytes in the file. `size` in memory: that of the data when not given."""

    address: int
    data: bytes
    size: int | None = None
    virtual: int | None = None
    kind: int = PT_LOAD
    align: int = 4


def elf(
    segments: list[Segment],
    *,
    bits: int = 64,
    entry: int | None = None,
    kind: int = 2,
    machine: int | None = None,
) -> bytes:
    """Return an ELF executable; the entry is the first segment's start when not given."""
    at = HEADER_SIZE[bits]
    offset = at + len(segments) * PROGRAM_HEADER_SIZE[bits]
    headers, contents = bytearray(), bytearray()
    for segment in segments:
        size = len(segment.data) if segment.size is None else segment.size
        virtual = segment.address if segment.virtual is None else segment.virtual
        place = (offset + len(contents), virtual, segment.address, len(segment.data), size)
        if bits == 32:
            headers += struct.pack("<8I", segment.kind, *place, 7, segment.align)
        else:
            headers += struct.pack("<2I6Q", segment.kind, 7, *place, segment.align)
        contents += segment.data
    if machine is None:
        machine = 62 if bits == 64 else 3
    if entry is None:
        entry = segments[0].address if segments else 0
    ident = b"\x7fELF" + bytes((bits // 32, 1, 1)).ljust(12, b"\0")
    word = "I" if bits == 32 else "Q"
    sizes = (HEADER_SIZE[bits], PROGRAM_HEADER_SIZE[bits], len(segments), 0, 0, 0)
    header = ident + struct.pack(f"<HHI3{word}I6H", kind, machine, 1, entry, at, 0, 0, *sizes)
    return header + bytes(headers + contents)


def note(owner: bytes, kind: int, value: bytes, align: int = 4) -> bytes:
    """Return one ELF note."""

    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % align)

    return struct.pack("<3I", len(owner), len(value), kind) + padded(owner) + padded(value)


def pvh(
    entry: int = MIB, *, bits: int = 64, value: bytes | None = None, segments: list[Segment] | None = None
) -> bytes:
    """Return an ELF executable with a PVH note, behind another one."""
    notes = note(b"GNU\0", 3, b"\x11" * 20) + note(
        b"Xen\0", 18, entry.to_bytes(bits // 8, "little") if value is None else value
    )
    loads = [Segment(MIB, CODE, size=0x3000)] if segments is None else segments
    return elf([*loads, Segment(0, notes, kind=PT_NOTE)], bits=bits)


def multiboot_header(flags: int = 0, addresses: tuple[int, int, int, int, int] | None = None) -> bytes:
    """Return a Multiboot 1 header; `addresses` are header, load, load end, bss end, entry."""
    if addresses is not None:
        flags |= 1 << 16
    header = struct.pack("<3I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFF_FFFF)
    return header + (struct.pack("<5I", *addresses) if addresses is not None else b"")


def multiboot_elf(flags: int = 3, bits: int = 32) -> bytes:
    """Return an ELF executable that begins with a Multiboot header, and its entry behind it."""
    data = multiboot_header(flags) + CODE
    return elf([Segment(MIB, data, size=0x2000)], bits=bits, entry=MIB + 12)


def multiboot_flat(before: int = 32, flags: int = 3) -> bytes:
    """Return an image without format whose Multiboot header, behind `before` bytes, has addresses; 4 KiB of bss."""
    load = MIB
    length = before + 32 + len(CODE)
    header = multiboot_header(flags, (load + before, load, load + length, load + length + 4096, load + before + 32))
    return b"\x90" * before + header + CODE


def bzimage(
    *,
    code: bytes = CODE.ljust(0x1000, b"\x90"),
    version: int = 0x20F,
    setup_sects: int = 3,
    loadflags: int = 1,
    xloadflags: int = 3,
    jump: int = 0x6A,
    initrd_max: int = 0x7FFF_FFFF,
    alignment: int = 2 * MIB,
    relocatable: int = 1,
    cmdline_size: int = 2047,
    pref_address: int = 16 * MIB,
    init_size: int = 4 * MIB,
    trailer: bytes = b"",
    code32_start: int = MIB,
    syssize: int | None = None,
) -> bytes:
    """Return a Linux kernel of which only the headers are real; it counts its code in 16 bytes, rounded up."""
    image = bytearray(((setup_sects or 4) + 1) * 512)
    image[0x1F1] = setup_sects
    struct.pack_into("<I", image, 0x1F4, -(-len(code) // 16) if syssize is None else syssize)
    image[0x1FE:0x202] = b"\x55\xaa\xeb" + bytes((jump,))
    struct.pack_into("<4sH", image, 0x202, b"HdrS", version)
    image[0x211] = loadflags
    struct.pack_into("<I", image, 0x214, code32_start)
    struct.pack_into("<IIBBHI", image, 0x22C, initrd_max, alignment, relocatable, 21, xloadflags, cmdline_size)
    struct.pack_into("<QQI", image, 0x250, 0xDEAD, pref_address, init_size)
    return bytes(image) + code + trailer


def zimage(code: bytes = CODE.ljust(0x1000, b"\x90"), setup_sects: int = 4) -> bytes:
    """Return a Linux kernel from before version 2.00 of the boot protocol."""
    image = bytearray((setup_sects + 1) * 512)
    image[0x1F1] = setup_sects
    struct.pack_into("<H", image, 0x1F4, -(-len(code) // 16))
    image[0x1FE:0x200] = b"\x55\xaa"
    return bytes(image) + code


def tag2(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    """Return one tag of a Multiboot 2 header, padded."""
    tag = struct.pack("<2HI", kind, flags, 8 + len(body)) + body
    return tag + bytes(-len(tag) % 8)


def multiboot2_header(*tags: bytes, architecture: int = 0, end: bytes = tag2(0)) -> bytes:
    """Return a Multiboot 2 header."""
    body = b"".join(tags) + end
    length = 16 + len(body)
    return (
        struct.pack("<4I", 0xE85250D6, architecture, length, -(0xE85250D6 + architecture + length) % (1 << 32)) + body
    )


def multiboot2_elf(*tags: bytes, bits: int = 32, address: int = MIB, size: int = 0x2000) -> bytes:
    """Return an ELF executable that begins with a Multiboot 2 header at offset 0x100, its entry behind the header."""
    header = multiboot2_header(*tags)
    before = 0x100 - HEADER_SIZE[bits] - PROGRAM_HEADER_SIZE[bits]
    data = bytes(before) + header + CODE
    return elf([Segment(address, data, size=size)], bits=bits, entry=address + before + len(header))


def multiboot2_flat(before: int = 32, *tags: bytes, load: int = MIB) -> bytes:
    """Return an image without format whose Multiboot 2 header, behind `before` bytes, has addresses; 4 KiB of bss."""
    length = before + 16 + 24 + 16 + sum(map(len, tags)) + 8 + len(CODE)
    addresses = struct.pack("<4I", load + before, load, load + length, load + length + 4096)
    entry = struct.pack("<I", load + length - len(CODE))
    return b"\x90" * before + multiboot2_header(tag2(2, addresses), tag2(3, entry), *tags) + CODE
