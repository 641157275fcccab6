"""Linux kernels, through the 64-bit or the 32-bit boot protocol; those that have neither entry go to linux16.

Source: Linux, Documentation/arch/x86/boot.rst and zero-page.rst.
"""

from __future__ import annotations

import struct

from ..errors import ImageError
from ..x86 import paging
from ..x86.start import LINUX_CODE, LINUX_DATA, StartState, linux_gdt
from . import linux_header as at
from .layout import BIOS_AREA, RAM, memory_map, place_files, place_firmware
from .linux_checks import check_command_line, check_one_processor, check_room, initrd
from .linux_header import LOAD, Kernel
from .plan import Free, Plan

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .plan import Segment, Span, Target

# The zero page (struct boot_params).
ACPI_RSDP_ADDR, E820_ENTRIES, E820_TABLE = 0x070, 0x1E8, 0x2D0
E820_ENTRY, E820_MOST = struct.Struct("<2QI"), 128
SCREEN_INFO, EXT_MEM_K, ALT_MEM_K = 0x000, 0x002, 0x1E0
TEXT_MODE, COLUMNS, ROWS, POINTS, IS_VGA = 3, 80, 25, 16, 1

# struct setup_data: the next one's address, type, length, and then the data.
SETUP_DATA = struct.Struct("<QII")
SETUP_E820_EXT, SETUP_DTB = 1, 2
DTB_MAGIC, DTB_HEADER = b"\xd0\x0d\xfe\xed", 40

# Where we put things. The kernel takes room for itself just below the EBDA: keep away from there.
GDT, ZERO_PAGE, PAGE_TABLES, COMMAND_LINE, COMMAND_LINE_END = 0x1000, 0x2000, 0x3000, 0x2_0000, 0x3_0000
MAPPED_GIB = 4
SEGMENTS = (LINUX_CODE, LINUX_DATA)


def plan(image: bytes, target: Target) -> Plan:
    """Plan a Linux kernel: RSI points to the zero page.

    With a 64-bit entry in long mode, the first 4 GiB mapped to themselves; else in protected mode, paging off.
    """
    kernel = Kernel(image)
    check_one_processor(target)
    if kernel.mode == "real":
        from . import linux16

        return linux16.boot(image, kernel, target)
    check_room(kernel, kernel.end, target)
    command_line = check_command_line(kernel, target, COMMAND_LINE_END - COMMAND_LINE - 1)
    firmware, rsdp = place_firmware(target, [])
    used = [(LOAD, kernel.end), BIOS_AREA]
    files = place_files(target, used, kernel.initrd_max + 1)
    ram = memory_map(target.ranges)
    setup_data = _setup_data(kernel, target, ram, used)
    segments: list[Segment] = [
        (GDT, linux_gdt(kernel.mode)),
        (ZERO_PAGE, _zero_page(kernel, ram, initrd(files), rsdp, setup_data)),
        (COMMAND_LINE, command_line),
        *firmware,
        (LOAD, kernel.code),
        *setup_data,
        *files,
    ]
    registers = {"rsi": ZERO_PAGE}
    if kernel.mode == "long":
        start = StartState(
            "long", LOAD + at.ENTRY_64, gdt=GDT, page_table=PAGE_TABLES, selectors=SEGMENTS, registers=registers
        )
        segments.insert(2, (PAGE_TABLES, paging.identity_map(PAGE_TABLES, MAPPED_GIB)))
    else:
        start = StartState("protected", LOAD, gdt=GDT, selectors=SEGMENTS, registers=registers)
    return Plan("linux", segments, [start, *[None] * (target.vcpus - 1)], "kernel")


def _setup_data(kernel: Kernel, target: Target, ram: list[tuple[int, int, int]], used: list[Span]) -> list[Segment]:
    """Return the list of what does not fit into the zero page, the first one's address first."""
    items: list[tuple[int, bytes, str]] = []
    if len(ram) > E820_MOST:
        more = b"".join(_e820(entry) for entry in ram[E820_MOST:])
        items.append((SETUP_E820_EXT, more, "the rest of the memory map"))
    if target.dtb:
        size = int.from_bytes(target.dtb[4:8], "big")
        if not target.dtb.startswith(DTB_MAGIC) or not DTB_HEADER <= size <= len(target.dtb):
            raise ImageError("the device tree is damaged: it must begin with D0 0D FE ED and its size; dtc makes one")
        items.append((SETUP_DTB, target.dtb, "the device tree"))
    if items and kernel.version < 0x209:
        raise ImageError(f"this kernel is too old (before Linux 2.6.26) to be handed {items[0][2]}")
    placed: list[Segment] = []
    free = Free.below(kernel.initrd_max + 1, [*used, (0, LOAD)], target)
    following = 0
    for kind, data, what in reversed(items):
        node = SETUP_DATA.pack(following, kind, len(data)) + data
        following = free.take(len(node), paging.PAGE, what)
        placed.insert(0, (following, node))
    return placed


def _e820(entry: tuple[int, int, int]) -> bytes:
    start, end, kind = entry
    return E820_ENTRY.pack(start, end - start, kind)


def _zero_page(
    kernel: Kernel,
    ram: list[tuple[int, int, int]],
    initrd: tuple[int, int],
    rsdp: int,
    setup_data: list[Segment],
) -> bytes:
    page = bytearray(paging.PAGE)
    page[at.HEADER_START : at.HEADER_START + len(kernel.header)] = kernel.header
    page[at.TYPE_OF_LOADER] = at.LOADER_UNKNOWN
    entries = ram[:E820_MOST]
    page[E820_ENTRIES] = len(entries)
    table = b"".join(_e820(entry) for entry in entries)
    page[E820_TABLE : E820_TABLE + len(table)] = table
    struct.pack_into("<H", page, at.VID_MODE, at.VIDEO_NORMAL)
    struct.pack_into("<I", page, at.CODE32_START, LOAD)
    struct.pack_into("<2I", page, at.RAMDISK_IMAGE, *initrd)
    struct.pack_into("<I", page, at.CMD_LINE_PTR, COMMAND_LINE)
    if kernel.version >= 0x209:
        struct.pack_into("<Q", page, at.SETUP_DATA, setup_data[0][0] if setup_data else 0)
    struct.pack_into("<Q", page, ACPI_RSDP_ADDR, rsdp)
    if kernel.version < 0x20A:
        _for_old_kernels(page, ram)
    return bytes(page)


def _for_old_kernels(page: bytearray, ram: list[tuple[int, int, int]]) -> None:
    """Say what setup code would have asked a BIOS: memory above 1 MiB in KiB, and a text screen.

    There is no screen; but what is written to it goes to memory, and kernels without a number of lines divide by it.
    """
    above = sum(end - start for start, end, kind in ram if kind == RAM and start == LOAD) >> 10
    struct.pack_into("<I", page, ALT_MEM_K, above)
    struct.pack_into("<H", page, EXT_MEM_K, min(above, 0xFFFF))
    page[SCREEN_INFO + 6], page[SCREEN_INFO + 7], page[SCREEN_INFO + 14] = TEXT_MODE, COLUMNS, ROWS
    page[SCREEN_INFO + 15], page[SCREEN_INFO + 16] = IS_VGA, POINTS
