"""Mappings of this process that the mmap module cannot make: without a second fd each, and one upon another."""

from __future__ import annotations

import ctypes
import errno

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_mmap.restype = ctypes.c_void_p
_munmap = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
READ_WRITE, SHARED, FIXED = 3, 1, 0x10
FAILED = ctypes.c_void_p(-1).value


class Mapping:
    """A shared mapping of some bytes of a file, whole pages. `view` shows it until close()."""

    __slots__ = ("address", "size", "view")

    def __init__(self, fd: int, size: int, offset: int = 0) -> None:
        address = _mmap(None, size, READ_WRITE, SHARED, fd, offset)
        if address is None or address == FAILED:
            raise OSError(ctypes.get_errno() or errno.ENOMEM, "mmap")
        self.address, self.size = int(address), size
        self.view = memoryview((ctypes.c_char * size).from_address(self.address)).cast("B")

    def close(self) -> None:
        """Unmap it."""
        self.view.release()
        _munmap(self.address, self.size)


def lay_over(address: int, size: int, fd: int) -> None:
    """Put the first bytes of a file in the place of what is mapped at an address."""
    if _mmap(address, size, READ_WRITE, SHARED | FIXED, fd, 0) in (None, FAILED):
        raise OSError(ctypes.get_errno(), "mmap")
