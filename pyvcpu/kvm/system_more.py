"""Kvm's rarer methods: MSRs that describe the host, CPUID of other kinds, machine checks, attributes."""

from __future__ import annotations

import ctypes

from .abi import basic, features, msr
from .attributes import get_attribute, has_attribute
from .cpuid import CpuidTable
from .msrs import fetch_index_list, read_msrs

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable

    from .system import Kvm


def get_msr_index_list(kvm: Kvm) -> list[int]:
    """Return the MSRs that a vCPU's state consists of (KVM_GET_MSR_INDEX_LIST, api.rst 4.3)."""
    return fetch_index_list(kvm, msr.KVM_GET_MSR_INDEX_LIST)


def get_msr_feature_index_list(kvm: Kvm) -> list[int]:
    """Return the MSRs that describe features of the host, for get_msrs().

    KVM_GET_MSR_FEATURE_INDEX_LIST, api.rst 4.3. Needs KVM_CAP_GET_MSR_FEATURES.
    """
    return fetch_index_list(kvm, msr.KVM_GET_MSR_FEATURE_INDEX_LIST)


def get_msrs(kvm: Kvm, indices: Iterable[int]) -> list[tuple[int, int]]:
    """Return (index, value) of feature MSRs, in the order of `indices`; raise MsrError at one KVM does not have.

    KVM_GET_MSRS, api.rst 4.18. Needs KVM_CAP_GET_MSR_FEATURES.
    """
    return read_msrs(kvm, indices)


def get_emulated_cpuid(kvm: Kvm) -> CpuidTable:
    """Return the CPUID leaves of what KVM emulates though the processor lacks it.

    KVM_GET_EMULATED_CPUID, api.rst 4.88. Needs KVM_CAP_EXT_EMUL_CPUID.
    """
    return CpuidTable.fetch(kvm, features.KVM_GET_EMULATED_CPUID)


def get_supported_hv_cpuid(kvm: Kvm) -> CpuidTable:
    """Return the CPUID leaves of the Hyper-V features that KVM can show a guest.

    KVM_GET_SUPPORTED_HV_CPUID, api.rst 4.118. Needs KVM_CAP_SYS_HYPERV_CPUID.
    """
    return CpuidTable.fetch(kvm, features.KVM_GET_SUPPORTED_HV_CPUID)


def x86_get_mce_cap_supported(kvm: Kvm) -> int:
    """Return the bits of MCG_CAP that VcpuFd.x86_setup_mce() takes, without the count of banks.

    KVM_X86_GET_MCE_CAP_SUPPORTED, api.rst 4.104. Needs KVM_CAP_MCE.
    """
    value = ctypes.c_uint64()
    kvm.ioctl(basic.KVM_X86_GET_MCE_CAP_SUPPORTED, value)
    return value.value


def has_device_attr(kvm: Kvm, group: int, attr: int) -> bool:
    """Tell whether the system has the attribute (abi.KVM_X86_GRP_*).

    KVM_HAS_DEVICE_ATTR, api.rst 4.81. Needs KVM_CAP_SYS_ATTRIBUTES.
    """
    return has_attribute(kvm, group, attr)


def get_device_attr(kvm: Kvm, group: int, attr: int) -> int:
    """Return an attribute of the system, all of which are 64-bit numbers.

    KVM_GET_DEVICE_ATTR, api.rst 4.80. Needs KVM_CAP_SYS_ATTRIBUTES.
    """
    return int.from_bytes(get_attribute(kvm, group, attr, 8), "little")
