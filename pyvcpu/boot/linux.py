"""Linux bzImages, through the 64-bit boot protocol (Linux, Documentation/arch/x86/boot.rst and zero-page.rst)."""

from __future__ import annotations

import struct

from ..errors import ImageError
from ..x86 import paging
from ..x86.start import LINUX_CODE, LINUX_DATA, StartState, linux_gdt
from .layout import BIOS_AREA, c_string, memory_map, place_files, place_firmware
from .plan import CutShort, Plan

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .plan import Target

MAGIC_AT, MAGIC = 0x202, b"HdrS"
SECTOR = 512

# The setup header: offsets in the image and, copied, in the zero page.
HEADER_START, HEADER_END = 0x1F1, 0x290  # it may not reach what lies behind it in the zero page
SETUP_SECTS, SYSSIZE, VID_MODE, JUMP = 0x1F1, 0x1F4, 0x1FA, 0x201
VERSION, TYPE_OF_LOADER, LOADFLAGS, CODE32_START = 0x206, 0x210, 0x211, 0x214
RAMDISK_IMAGE, RAMDISK_SIZE, CMD_LINE_PTR, INITRD_ADDR_MAX = 0x218, 0x21C, 0x228, 0x22C
KERNEL_ALIGNMENT, RELOCATABLE, XLOADFLAGS, CMDLINE_SIZE = 0x230, 0x234, 0x236, 0x238
SETUP_DATA, PREF_ADDRESS, INIT_SIZE = 0x250, 0x258, 0x260
HEADER_NEEDED = 0x264

OLDEST = 0x020C  # 2.12, Linux 3.8: the first with xloadflags
LOADED_HIGH = 0x01  # loadflags
XLF_KERNEL_64 = 0x01  # xloadflags: there is a 64-bit entry
ENTRY_64 = 0x200  # from where the kernel is loaded
LOADER_UNKNOWN, VIDEO_NORMAL = 0xFF, 0xFFFF

# The zero page (struct boot_params).
ACPI_RSDP_ADDR, E820_ENTRIES, E820_TABLE = 0x070, 0x1E8, 0x2D0
E820_ENTRY = struct.Struct("<2QI")

# Where we put things. The kernel takes room for itself just below the EBDA: keep away from there.
GDT, ZERO_PAGE, PAGE_TABLES, COMMAND_LINE, COMMAND_LINE_END = 0x1000, 0x2000, 0x3000, 0x2_0000, 0x3_0000
LOAD = 0x10_0000
MAPPED_GIB = 4
DEFAULT_ALIGNMENT = 2 << 20


def matches(image: bytes) -> bool:
    """Tell whether the image has a setup header."""
    return image[MAGIC_AT : MAGIC_AT + 4] == MAGIC


