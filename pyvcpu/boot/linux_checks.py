"""What all entries of a Linux kernel have in common: what it may be handed, and whether there is room."""

from __future__ import annotations

from ..errors import ImageError
from ..memory import HOLE
from .layout import c_string
from .plan import MORE

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .linux_header import Kernel
    from .plan import Segment, Target


def check_one_processor(target: Target) -> None:
    """Raise ImageError when all are to start, or when there is more than one initrd."""
    if target.start == "all":
        raise ImageError("Linux starts the other processors by itself: start must be bsp, not all")
    if len(target.initrd) > 1:
        raise ImageError(f"Linux takes one initrd, not {len(target.initrd)}; pack them into one")


def check_room(kernel: Kernel, end: int, target: Target) -> None:
    """Raise ImageError unless there is RAM from 0 to `end`, which this kernel needs."""
    if not target.holds(0, end):
        raise ImageError(
            f"this kernel needs RAM up to {end:#x} to start ({-(-end >> 20)} MiB), and the RAM ends at"
            f" {target.ranges[0][1]:#x}{MORE if end <= HOLE else ''}"
        )


def check_command_line(kernel: Kernel, target: Target, room: int) -> bytes:
    """Return the command line as the kernel takes it; raise ImageError when that is too long for it or for `room`."""
    command_line = c_string(target.append)
    longest = min(kernel.cmdline_size, room)
    if len(command_line) - 1 > longest:
        raise ImageError(f"this kernel's command line may have at most {longest} bytes, not {len(command_line) - 1}")
    return command_line


def initrd(files: list[Segment]) -> tuple[int, int]:
    """Return address and size of the initrd, 0 and 0 without."""
    return (files[0][0], len(files[0][1])) if files and len(files[0][1]) else (0, 0)
