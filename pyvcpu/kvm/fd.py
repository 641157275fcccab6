"""What the four kinds of KVM file descriptor have in common."""

from __future__ import annotations

import ctypes

from .errors import KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import Self

    from .abi.base import Ioctl
    from .kernel import Kernel

U32, U64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF


class Fd:
    """An open file descriptor of KVM; its owner closes it, best with `with`.

    Any thread may call any method: the kernel serializes the requests of one fd. A vCPU's requests wait while the
    vCPU is in KVM_RUN.
    """

    __slots__ = ("fd", "kernel", "where")

    def __init__(self, kernel: Kernel, fd: int, where: str = "") -> None:
        self.kernel = kernel
        self.fd = fd
        self.where = where

    def fileno(self) -> int:
        """Return the number of the file descriptor, -1 after close()."""
        return self.fd

    def ioctl(self, request: Ioctl, argument: int | ctypes._CData = 0) -> int:
        """Make `request` with an integer or a ctypes object, and return what the kernel returned.

        Raise KvmError, which names the request, where the kernel refuses it.
        """
        value = argument if isinstance(argument, int) else ctypes.addressof(argument)
        result = self.kernel.ioctl(self.fd, request.number, value)
        if result < 0:
            raise KvmError(request.name, self.kernel.errno(), self.where)
        return result

    def close(self) -> None:
        """Close the fd; closing again does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self.kernel.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} fd={self.fd}{' ' if self.where else ''}{self.where}>"


def in_range(what: str, value: int, top: int) -> int:
    """Return `value` when 0 <= value <= top, before ctypes would cut it to size silently; else raise ValueError."""
    if not isinstance(value, int):
        raise TypeError(f"{what} must be an integer, not {value!r}")
    if not 0 <= value <= top:
        raise ValueError(f"{what} must be from 0 to {top:#x}, not {value:#x}")
    return value
