"""Multiboot 1: the header, both ways of loading, and the boot information with all that it points to."""

from __future__ import annotations

import struct

import pytest

from pyvcpu import ImageError
from pyvcpu.boot import Plan, Target, detect, plan
from tests.images import (
    CODE,
    FOUR_GIB,
    GIB,
    MIB,
    Segment,
    elf,
    multiboot_elf,
    multiboot_flat,
    multiboot_header,
    ram,
)
from tests.loaded import Loaded


def registers(made: Plan) -> dict[str, int]:
    start = made.starts[0]
    assert start is not None
    assert start.mode == "protected"
    return start.registers


@pytest.mark.parametrize("bits", [32, 64])
def test_elf(bits: int) -> None:
    made = plan(multiboot_elf(bits=bits), Target(ram(8 * MIB), 2))
    assert (made.format, made.irqchip) == ("multiboot", "kernel")
    assert made.starts[1] is None
    assert made.starts[0] is not None
    assert made.starts[0].entry == MIB + 12
    assert registers(made)["rax"] == 0x2BADB002
    assert Loaded(made).read(MIB, 4) == b"\x02\xb0\xad\x1b"


@pytest.mark.parametrize("before", [0, 4, 8192 - 12])
def test_addresses_in_the_header(before: int) -> None:
    image = multiboot_flat(before) + b"not loaded"
    assert detect(image) == "multiboot"
    made = plan(image, Target(ram(8 * MIB), 1))
    assert made.starts[0] is not None
    assert made.starts[0].entry == MIB + before + 32
    assert Loaded(made).read(MIB, before + 32 + len(CODE)) == image[: -len(b"not loaded")]
    with pytest.raises(AssertionError):
        Loaded(made).read(MIB, before + 32 + len(CODE) + 1)


def test_addresses_win_over_the_elf_header() -> None:
    """Flag bit 16: what is in the header counts, not what is in the ELF header."""
    body = multiboot_header(0, (MIB + 84, MIB, 0, 0, MIB + 84 + 32))
    image = elf([Segment(2 * MIB, body + CODE)], bits=32)
    assert image.index(body) == 84
    made = plan(image, Target(ram(8 * MIB), 1))
    assert made.starts[0] is not None
    assert made.starts[0].entry == MIB + 84 + 32
    assert Loaded(made).read(MIB, len(image)) == image


def test_part_of_the_image_and_its_bss() -> None:
    """Loading starts at the header, 16 bytes into the file, and ends 8 bytes behind it; all else up to 7 MiB is bss."""
    header = multiboot_header(0, (MIB, MIB, MIB + 40, 7 * MIB, MIB + 32))
    made = plan(bytes(16) + header + CODE, Target(ram(8 * MIB), 1, initrd=[("a", b"b")]))
    memory = Loaded(made)
    assert memory.read(MIB, 40) == header + CODE[:8]
    info = registers(made)["rbx"]
    (module,) = struct.unpack("<I", memory.read(memory.u32(info + 24), 4))
    assert 7 * MIB <= module < 8 * MIB


@pytest.mark.parametrize("at", [8192 - 8, 3, 8192])
def test_headers_where_they_may_not_be(at: int) -> None:
    image = bytes(at) + multiboot_header() + bytes(64)
    assert detect(image) == "flat"


def test_a_header_behind_a_false_one() -> None:
    image = multiboot_elf() + b""
    false = struct.pack("<3I", 0x1BADB002, 0, 1)
    made = elf([Segment(MIB, false + image[84:], size=0x2000)], bits=32)
    assert detect(made) == "multiboot"


def test_boot_information() -> None:
    """Section 3.3: memory, command line, modules, memory map and the loader's name, at their offsets."""
    modules = [("mod1.bin a=b", b"1" * 4097), ("mod2", b"2")]
    made = plan(multiboot_elf(), Target(ram(4 * GIB), 1, name="kernel.elf", append="debug x", initrd=modules))
    memory = Loaded(made)
    info = registers(made)["rbx"]
    assert memory.u32(info) == 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    assert (memory.u32(info + 4), memory.u32(info + 8)) == (639, (3 * GIB - MIB) >> 10)
    assert memory.string(memory.u32(info + 16)) == b"kernel.elf debug x"
    assert memory.string(memory.u32(info + 64)) == b"pyvcpu"
    count, at = memory.u32(info + 20), memory.u32(info + 24)
    assert count == 2
    for i, (name, data) in enumerate(modules):
        start, end, string, reserved = struct.unpack("<4I", memory.read(at + 16 * i, 16))
        assert memory.read(start, end - start) == data
        assert (start % 4096, reserved) == (0, 0)
        assert memory.string(string) == name.encode()
    length, at = memory.u32(info + 44), memory.u32(info + 48)
    entries = [struct.unpack("<I2QI", memory.read(at + i, 24)) for i in range(0, length, 24)]
    assert entries == [
        (20, 0, 0x9FC00, 1),
        (20, 0x9FC00, MIB - 0x9FC00, 2),
        (20, MIB, 3 * GIB - MIB, 1),
        (20, FOUR_GIB, GIB, 1),
    ]


def test_command_line_without_a_name() -> None:
    made = plan(multiboot_elf(), Target(ram(8 * MIB), 1, append="debug"))
    memory = Loaded(made)
    assert memory.string(memory.u32(registers(made)["rbx"] + 16)) == b"debug"


def test_acpi_tables_come_along() -> None:
    made = plan(multiboot_elf(), Target(ram(8 * MIB), 1, acpi=lambda: (0xE0000, b"RSD PTR ")))
    assert (0xE0000, b"RSD PTR ") in made.segments


def flat(addresses: tuple[int, int, int, int, int], after: int = 64) -> bytes:
    return bytes(16) + multiboot_header(0, addresses) + bytes(after)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (multiboot_header() + CODE, "must be an ELF image, or its header must have addresses"),
        (multiboot_elf(1 << 3), "features that version 1 does not have: flags 0x8"),
        (multiboot_header(1 << 16), "cut short: its header has flag bit 16"),
        (flat((MIB, MIB + 1, 0, 0, MIB + 32)), "cannot be at 0x100000 when loading starts at 0x100001"),
        (flat((MIB + 17, MIB, 0, 0, MIB + 32)), "at offset 0x10 of the image, cannot be at 0x100011"),
        (flat((MIB, MIB, MIB, 0, MIB + 32)), "load end 0x100000 must be above"),
        (flat((MIB, MIB, MIB - 1, 0, MIB + 32)), "load end 0xfffff must be above"),
        (flat((MIB, MIB, MIB + 97, 0, MIB + 32)), "cut short: its header wants 97 bytes from offset 0x10"),
        (flat((MIB, MIB, MIB + 96, MIB + 95, MIB + 32)), "bss end 0x10005f must not be below"),
        (flat((MIB, MIB, 0, 0, MIB + 96)), "entry 0x100060 must be in what it loads, 0x100000-0x10005f"),
        (flat((MIB, MIB, 0, 0, MIB - 1)), "entry 0xfffff must be in"),
        (flat((MIB, MIB, 0, 9 * MIB, MIB)), "not all RAM"),
        (elf([Segment(FOUR_GIB, multiboot_header() + CODE)]), "entry must be below 4 GiB"),
        (multiboot_elf()[:-1], "cut short"),
    ],
)
def test_refused(image: bytes, words: str) -> None:
    assert detect(image) == "multiboot"
    with pytest.raises(ImageError, match=words):
        plan(image, Target(ram(8 * MIB), 1))
