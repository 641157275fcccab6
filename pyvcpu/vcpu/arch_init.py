"""In the thread: what a new vCPU is told before its first step (QEMU: kvm_arch_init_vcpu)."""

from __future__ import annotations

from ctypes import c_uint64
from errno import EIO, ENOTTY

from ..errors import ConfigError
from ..kvm.abi import basic as abi
from ..kvm.cpuid import CpuidTable
from ..kvm.errors import KvmError
from ..x86 import paravirt
from ..x86.cpuid import EDX, Leaves
from .arch_realize import apic_realize
from .arch_reset import cpu_reset, forget_former_life

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .accel import Accel
    from .vcpu import Vcpu

POWER_MANAGEMENT, INVARIANT_TSC = 0x8000_0007, 1 << 8  # leaf 0x80000007 EDX
NO_RATE = (EIO, ENOTTY)
TSC_TOLERANCE = 250  # parts per million: what guests' clocks make up for; as in QEMU
KVM_CAP_MCE = 31  # a number: the table of all capabilities takes a millisecond to load


def arch_init_vcpu(vcpu: Vcpu) -> None:
    """Set the processor up in its own thread: TSC rate, paravirtual leaves, CPUID, machine checks, starting state.

    A parked fd has all that is said to KVM once; what its former life left behind is reset.
    """
    if vcpu.has_lived:
        forget_former_life(vcpu)
    else:
        set_tsc_khz(vcpu)  # 1
        leaves = hyperv_cpuid(vcpu)  # 2
        kvm_cpuid(vcpu, leaves)  # 3
        setup_mce(vcpu)
        set_cpuid2(vcpu, leaves)  # 4
        apic_realize(vcpu)  # step 9 of realize
    cpu_reset(vcpu)  # step 10 of realize


def set_tsc_khz(vcpu: Vcpu) -> None:
    """1. Set the TSC's rate where one was asked for, and learn which it is (QEMU: kvm_arch_set_tsc_khz).

    Not the rate that KVM tells after a refusal is compared, but the one from before: some KVMs then tell what they
    refused. Raise ConfigError when the vCPU cannot have the rate.
    """
    asked, found = vcpu.accel.cpu.tsc_khz, tsc_khz(vcpu)
    if asked and not _close(asked, found):
        from ..kvm.abi.caps import Cap

        refusal = f"--cpu tsc-khz={asked} cannot be had: this KVM runs the TSC at {found or 'an unknown number of'} kHz"
        if not vcpu.accel.kvm.check_extension(Cap.TSC_CONTROL):
            raise ConfigError(f"{refusal} and cannot scale it (KVM_CAP_TSC_CONTROL)")
        try:
            vcpu.fd.set_tsc_khz(asked)
        except KvmError as error:
            raise ConfigError(f"{refusal} ({error})") from None
        found = tsc_khz(vcpu)
        if not _close(asked, found):
            raise ConfigError(f"{refusal}; asked to change that, it says {found} kHz")
    vcpu.tsc_khz = found


def tsc_khz(vcpu: Vcpu) -> int:
    """Return the TSC's rate, 0 where the host's is not stable or KVM too old to tell."""
    try:
        return vcpu.fd.get_tsc_khz()
    except KvmError as error:
        if error.errno not in NO_RATE:
            raise
        return 0


def _close(asked: int, found: int) -> bool:
    return abs(asked - found) * 1_000_000 <= asked * TSC_TOLERANCE


def hyperv_cpuid(vcpu: Vcpu) -> Leaves:
    """2. Return the leaves of Hyper-V where `hv=on` was said, else none (QEMU: hyperv_enabled, hyperv_fill_cpuids)."""
    accel = vcpu.accel
    if not accel.cpu.hv:
        return Leaves({}, ())
    from ..kvm.abi.caps import Cap

    if accel.kvm.check_extension(Cap.SYS_HYPERV_CPUID):
        table = accel.kvm.get_supported_hv_cpuid()
    elif accel.kvm.check_extension(Cap.HYPERV_CPUID):
        table = vcpu.fd.get_supported_hv_cpuid()
    else:
        raise ConfigError("--cpu hv=on cannot be had: this KVM has no Hyper-V enlightenments (KVM_CAP_HYPERV_CPUID)")
    return paravirt.hyperv_leaves(Leaves.unpack(bytes(table)), apic=accel.irqchip != "none")


def kvm_cpuid(vcpu: Vcpu, leaves: Leaves) -> None:
    """3. Add KVM's signature and features, or nothing with `kvm=off` (QEMU: expose_kvm)."""
    accel = vcpu.accel
    if accel.cpu.kvm:
        known = accel.cpu.tsc_khz or accel.leaves.read(POWER_MANAGEMENT, EDX) & INVARIANT_TSC
        told = paravirt.kvm_leaves(
            accel.paravirtual,
            apic=accel.irqchip != "none",
            beside_hyperv=accel.cpu.hv,
            tsc_khz=vcpu.tsc_khz if known else 0,
        )
    else:
        told = Leaves({}, ()) if accel.cpu.hv else paravirt.hidden()
    leaves.entries.update(told.entries)


def setup_mce(vcpu: Vcpu) -> None:
    """Give the processor the machine-check banks that realize decided on, as many as KVM has (KVM_X86_SETUP_MCE)."""
    cap = supported_mcg_cap(vcpu.accel, vcpu.mcg_cap) if vcpu.mcg_cap else 0
    if cap:
        vcpu.fd.ioctl(abi.KVM_X86_SETUP_MCE, c_uint64(cap))
    vcpu.mcg_cap = cap


def supported_mcg_cap(accel: Accel, wanted: int) -> int:
    """Return what KVM supports of an IA32_MCG_CAP: its flags, and at most so many banks; 0 without machine checks."""
    banks = accel.kvm.check_extension(KVM_CAP_MCE)
    if not banks:
        return 0
    flags = c_uint64()
    accel.kvm.ioctl(abi.KVM_X86_GET_MCE_CAP_SUPPORTED, flags)
    return wanted & flags.value & ~0xFF | min(wanted & 0xFF, banks)


def set_cpuid2(vcpu: Vcpu, paravirtual: Leaves) -> None:
    """4. Fill in the processor's own ids, and set what CPUID shows (QEMU: KVM_SET_CPUID2)."""
    template = vcpu.accel.template
    assert template is not None, "realize comes first"
    vcpu.cpuid = CpuidTable.from_bytes(template.of(vcpu.index) + paravirtual.pack())
    vcpu.fd.set_cpuid2(vcpu.cpuid)
