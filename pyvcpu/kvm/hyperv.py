"""VmFd's method for Hyper-V guests."""

from __future__ import annotations

from .abi import hyperv as abi
from .fd import fd_number, in_range
from .registration import Registration

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .fd import HasFileno
    from .vm import VmFd


def hyperv_eventfd(vm: VmFd, conn_id: int, eventfd: int | HasFileno) -> Registration:
    """Signal `eventfd` at the guest's HvSignalEvent for connection `conn_id`, instead of an exit.

    KVM_HYPERV_EVENTFD, api.rst 4.113. Needs KVM_CAP_HYPERV_EVENTFD.
    """
    in_range("a connection", conn_id, abi.KVM_HYPERV_CONN_ID_MASK)
    request = abi.kvm_hyperv_eventfd(conn_id, fd_number("an eventfd", eventfd))
    vm.ioctl(abi.KVM_HYPERV_EVENTFD, request)
    undo = abi.kvm_hyperv_eventfd(conn_id, -1, abi.KVM_HYPERV_EVENTFD_DEASSIGN)
    return Registration(f"Hyper-V connection {conn_id:#x}", vm, abi.KVM_HYPERV_EVENTFD, undo)
