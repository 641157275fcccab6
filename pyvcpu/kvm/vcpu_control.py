"""VcpuFd's methods for interrupts from outside, for the task-priority register, and for capabilities."""

from __future__ import annotations

from .abi import basic, irq
from .fd import U32, U64, in_range

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .vcpu import VcpuFd


def interrupt(vcpu: VcpuFd, vector: int) -> None:
    """Inject an external interrupt, where no controller is in the kernel (KVM_INTERRUPT, api.rst 4.16)."""
    vcpu.ioctl(irq.KVM_INTERRUPT, irq.kvm_interrupt(in_range("a vector", vector, irq.KVM_NR_INTERRUPTS - 1)))


def nmi(vcpu: VcpuFd) -> None:
    """Queue a non-maskable interrupt (KVM_NMI, api.rst 4.64). Needs KVM_CAP_USER_NMI."""
    vcpu.ioctl(irq.KVM_NMI)


def smi(vcpu: VcpuFd) -> None:
    """Queue a system-management interrupt (KVM_SMI, api.rst 4.96). Needs KVM_CAP_X86_SMM."""
    vcpu.ioctl(irq.KVM_SMI)


def tpr_access_reporting(vcpu: VcpuFd, enabled: bool) -> None:
    """Ask for an exit at each access to the task-priority register (KVM_TPR_ACCESS_REPORTING).

    Needs KVM_CAP_VAPIC.
    """
    request = irq.kvm_tpr_access_ctl(enabled=in_range("enabled", enabled, 1))
    vcpu.ioctl(irq.KVM_TPR_ACCESS_REPORTING, request)


def set_vapic_addr(vcpu: VcpuFd, address: int) -> None:
    """Put a copy of the task-priority register at a guest physical address (KVM_SET_VAPIC_ADDR).

    Needs KVM_CAP_VAPIC.
    """
    vcpu.ioctl(irq.KVM_SET_VAPIC_ADDR, irq.kvm_vapic_addr(in_range("address", address, U64)))


def enable_cap(vcpu: VcpuFd, cap: int, *args: int, flags: int = 0) -> None:
    """Turn on a capability of the vCPU, such as the Hyper-V ones; `args` as it defines them.

    KVM_ENABLE_CAP, api.rst 4.37. Needs KVM_CAP_ENABLE_CAP.
    """
    if len(args) > 4:
        raise ValueError(f"a capability takes at most 4 arguments, not {len(args)}")
    request = basic.kvm_enable_cap(in_range("a capability", cap, U32), in_range("flags", flags, U32))
    request.args[: len(args)] = [in_range("an argument", arg, U64) for arg in args]
    vcpu.ioctl(basic.KVM_ENABLE_CAP, request)
