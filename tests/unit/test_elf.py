"""ELF images: what is loaded where, how they start, and what is refused in words."""

from __future__ import annotations

import struct
import time

import pytest

from pyvcpu import ImageError, StartState
from pyvcpu.boot import Plan, Target, plan
from tests.images import CODE, FOUR_GIB, GIB, MIB, PT_NOTE, Segment, elf, note, pvh, ram

ABI_TAG = note(b"GNU\0", 1, struct.pack("<4I", 0, 3, 2, 0))


def big_endian(machine: int) -> bytes:
    """Return an ELF64 image with the type and the machine of its header in the order of `machine`."""
    image = bytearray(elf([Segment(MIB, CODE)]))
    image[5] = 2
    struct.pack_into(">HH", image, 16, 2, machine)
    return bytes(image)


def first(made: Plan) -> StartState:
    start = made.starts[0]
    assert start is not None
    return start


@pytest.mark.parametrize(("bits", "mode"), [(32, "protected"), (64, "long")])
def test_plain(bits: int, mode: str) -> None:
    image = elf([Segment(MIB, CODE, size=0x3000), Segment(2 * MIB, b"data"), Segment(3 * MIB, b"", size=9)], bits=bits)
    made = plan(image, Target(ram(64 * MIB), 3))
    assert (made.format, made.irqchip) == ("elf", "kernel")
    loaded = {address: bytes(data) for address, data in made.segments}
    assert (loaded[MIB], loaded[2 * MIB]) == (CODE, b"data")
    assert 3 * MIB not in loaded, "memory is zero already"
    start = first(made)
    assert (start.mode, start.entry) == (mode, MIB)
    assert start.gdt in loaded
    assert start.stack % 16 == 0
    assert start.stack > 3 * MIB + 9
    assert start.registers == {"rdi": 0, "rsi": 3}
    assert made.starts[1:] == [None, None]
    if bits == 64:
        assert start.page_table in loaded


def test_start_all() -> None:
    made = plan(elf([Segment(MIB, CODE)]), Target(ram(64 * MIB), 3, start="all"))
    starts = [start for start in made.starts if start is not None]
    assert [start.registers for start in starts] == [{"rdi": i, "rsi": 3} for i in range(3)]
    assert len({start.stack for start in starts}) == 3


def test_many_processors_that_wait_take_no_room() -> None:
    made = plan(elf([Segment(MIB, CODE)]), Target(ram(2 * MIB), 1024))
    assert len(made.starts) == 1024


def test_bss_is_not_given_away() -> None:
    """The stack and the tables go around what the image says it takes, not only around its bytes."""
    made = plan(elf([Segment(MIB, CODE, size=63 * MIB - 0x10000)]), Target(ram(64 * MIB), 1))
    assert all(address <= MIB or address >= 64 * MIB - 0x10000 for address, _ in made.segments)
    with pytest.raises(ImageError, match="no room for"):
        plan(elf([Segment(0x1000, CODE, size=2 * MIB - 0x1000)]), Target(ram(2 * MIB), 1))


def test_small_guest_gets_nothing_in_the_bios_area() -> None:
    made = plan(elf([Segment(0x10000, CODE)]), Target(ram(MIB), 1))
    assert first(made).stack <= 0x9FC00
    assert all(address + len(data) <= 0x9FC00 or address == 0xFFFF0 for address, data in made.segments)


@pytest.mark.parametrize(
    ("address", "virtual", "entry", "expected"),
    [
        (MIB, MIB, MIB + 4, MIB + 4),
        (MIB, 0xFFFF_FFFF_8010_0000, MIB + 4, MIB + 4),
        (MIB, 0xFFFF_FFFF_8010_0000, 0xFFFF_FFFF_8010_0004, MIB + 4),
        (5 * GIB, 5 * GIB, 5 * GIB + 4, 5 * GIB + 4),
    ],
)
def test_entry_is_physical_or_virtual(address: int, virtual: int, entry: int, expected: int) -> None:
    image = elf([Segment(address, CODE, virtual=virtual)], entry=entry)
    assert first(plan(image, Target(ram(5 * GIB), 1))).entry == expected


