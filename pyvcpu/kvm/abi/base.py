"""What the tables of the KVM ABI are made of: ioctl requests and closed ctypes structures.

Sources: linux/ioctl.h (asm-generic encoding of a request number), Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import ctypes

KVMIO = 0xAE

# The integer types of the headers (linux/types.h: __u8 and so on).
u8 = ctypes.c_uint8
u16 = ctypes.c_uint16
u32 = ctypes.c_uint32
u64 = ctypes.c_uint64
s16 = ctypes.c_int16
s32 = ctypes.c_int32
s64 = ctypes.c_int64

# asm-generic/ioctl.h: which way the argument is copied, seen from user space.
NONE, WRITE, READ = 0, 1, 2


class Struct(ctypes.Structure):
    """Base of every structure: no instance dictionary, so that a misspelt field name raises AttributeError."""

    __slots__ = ()

    def __repr__(self) -> str:
        fields = ", ".join(f"{field[0]}={_show(getattr(self, field[0]))}" for field in self._fields_)
        return f"{type(self).__name__}({fields})"


class Union(ctypes.Union):
    """Base of every union, closed as Struct is."""

    __slots__ = ()


def _show(value: object) -> str:
    if isinstance(value, int):
        return hex(value)
    return repr(list(value)) if isinstance(value, ctypes.Array) else repr(value)


class Ioctl:
    """One ioctl request: its kernel name, its number, and the type that its argument points to (None: a value)."""

    __slots__ = ("argument", "name", "number")

    def __init__(
        self, name: str, direction: int, code: int, argument: type[ctypes._CData] | None = None
    ) -> None:
        size = 0 if argument is None or direction == NONE else ctypes.sizeof(argument)
        self.name = name
        self.number = direction << 30 | size << 16 | KVMIO << 8 | code
        self.argument = argument

    def __repr__(self) -> str:
        return f"<{self.name} {self.number:#x}>"


def IO(name: str, code: int) -> Ioctl:
    """Make a request that takes a plain integer or nothing (_IO)."""
    return Ioctl(name, NONE, code)


def IOR(name: str, code: int, argument: type[ctypes._CData]) -> Ioctl:
    """Make a request through which the kernel fills in `argument` (_IOR)."""
    return Ioctl(name, READ, code, argument)


def IOW(name: str, code: int, argument: type[ctypes._CData]) -> Ioctl:
    """Make a request that hands `argument` to the kernel (_IOW)."""
    return Ioctl(name, WRITE, code, argument)


def IOWR(name: str, code: int, argument: type[ctypes._CData]) -> Ioctl:
    """Make a request whose `argument` goes both ways (_IOWR)."""
    return Ioctl(name, READ | WRITE, code, argument)
