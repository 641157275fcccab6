"""VcpuFd's methods for time."""

from __future__ import annotations

from .abi.clock import KVM_SET_TSC_KHZ
from .abi.state import KVM_KVMCLOCK_CTRL
from .fd import U32, in_range

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .vcpu import VcpuFd


def set_tsc_khz(vcpu: VcpuFd, khz: int) -> None:
    """Set the rate of the guest's time-stamp counter; 0: the host's (KVM_SET_TSC_KHZ, api.rst 4.55).

    Needs KVM_CAP_TSC_CONTROL, unless the rate is close to the host's.
    """
    vcpu.ioctl(KVM_SET_TSC_KHZ, in_range("khz", khz, U32))


def kvmclock_ctrl(vcpu: VcpuFd) -> None:
    """Tell the guest that it was stopped, so that its watchdogs stay calm; only for a guest that uses kvmclock.

    KVM_KVMCLOCK_CTRL, api.rst 4.70. Needs KVM_CAP_KVMCLOCK_CTRL.
    """
    vcpu.ioctl(KVM_KVMCLOCK_CTRL)