def test_acpi_tables_come_along() -> None:
    made = plan(elf([Segment(MIB, CODE)]), Target(ram(2 * MIB), 1, acpi=lambda: (0xE0000, b"RSD PTR ")))
    assert (0xE0000, b"RSD PTR ") in made.segments


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"\x7fELF\x03" + bytes(60), "neither of the 32-bit nor of the 64-bit class"),
        (elf([Segment(MIB, CODE)])[:40], "cut short: 40 bytes, and its header"),
        (elf([Segment(MIB, CODE)])[:100], "cut short: its program headers"),
        (elf([Segment(MIB, CODE)])[:-1], "cut short: 64 bytes at 0x78"),
        (elf([Segment(MIB, CODE)], machine=183), "is for AArch64; this machine runs 32-bit images for i386 and"),
        (elf([Segment(MIB, CODE)], machine=7777), "is for machine 7777;"),
        (elf([Segment(MIB, CODE)], bits=32, machine=40), "is for ARM;"),
        (elf([Segment(MIB, CODE)], bits=32, machine=62), "is for x32, whose programs have 32-bit pointers;"),
        (elf([Segment(MIB, CODE)], machine=3), "is for i386, and of the 64-bit class;"),
        (big_endian(21), r"is for PowerPC64 \(big-endian\);"),
        (big_endian(22), r"is for IBM S/390 \(big-endian\);"),
        (big_endian(62), r"is for x86-64 \(big-endian\);"),
        (elf([Segment(MIB, CODE)], kind=1), "this one is a relocatable object .* link it first"),
        (elf([Segment(MIB, CODE)], kind=4), "this one is a core file"),
        (elf([Segment(MIB, CODE)], kind=9), "this one is of type 9"),
        (elf([]), "nothing to load"),
        (elf([Segment(0, b"", kind=PT_NOTE)]), "nothing to load"),
        (elf([Segment(MIB, CODE, size=8)]), r"more bytes in the file \(64\) than in memory \(8\)"),
        (elf([Segment(MIB, CODE)], entry=MIB + 64), "entry 0x100040 is in none"),
        (elf([Segment(MIB, CODE), Segment(MIB + 63, CODE)]), "overlap in memory, at 0x10003f"),
        (elf([Segment(MIB, CODE), Segment(0, b"", size=MIB + 1)]), "overlap in memory"),
        (elf([Segment(8 * MIB - 63, CODE)]), r"0x7fffc1-0x800000, which is not all RAM \(0x0-0x7fffff\); give"),
        (elf([Segment(3 * GIB, CODE)]), r"not all RAM \(0x0-0x7fffff\), nor can be; link the image elsewhere"),
        (elf([Segment(3 * GIB - 64, CODE)]), "give the guest more memory, or link"),
        (elf([Segment(3 * GIB - 63, CODE)]), "nor can be"),
        (elf([Segment(FOUR_GIB - 1, CODE)]), "nor can be"),
        (elf([Segment(FOUR_GIB, CODE)]), "give the guest more memory, or link"),
        (elf([Segment((1 << 40) - 64, CODE)]), "give the guest more memory, or link"),
        (elf([Segment((1 << 40) - 63, CODE)]), "nor can be"),
        (elf([Segment(MIB, CODE), Segment(0, b"/lib/ld.so\0", kind=3)]), "to be run by '/lib/ld.so', not a kernel"),
        (elf([Segment(MIB, CODE), Segment(0, ABI_TAG, kind=PT_NOTE)]), "a program for Linux, not a kernel"),
        (elf([Segment(MIB, CODE), Segment(0, b"\xff\x1b'", kind=3)], bits=32), "system, to be run by"),
        (elf([Segment(MIB, CODE), Segment(0, struct.pack("<4Q", 5, 0, 14, 0), kind=2)], kind=3), "a shared library"),
        (elf([Segment(MIB, CODE), Segment(0, struct.pack("<2I", 1, 9), kind=2)], kind=3, bits=32), "a shared library"),
        (elf([Segment(MIB, CODE, size=(1 << 64) - 1)]), "not all RAM"),
    ],
)
def test_refused(image: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        plan(image, Target(ram(8 * MIB), 1), "elf")


def test_protected_mode_entry_above_4_gib() -> None:
    with pytest.raises(ImageError, match="not all RAM"):
        plan(elf([Segment(0xFFFF_FFF0, CODE)], bits=32), Target(ram(4 * GIB), 1))
    made = plan(elf([Segment(FOUR_GIB, CODE)]), Target(ram(4 * GIB), 1))
    assert first(made).entry == FOUR_GIB


@pytest.mark.parametrize("dynamic", [b"", struct.pack("<4Q", 0, 0, 14, 0), struct.pack("<2QQ", 5, 9, 14)])
def test_a_kernel_that_relocates_itself_is_no_library(dynamic: bytes) -> None:
    assert plan(elf([Segment(MIB, CODE), Segment(0, dynamic, kind=2)], kind=3), Target(ram(8 * MIB), 1)).format == "elf"
    made = plan(pvh(segments=[Segment(MIB, CODE), Segment(0, b"/red/herring\0", kind=3)]), Target(ram(8 * MIB), 1))
    assert made.format == "pvh", "a kernel that says how it is to be started is one, whatever else it says"


def sharing(times: int) -> bytes:
    """Return an image with `times` segments, each the whole file, 1 MiB apart."""
    size = 64 + 56 * times
    image = bytearray(elf([Segment(MIB * (i + 1), b"") for i in range(times)]))
    for i in range(times):
        struct.pack_into("<2I6Q", image, 64 + 56 * i, 1, 7, 0, MIB * (i + 1), MIB * (i + 1), size, size, 16)
    return bytes(image)


def test_segments_may_share_bytes_of_the_file() -> None:
    image = sharing(4)
    made = plan(image, Target(ram(8 * MIB), 1))
    loaded = {address: bytes(data) for address, data in made.segments}
    assert [loaded[MIB * (i + 1)] for i in range(4)] == [image] * 4
    with pytest.raises(ImageError, match="share its bytes more than 4 times"):
        plan(sharing(5), Target(ram(8 * MIB), 1))


@pytest.mark.parametrize("kind", [1, 2, 3, PT_NOTE])
def test_many_headers_over_the_same_bytes(kind: int) -> None:
    """65,535 headers, each over the whole file, would make 240 GB out of 3.7 MB."""
    count, size = 0xFFFF, 64 + 0xFFFF * 56
    headers = b"".join(struct.pack("<2I6Q", kind, 7, 0, i << 24, i << 24, size, size, 4) for i in range(count))
    image = bytearray(elf([Segment(0, CODE)])[:64] + headers)
    struct.pack_into("<H", image, 56, count)
    started = time.process_time()
    with pytest.raises(ImageError, match="share its bytes more than 4 times"):
        plan(bytes(image), Target([(0, 1 << 41)], 1))
    assert time.process_time() - started < 5


def test_many_headers() -> None:
    """As many segments as an ELF image can have take time in proportion."""
    image = elf([Segment(MIB + 16 * i, b"\xf4") for i in range(0xFFFF)])
    started = time.process_time()
    made = plan(image, Target(ram(64 * MIB), 1))
    assert len(made.segments) > 0xFFFF
    assert time.process_time() - started < 5
