"""Linux kernels through the real-mode boot protocol: their own setup code asks the BIOS, and goes on from there.

So start kernels from before version 2.03, and boot loaders that call themselves kernels (iPXE's .lkrn, memdisk).
Source: Linux, Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

import struct

from ..errors import ImageError
from ..x86.start import StartState
from . import linux_header as at
from .layout import EBDA, place_files
from .linux_checks import check_command_line, check_one_processor, check_room, initrd
from .linux_header import LOAD, Kernel
from .plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .plan import Segment, Target

# The real-mode code, its heap and stack, then the command line, as boot.rst has it for all versions.
SETUP = 0x9_0000
HEAP_END = 0xE000
COMMAND_LINE = SETUP + HEAP_END
ENTRY = 0x200
LOW, LOW_END = 0x1_0000, SETUP  # where a zImage's code goes
OLD_COMMAND_LINE, OLD_COMMAND_LINE_MAGIC = 0x20, 0xA33F
SETUP_MOVE_SIZE = 0x212


def plan(image: bytes, target: Target) -> Plan:
    """Plan a Linux kernel, see boot()."""
    check_one_processor(target)
    return boot(image, Kernel(image), target)


def boot(image: bytes, kernel: Kernel, target: Target) -> Plan:
    """Plan the boot of `kernel` at its real-mode entry: CS:IP 9020:0, the other segments 9000, SP 0xE000."""
    load = LOAD if kernel.is_high else LOW
    end = load + len(kernel.code)
    if kernel.setup_size > HEAP_END - 0x400:
        raise ImageError(f"the kernel's setup code, of {kernel.setup_size} bytes, leaves no room for its stack")
    if not kernel.is_high and end > LOW_END:
        raise ImageError(f"the kernel is a zImage, to be loaded below {LOW_END:#x}, and has too much code for that")
    check_room(kernel, max(end, EBDA), target)
    command_line = check_command_line(kernel, target, EBDA - COMMAND_LINE - 1)
    if target.initrd and not kernel.version:
        raise ImageError("this kernel is too old (protocol before 2.00) to be handed an initrd")
    files = place_files(target, [(load, end)], kernel.initrd_max + 1)
    setup = bytearray(image[: kernel.setup_size])
    struct.pack_into("<H", setup, at.VID_MODE, at.VIDEO_NORMAL)
    if kernel.version:
        setup[at.TYPE_OF_LOADER] = at.LOADER_UNKNOWN
        struct.pack_into("<2I", setup, at.RAMDISK_IMAGE, *initrd(files))
    if kernel.version >= 0x201:
        setup[at.LOADFLAGS] |= at.CAN_USE_HEAP
        struct.pack_into("<H", setup, at.HEAP_END_PTR, HEAP_END - 0x200)
    if kernel.version >= 0x202:
        struct.pack_into("<I", setup, at.CMD_LINE_PTR, COMMAND_LINE)
    else:
        struct.pack_into("<2H", setup, OLD_COMMAND_LINE, OLD_COMMAND_LINE_MAGIC, HEAP_END)
        if kernel.version:
            struct.pack_into("<H", setup, SETUP_MOVE_SIZE, HEAP_END + len(command_line))
    start = StartState("real", SETUP + ENTRY, code_base=SETUP + ENTRY, stack=SETUP + HEAP_END, stack_base=SETUP)
    segments: list[Segment] = [(SETUP, bytes(setup)), (COMMAND_LINE, command_line), (load, kernel.code), *files]
    return Plan("linux16", segments, [start, *[None] * (target.vcpus - 1)], "kernel")
