"""What the loaders share: recognition, the memory map, where ACPI tables and boot information go, command lines."""

from __future__ import annotations

import itertools

import pytest

from pyvcpu import ConfigError, ImageError
from pyvcpu.boot import FORMATS, Target, detect, plan
from pyvcpu.boot.layout import (
    BIOS_DATA,
    BIOS_DATA_AREA,
    RESET_CODE,
    RESET_VECTOR,
    c_string,
    memory_map,
    place_firmware,
    place_info,
)
from pyvcpu.boot.multiboot import split_modules
from pyvcpu.kvm.abi.basic import kvm_regs, kvm_sregs
from pyvcpu.x86.start import StartState, linux_gdt, set_start
from tests.images import (
    FOUR_GIB,
    GIB,
    MIB,
    Segment,
    bzimage,
    elf,
    multiboot2_elf,
    multiboot_elf,
    multiboot_flat,
    pvh,
    ram,
    zimage,
)

BOOT_SECTOR = b"\xf4".ljust(510, b"\0") + b"\x55\xaa"
IMAGES = {
    "linux": bzimage(),
    "linux16": zimage(),
    "multiboot": multiboot_flat(),
    "multiboot2": multiboot2_elf(),
    "elf": elf([Segment(MIB, b"\xf4")]),
    "bootsector": BOOT_SECTOR,
    "flat": b"\xf4",
}


@pytest.mark.parametrize("name", IMAGES)
def test_recognised(name: str) -> None:
    assert detect(IMAGES[name]) == name
    assert plan(IMAGES[name], Target(ram(32 * MIB), 2)).format == name


def test_recognition_order() -> None:
    """A bzImage is a boot sector, too; a Multiboot image is an ELF image, too."""
    assert IMAGES["linux"][510:512] == b"\x55\xaa"
    assert detect(multiboot_elf()) == "multiboot"
    assert detect(pvh()) == "elf"
    assert plan(pvh(), Target(ram(32 * MIB), 1)).format == "pvh"


def test_the_number_of_multiboot_without_its_checksum_is_chance() -> None:
    image = bytes(16) + b"\x02\xb0\xad\x1b" + bytes(64)
    assert detect(image) == "flat"
    with pytest.raises(ImageError, match="checksum"):
        plan(image, Target(ram(MIB), 1), "multiboot")


@pytest.mark.parametrize("name", [*IMAGES, "pvh"])
@pytest.mark.parametrize("image", [b"\xf4", b"\x7fEL", b"\x7fELF", bytes(1024)])
def test_forced_formats_raise_image_errors_only(name: str, image: bytes) -> None:
    try:
        made = plan(image, Target(ram(MIB), 1), name)
    except ImageError:
        return
    assert made.format == name == "flat"


def test_formats() -> None:
    assert set(FORMATS) == {*IMAGES, "pvh"}
    with pytest.raises(
        ConfigError, match=r"bootsector, elf, flat, linux, linux16, multiboot, multiboot2, pvh, not 'pe'"
    ):
        plan(b"\xf4", Target(ram(MIB), 1), "pe")


@pytest.mark.parametrize("image", [elf([Segment(MIB, bytes(4 * MIB))]), bzimage(code=bytes(4 * MIB))])
def test_images_larger_than_the_guest(image: bytes) -> None:
    """Of a file larger than RAM, no more is read than shows it: that it is cut short would be no help."""
    read = image[: 2 * MIB + 1]
    with pytest.raises(ImageError, match=r"^the image is larger than the guest's RAM; give the guest more memory$"):
        plan(read, Target(ram(2 * MIB), 1))
    with pytest.raises(ImageError, match="cut short"):
        plan(read, Target(ram(64 * MIB), 1))


@pytest.mark.parametrize("name", ["flat", "bootsector", "elf"])
def test_device_trees_go_to_linux_only(name: str) -> None:
    with pytest.raises(ImageError, match=f"a device tree can be given to Linux images only; .* taken for {name}"):
        plan(IMAGES[name], Target(ram(MIB * 2), 1, dtb=b"x"))


