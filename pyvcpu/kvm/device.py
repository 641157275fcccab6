"""DeviceFd: a device that lives in the kernel (KVM_CREATE_DEVICE)."""

from __future__ import annotations

from .attributes import get_attribute, has_attribute, set_attribute
from .fd import Fd


class DeviceFd(Fd):
    """An in-kernel device of a VM: attributes, by group and number, with data that each of them defines."""

    __slots__ = ()

    def has_device_attr(self, group: int, attr: int) -> bool:
        """Tell whether the device has the attribute (KVM_HAS_DEVICE_ATTR, api.rst 4.81).

        Needs KVM_CAP_DEVICE_CTRL.
        """
        return has_attribute(self, group, attr)

    def get_device_attr(self, group: int, attr: int, size: int = 8) -> bytes:
        """Return the first `size` bytes (at most 4096) of an attribute (KVM_GET_DEVICE_ATTR, api.rst 4.80).

        Needs KVM_CAP_DEVICE_CTRL.
        """
        return get_attribute(self, group, attr, size)

    def set_device_attr(self, group: int, attr: int, data: bytes) -> None:
        """Set an attribute to `data`, at most 4096 bytes (KVM_SET_DEVICE_ATTR, api.rst 4.80).

        Needs KVM_CAP_DEVICE_CTRL.
        """
        set_attribute(self, group, attr, data)
