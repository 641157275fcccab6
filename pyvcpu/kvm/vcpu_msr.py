"""VcpuFd's methods for MSRs, CPUID of other kinds, machine checks, time."""

from __future__ import annotations

import ctypes

from .abi import basic, debug, features
from .attributes import get_attribute, has_attribute, set_attribute
from .cpuid import CpuidTable
from .fd import U32, U64, in_range
from .msrs import read_msrs, write_msrs

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable

    from .vcpu import VcpuFd

MAX_CPUID = 256


def get_msrs(vcpu: VcpuFd, indices: Iterable[int]) -> list[tuple[int, int]]:
    """Return (index, value) of MSRs, in the order of `indices`; raise MsrError at one that KVM refuses.

    KVM_GET_MSRS, api.rst 4.18.
    """
    return read_msrs(vcpu, indices)


def set_msrs(vcpu: VcpuFd, values: Iterable[tuple[int, int]]) -> None:
    """Write MSRs, given as (index, value), in their order; raise MsrError at one that KVM refuses.

    KVM_SET_MSRS, api.rst 4.19.
    """
    write_msrs(vcpu, values)


def set_cpuid(vcpu: VcpuFd, entries: Iterable[features.kvm_cpuid_entry]) -> None:
    """Set what CPUID shows, without subleaves; set_cpuid2() is the newer one (KVM_SET_CPUID, api.rst 4.20)."""
    listed = list(entries)
    if not all(isinstance(entry, features.kvm_cpuid_entry) for entry in listed):
        raise TypeError("a CPUID table of the old kind consists of kvm_cpuid_entry")
    if len(listed) > MAX_CPUID:
        raise ValueError(f"at most {MAX_CPUID} CPUID entries, not {len(listed)}")
    raw = bytes(features.kvm_cpuid(nent=len(listed))) + b"".join(map(bytes, listed))
    vcpu.ioctl(features.KVM_SET_CPUID, ctypes.create_string_buffer(raw, len(raw)))


def get_supported_hv_cpuid(vcpu: VcpuFd) -> CpuidTable:
    """Return the CPUID leaves of the Hyper-V features that this vCPU can show its guest.

    KVM_GET_SUPPORTED_HV_CPUID, api.rst 4.118. Needs KVM_CAP_HYPERV_CPUID.
    """
    return CpuidTable.fetch(vcpu, features.KVM_GET_SUPPORTED_HV_CPUID)


def x86_setup_mce(vcpu: VcpuFd, mcg_cap: int) -> None:
    """Give the vCPU machine-check banks: bits 7-0 how many, the rest of Kvm.x86_get_mce_cap_supported().

    KVM_X86_SETUP_MCE, api.rst 4.105. Needs KVM_CAP_MCE.
    """
    vcpu.ioctl(basic.KVM_X86_SETUP_MCE, ctypes.c_uint64(in_range("mcg_cap", mcg_cap, U64)))


def x86_set_mce(vcpu: VcpuFd, mce: debug.kvm_x86_mce) -> None:
    """Inject a machine check (KVM_X86_SET_MCE, api.rst 4.106). Needs KVM_CAP_MCE."""
    vcpu.ioctl(debug.KVM_X86_SET_MCE, mce)


def set_tsc_khz(vcpu: VcpuFd, khz: int) -> None:
    """Set the rate of the guest's time-stamp counter; 0: the host's (KVM_SET_TSC_KHZ, api.rst 4.55).

    Needs KVM_CAP_TSC_CONTROL, unless the rate is close to the host's.
    """
    from .abi.clock import KVM_SET_TSC_KHZ

    vcpu.ioctl(KVM_SET_TSC_KHZ, in_range("khz", khz, U32))


def kvmclock_ctrl(vcpu: VcpuFd) -> None:
    """Tell the guest that it was stopped, so that its watchdogs stay calm; only for a guest that uses kvmclock.

    KVM_KVMCLOCK_CTRL, api.rst 4.70. Needs KVM_CAP_KVMCLOCK_CTRL.
    """
    from .abi.state import KVM_KVMCLOCK_CTRL

    vcpu.ioctl(KVM_KVMCLOCK_CTRL)


def has_device_attr(vcpu: VcpuFd, group: int, attr: int) -> bool:
    """Tell whether the vCPU has the attribute, such as KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET.

    KVM_HAS_DEVICE_ATTR, api.rst 4.81. Needs KVM_CAP_VCPU_ATTRIBUTES.
    """
    return has_attribute(vcpu, group, attr)


def get_device_attr(vcpu: VcpuFd, group: int, attr: int) -> int:
    """Return an attribute of the vCPU, all of which are 64-bit numbers.

    KVM_GET_DEVICE_ATTR, api.rst 4.80. Needs KVM_CAP_VCPU_ATTRIBUTES.
    """
    return int.from_bytes(get_attribute(vcpu, group, attr, 8), "little")


def set_device_attr(vcpu: VcpuFd, group: int, attr: int, value: int) -> None:
    """Set an attribute of the vCPU to a 64-bit number.

    KVM_SET_DEVICE_ATTR, api.rst 4.80. Needs KVM_CAP_VCPU_ATTRIBUTES.
    """
    set_attribute(vcpu, group, attr, in_range("an attribute's value", value, U64).to_bytes(8, "little"))
