"""The one door to the kernel. Tests put a fake in its place; so could a KVM in software."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from mmap import mmap as Mapping


# From Python 3.14 on fcntl.ioctl makes a request that a signal has interrupted again, by itself: a kick would be lost.
FCNTL_RETRIES = sys.version_info >= (3, 14)


def request_by(ioctl: Callable[[int, int, int], int], errno: Callable[[], int]) -> Callable[[int, int], object]:
    """Return what Kernel.request is, made of the other two."""

    def request(fd: int, number: int) -> None:
        if ioctl(fd, number, 0) < 0:
            raise OSError(errno(), "ioctl")

    return request


class Kernel:
    """open, ioctl, mmap, close as the C library offers them.

    `ioctl(fd, number, argument) -> int` is the bare C function: it releases the interpreter's lock, never retries
    EINTR, takes any 64-bit integer, and returns -1 with the reason in `errno()` of the same thread.

    `request(fd, number)` makes a request without argument, and raises OSError where it fails; `number` must fit into 31
    bits. It is for KVM_RUN: fcntl.ioctl runs through so little code that an exit costs 0.6 us less than with ctypes,
    for the kernel leaves cold caches behind.
    """

    __slots__ = ("errno", "ioctl", "request")

    ioctl: Callable[[int, int, int], int]
    errno: Callable[[], int]
    request: Callable[[int, int], object]

    def __init__(self) -> None:
        function = ctypes.CDLL(None, use_errno=True).ioctl
        function.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
        function.restype = ctypes.c_int
        self.ioctl = function
        self.errno = ctypes.get_errno
        self.request = request_by(self.ioctl, self.errno) if FCNTL_RETRIES else fcntl.ioctl

    def open(self, path: str) -> int:
        """Open a device file for reading and writing; it is not inherited by other programs."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def mmap(self, fd: int, length: int) -> mmap.mmap:
        """Map the first `length` bytes of `fd`, shared with the kernel."""
        return mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

    def mmap_at(self, fd: int, length: int, offset: int) -> Mapping:
        """Map `length` bytes of `fd` from `offset` on, both in bytes and whole pages."""
        return mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)

    def close(self, fd: int) -> None:
        """Close `fd`."""
        os.close(fd)
