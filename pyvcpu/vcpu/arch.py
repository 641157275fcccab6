"""The x86 part of a vCPU's life while it runs; what comes before is in arch_realize and arch_init."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .core import Cpu


def tell_guest_it_was_paused(cpu: Cpu) -> None:
    """Keep the guest's watchdogs quiet about the time that it did not run (KVM_KVMCLOCK_CTRL, api.rst 4.70).

    KVM answers EINVAL for a guest without kvmclock, which needs no such note.
    """
    from errno import EINVAL

    from ..kvm.abi.state import KVM_KVMCLOCK_CTRL
    from ..kvm.errors import KvmError

    try:
        cpu.fd.ioctl(KVM_KVMCLOCK_CTRL)
    except KvmError as error:
        if error.errno != EINVAL:
            raise
