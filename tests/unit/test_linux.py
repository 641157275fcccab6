"""Linux bzImages: the zero page, where everything lies, the starting state, and what is refused in words."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from pyvcpu import ImageError
from pyvcpu.boot import Plan, Target, plan
from tests.images import CODE, FOUR_GIB, GIB, MIB, bzimage, pvh, ram
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
        (bzimage(version=0x1FF), "damaged: there is no version 1.255 of its header"),
        (bzimage(jump=0x61), "setup header is shorter"),
        (bzimage(version=0x209, jump=0x55), "setup header is shorter"),
        (bzimage(version=0x203, jump=0x2D), "setup header is shorter"),
        (bzimage()[:0x280], "cut short: it has 640 bytes"),
        (bzimage(setup_sects=9)[:0x1000], "cut short: its setup code has 5120 bytes, and the file 4096"),
        (bzimage()[:-16], "cut short: its header says 6144 bytes, and the file has 6128"),
        (bzimage(setup_sects=255)[:6144], "cut short"),
        (bzimage(code=bytes(0x200)), "damaged: its header says that it has 512 bytes"),
        (bzimage(code=b""), "damaged"),
        (bzimage(version=0x203, code=b"", syssize=1), "damaged: its header says that it has 0 bytes"),
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


# The 32-bit protocol.


@pytest.mark.parametrize("version", [0x203, 0x205, 0x209, 0x20B, 0x20C, 0x20F])
def test_32_bit_entry(version: int) -> None:
    """Paging off, CS and the others the segments of Linux, ESI the zero page, all other registers zero."""
    made = plan(bzimage(version=version, xloadflags=2), Target(ram(64 * MIB), 2))
    assert (made.format, made.irqchip) == ("linux", "kernel")
    start, other = made.starts
    assert start is not None
    assert other is None
    assert (start.mode, start.entry, start.registers, start.stack) == ("protected", MIB, {"rsi": ZERO_PAGE}, 0)
    assert (start.selectors, start.page_table) == ((0x10, 0x18), 0)
    memory = Loaded(made)
    assert memory.read(start.gdt, 32) == bytes(16) + bytes.fromhex("ffff0000009bcf00 ffff00000093cf00")
    assert memory.read(MIB, 64) == CODE
    assert memory.read(ZERO_PAGE + 0x1F1, 4) == bzimage()[0x1F1:0x1F5]


def test_versions_without_xloadflags_have_no_64_bit_entry() -> None:
    start = plan(bzimage(version=0x20B, xloadflags=3), Target(ram(64 * MIB), 1)).starts[0]
    assert start is not None
    assert start.mode == "protected"


def test_zero_page_of_old_kernels() -> None:
    """2.09: memory above 1 MiB in KiB, twice, and a text screen of 80 by 25."""
    page = Loaded(plan(bzimage(version=0x209), Target(ram(64 * MIB), 1))).read(ZERO_PAGE, 4096)
    assert memory_of(page, 0x1E0) == 63 << 10
    assert page[0x02:0x04] == struct.pack("<H", 63 << 10)
    assert (page[6], page[7], page[14], page[15], page[16]) == (3, 80, 25, 1, 16)
    large = Loaded(plan(bzimage(version=0x203), Target(ram(4 * GIB), 1))).read(ZERO_PAGE, 4096)
    assert memory_of(large, 0x1E0) == (3 * GIB - MIB) >> 10
    assert large[0x02:0x04] == b"\xff\xff"
    newer = Loaded(plan(bzimage(version=0x20A), Target(ram(64 * MIB), 1))).read(ZERO_PAGE, 4096)
    assert newer[:0x70] == bytes(0x70)


@pytest.mark.parametrize(("version", "limit"), [(0x202, 0x3800_0000), (0x203, 0x3F00_0000), (0x20F, 0x3F00_0000)])
def test_highest_address_of_an_initrd(version: int, limit: int) -> None:
    image = bzimage(version=version, initrd_max=0x3EFF_FFFF)
    assert plan(image, Target(ram(GIB), 1, initrd=[("i", b"i")])).segments[-1][0] == limit - 4096


def test_command_line_length_of_old_kernels() -> None:
    image = bzimage(version=0x205, cmdline_size=2047)
    assert command_line(plan(image, Target(ram(64 * MIB), 1, append="x" * 255))) == b"x" * 255
    with pytest.raises(ImageError, match="at most 255 bytes, not 256"):
        plan(image, Target(ram(64 * MIB), 1, append="x" * 256))


def test_memory_of_kernels_that_do_not_say_what_they_need() -> None:
    """Before 2.10: 1 MiB, five times what is in the file, 1 MiB."""
    image = bzimage(version=0x209, code=bytes(MIB))
    assert plan(image, Target(ram(7 * MIB), 1)).format == "linux"
    with pytest.raises(ImageError, match=r"needs RAM up to 0x700000 to start .7 MiB.*more memory"):
        plan(image, Target(ram(7 * MIB - 4096), 1))


def test_no_amount_of_memory_helps() -> None:
    with pytest.raises(ImageError, match=r"needs RAM up to 0xc0001000 .*ends at 0xc0000000$"):
        plan(bzimage(pref_address=3 * GIB - 4 * MIB + 4096), Target(ram(5 * GIB), 1))
    with pytest.raises(
        ImageError, match=r"no room for the initrd 'i' \(8192 bytes\) beside the image and below 0x700000"
    ):
        plan(
            bzimage(pref_address=MIB, relocatable=0, init_size=6 * MIB, initrd_max=0x6F_FFFF),
            Target(ram(64 * MIB), 1, initrd=[("i", bytes(8192))]),
        )


@pytest.mark.parametrize("missing", [0, 1, 8, 15])
@pytest.mark.parametrize("xloadflags", [2, 3])
def test_the_last_bytes_of_a_kernel_may_be_missing(missing: int, xloadflags: int) -> None:
    """The header counts in 16 bytes, rounded up: memtest86+ ends where its code does."""
    code = CODE.ljust(0x1000 - missing, b"\x90")
    made = plan(bzimage(code=code, xloadflags=xloadflags), Target(ram(64 * MIB), 1))
    assert Loaded(made).read(MIB, len(code)) == code


def test_sizes_before_version_2_04_are_not_to_be_trusted() -> None:
    made = plan(bzimage(version=0x203, syssize=1), Target(ram(64 * MIB), 1))
    assert Loaded(made).read(MIB, 0x1000) == CODE.ljust(0x1000, b"\x90")


# struct setup_data.

DTB = b"\xd0\x0d\xfe\xed" + (0x30).to_bytes(4, "big") + bytes(0x28)


def setup_data(made: Plan) -> list[tuple[int, bytes]]:
    """Return type and data of each in the list that the zero page points to."""
    memory, found = Loaded(made), []
    at = memory.u64(ZERO_PAGE + 0x250)
    while at:
        following, kind, size = struct.unpack("<QII", memory.read(at, 16))
        assert at >= MIB
        found.append((kind, memory.read(at + 16, size)))
        at = following
    return found


@pytest.mark.parametrize("xloadflags", [2, 3])
def test_device_tree(xloadflags: int) -> None:
    target = Target(ram(64 * MIB), 1, dtb=DTB, initrd=[("i", bytes(8192))])
    assert setup_data(plan(bzimage(xloadflags=xloadflags), target)) == [(2, DTB)]
    assert setup_data(plan(bzimage(version=0x209), target)) == [(2, DTB)]


def test_device_trees_that_cannot_be_handed_over() -> None:
    for dtb in (b"\xd0\x0d\xfe\xed", DTB[:-1], b"/dts-v1/;"):
        with pytest.raises(ImageError, match="device tree is damaged"):
            plan(bzimage(), Target(ram(64 * MIB), 1, dtb=dtb))
    with pytest.raises(ImageError, match=r"too old .before Linux 2.6.26. to be handed the device tree"):
        plan(bzimage(version=0x208), Target(ram(64 * MIB), 1, dtb=DTB))
    for image in (bzimage(version=0x201), pvh()):
        with pytest.raises(ImageError, match="device tree"):
            plan(image, Target(ram(64 * MIB), 1, dtb=DTB))


@pytest.mark.parametrize("count", [126, 127, 200])
def test_memory_maps_of_more_than_128_entries(count: int) -> None:
    """The zero page has room for 128; what is more goes into a list."""
    ranges = [(0, 64 * MIB), *((FOUR_GIB + 2 * i * MIB, FOUR_GIB + (2 * i + 1) * MIB) for i in range(count - 1))]
    made = plan(bzimage(), Target(ranges, 1, dtb=DTB))
    page = Loaded(made).read(ZERO_PAGE, 4096)
    assert page[0x1E8] == min(count + 2, 128)
    table, data = page[0x2D0 : 0x2D0 + 20 * page[0x1E8]], setup_data(made)
    if count > 126:
        assert [kind for kind, _ in data] == [1, 2]
        table += data[0][1]
    else:
        assert data == [(2, DTB)]
    entries = [struct.unpack_from("<2QI", table, at) for at in range(0, len(table), 20)]
    assert entries == [
        (0, 0x9FC00, 1),
        (0x9FC00, MIB - 0x9FC00, 2),
        (MIB, 63 * MIB, 1),
        *((start, MIB, 1) for start, _ in ranges[1:]),
    ]


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
