"""Xen guests: hypercall page, shared info, event channels, runstate (linux/kvm.h, later asm/kvm.h)."""

from __future__ import annotations

from .base import IOW, IOWR, Struct, Union, s32, u8, u16, u32, u64
from .irq import kvm_irq_routing_xen_evtchn

# KVM_CHECK_EXTENSION of KVM_CAP_XEN_HVM; kvm_xen_hvm_config.flags
KVM_XEN_HVM_CONFIG_HYPERCALL_MSR = 1 << 0
KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL = 1 << 1
KVM_XEN_HVM_CONFIG_SHARED_INFO = 1 << 2
KVM_XEN_HVM_CONFIG_RUNSTATE = 1 << 3
KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL = 1 << 4
KVM_XEN_HVM_CONFIG_EVTCHN_SEND = 1 << 5
KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG = 1 << 6
KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE = 1 << 7
KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA = 1 << 8

KVM_XEN_MSR_MIN_INDEX = 0x4000_0000
KVM_XEN_MSR_MAX_INDEX = 0x4FFF_FFFF
KVM_XEN_INVALID_GFN = 0xFFFF_FFFF_FFFF_FFFF
KVM_XEN_INVALID_GPA = 0xFFFF_FFFF_FFFF_FFFF
KVM_XEN_EVTCHN_DEASSIGN = 1 << 0
KVM_XEN_EVTCHN_UPDATE = 1 << 1
KVM_XEN_EVTCHN_RESET = 1 << 2

# kvm_xen_hvm_attr.type
KVM_XEN_ATTR_TYPE_LONG_MODE = 0
KVM_XEN_ATTR_TYPE_SHARED_INFO = 1
KVM_XEN_ATTR_TYPE_UPCALL_VECTOR = 2
KVM_XEN_ATTR_TYPE_EVTCHN = 3
KVM_XEN_ATTR_TYPE_XEN_VERSION = 4
KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG = 5
KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA = 6

# kvm_xen_vcpu_attr.type
KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO = 0
KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO = 1
KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR = 2
KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT = 3
KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA = 4
KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST = 5
KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID = 6
KVM_XEN_VCPU_ATTR_TYPE_TIMER = 7
KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR = 8
KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA = 9


class kvm_xen_hvm_config(Struct):
    """KVM_XEN_HVM_CONFIG argument; the blobs are in this process, their sizes in pages."""

    __slots__ = ()
    _fields_ = [
        ("flags", u32),
        ("msr", u32),
        ("blob_addr_32", u64),
        ("blob_addr_64", u64),
        ("blob_size_32", u8),
        ("blob_size_64", u8),
        ("pad2", u8 * 30),
    ]


class _shared_info(Union):
    __slots__ = ()
    _fields_ = [("gfn", u64), ("hva", u64)]


class _deliver_port(Struct):
    __slots__ = ()
    _fields_ = [("port", u32), ("vcpu", u32), ("priority", u32)]


class _deliver_eventfd(Struct):
    __slots__ = ()
    _fields_ = [("port", u32), ("fd", s32)]


class _deliver(Union):
    __slots__ = ()
    _fields_ = [("port", _deliver_port), ("eventfd", _deliver_eventfd), ("padding", u32 * 4)]


class _evtchn(Struct):
    __slots__ = ()
    _fields_ = [("send_port", u32), ("type", u32), ("flags", u32), ("deliver", _deliver)]


class _hvm_attr(Union):
    __slots__ = ()
    _fields_ = [
        ("long_mode", u8),
        ("vector", u8),
        ("runstate_update_flag", u8),
        ("shared_info", _shared_info),
        ("evtchn", _evtchn),
        ("xen_version", u32),
        ("pad", u64 * 8),
    ]


class kvm_xen_hvm_attr(Struct):
    """KVM_XEN_HVM_GET_ATTR, KVM_XEN_HVM_SET_ATTR argument."""

    __slots__ = ()
    _fields_ = [("type", u16), ("pad", u16 * 3), ("u", _hvm_attr)]


class _runstate(Struct):
    __slots__ = ()
    _fields_ = [
        ("state", u64),
        ("state_entry_time", u64),
        ("time_running", u64),
        ("time_runnable", u64),
        ("time_blocked", u64),
        ("time_offline", u64),
    ]


class _timer(Struct):
    __slots__ = ()
    _fields_ = [("port", u32), ("priority", u32), ("expires_ns", u64)]


class _vcpu_attr(Union):
    __slots__ = ()
    _fields_ = [
        ("gpa", u64),
        ("hva", u64),
        ("pad", u64 * 8),
        ("runstate", _runstate),
        ("vcpu_id", u32),
        ("timer", _timer),
        ("vector", u8),
    ]


class kvm_xen_vcpu_attr(Struct):
    """KVM_XEN_VCPU_GET_ATTR, KVM_XEN_VCPU_SET_ATTR argument."""

    __slots__ = ()
    _fields_ = [("type", u16), ("pad", u16 * 3), ("u", _vcpu_attr)]


KVM_XEN_HVM_CONFIG = IOW("KVM_XEN_HVM_CONFIG", 0x7A, kvm_xen_hvm_config)
KVM_XEN_HVM_GET_ATTR = IOWR("KVM_XEN_HVM_GET_ATTR", 0xC8, kvm_xen_hvm_attr)
KVM_XEN_HVM_SET_ATTR = IOW("KVM_XEN_HVM_SET_ATTR", 0xC9, kvm_xen_hvm_attr)
KVM_XEN_VCPU_GET_ATTR = IOWR("KVM_XEN_VCPU_GET_ATTR", 0xCA, kvm_xen_vcpu_attr)
KVM_XEN_VCPU_SET_ATTR = IOW("KVM_XEN_VCPU_SET_ATTR", 0xCB, kvm_xen_vcpu_attr)
KVM_XEN_HVM_EVTCHN_SEND = IOW("KVM_XEN_HVM_EVTCHN_SEND", 0xD0, kvm_irq_routing_xen_evtchn)
