"""Encrypted guests of Intel: the commands of KVM_MEMORY_ENCRYPT_OP for TDX (asm/kvm.h)."""

from __future__ import annotations

from .base import Struct, u32, u64
from .basic import kvm_cpuid2

# kvm_tdx_cmd.id
KVM_TDX_CAPABILITIES = 0
KVM_TDX_INIT_VM = 1
KVM_TDX_INIT_VCPU = 2
KVM_TDX_INIT_MEM_REGION = 3
KVM_TDX_FINALIZE_VM = 4
KVM_TDX_GET_CPUID = 5

KVM_TDX_MEASURE_MEMORY_REGION = 1 << 0


class kvm_tdx_cmd(Struct):
    """KVM_MEMORY_ENCRYPT_OP argument; `hw_error` is what the TDX module answers."""

    __slots__ = ()
    _fields_ = [("id", u32), ("flags", u32), ("data", u64), ("hw_error", u64)]


class kvm_tdx_capabilities(Struct):
    """Data of KVM_TDX_CAPABILITIES; CPUID entries follow it."""

    __slots__ = ()
    _fields_ = [
        ("supported_attrs", u64),
        ("supported_xfam", u64),
        ("kernel_tdvmcallinfo_1_r11", u64),
        ("user_tdvmcallinfo_1_r11", u64),
        ("kernel_tdvmcallinfo_1_r12", u64),
        ("user_tdvmcallinfo_1_r12", u64),
        ("reserved", u64 * 250),
        ("cpuid", kvm_cpuid2),
    ]


class kvm_tdx_init_vm(Struct):
    """Data of KVM_TDX_INIT_VM; CPUID entries follow it."""

    __slots__ = ()
    _fields_ = [
        ("attributes", u64),
        ("xfam", u64),
        ("mrconfigid", u64 * 6),
        ("mrowner", u64 * 6),
        ("mrownerconfig", u64 * 6),
        ("reserved", u64 * 12),
        ("cpuid", kvm_cpuid2),
    ]


class kvm_tdx_init_mem_region(Struct):
    """Data of KVM_TDX_INIT_MEM_REGION; `source_addr` is in this process."""

    __slots__ = ()
    _fields_ = [("source_addr", u64), ("gpa", u64), ("nr_pages", u64)]
