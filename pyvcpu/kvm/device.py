"""DeviceFd: a device that lives in the kernel (KVM_CREATE_DEVICE)."""

from __future__ import annotations

from .abi import device as abi
from .attributes import get_attribute, has_attribute, set_attribute
from .fd import U32, Fd, in_range

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .vm import VmFd

NO_FD = U32  # the kernel writes the fd over it


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


def create_device(vm: VmFd, device_type: int, *, test: bool = False) -> DeviceFd | None:
    """Create a device in the kernel, of those for x86 abi.KVM_DEV_TYPE_VFIO; `test`: only ask, return None.

    KVM_CREATE_DEVICE, api.rst 4.79. Needs KVM_CAP_DEVICE_CTRL.
    """
    in_range("a device type", device_type, U32)
    if test:
        vm.ioctl(abi.KVM_CREATE_DEVICE, abi.kvm_create_device(device_type, 0, abi.KVM_CREATE_DEVICE_TEST))
        return None
    made = DeviceFd(vm.kernel, -1, f"device of type {device_type}", vm)
    request = abi.kvm_create_device(device_type, NO_FD)
    try:
        vm.ioctl(abi.KVM_CREATE_DEVICE, request)
    finally:  # also when a Ctrl-C came behind the request: then `made` is dropped, which closes the fd
        if request.fd != NO_FD:
            made.own((request.fd,))
    return made
