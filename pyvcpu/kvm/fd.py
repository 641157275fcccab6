"""What the four kinds of KVM file descriptor have in common."""

from __future__ import annotations

import ctypes
import errno

from .abi.base import Ioctl
from .errors import HINTS, KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import Protocol, Self

    from .kernel import Kernel

    class HasFileno(Protocol):
        """An open file, socket or eventfd object, or one of ours."""

        def fileno(self) -> int: ...


U8, U16, U32, U64 = 0xFF, 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
INT_MAX = 0x7FFF_FFFF
PAGE = 4096


class Fd:
    """An open file descriptor of KVM; its owner closes it, best with `with`.

    Any thread may call any method: the kernel serializes the requests of one fd. A vCPU's requests wait while the
    vCPU is in KVM_RUN. `parent` is the fd that this one came from: of a vCPU its VM, of a VM the system.
    """

    __slots__ = ("fd", "kernel", "parent", "where")

    def __init__(self, kernel: Kernel, fd: int, where: str = "", parent: Fd | None = None) -> None:
        self.kernel = kernel
        self.fd = fd
        self.where = where
        self.parent = parent

    def fileno(self) -> int:
        """Return the number of the file descriptor, -1 after close()."""
        return self.fd

    def ioctl(self, request: Ioctl, argument: int | ctypes._CData = 0, where: str = "") -> int:
        """Make `request` with an integer or a ctypes object, and return what the kernel returned.

        A request whose argument is a structure takes that structure, or an array with room for it (some have data of
        varying length behind their head), or 0 for none. Raise KvmError, which names the request, where the kernel
        refuses it, and `where` or this fd's own.
        """
        if not isinstance(request, Ioctl):
            raise TypeError(f"a request must be an Ioctl, such as abi.KVM_RUN, not {request!r}")
        if isinstance(argument, int):
            value = argument
            if value and (request.argument is not None or not 0 < value <= U64):
                raise _unfit(request, argument)
        else:
            kind = request.argument
            if kind is None or not (
                isinstance(argument, kind)
                or (isinstance(argument, ctypes.Array) and ctypes.sizeof(argument) >= ctypes.sizeof(kind))
            ):
                raise _unfit(request, argument)
            value = ctypes.addressof(argument)
        result = self.kernel.ioctl(self.fd, request.number, value)
        if result < 0:
            code = self.kernel.errno()
            raise KvmError(request.name, code, where or self.where, self._lacking(request.name, code))
        return result

    def _lacking(self, name: str, code: int) -> str:
        """Return a hint that names the capability that the request `name` needs and this KVM lacks, or ""."""
        if (name, code) in HINTS or code in (errno.EBADF, errno.EIO):
            return ""
        from .catalogue import lacking

        return lacking(self, name, code)

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


def _unfit(request: Ioctl, argument: object) -> Exception:
    kind = request.argument
    if kind is None and isinstance(argument, int):
        return ValueError(f"{request.name} takes a number from 0 to {U64:#x}, not {argument:#x}")
    wanted = "a number" if kind is None else f"a {kind.__name__}"
    return TypeError(f"{request.name} takes {wanted}, not {argument!r}")


def in_range(what: str, value: int, top: int, bottom: int = 0) -> int:
    """Return `value` when it is from `bottom` to `top`; else raise ValueError, before ctypes would cut it silently."""
    if not isinstance(value, int):
        raise TypeError(f"{what} must be an integer, not {value!r}")
    if not bottom <= value <= top:
        raise ValueError(f"{what} must be from {bottom} to {top:#x}, not {value:#x}")
    return value


def fd_number(what: str, file: int | HasFileno) -> int:
    """Return the number of an open file, given as a number or as an object with fileno()."""
    if isinstance(file, int):
        return in_range(what, file, INT_MAX)
    fileno = getattr(file, "fileno", None)
    if fileno is None:
        raise TypeError(f"{what} must be an open file or its number, not {file!r}")
    return in_range(what, fileno(), INT_MAX)


def bytes_of(what: str, data: bytes) -> bytes:
    """Return `data` if it is bytes, whose memory nobody can change or free meanwhile; else raise TypeError."""
    if not isinstance(data, bytes):
        raise TypeError(f"{what} must be bytes, not {data!r}")
    return data
