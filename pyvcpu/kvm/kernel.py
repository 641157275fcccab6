"""The one door to the kernel. Tests put a fake in its place; so could a KVM in software."""

from __future__ import annotations

import ctypes
import mmap
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable


class Kernel:
    """open, ioctl, mmap, close as the C library offers them.

    `ioctl(fd, number, argument) -> int` is the bare C function: it releases the interpreter's lock, never retries
    EINTR (fcntl.ioctl does from Python 3.14 on, and a kicked vCPU would then never stop), takes any 64-bit integer,
    and returns -1 with the reason in `errno()` of the same thread.
    """

    __slots__ = ("errno", "ioctl")

    ioctl: Callable[[int, int, int], int]
    errno: Callable[[], int]

    def __init__(self) -> None:
        function = ctypes.CDLL(None, use_errno=True).ioctl
        function.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
        function.restype = ctypes.c_int
        self.ioctl = function
        self.errno = ctypes.get_errno

    def open(self, path: str) -> int:
        """Open a device file for reading and writing; it is not inherited by other programs."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def mmap(self, fd: int, length: int) -> mmap.mmap:
        """Map the first `length` bytes of `fd`, shared with the kernel."""
        return mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

    def close(self, fd: int) -> None:
        """Close `fd`."""
        os.close(fd)
