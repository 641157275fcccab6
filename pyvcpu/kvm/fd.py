"""What the four kinds of KVM file descriptor have in common."""

from __future__ import annotations

import ctypes
import errno
from _warnings import warn

from .abi.base import Ioctl
from .errors import HINTS, KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Iterable
    from typing import Any, Protocol, Self, TypeVar

    from .kernel import Kernel

    class HasFileno(Protocol):
        """An open file, socket or eventfd object, or one of ours."""

        def fileno(self) -> int: ...

    Made = TypeVar("Made", bound="Fd")


U8, U16, U32, U64 = 0xFF, 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
INT_MAX = 0x7FFF_FFFF
PAGE = 4096

# What KVM may answer to a request whose capability it lacks. Other errors have other reasons.
WITHOUT_CAPABILITY = (errno.ENOTTY, errno.EINVAL, errno.ENXIO, errno.EOPNOTSUPP, errno.EPERM, errno.ENODEV)


class Fd:
    """An open file descriptor of KVM; its owner closes it, best with `with`.

    Any thread may call any method: the kernel serializes the requests of one fd. A vCPU's requests wait while the
    vCPU is in KVM_RUN. `parent` is the fd that this one came from: of a vCPU its VM, of a VM the system. An object that
    is dropped before it was closed closes its fd and gives a ResourceWarning.

    After a fork the child has copies of the fds. close() there closes the copies, and the VM lives on in the parent.
    """

    # _numbers holds the fd from the moment that the kernel gave it; _once gives it to whoever closes it.
    __slots__ = ("_numbers", "_once", "fd", "kernel", "parent", "where")

    def __init__(self, kernel: Kernel, fd: int = -1, where: str = "", parent: Fd | None = None) -> None:
        self.kernel = kernel
        self.where = where
        self.parent = parent
        self._numbers = [fd] if fd >= 0 else []
        self._once = iter(self._numbers)
        self.fd = fd

    def own(self, answer: Iterable[int]) -> int:
        """Own the fd that `answer` gives, a map() over a function of the kernel; return it, -1 when that failed.

        A signal that arrives during a system call has its Python handler run at the next line of Python. So there is
        none between the kernel and this object: map(), filter() and extend() are C. A Ctrl-C then finds an owner; the
        object is dropped, which closes the fd.
        """
        self._numbers.extend(filter((0).__le__, answer))
        self.fd = self._numbers[0] if self._numbers else -1
        return self.fd

    def create(self, kind: type[Made], request: Ioctl, argument: int | ctypes._CData = 0, where: str = "") -> Made:
        """Make `request`, which gives a new fd, and return the object of `kind` that owns it. Errors: as ioctl()."""
        value = _value(request, argument)
        made = kind(self.kernel, -1, where, self)
        if made.own(map(self.kernel.ioctl, (self.fd,), (request.number,), (value,))) < 0:
            raise self.refusal(request.name, where)
        return made

    def fileno(self) -> int:
        """Return the number of the file descriptor, -1 after close()."""
        return self.fd

    def ioctl(self, request: Ioctl, argument: int | ctypes._CData = 0, where: str = "") -> int:
        """Make `request` with an integer or a ctypes object, and return what the kernel returned.

        A request whose argument is a structure takes that structure, or an array with room for it (some have data of
        varying length behind their head), or 0 for none. Raise KvmError, which names the request, where the kernel
        refuses it, and `where` or this fd's own.
        """
        value = _value(request, argument)
        result = self.kernel.ioctl(self.fd, request.number, value)
        if result < 0:
            raise self.refusal(request.name, where)
        return result

    def refusal(self, name: str, where: str = "") -> KvmError:
        """Return the error of the request `name`, which the kernel has just refused."""
        code = self.kernel.errno()
        return KvmError(name, code, where or self.where, self._lacking(name, code))

    def _lacking(self, name: str, code: int) -> str:
        """Return a hint that names the capability that the request `name` needs and this KVM lacks, or ""."""
        if (name, code) in HINTS or code not in WITHOUT_CAPABILITY:
            return ""
        try:
            from .catalogue import lacking
        except (ImportError, OSError, MemoryError):  # no file can be opened any more: the error matters, not the hint
            return ""
        return lacking(self, name)

    def close(self) -> None:
        """Close the fd; closing again does nothing. Any thread, several at once.

        map() takes the number and closes it in one step of C. So one thread gets it, and no Ctrl-C can come between. A
        Ctrl-C that comes before leaves the fd to the next close().
        """
        self.fd = -1
        for _ in map(self.kernel.close, self._once):
            pass

    def __del__(self, warn: Callable[..., object] = warn) -> None:
        """Close what was left open, and say so. `warn` is an argument so that it is there when Python shuts down."""
        try:
            left_open = self.fd >= 0
        except AttributeError:  # __init__ never came so far
            return
        try:
            if left_open:
                warn(f"{self!r} was dropped without close()", ResourceWarning, 2, self)
        finally:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} fd={self.fd}{' ' if self.where else ''}{self.where}>"


# Methods that are imported when somebody first asks for them. The kernel knows some 120 requests, and a boot makes a
# dozen of them; loading the code of all would make every start 2 ms longer. So the rare methods of Kvm, VmFd and VcpuFd
# are plain functions in modules of their own, and the class names each of them:
#
#     if TYPE_CHECKING:
#         from . import vm_irq
#     else:
#         vm_irq = LazyModule("pyvcpu.kvm.vm_irq")
#
#     class VmFd(Fd):
#         create_pit2 = vm_irq.create_pit2
#
# A type checker sees a class with a function in it. At run time the class holds a LazyMethod, which puts that same
# function in its place as soon as it is looked up, on the class or on an object.


class LazyMethod:
    """Stands in a class for a function of another module, until it is looked up."""

    __slots__ = ("_module", "_name")

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name

    def __get__(self, instance: object, owner: type) -> Any:
        """Put the function into the class that this stands in, and return what the class then gives.

        Needs no lock: two threads that come here at once find the same function, because a module is imported once,
        and it does not matter which of them puts it there, or that both do.
        """
        from importlib import import_module

        function = getattr(import_module(self._module), self._name)
        for kind in owner.__mro__:
            if vars(kind).get(self._name) is self:
                setattr(kind, self._name, function)
        return function if instance is None else function.__get__(instance, owner)

    def __repr__(self) -> str:
        return f"<{self._module}.{self._name}, not loaded yet>"


class LazyModule:
    """A module whose functions can be named before it is imported: each attribute is a LazyMethod."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> LazyMethod:
        return LazyMethod(self._name, name)


def _value(request: Ioctl, argument: int | ctypes._CData) -> int:
    """Return what the kernel gets as the argument of `request`; raise TypeError or ValueError where it does not fit."""
    if not isinstance(request, Ioctl):
        raise TypeError(f"a request must be an Ioctl, such as abi.KVM_RUN, not {request!r}")
    kind = request.argument
    if isinstance(argument, int):
        if argument and (kind is not None or not 0 < argument <= U64):
            raise _unfit(request, argument)
        return argument
    if kind is None or not (
        isinstance(argument, kind)
        or (isinstance(argument, ctypes.Array) and ctypes.sizeof(argument) >= ctypes.sizeof(kind))
    ):
        raise _unfit(request, argument)
    return ctypes.addressof(argument)


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
