"""PVH: the note, the starting state, and hvm_start_info with all that it points to."""

from __future__ import annotations

import struct

import pytest

from pyvcpu import ImageError
from pyvcpu.boot import Target, plan
from tests.images import CODE, FOUR_GIB, GIB, MIB, PT_NOTE, Segment, elf, note, pvh, ram
from tests.loaded import Loaded


@pytest.mark.parametrize("bits", [32, 64])
def test_start(bits: int) -> None:
    made = plan(pvh(MIB + 16, bits=bits), Target(ram(64 * MIB), 2))
    assert (made.format, made.irqchip) == ("pvh", "kernel")
    start, other = made.starts
    assert start is not None
    assert other is None
    assert (start.mode, start.entry) == ("protected", MIB + 16)
    memory = Loaded(made)
    assert memory.u32(start.registers["rbx"]) == 0x336EC578
    assert memory.read(start.gdt, 8) == bytes(8)
    assert memory.read(MIB, len(CODE)) == CODE


def test_start_all() -> None:
    made = plan(pvh(), Target(ram(64 * MIB), 2, start="all"))
    assert made.starts[0] is made.starts[1] is not None


def test_start_info() -> None:
    """struct hvm_start_info, version 1: magic, version, flags, modules, then addresses, then the memory map."""
    initrd = [("initrd.gz x", b"i" * 5000), ("other", b"o")]
    target = Target(ram(4 * GIB), 1, append="console=ttyS0", initrd=initrd, acpi=lambda: (0xE0000, b"RSD PTR "))
    made = plan(pvh(), target)
    memory = Loaded(made)
    assert made.starts[0] is not None
    info = made.starts[0].registers["rbx"]
    assert info % 8 == 0
    magic, version, flags, modules = struct.unpack("<4I", memory.read(info, 16))
    assert (magic, version, flags, modules) == (0x336EC578, 1, 0, 2)
    module_list, command_line, rsdp, memory_map = struct.unpack("<4Q", memory.read(info + 16, 32))
    entries, reserved = struct.unpack("<2I", memory.read(info + 48, 8))
    assert memory.string(command_line) == b"console=ttyS0"
    assert memory.read(rsdp, 8) == b"RSD PTR "
    assert (entries, reserved) == (4, 0)
    found = [struct.unpack("<2Q2I", memory.read(memory_map + 24 * i, 24)) for i in range(entries)]
    assert found == [
        (0, 0x9FC00, 1, 0),
        (0x9FC00, MIB - 0x9FC00, 2, 0),
        (MIB, 3 * GIB - MIB, 1, 0),
        (FOUR_GIB, GIB, 1, 0),
    ]
    for i, (name, data) in enumerate(initrd):
        address, size, text, zero = struct.unpack("<4Q", memory.read(module_list + 32 * i, 32))
        assert memory.read(address, size) == data
        assert address % 4096 == 0
        assert memory.string(text) == name.encode()
        assert zero == 0


def test_without_extras() -> None:
    made = plan(pvh(), Target(ram(64 * MIB), 1))
    memory = Loaded(made)
    assert made.starts[0] is not None
    info = made.starts[0].registers["rbx"]
    modules, module_list = memory.u32(info + 12), memory.u64(info + 16)
    assert (modules, module_list, memory.u64(info + 32)) == (0, 0, 0)
    assert memory.string(memory.u64(info + 24)) == b""


def test_an_empty_module() -> None:
    memory = Loaded(plan(pvh(), Target(ram(64 * MIB), 1, initrd=[("a", b""), ("b", b"b")])))
    assert memory.segments[-1][1] == b"b"


@pytest.mark.parametrize("align", [4, 8])
def test_notes_are_aligned_as_their_header_says(align: int) -> None:
    notes = note(b"GNU\0", 5, bytes(5), align) + note(b"Xen\0", 6, b"linux\0", align)
    notes += note(b"Xen\0", 18, MIB.to_bytes(4, "little"), align)
    image = elf([Segment(MIB, CODE), Segment(0, notes, kind=PT_NOTE, align=align)])
    assert plan(image, Target(ram(8 * MIB), 1)).format == "pvh"


@pytest.mark.parametrize(
    "notes",
    [
        b"",
        b"\xff" * 11,
        struct.pack("<3I", 0xFFFF_FFFF, 0xFFFF_FFFF, 18),
        note(b"GNU\0", 18, bytes(4)),
        note(b"Xen\0", 17, bytes(4)),
        note(b"Xenon\0", 18, bytes(4)),
    ],
)
def test_notes_that_are_none(notes: bytes) -> None:
    image = elf([Segment(MIB, CODE), Segment(0, notes, kind=PT_NOTE)])
    assert plan(image, Target(ram(8 * MIB), 1)).format == "elf"
    with pytest.raises(ImageError, match="XEN_ELFNOTE_PHYS32_ENTRY; this one has none"):
        plan(image, Target(ram(8 * MIB), 1), "pvh")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (pvh(value=b"abc"), "must hold an address of 4 or 8 bytes, not 3"),
        (pvh()[:-2], "cut short"),
        (pvh(MIB - 1), "entry 0xfffff must be in one of"),
        (pvh(MIB + 0x3000), "must be in one of"),
        (pvh(FOUR_GIB, segments=[Segment(FOUR_GIB, CODE)]), "below 4 GiB"),
        (pvh(segments=[Segment(MIB, CODE), Segment(64 * MIB, CODE)]), "not all RAM"),
    ],
)
def test_refused(image: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        plan(image, Target(ram(8 * MIB), 1))


def test_an_initrd_that_does_not_fit() -> None:
    with pytest.raises(ImageError, match=r"no room for the initrd 'big' \(7340032 bytes\).*more memory"):
        plan(pvh(), Target(ram(8 * MIB), 1, initrd=[("big", bytes(7 * MIB))]))
