"""Multiboot 1 images (Multiboot Specification version 0.6.96, chapter 3)."""

from __future__ import annotations

import struct

from ..errors import ImageError
from ..x86.start import StartState, gdt
from .layout import c_string, check_spans, memory_map, place_files, place_firmware, place_info, started
from .multiboot_load import by_addresses, check_entry, from_elf, lower_and_upper
from .plan import CutShort, Plan

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .multiboot_load import Loaded
    from .plan import Segment, Target

MAGIC, BOOT_MAGIC = 0x1BADB002, 0x2BADB002
MAGIC_BYTES = MAGIC.to_bytes(4, "little")
SEARCH, ALIGN = 8192, 4  # the header lies whole in the first 8 KiB
HEADER = struct.Struct("<3I")  # magic, flags, checksum
ADDRESSES = struct.Struct("<5I")  # header, load, load end, bss end, entry
KLUDGE = 1 << 16  # the header has addresses, used whatever the image's format
# What an image may require: page-aligned modules, memory information, a video mode (which is wished for, not needed).
KNOWN_REQUIREMENTS = 0b111

INFO_SIZE = 120
INFO_MEMORY, INFO_COMMAND_LINE, INFO_MODULES, INFO_MEMORY_MAP, INFO_LOADER = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
MODULE = struct.Struct("<4I")  # start, end, string, reserved
MEMORY_MAP_ENTRY = struct.Struct("<I2QI")  # size of what follows, base, length, kind
LOADER = "pyvcpu"
GDT_SIZE = 64


def matches(image: bytes) -> bool:
    """Tell whether there is a Multiboot header."""
    return _find(image) is not None


def _find(image: bytes) -> tuple[int, int] | None:
    """Return the offset and the flags of the header."""
    head = image[:SEARCH]
    at = head.find(MAGIC_BYTES)
    while at >= 0 and at + HEADER.size <= len(head):
        if at % ALIGN == 0:
            magic, flags, checksum = HEADER.unpack_from(head, at)
            if (magic + flags + checksum) & 0xFFFF_FFFF == 0:
                return at, flags
        at = head.find(MAGIC_BYTES, at + 1)
    return None


def plan(image: bytes, target: Target) -> Plan:
    """Plan a Multiboot image: 32-bit protected mode, EAX the magic number, EBX pointing to the boot information.

    The modules are the target's initrd.
    """
    segments, used, entry = load(image)
    if entry >= 1 << 32:
        raise ImageError(f"a Multiboot image's entry must be below 4 GiB, not {entry:#x}")
    check_spans(used, target)
    firmware, _ = place_firmware(target, used)
    used += [(address, address + len(data)) for address, data in firmware]
    files = place_files(target, used)
    address, info = place_info(lambda base: _information(base, target, files), used, target)
    registers = {"rax": BOOT_MAGIC, "rbx": address + GDT_SIZE}
    start = StartState("protected", entry, gdt=address, registers=registers)
    return Plan("multiboot", [*segments, *firmware, *files, (address, info)], started(start, target), "kernel")


def load(image: bytes) -> Loaded:
    """Load as the header says, with addresses of its own or by those of ELF."""
    found = _find(image)
    if found is None:
        raise ImageError(
            "a Multiboot image has, in its first 8 KiB and at a multiple of 4, the number 0x1BADB002, flags, and a"
            " checksum that makes the sum of the three zero; this image has none"
        )
    at, flags = found
    unknown = flags & 0xFFFF & ~KNOWN_REQUIREMENTS
    if unknown:
        raise ImageError(f"the Multiboot header requires features that version 1 does not have: flags {unknown:#x}")
    return _with_addresses(image, at) if flags & KLUDGE else from_elf(image)


def _with_addresses(image: bytes, at: int) -> Loaded:
    if at + HEADER.size + ADDRESSES.size > len(image):
        raise CutShort("the Multiboot image is cut short: its header has flag bit 16, but not the addresses")
    header, load, load_end, bss_end, entry = ADDRESSES.unpack_from(image, at + HEADER.size)
    segment, span = by_addresses(image, at, header, load, load_end, bss_end)
    check_entry(entry, [span])
    return [segment], [span], entry


def _information(base: int, target: Target, files: list[Segment]) -> bytes:
    """Return, to be put at `base`: descriptor table, boot information, memory map, module list, strings."""
    ram = memory_map(target.ranges)
    map_at = base + GDT_SIZE + INFO_SIZE
    modules_at = map_at + len(ram) * MEMORY_MAP_ENTRY.size
    loader_at = modules_at + len(files) * MODULE.size
    strings, modules = c_string(LOADER), b""
    command_line_at = loader_at + len(strings)
    strings += c_string(target.named_command_line)
    for (name, _), (address, data) in zip(target.initrd, files, strict=True):
        modules += MODULE.pack(address, address + len(data), loader_at + len(strings), 0)
        strings += c_string(name)
    entries = b"".join(
        MEMORY_MAP_ENTRY.pack(MEMORY_MAP_ENTRY.size - 4, start, end - start, kind) for start, end, kind in ram
    )
    flags = INFO_MEMORY | INFO_COMMAND_LINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER
    lower, upper = lower_and_upper(ram)
    info = struct.pack(
        "<8I12x7I",
        *(flags, lower, upper, 0, command_line_at, len(files), modules_at, 0),
        *(len(entries), map_at, 0, 0, 0, loader_at, 0),
    )
    return gdt().ljust(GDT_SIZE, b"\0") + info.ljust(INFO_SIZE, b"\0") + entries + modules + strings


def split_modules(text: str) -> list[tuple[str, str]]:
    """Split `FILE ARGUMENTS,FILE ARGUMENTS` into (file, command line) pairs; a doubled comma is one that is meant.

    The command line of a module is the file and its arguments, as QEMU passes it.

    >>> split_modules("a.bin x=1,b,,c.bin")
    [('a.bin', 'a.bin x=1'), ('b,c.bin', 'b,c.bin')]
    """
    parts = [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
    return [(part.split(" ", 1)[0], part) for part in (part.strip(" ") for part in parts) if part]
