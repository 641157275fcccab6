"""Linux through its real-mode entry: which images go there, what lies where, and the header as it is filled in."""

from __future__ import annotations

import struct

import pytest

from pyvcpu import ImageError, StartState
from pyvcpu.boot import Plan, Target, detect, plan
from pyvcpu.kvm.abi.basic import kvm_regs, kvm_sregs
from pyvcpu.x86.start import set_start
from tests.images import CODE, GIB, MIB, bzimage, ram, zimage
from tests.loaded import Loaded

SETUP, COMMAND_LINE = 0x90000, 0x9E000
BODY = CODE.ljust(0x1000, b"\x90")


def first(made: Plan) -> StartState:
    start = made.starts[0]
    assert start is not None
    return start


@pytest.mark.parametrize(
    ("image", "load"),
    [
        (bzimage(version=0x202), MIB),
        (bzimage(version=0x200, jump=0x24), MIB),
        (bzimage(version=0x207, code32_start=0, code=BODY[:-7]), MIB),  # as iPXE is
        (bzimage(version=0x203, syssize=0), MIB),  # as memdisk is
        (bzimage(version=0x20F, loadflags=0), 0x10000),
        (zimage(), 0x10000),
    ],
)
def test_images_that_have_no_other_entry(image: bytes, load: int) -> None:
    made = plan(image, Target(ram(64 * MIB), 2))
    assert (made.format, made.irqchip, made.starts[1]) == ("linux16", "kernel", None)
    start = first(made)
    assert (start.mode, start.entry, start.code_base, start.registers) == ("real", 0x90200, 0x90200, {})
    assert (start.stack, start.stack_base) == (0x9E000, 0x90000)
    memory = Loaded(made)
    assert memory.read(load, len(BODY) - 7) == BODY[:-7]
    assert memory.read(SETUP, 0x1F1) == image[:0x20] + memory.read(SETUP + 0x20, 4) + image[0x24:0x1F1]


def test_start_registers() -> None:
    """CS is 0x20 above the other segments (boot.rst, "Running the kernel")."""
    regs, sregs = kvm_regs(), kvm_sregs()
    set_start(first(plan(zimage(), Target(ram(MIB), 1))), regs, sregs)
    assert (sregs.cs.selector, sregs.cs.base, regs.rip) == (0x9020, 0x90200, 0)
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        assert (segment.selector, segment.base) == (0x9000, 0x90000)
    assert (regs.rsp, regs.rflags) == (0xE000, 2)


def test_any_kernel_when_said() -> None:
    image = bzimage()
    made = plan(image, Target(ram(GIB), 1, append="quiet", initrd=[("i", b"i" * 5000)]), "linux16")
    memory = Loaded(made)
    expected = bytearray(image[:2048])
    struct.pack_into("<H", expected, 0x1FA, 0xFFFF)
    expected[0x210], expected[0x211] = 0xFF, 0x81
    struct.pack_into("<2I", expected, 0x218, GIB - 8192, 5000)
    struct.pack_into("<H", expected, 0x224, 0xDE00)
    struct.pack_into("<I", expected, 0x228, COMMAND_LINE)
    assert memory.read(SETUP, 2048) == expected
    assert memory.string(COMMAND_LINE) == b"quiet"
    assert memory.read(GIB - 8192, 5000) == b"i" * 5000
    assert memory.read(MIB, len(BODY)) == BODY


@pytest.mark.parametrize("version", [0x200, 0x201])
def test_command_lines_before_version_2_02(version: int) -> None:
    memory = Loaded(plan(bzimage(version=version), Target(ram(64 * MIB), 1, append="ro")))
    assert memory.read(SETUP + 0x20, 4) == struct.pack("<2H", 0xA33F, 0xE000)
    assert memory.read(SETUP + 0x212, 2) == struct.pack("<H", 0xE003)
    assert memory.read(SETUP + 0x228, 4) == bytes(4)
    assert memory.read(SETUP + 0x224, 2) == (struct.pack("<H", 0xDE00) if version == 0x201 else bytes(2))


def test_before_there_was_a_header() -> None:
    image = zimage()
    assert detect(image) == "linux16"
    memory = Loaded(plan(image, Target(ram(MIB), 1, append="x")))
    expected = bytearray(image[:2560])
    struct.pack_into("<2H", expected, 0x20, 0xA33F, 0xE000)
    struct.pack_into("<H", expected, 0x1FA, 0xFFFF)
    assert memory.read(SETUP, 2560) == expected
    with pytest.raises(ImageError, match=r"too old .protocol before 2.00. to be handed an initrd"):
        plan(image, Target(ram(MIB), 1, initrd=[("i", b"i")]))


@pytest.mark.parametrize("more", [b"\0", bytes(512)])
def test_boot_sectors_whose_sizes_do_not_add_up_are_boot_sectors(more: bytes) -> None:
    assert detect(zimage() + more) == "bootsector"
    assert detect(zimage()[: -len(more) - 15]) == "bootsector"
    assert detect(zimage(code=b"")[:2560]) == "bootsector"


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (zimage(code=bytes(0x80010)), "a zImage, to be loaded below 0x90000, and has too much code"),
        (bzimage(loadflags=0, code=bytes(0x80010)), "a zImage, to be loaded below 0x90000, and has too much code"),
        (bzimage(setup_sects=110), "setup code, of 56832 bytes, leaves no room for its stack"),
        (bzimage(code=bytes(8 * MIB)), "needs RAM up to 0x900000 to start .9 MiB."),
        (bzimage(version=0x205)[:-16], "cut short"),
        (CODE, "'HdrS' at offset 0x202"),
    ],
)
def test_refused(image: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        plan(image, Target(ram(8 * MIB), 1), "linux16")


def test_what_linux_does_not_take() -> None:
    for options in ({"start": "all"}, {"append": "x" * 256}, {"initrd": [("a", b""), ("b", b"")]}, {"dtb": b"x"}):
        with pytest.raises(ImageError):
            plan(bzimage(version=0x202), Target(ram(8 * MIB), 1, **options))
    with pytest.raises(ImageError, match="needs RAM up to 0x9fc00"):
        plan(zimage(), Target([(0, 0x9F000)], 1))
