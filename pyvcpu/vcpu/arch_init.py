"""In the thread: a new vCPU is set up before its first step (QEMU: kvm_arch_init_vcpu)."""

from __future__ import annotations

from ctypes import c_uint64
from errno import EIO, ENOTTY

from ..errors import ConfigError
from ..kvm.abi import basic as abi
from ..kvm.cpuid import CpuidTable
from ..kvm.errors import KvmError
from ..x86 import paravirt
from ..x86.cpuid import EDX, Leaves
from . import pieces
from .arch_realize import apic_realize

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .context import KvmContext
    from .core import Cpu

POWER_MANAGEMENT, INVARIANT_TSC = 0x8000_0007, 1 << 8  # leaf 0x80000007 EDX
NO_RATE = (EIO, ENOTTY)
TSC_TOLERANCE = 250  # parts per million: what guests' clocks make up for; as in QEMU


def arch_init_vcpu(cpu: Cpu) -> None:
    """Set the processor up in its own thread: TSC rate, paravirtual leaves, CPUID, machine checks, starting state.

    A parked fd keeps what KVM takes only once. The rest of its state is reset.
    """
    step = cpu.step
    if cpu.has_lived:
        from . import state

        step("cpu_reset", lambda: state.reset(cpu))
        return
    step("kvm_arch_set_tsc_khz", lambda: set_tsc_khz(cpu))  # 1
    leaves = step("hyperv_enabled", lambda: hyperv_cpuid(cpu))  # 2
    step("expose_kvm", lambda: kvm_cpuid(cpu, leaves))  # 3
    step("setup_mce", lambda: setup_mce(cpu))
    step("KVM_SET_CPUID2", lambda: set_cpuid2(cpu, leaves))  # 4
    step("x86_cpu_apic_realize", lambda: apic_realize(cpu))  # 9 of realize
    step("cpu_reset", lambda: pieces.cpu_reset(cpu))  # 10 of realize


def set_tsc_khz(cpu: Cpu) -> None:
    """1. Set the TSC's rate where one was asked for, and learn which it is (QEMU: kvm_arch_set_tsc_khz).

    The rate from before the request decides whether one is needed: some KVMs report a rate that they have just refused.
    Raise ConfigError when the vCPU cannot have the rate.
    """
    asked, found = cpu.template.model.tsc_khz, tsc_khz(cpu)
    if asked and not _close(asked, found):
        refusal = f"--cpu tsc-khz={asked} cannot be had: this KVM runs the TSC at {found or 'an unknown number of'} kHz"
        if not cpu.context.has(abi.KVM_CAP_TSC_CONTROL):
            raise ConfigError(f"{refusal} and cannot scale it (KVM_CAP_TSC_CONTROL)")
        try:
            cpu.fd.set_tsc_khz(asked)
        except KvmError as error:
            raise ConfigError(f"{refusal} ({error})") from None
        found = tsc_khz(cpu)
        if not _close(asked, found):
            raise ConfigError(f"{refusal}; asked to change that, it says {found} kHz")
    cpu.tsc_khz = cpu.vcpu.tsc_khz = found


def tsc_khz(cpu: Cpu) -> int:
    """Return the TSC's rate, 0 where the host's is not stable or KVM is too old to say."""
    try:
        return cpu.fd.get_tsc_khz()
    except KvmError as error:
        if error.errno not in NO_RATE:
            raise
        return 0


def _close(asked: int, found: int) -> bool:
    return abs(asked - found) * 1_000_000 <= asked * TSC_TOLERANCE


def hyperv_cpuid(cpu: Cpu) -> Leaves:
    """2. Return the leaves of Hyper-V where `hv=on` was said, else none (QEMU: hyperv_enabled, hyperv_fill_cpuids)."""
    context, model = cpu.context, cpu.template.model
    if not model.hv:
        return Leaves({}, ())
    from ..kvm.abi import capabilities

    if context.has(capabilities.KVM_CAP_SYS_HYPERV_CPUID):
        table = context.kvm.get_supported_hv_cpuid()
    elif context.has(capabilities.KVM_CAP_HYPERV_CPUID):
        table = cpu.fd.get_supported_hv_cpuid()
    else:
        raise ConfigError("--cpu hv=on cannot be had: this KVM has no Hyper-V enlightenments (KVM_CAP_HYPERV_CPUID)")
    return paravirt.hyperv_leaves(Leaves.unpack(bytes(table)), apic=context.irqchip != "none")


def kvm_cpuid(cpu: Cpu, leaves: Leaves) -> None:
    """3. Add KVM's signature and features, or nothing with `kvm=off` (QEMU: expose_kvm)."""
    context, model = cpu.context, cpu.template.model
    if model.kvm:
        known = model.tsc_khz or cpu.template.leaves.read(POWER_MANAGEMENT, EDX) & INVARIANT_TSC
        told = paravirt.kvm_leaves(
            cpu.template.paravirtual,
            apic=context.irqchip != "none",
            beside_hyperv=model.hv,
            tsc_khz=cpu.tsc_khz if known else 0,
        )
    else:
        told = Leaves({}, ()) if model.hv else paravirt.hidden()
    leaves.entries.update(told.entries)


def setup_mce(cpu: Cpu) -> None:
    """Give the processor the machine-check banks that realize decided on, as many as KVM has (KVM_X86_SETUP_MCE)."""
    cap = supported_mcg_cap(cpu.context, cpu.mcg_cap) if cpu.mcg_cap else 0
    if cap:
        cpu.fd.ioctl(abi.KVM_X86_SETUP_MCE, c_uint64(cap))
    cpu.mcg_cap = cap


def supported_mcg_cap(context: KvmContext, wanted: int) -> int:
    """Return what KVM supports of an IA32_MCG_CAP: its flags, and at most so many banks; 0 without machine checks."""
    banks = context.has(abi.KVM_CAP_MCE)
    if not banks:
        return 0
    flags = c_uint64()
    context.kvm.ioctl(abi.KVM_X86_GET_MCE_CAP_SUPPORTED, flags)
    return wanted & flags.value & ~0xFF | min(wanted & 0xFF, banks)


def set_cpuid2(cpu: Cpu, paravirtual: Leaves) -> None:
    """4. Fill in the processor's own ids, and set what CPUID shows (QEMU: KVM_SET_CPUID2)."""
    ready = cpu.template.ready
    assert ready is not None, "realize comes first"
    cpu.cpuid = CpuidTable.from_bytes(ready.of(cpu.index) + paravirtual.pack())
    cpu.fd.set_cpuid2(cpu.cpuid)
