"""Model-specific registers: values, lists, filters (asm/kvm.h)."""

from __future__ import annotations

from ctypes import c_void_p

from .base import IOW, IOWR, Struct, u32, u64

KVM_MSR_FILTER_MAX_RANGES = 16
KVM_MSR_FILTER_MAX_BITMAP_SIZE = 0x600
KVM_MSR_FILTER_READ = 1 << 0
KVM_MSR_FILTER_WRITE = 1 << 1
KVM_MSR_FILTER_RANGE_VALID_MASK = 3
KVM_MSR_FILTER_DEFAULT_ALLOW = 0
KVM_MSR_FILTER_DEFAULT_DENY = 1
KVM_MSR_FILTER_VALID_MASK = 1

# KVM_ENABLE_CAP of KVM_CAP_X86_USER_SPACE_MSR; kvm_run.msr.reason (linux/kvm.h)
KVM_MSR_EXIT_REASON_INVAL = 1 << 0
KVM_MSR_EXIT_REASON_UNKNOWN = 1 << 1
KVM_MSR_EXIT_REASON_FILTER = 1 << 2
KVM_MSR_EXIT_REASON_VALID_MASK = 7


class kvm_msr_entry(Struct):
    """One MSR."""

    __slots__ = ()
    _fields_ = [("index", u32), ("reserved", u32), ("data", u64)]


class kvm_msrs(Struct):
    """Head of KVM_GET_MSRS, KVM_SET_MSRS: `nmsrs` entries follow it."""

    __slots__ = ()
    _fields_ = [("nmsrs", u32), ("pad", u32), ("entries", kvm_msr_entry * 0)]


class kvm_msr_list(Struct):
    """Head of KVM_GET_MSR_INDEX_LIST: `nmsrs` indices follow it."""

    __slots__ = ()
    _fields_ = [("nmsrs", u32), ("indices", u32 * 0)]


class kvm_msr_filter_range(Struct):
    """`nmsrs` MSRs from `base` on; a 1 in `bitmap` allows what `flags` says."""

    __slots__ = ()
    _fields_ = [("flags", u32), ("nmsrs", u32), ("base", u32), ("bitmap", c_void_p)]


class kvm_msr_filter(Struct):
    """KVM_X86_SET_MSR_FILTER argument."""

    __slots__ = ()
    _fields_ = [("flags", u32), ("ranges", kvm_msr_filter_range * KVM_MSR_FILTER_MAX_RANGES)]


KVM_GET_MSR_INDEX_LIST = IOWR("KVM_GET_MSR_INDEX_LIST", 0x02, kvm_msr_list)
KVM_GET_MSR_FEATURE_INDEX_LIST = IOWR("KVM_GET_MSR_FEATURE_INDEX_LIST", 0x0A, kvm_msr_list)
KVM_GET_MSRS = IOWR("KVM_GET_MSRS", 0x88, kvm_msrs)
KVM_SET_MSRS = IOW("KVM_SET_MSRS", 0x89, kvm_msrs)
KVM_X86_SET_MSR_FILTER = IOW("KVM_X86_SET_MSR_FILTER", 0xC6, kvm_msr_filter)
