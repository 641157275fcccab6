"""Hyper-V guests: hypercalls that signal an eventfd (linux/kvm.h)."""

from __future__ import annotations

from .base import IOW, Struct, s32, u32

KVM_HYPERV_CONN_ID_MASK = 0x00FF_FFFF
KVM_HYPERV_EVENTFD_DEASSIGN = 1 << 0


class kvm_hyperv_eventfd(Struct):
    """KVM_HYPERV_EVENTFD argument."""

    __slots__ = ()
    _fields_ = [("conn_id", u32), ("fd", s32), ("flags", u32), ("padding", u32 * 3)]


KVM_HYPERV_EVENTFD = IOW("KVM_HYPERV_EVENTFD", 0xBD, kvm_hyperv_eventfd)