@pytest.mark.parametrize("name", ["flat", "bootsector", "elf"])
@pytest.mark.parametrize("options", [{"append": "quiet"}, {"initrd": [("a", b"b")]}])
def test_images_that_are_handed_nothing(name: str, options: dict[str, str]) -> None:
    with pytest.raises(ImageError, match=f"taken for {name}"):
        plan(IMAGES[name], Target(ram(MIB * 2), 1, **options))  # type: ignore[arg-type]  # a table of many kinds


@pytest.mark.parametrize("name", ["linux", "multiboot", "multiboot2", "elf"])
def test_the_image_is_not_copied(name: str) -> None:
    """A kernel has many megabytes: its bytes go from the file's into the guest's memory without a stop."""
    made = plan(IMAGES[name], Target(ram(32 * MIB), 1))
    (code,) = [data for address, data in made.segments if address == MIB]
    assert isinstance(code, memoryview)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (512 << 10, [(0, 0x80000, 1)]),
        (640 << 10, [(0, 0x9FC00, 1), (0x9FC00, 0xA0000, 2)]),
        (MIB, [(0, 0x9FC00, 1), (0x9FC00, MIB, 2)]),
        (64 * MIB, [(0, 0x9FC00, 1), (0x9FC00, MIB, 2), (MIB, 64 * MIB, 1)]),
        (
            5 * GIB,
            [(0, 0x9FC00, 1), (0x9FC00, MIB, 2), (MIB, 3 * GIB, 1), (FOUR_GIB, 6 * GIB, 1)],
        ),
    ],
)
def test_memory_map(size: int, expected: list[tuple[int, int, int]]) -> None:
    assert memory_map(ram(size)) == expected


def test_memory_map_has_no_overlaps() -> None:
    for size in (4096, 0x9F000, 0x9FC00, 0xA0000, MIB + 4096, 3 * GIB, 9 * GIB):
        entries = memory_map(ram(size))
        assert all(start < end for start, end, _ in entries)
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(entries))
        assert sum(end - start for start, end, _ in entries) == size


def test_firmware_gives_way() -> None:
    """ACPI tables, data area and reset vector are there unless the image lies there, or no RAM is."""
    tables = Target(ram(2 * MIB), 1, acpi=lambda: (0xE0000, bytes(0x1000)))
    acpi, reset, data = (0xE0000, bytes(0x1000)), (RESET_VECTOR, RESET_CODE), (BIOS_DATA, BIOS_DATA_AREA)
    around = [(0x1000, 0xE0000), (0xE1000, 0xFFFF0), (MIB, 2 * MIB)]
    assert place_firmware(tables, around) == ([reset, data, acpi], 0xE0000)
    assert place_firmware(tables, [(0xE0FFF, 0xE1000)]) == ([reset, data], 0)
    assert place_firmware(tables, [(0xFFFF6, 0xFFFF7)]) == ([data, acpi], 0xE0000)
    assert place_firmware(tables, [(0x414, 0x415)]) == ([reset, acpi], 0xE0000)
    assert place_firmware(tables, [(0, MIB)]) == ([], 0)
    assert place_firmware(Target(ram(2 * MIB), 1), []) == ([reset, data], 0)
    assert place_firmware(Target(ram(0xE0800), 1, acpi=tables.acpi), []) == ([data], 0)
    assert place_firmware(Target(ram(0x9F000), 1, acpi=tables.acpi), []) == ([], 0)


def test_bios_data_area() -> None:
    """COM1 at 0x3F8, the EBDA at 9FC0:0, one serial port, 639 KiB."""
    assert b"\xf8\x03" + bytes(12) + b"\xc0\x9f" + b"\0\x02" + b"\0" + b"\x7f\x02" == BIOS_DATA_AREA
    assert BIOS_DATA + BIOS_DATA_AREA.index(b"\x7f\x02") == 0x413


@pytest.mark.parametrize("image", [IMAGES["linux"], IMAGES["multiboot"], IMAGES["elf"], pvh()])
def test_reset_vector(image: bytes) -> None:
    """F000:FFF0 is where guests jump to restart a PC; tests/kvm/test_loaders.py jumps there."""
    made = plan(image, Target(ram(32 * MIB), 1))
    assert (0xFFFF0, b"\xb0\xfe\xe6\x64\xf4\xeb\xfd") in made.segments


