"""What stands behind the fds of the software KVM: the base of System, Vm and Vcpu."""

from __future__ import annotations

import ctypes
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Any, ClassVar

    Request = Callable[[Any, int], int]

LOWEST = 1 << 16  # no argument lies below: vm.mmap_min_addr


class Thing:
    """An object with an fd. REQUESTS: by ioctl number, what serves it; it gets the argument, an address or a number.

    A request returns what the ioctl returns, or raises OSError.
    """

    REQUESTS: ClassVar[dict[int, Request]] = {}
    NAME = "kvm"

    def __init__(self) -> None:
        self.pid = os.getpid()

    def file(self) -> int:
        """Return a new fd."""
        return os.memfd_create(self.NAME, os.MFD_CLOEXEC)

    def closed(self, fd: int) -> None:
        """Note that the fd is being closed."""

    def unknown(self, number: int) -> int:
        """Return the errno of a request that this fd does not know."""
        return errno.ENOTTY


def refuse(code: int, why: str = "") -> OSError:
    """Return what makes a request fail with an errno."""
    return OSError(code, why)


def fetch(address: int, size: int) -> bytes:
    """Copy an argument from the caller's memory."""
    if address < LOWEST:
        raise OSError(errno.EFAULT, "bad address")
    return ctypes.string_at(address, size)


def give(address: int, data: bytes) -> None:
    """Copy an answer into the caller's memory."""
    if address < LOWEST:
        raise OSError(errno.EFAULT, "bad address")
    ctypes.memmove(address, data, len(data))
