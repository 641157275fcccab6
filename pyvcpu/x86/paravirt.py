"""Paravirtual leaves: what a hypervisor says of itself from 0x40000000 on. Pure.

Sources: Linux, Documentation/virt/kvm/x86/cpuid.rst; Microsoft, Hypervisor Top Level Functional Specification,
chapter 2; where they leave a choice, QEMU's (target/i386/kvm/kvm.c).
"""

from __future__ import annotations

import struct

from .cpuid import EAX, Leaves

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpuid import Key

HYPERVISOR, HYPERVISOR_END = 0x4000_0000, 0x5000_0000
KVM_FEATURES, KVM_BESIDE_HYPERV = 0x1, 0x100  # offsets from HYPERVISOR
TIMING = 0x10
KVM_SIGNATURE = struct.unpack("<3I", b"KVMKVMKVM\0\0\0")
KVM_PV_UNHALT = 1 << 7  # leaf 0x40000001 EAX: works with the local APIC in the kernel only
APIC_BUS_KHZ = 1_000_000  # KVM's local APIC counts nanoseconds

HV_SIGNATURE = struct.unpack("<3I", b"Microsoft Hv")
HV_INTERFACE, HV_VERSION, HV_FEATURES, HV_RECOMMENDED, HV_LIMITS = range(HYPERVISOR + 1, HYPERVISOR + 6)
# What KVM offers only after further requests that are not made here: in HV_FEATURES EAX the synthetic interrupt
# controller and timers, EDX the guest's debugger and direct timers; in HV_RECOMMENDED EAX the enlightened VMCS.
HV_FEATURES_OFF = (1 << 2 | 1 << 3, 0, 0, 1 << 1 | 1 << 19)
HV_RECOMMENDED_OFF = (1 << 14, 0, 0, 0)
HV_NEED_APIC = (1 << 3, 0, 0, 0)  # HV_RECOMMENDED EAX: registers of the local APIC as MSRs


def split(supported: Leaves) -> dict[Key, list[int]]:
    """Take the hypervisor's leaves out of `supported`, and return them."""
    found = {key: value for key, value in supported.entries.items() if HYPERVISOR <= key[0] < HYPERVISOR_END}
    for key in found:
        del supported.entries[key]
    return found


def hidden() -> Leaves:
    """Return an empty leaf: without one, processors of Intel's kind answer with their highest basic leaf."""
    return Leaves({(HYPERVISOR, 0): [0, 0, 0, 0]}, ())


def kvm_leaves(supported: dict[Key, list[int]], *, apic: bool, beside_hyperv: bool = False, tsc_khz: int = 0) -> Leaves:
    """Return KVM's signature and features, and the rate of the TSC where `tsc_khz` is not 0.

    `apic`: the local APIC is in the kernel. `beside_hyperv`: Hyper-V has the first place; the rate is left out then.
    """
    base = HYPERVISOR + (KVM_BESIDE_HYPERV if beside_hyperv else 0)
    features = [*supported.get((HYPERVISOR + KVM_FEATURES, 0), [0, 0, 0, 0])]
    if not apic:
        features[EAX] &= ~KVM_PV_UNHALT
    leaves = Leaves({(base, 0): [base + KVM_FEATURES, *KVM_SIGNATURE], (base + KVM_FEATURES, 0): features}, ())
    if tsc_khz and not beside_hyperv:
        leaves.entries[base, 0][EAX] = base + TIMING
        leaves.entries[base + TIMING, 0] = [tsc_khz, APIC_BUS_KHZ if apic else 0, 0, 0]
    return leaves


def hyperv_leaves(supported: Leaves, *, apic: bool) -> Leaves:
    """Return Hyper-V's leaves, of those that KVM_GET_SUPPORTED_HV_CPUID gave, without what more requests would need."""
    leaves = Leaves({(HYPERVISOR, 0): [HV_LIMITS, *HV_SIGNATURE]}, ())
    for function in range(HV_INTERFACE, HV_LIMITS + 1):
        leaves.entries[function, 0] = [*supported.entries.get((function, 0), [0, 0, 0, 0])]
    _clear(leaves.entries[HV_FEATURES, 0], HV_FEATURES_OFF)
    _clear(leaves.entries[HV_RECOMMENDED, 0], HV_RECOMMENDED_OFF)
    if not apic:
        _clear(leaves.entries[HV_RECOMMENDED, 0], HV_NEED_APIC)
    return leaves


def _clear(registers: list[int], masks: tuple[int, int, int, int]) -> None:
    for register, mask in enumerate(masks):
        registers[register] &= ~mask
