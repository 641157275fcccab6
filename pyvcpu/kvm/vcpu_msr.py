"""VcpuFd's methods for MSRs, for CPUID of other kinds, and for attributes."""

from __future__ import annotations

import ctypes

from .abi import features
from .attributes import get_attribute, has_attribute, set_attribute
from .cpuid import CpuidTable
from .fd import U64, in_range
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