def test_boot_information_is_in_conventional_memory_while_there_is_room() -> None:
    target = Target(ram(4 * GIB), 1)

    def build(base: int) -> bytes:
        return base.to_bytes(8, "little")

    assert place_info(build, [], target) == (0x9F000, build(0x9F000))
    assert place_info(build, [(0x9F000, 0x9F001)], target)[0] == 0x9E000
    assert place_info(build, [(0, MIB)], target)[0] == GIB - 0x1000
    assert place_info(build, [(0, MIB)], Target(ram(2 * MIB), 1))[0] == 2 * MIB - 0x1000
    with pytest.raises(ImageError, match="no room for the boot information"):
        place_info(build, [(0x1000, MIB)], Target(ram(MIB), 1))


def test_command_lines() -> None:
    assert c_string("") == b"\0"
    assert c_string("käse \udcff") == "käse ".encode() + b"\xff\0", "as the shell gave it"
    with pytest.raises(ImageError, match="zero character"):
        c_string("a\0b")
    with pytest.raises(ImageError, match="UTF-8"):
        c_string("\ud800")


@pytest.mark.parametrize(
    ("text", "modules"),
    [
        ("a.bin", [("a.bin", "a.bin")]),
        ("a.bin x=1 y,b.bin", [("a.bin", "a.bin x=1 y"), ("b.bin", "b.bin")]),
        ("a,,b c,,d, e ", [("a,b", "a,b c,d"), ("e", "e")]),
        ("", []),
        (",", []),
    ],
)
def test_split_modules(text: str, modules: list[tuple[str, str]]) -> None:
    assert split_modules(text) == modules


def reset_state() -> tuple[kvm_regs, kvm_sregs]:
    """Return registers with what matters of the state after reset."""
    regs, sregs = kvm_regs(), kvm_sregs()
    sregs.cr0 = 0x6000_0010
    sregs.tr.limit, sregs.tr.type, sregs.tr.present = 0xFFFF, 3, 1
    return regs, sregs


def test_protected_mode_is_what_pvh_asks_for() -> None:
    """CR0 has PE and ET and no other bit, CR4 none; flat segments; a busy 32-bit TSS at 0 with limit 0x67."""
    regs, sregs = reset_state()
    set_start(StartState("protected", MIB, gdt=0x1000, registers={"rbx": 0x1040}), regs, sregs)
    assert (sregs.cr0, sregs.cr4, sregs.efer) == (0x11, 0, 0)
    assert (regs.rip, regs.rbx, regs.rflags) == (MIB, 0x1040, 2)
    assert (sregs.cs.selector, sregs.cs.base, sregs.cs.limit, sregs.cs.db, sregs.cs.l) == (8, 0, 0xFFFF_FFFF, 1, 0)
    for segment in (sregs.ds, sregs.es, sregs.ss):
        assert (segment.selector, segment.base, segment.limit, segment.db) == (0x10, 0, 0xFFFF_FFFF, 1)
    assert (sregs.tr.base, sregs.tr.limit, sregs.tr.type, sregs.tr.s, sregs.tr.present) == (0, 0x67, 0xB, 0, 1)


def test_long_mode_is_what_linux_asks_for() -> None:
    """Paging on, CS is __BOOT_CS (0x10) and the others __BOOT_DS (0x18), as the descriptor table has them."""
    regs, sregs = reset_state()
    start = StartState("long", MIB, gdt=0x1000, page_table=0x3000, selectors=(0x10, 0x18))
    set_start(start, regs, sregs)
    assert (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) == (0x8000_0011, 0x3000, 0x20, 0x500)
    assert (sregs.cs.selector, sregs.cs.l, sregs.cs.db) == (0x10, 1, 0)
    assert {s.selector for s in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss)} == {0x18}
    assert (sregs.gdt.base, sregs.gdt.limit) == (0x1000, len(linux_gdt()) - 1)
    code, data = (int.from_bytes(linux_gdt()[at : at + 8], "little") for at in (0x10, 0x18))
    assert (code >> 53 & 1, code >> 54 & 1, code >> 43 & 1) == (1, 0, 1), "64-bit code"
    assert (data >> 43 & 1, data >> 41 & 1) == (0, 1), "writable data"
