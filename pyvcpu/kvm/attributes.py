"""Attributes of devices, vCPUs and the system: numbers and bytes behind a group and an id (api.rst 4.80, 4.81)."""

from __future__ import annotations

import ctypes
import errno

from .abi import device as abi
from .errors import KvmError
from .fd import PAGE, U32, U64, Fd, bytes_of, in_range

# The attribute decides how many bytes the kernel reads or writes. It always gets this many.
ROOM = PAGE


def _request(group: int, attr: int, buffer: ctypes.Array[ctypes.c_char] | None = None) -> abi.kvm_device_attr:
    return abi.kvm_device_attr(
        group=in_range("an attribute group", group, U32),
        attr=in_range("an attribute", attr, U64),
        addr=0 if buffer is None else ctypes.addressof(buffer),
    )


def has_attribute(fd: Fd, group: int, attr: int) -> bool:
    """Tell whether `fd` has the attribute; ENXIO means that it has not."""
    try:
        fd.ioctl(abi.KVM_HAS_DEVICE_ATTR, _request(group, attr))
    except KvmError as error:
        if error.errno == errno.ENXIO:
            return False
        raise
    return True


def get_attribute(fd: Fd, group: int, attr: int, size: int) -> bytes:
    """Return the first `size` bytes of the attribute, at most 4096."""
    buffer = ctypes.create_string_buffer(ROOM)
    in_range("the size of an attribute", size, ROOM)
    fd.ioctl(abi.KVM_GET_DEVICE_ATTR, _request(group, attr, buffer))
    return buffer.raw[:size]


def set_attribute(fd: Fd, group: int, attr: int, data: bytes) -> None:
    """Set the attribute to `data`, which the kernel sees followed by zeroes."""
    in_range("the size of an attribute", len(bytes_of("an attribute's data", data)), ROOM)
    buffer = ctypes.create_string_buffer(data, ROOM)
    fd.ioctl(abi.KVM_SET_DEVICE_ATTR, _request(group, attr, buffer))