class Kernel:
    """A bzImage taken apart: its protected-mode `code`, its setup `header`, and what that says. Raises ImageError."""

    __slots__ = (
        "alignment",
        "cmdline_size",
        "code",
        "header",
        "init_size",
        "initrd_max",
        "pref_address",
        "relocatable",
    )

    def __init__(self, image: bytes) -> None:
        _check_header(image)
        self.header = image[HEADER_START : min(MAGIC_AT + image[JUMP], HEADER_END)]
        start = ((image[SETUP_SECTS] or 4) + 1) * SECTOR
        size = _u32(image, SYSSIZE) * 16
        if start + size > len(image):
            raise CutShort(
                f"the kernel is cut short: its header says {start + size} bytes, and the file has {len(image)}"
            )
        if size <= ENTRY_64:
            raise ImageError(f"the kernel is damaged: its header says that it has {size} bytes of code")
        self.code = memoryview(image)[start : start + size]
        self.alignment = _u32(image, KERNEL_ALIGNMENT)
        self.cmdline_size = _u32(image, CMDLINE_SIZE)
        self.initrd_max = _u32(image, INITRD_ADDR_MAX)
        self.relocatable = image[RELOCATABLE] != 0
        self.pref_address = int.from_bytes(image[PREF_ADDRESS : PREF_ADDRESS + 8], "little")
        self.init_size = _u32(image, INIT_SIZE)

    @property
    def end(self) -> int:
        """Where the memory ends that the kernel needs, from LOAD on, until it has a memory map of its own."""
        start = self.pref_address
        if self.relocatable and self.alignment:
            start = max(start, -(-LOAD // self.alignment) * self.alignment)
        return max(start + self.init_size, LOAD + len(self.code))


def _u32(image: bytes, at: int) -> int:
    return int.from_bytes(image[at : at + 4], "little")


def _check_header(image: bytes) -> None:
    """Raise ImageError unless this is a kernel with a 64-bit entry."""
    if not matches(image):
        raise ImageError("a bzImage has 'HdrS' at offset 0x202; this image has not")
    if len(image) < HEADER_END:
        raise CutShort(f"the kernel is cut short: it has {len(image)} bytes, and its setup header alone has more")
    version = int.from_bytes(image[VERSION : VERSION + 2], "little")
    if version < OLDEST:
        raise ImageError(
            f"the kernel speaks version {version >> 8}.{version & 255:02} of the boot protocol; 2.12 (Linux 3.8) is"
            " the oldest that can be booted"
        )
    if MAGIC_AT + image[JUMP] < HEADER_NEEDED:
        raise ImageError("the kernel is damaged: its setup header is shorter than its version says")
    if not image[LOADFLAGS] & LOADED_HIGH:
        raise ImageError("the kernel is a zImage, to be loaded below 1 MiB; only a bzImage can be booted")
    if not image[XLOADFLAGS] & XLF_KERNEL_64:
        raise ImageError("the kernel has no 64-bit entry (XLF_KERNEL_64): a 32-bit kernel cannot be booted")


def plan(image: bytes, target: Target) -> Plan:
    """Plan a bzImage: its 64-bit entry in long mode, the first 4 GiB mapped to themselves, RSI the zero page."""
    kernel = Kernel(image)
    if target.start == "all":
        raise ImageError("Linux starts the other processors by itself: start must be bsp, not all")
    if not target.holds(0, kernel.end):
        raise ImageError(
            f"this kernel needs RAM up to {kernel.end:#x} to start ({-(-kernel.end >> 20)} MiB), and the RAM ends"
            f" at {target.ranges[0][1]:#x}; give the guest more memory"
        )
    if len(target.initrd) > 1:
        raise ImageError(f"Linux takes one initrd, not {len(target.initrd)}; pack them into one")
    command_line = c_string(target.append)
    longest = min(kernel.cmdline_size, COMMAND_LINE_END - COMMAND_LINE - 1)
    if len(command_line) - 1 > longest:
        raise ImageError(f"this kernel's command line may have at most {longest} bytes, not {len(command_line) - 1}")
    firmware, rsdp = place_firmware(target, [])
    files = place_files(target, [(LOAD, kernel.end), BIOS_AREA], kernel.initrd_max + 1)
    initrd = (files[0][0], len(files[0][1])) if files and len(files[0][1]) else (0, 0)
    start = StartState(
        "long",
        LOAD + ENTRY_64,
        gdt=GDT,
        page_table=PAGE_TABLES,
        selectors=(LINUX_CODE, LINUX_DATA),
        registers={"rsi": ZERO_PAGE},
    )
    return Plan(
        "linux",
        [
            (GDT, linux_gdt()),
            (ZERO_PAGE, _zero_page(kernel, target, initrd, rsdp)),
            (PAGE_TABLES, paging.identity_map(PAGE_TABLES, MAPPED_GIB)),
            (COMMAND_LINE, command_line),
            *firmware,
            (LOAD, kernel.code),
            *files,
        ],
        [start, *[None] * (target.vcpus - 1)],
        "kernel",
    )


def _zero_page(kernel: Kernel, target: Target, initrd: tuple[int, int], rsdp: int) -> bytes:
    page = bytearray(paging.PAGE)
    page[HEADER_START : HEADER_START + len(kernel.header)] = kernel.header
    page[TYPE_OF_LOADER] = LOADER_UNKNOWN
    ram = memory_map(target.ranges)
    page[E820_ENTRIES] = len(ram)
    for i, (start, end, kind) in enumerate(ram):
        E820_ENTRY.pack_into(page, E820_TABLE + i * E820_ENTRY.size, start, end - start, kind)
    struct.pack_into("<H", page, VID_MODE, VIDEO_NORMAL)
    struct.pack_into("<I", page, CODE32_START, LOAD)
    struct.pack_into("<2I", page, RAMDISK_IMAGE, *initrd)
    struct.pack_into("<I", page, CMD_LINE_PTR, COMMAND_LINE)
    struct.pack_into("<Q", page, SETUP_DATA, 0)
    struct.pack_into("<Q", page, ACPI_RSDP_ADDR, rsdp)
    return bytes(page)
