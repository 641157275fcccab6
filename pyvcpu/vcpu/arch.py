"""The x86 part of a vCPU's life: what happens before its thread starts and what its thread does first."""

from __future__ import annotations

from ..kvm.abi import basic as abi
from ..x86.start import set_start

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from ..kvm.cpuid import CpuidTable
    from .vcpu import Vcpu

LEAF_FEATURES, LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2 = 0x1, 0xB, 0x1F


def realize(vcpu: Vcpu) -> None:
    """Prepare the processor in the caller's thread (QEMU: x86_cpu_realizefn): its CPUID, its APIC id."""
    vcpu.cpuid = identify(vcpu.accel.supported_cpuid(), vcpu.apic_id)


def identify(supported: CpuidTable, apic_id: int) -> CpuidTable:
    """Return the leaves of the processor `apic_id`: all that KVM supports, with this processor's ids in them.

    SDM vol. 2A, CPUID: leaf 1 EBX bits 31-24, leaves 0xB and 0x1F EDX.
    """
    table = supported.copy()
    for entry in table:
        if entry.function == LEAF_FEATURES:
            entry.ebx = entry.ebx & 0x00FF_FFFF | (apic_id & 0xFF) << 24
        elif entry.function in (LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2):
            entry.edx = apic_id
    return table


def arch_init_vcpu(vcpu: Vcpu, reused: bool) -> None:
    """Set the processor up in its own thread (QEMU: kvm_arch_init_vcpu): TSC rate, CPUID, starting state.

    A parked fd keeps its CPUID: KVM forbids a change once the vCPU has run.
    """
    fd = vcpu.fd
    if not reused:
        fd.set_cpuid2(vcpu.cpuid)
        vcpu.reset_sregs = bytes(fd.get_sregs())
    vcpu.tsc_khz = fd.get_tsc_khz()
    reset(vcpu)


def reset(vcpu: Vcpu) -> None:
    """Put the registers into the vCPU's starting state, or the state after reset when it waits for a SIPI."""
    vcpu.registers.drop_view()
    vcpu.sregs.drop_view()
    regs = abi.kvm_regs()
    sregs = abi.kvm_sregs.from_buffer_copy(vcpu.reset_sregs)
    if vcpu.start is None:
        regs.rip, regs.rflags = 0xFFF0, 2
    else:
        set_start(vcpu.start, regs, sregs)
    vcpu.fd.set_sregs(sregs)
    vcpu.fd.set_regs(regs)
    if vcpu.accel.irqchip != "none":
        waits = vcpu.start is None
        vcpu.fd.set_mp_state(abi.KVM_MP_STATE_UNINITIALIZED if waits else abi.KVM_MP_STATE_RUNNABLE)


def tell_guest_it_was_paused(vcpu: Vcpu) -> None:
    """Keep the guest's watchdogs quiet about the time that it did not run (KVM_KVMCLOCK_CTRL, api.rst 4.70).

    A guest that has no kvmclock has nothing to be told: KVM answers EINVAL.
    """
    from errno import EINVAL

    from ..kvm.abi.state import KVM_KVMCLOCK_CTRL
    from ..kvm.errors import KvmError

    try:
        vcpu.fd.ioctl(KVM_KVMCLOCK_CTRL)
    except KvmError as error:
        if error.errno != EINVAL:
            raise
