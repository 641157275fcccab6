"""The setup header of a Linux kernel, of any version, and what it says (Linux, Documentation/arch/x86/boot.rst)."""

from __future__ import annotations

from ..errors import ImageError
from .plan import CutShort

MAGIC_AT, MAGIC = 0x202, b"HdrS"
SECTOR = 512
BOOT_FLAG_AT, BOOT_FLAG = 0x1FE, b"\x55\xaa"

# The setup header: offsets in the image and, copied, in the zero page.
HEADER_START, HEADER_END = 0x1F1, 0x290  # it may not reach what lies behind it in the zero page
SETUP_SECTS, SYSSIZE, VID_MODE, JUMP = 0x1F1, 0x1F4, 0x1FA, 0x201
VERSION, TYPE_OF_LOADER, LOADFLAGS, CODE32_START = 0x206, 0x210, 0x211, 0x214
RAMDISK_IMAGE, RAMDISK_SIZE, HEAP_END_PTR, CMD_LINE_PTR, INITRD_ADDR_MAX = 0x218, 0x21C, 0x224, 0x228, 0x22C
KERNEL_ALIGNMENT, RELOCATABLE, XLOADFLAGS, CMDLINE_SIZE = 0x230, 0x234, 0x236, 0x238
SETUP_DATA, PREF_ADDRESS, INIT_SIZE = 0x250, 0x258, 0x260
# Where the header ends, from the version on.
ENDS = ((0x20A, 0x264), (0x209, 0x258), (0x206, 0x23C), (0x205, 0x235), (0x203, 0x230), (0x202, 0x22C), (0x200, 0x226))

LOADED_HIGH, CAN_USE_HEAP = 0x01, 0x80  # loadflags
XLF_KERNEL_64 = 0x01  # xloadflags: there is a 64-bit entry
LOADER_UNKNOWN, VIDEO_NORMAL = 0xFF, 0xFFFF
ENTRY_64 = 0x200  # from where the kernel is loaded
LOAD = 0x10_0000
OLD_INITRD_MAX, OLD_CMDLINE_SIZE = 0x37FF_FFFF, 255
PARAGRAPH = 16
GROWTH, SCRATCH = 5, 1 << 20  # how much memory a kernel is given that does not say what it needs


def matches(image: bytes) -> bool:
    """Tell whether the image has a setup header."""
    return image[MAGIC_AT : MAGIC_AT + 4] == MAGIC


def matches_without_header(image: bytes) -> bool:
    """Tell whether this is an image from before version 2.00: a boot sector whose two sizes add up to the file's."""
    if image[BOOT_FLAG_AT : BOOT_FLAG_AT + 2] != BOOT_FLAG or matches(image) or not image[SETUP_SECTS]:
        return False
    said = (image[SETUP_SECTS] + 1) * SECTOR + _number(image, SYSSIZE, 2) * PARAGRAPH
    return len(image) > (image[SETUP_SECTS] + 1) * SECTOR and 0 <= said - len(image) < PARAGRAPH


class Kernel:
    """A kernel taken apart: its protected-mode `code`, its setup `header`, and what that says. Raises ImageError.

    `mode` is that of the best entry: "long", "protected", or "real" for one that asks a BIOS before it goes on. What
    the header is too old to say is as boot.rst has it for such kernels; `version` is 0 without any.
    """

    __slots__ = (
        "alignment",
        "cmdline_size",
        "code",
        "header",
        "init_size",
        "initrd_max",
        "is_high",
        "mode",
        "pref_address",
        "relocatable",
        "setup_size",
        "version",
    )

    def __init__(self, image: bytes) -> None:
        self.version = _version(image)
        self.header = image[HEADER_START : min(MAGIC_AT + image[JUMP], HEADER_END)] if self.version else b""
        self.setup_size = ((image[SETUP_SECTS] or 4) + 1) * SECTOR
        self.is_high = self.version >= 0x200 and bool(image[LOADFLAGS] & LOADED_HIGH)
        self.code = self._code(image)

        def since(version: int, at: int, size: int, otherwise: int) -> int:
            return _number(image, at, size) if self.version >= version else otherwise

        self.alignment = since(0x205, KERNEL_ALIGNMENT, 4, 0)
        self.cmdline_size = since(0x206, CMDLINE_SIZE, 4, OLD_CMDLINE_SIZE)
        self.initrd_max = since(0x203, INITRD_ADDR_MAX, 4, OLD_INITRD_MAX)
        self.relocatable = since(0x205, RELOCATABLE, 1, 0) != 0
        self.pref_address = since(0x20A, PREF_ADDRESS, 8, 0)
        self.init_size = since(0x20A, INIT_SIZE, 4, 0)
        if self.version >= 0x20C and image[XLOADFLAGS] & XLF_KERNEL_64 and self.is_high:
            self.mode = "long"
        else:
            # Boot loaders that call themselves kernels say 0 for their size or their entry: they have no 32-bit one.
            has_entry = self.is_high and _number(image, CODE32_START, 4) and _number(image, SYSSIZE, 4)
            self.mode = "protected" if self.version >= 0x203 and has_entry else "real"
        if self.mode != "real" and len(self.code) <= (ENTRY_64 if self.mode == "long" else 0):
            raise ImageError(f"the kernel is damaged: its header says that it has {len(self.code)} bytes of code")

    def _code(self, image: bytes) -> memoryview:
        """Return the protected-mode code. The header counts in units of 16 bytes; the last unit may be cut short."""
        start = self.setup_size
        if start > len(image):
            raise CutShort(f"the kernel is cut short: its setup code has {start} bytes, and the file {len(image)}")
        rest = len(image) - start
        if self.is_high and self.version < 0x204:  # the size has two bytes, and is not to be trusted
            return memoryview(image)[start:]
        size = _number(image, SYSSIZE, 4 if self.version >= 0x204 else 2) * PARAGRAPH
        if size - rest >= PARAGRAPH:
            raise CutShort(
                f"the kernel is cut short: its header says {start + size} bytes, and the file has {len(image)}"
            )
        return memoryview(image)[start : start + size]

    @property
    def end(self) -> int:
        """Where the memory ends that the kernel needs, from LOAD on, until it has a memory map of its own.

        A guess for kernels from before version 2.10, which do not say.
        """
        if self.version < 0x20A:
            return LOAD + GROWTH * len(self.code) + SCRATCH
        start = self.pref_address
        if self.relocatable and self.alignment:
            start = max(start, -(-LOAD // self.alignment) * self.alignment)
        return max(start + self.init_size, LOAD + len(self.code))


def _number(image: bytes, at: int, size: int) -> int:
    return int.from_bytes(image[at : at + size], "little")


def _version(image: bytes) -> int:
    """Return the version of the boot protocol, 0x20F for 2.15; raise ImageError unless the header is whole."""
    if not matches(image):
        if matches_without_header(image):
            return 0
        raise ImageError("a Linux kernel has 'HdrS' at offset 0x202; this image has not")
    if len(image) < HEADER_END:
        raise CutShort(f"the kernel is cut short: it has {len(image)} bytes, and its setup header alone has more")
    version = _number(image, VERSION, 2)
    needed = next((end for since, end in ENDS if version >= since), None)
    if needed is None:
        raise ImageError(f"the kernel is damaged: there is no version {version >> 8}.{version & 255:02} of its header")
    if MAGIC_AT + image[JUMP] < needed:
        raise ImageError("the kernel is damaged: its setup header is shorter than its version says")
    return version
