"""Linux bzImages: the zero page, where everything lies, the starting state, and what is refused in words."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from pyvcpu import ImageError
from pyvcpu.boot import Plan, Target, plan
from tests.images import CODE, FOUR_GIB, GIB, MIB, bzimage, ram
from tests.loaded import Loaded

ZERO_PAGE = 0x2000


def test_start() -> None:
    made = plan(bzimage(), Target(ram(64 * MIB), 4))
    assert (made.format, made.irqchip) == ("linux", "kernel")
    start, *others = made.starts
    assert start is not None
    assert others == [None] * 3
    assert (start.mode, start.entry, start.registers) == ("long", MIB + 0x200, {"rsi": ZERO_PAGE})
    assert start.selectors == (0x10, 0x18)
    memory = Loaded(made)
    assert memory.read(MIB, 0x1000) == CODE.ljust(0x1000, b"\x90")
    assert memory.u64(start.page_table) & 1
    assert memory.u64(start.gdt + 0x10)
    for address, data in made.segments:
        assert address >= 0xE0000 or address + len(data) <= 0x9B000, "the kernel takes room just below 0x9F000"


def test_zero_page() -> None:
    initrd = b"i" * 5000
    target = Target(
        ram(4 * GIB), 1, append="console=ttyS0 x=ä", initrd=[("i", initrd)], acpi=lambda: (0xE0000, b"RSD PTR ")
    )
    image = bzimage()
    memory = Loaded(plan(image, target))
    page = memory.read(ZERO_PAGE, 4096)
    header = bytearray(image[0x1F1:0x26C])
    struct.pack_into("<H", header, 0x1FA - 0x1F1, 0xFFFF)
    header[0x210 - 0x1F1] = 0xFF
    address = 0x7FFF_E000
    struct.pack_into("<2I", header, 0x218 - 0x1F1, address, 5000)
    struct.pack_into("<I", header, 0x228 - 0x1F1, memory_of(page, 0x228))
    struct.pack_into("<Q", header, 0x250 - 0x1F1, 0)
    assert page[0x1F1:0x26C] == header, "all but these fields is the kernel's own"
    assert page[0x26C:0x2D0] == bytes(0x2D0 - 0x26C)
    assert memory.string(memory_of(page, 0x228)) == "console=ttyS0 x=ä".encode()
    assert memory.read(address, 5000) == initrd
    assert int.from_bytes(page[0x70:0x78], "little") == 0xE0000
    assert memory.read(0xE0000, 8) == b"RSD PTR "
    entries = [struct.unpack_from("<2QI", page, 0x2D0 + 20 * i) for i in range(page[0x1E8])]
    assert entries == [
        (0, 0x9FC00, 1),
        (0x9FC00, MIB - 0x9FC00, 2),
        (MIB, 3 * GIB - MIB, 1),
        (FOUR_GIB, GIB, 1),
    ]


def memory_of(page: bytes, at: int) -> int:
    return int.from_bytes(page[at : at + 4], "little")


def test_zero_page_without_extras() -> None:
    page = Loaded(plan(bzimage(), Target(ram(64 * MIB), 1))).read(ZERO_PAGE, 4096)
    assert (memory_of(page, 0x218), memory_of(page, 0x21C), page[0x70:0x78]) == (0, 0, bytes(8))


def test_a_long_header_does_not_reach_the_memory_map() -> None:
    page = Loaded(plan(bzimage(jump=0xFF), Target(ram(64 * MIB), 1))).read(ZERO_PAGE, 4096)
    assert page[0x290:0x2D0] == bytes(0x40)


def test_what_follows_the_code_is_not_loaded() -> None:
    """A signature may stand behind the kernel."""
    made = plan(bzimage(trailer=b"signature"), Target(ram(64 * MIB), 1))
    assert {address: len(data) for address, data in made.segments}[MIB] == 0x1000


def test_no_setup_sectors_means_four() -> None:
    made = plan(bzimage(setup_sects=0), Target(ram(64 * MIB), 1))
    assert Loaded(made).read(MIB, 64) == CODE


@pytest.mark.parametrize(
    ("size", "limit", "top"),
    [(64 * MIB, 0x7FFF_FFFF, 64 * MIB), (64 * MIB, 0x37F_FFFF, 56 * MIB), (4 * GIB, 0x7FFF_FFFF, 2 * GIB)],
)
def test_initrd_is_as_high_as_the_kernel_allows(size: int, limit: int, top: int) -> None:
    made = plan(bzimage(initrd_max=limit), Target(ram(size), 1, initrd=[("i", b"i" * 4097)]))
    assert made.segments[-1][0] == top - 8192


def test_an_empty_initrd_is_none() -> None:
    page = Loaded(plan(bzimage(), Target(ram(64 * MIB), 1, initrd=[("i", b"")]))).read(ZERO_PAGE, 4096)
    assert page[0x218:0x220] == bytes(8)


@pytest.mark.parametrize(
    ("image", "end"),
    [
        (bzimage(pref_address=16 * MIB, init_size=4 * MIB), 20 * MIB),
        (bzimage(pref_address=0, alignment=32 * MIB, init_size=4 * MIB), 36 * MIB),
        (bzimage(pref_address=0, alignment=32 * MIB, relocatable=0, init_size=4 * MIB), 4 * MIB),
        (bzimage(pref_address=0, alignment=0, init_size=0, code=bytes(MIB)), 2 * MIB),
    ],
)
def test_memory_that_the_kernel_needs(image: bytes, end: int) -> None:
    assert plan(image, Target(ram(end), 1)).format == "linux"
    with pytest.raises(ImageError, match=rf"needs RAM up to {end:#x} to start \({end >> 20} MiB\).*more memory"):
        plan(image, Target(ram(end - 4096), 1))
    with pytest.raises(ImageError, match="no room for the initrd 'i'"):
        plan(image, Target(ram(end), 1, initrd=[("i", bytes(16 * MIB))]))


def command_line(made: Plan) -> bytes:
    memory = Loaded(made)
    return memory.string(memory.u32(ZERO_PAGE + 0x228))


def test_command_line_length() -> None:
    assert command_line(plan(bzimage(cmdline_size=5), Target(ram(64 * MIB), 1, append="12345"))) == b"12345"
    with pytest.raises(ImageError, match="at most 5 bytes, not 6"):
        plan(bzimage(cmdline_size=5), Target(ram(64 * MIB), 1, append="1234ä"))
    with pytest.raises(ImageError, match="at most 65535 bytes"):
        plan(bzimage(cmdline_size=0xFFFF_FFFF), Target(ram(64 * MIB), 1, append="x" * 65536))
    longest = plan(bzimage(cmdline_size=0xFFFF_FFFF), Target(ram(64 * MIB), 1, append="x" * 65535))
    assert command_line(longest) == b"x" * 65535


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (bzimage(version=0x20B), "version 2.11 of the boot protocol; 2.12 .Linux 3.8. is the oldest"),
        (bzimage(version=0x200), "version 2.00"),
        (bzimage(loadflags=0), "zImage"),
        (bzimage(xloadflags=2), "XLF_KERNEL_64"),
        (bzimage(jump=0x61), "setup header is shorter"),
        (bzimage()[:0x280], "cut short: it has 640 bytes"),
        (bzimage()[:-1], "cut short: its header says 6144 bytes, and the file has 6143"),
        (bzimage(setup_sects=255)[:6144], "cut short"),
        (bzimage(code=bytes(0x200)), "damaged: its header says that it has 512 bytes"),
        (bzimage(code=b""), "damaged"),
    ],
)
def test_refused(image: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        plan(image, Target(ram(64 * MIB), 1))


def test_two_initrds_and_all_processors() -> None:
    with pytest.raises(ImageError, match="takes one initrd, not 2"):
        plan(bzimage(), Target(ram(64 * MIB), 1, initrd=[("a", b"a"), ("b", b"b")]))
    with pytest.raises(ImageError, match="start must be bsp"):
        plan(bzimage(), Target(ram(64 * MIB), 2, start="all"))


@pytest.fixture(scope="module")
def kernel() -> bytes:
    path = os.environ.get("PYVCPU_GUEST_KERNEL")
    if path is None:
        pytest.skip("PYVCPU_GUEST_KERNEL names no Linux kernel")
    return Path(path).read_bytes()


def test_a_real_kernel(kernel: bytes) -> None:
    made = plan(kernel, Target(ram(256 * MIB), 4, append="console=ttyS0"))
    assert made.format == "linux"
    assert command_line(made) == b"console=ttyS0"


def test_a_real_kernel_in_too_little_memory(kernel: bytes) -> None:
    with pytest.raises(ImageError, match="give the guest more memory"):
        plan(kernel, Target(ram(32 * MIB), 1))
