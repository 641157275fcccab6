"""Port and memory accesses that need no exit: coalesced zones, ioeventfd (linux/kvm.h)."""

from __future__ import annotations

from .base import IOW, Struct, Union, s32, u8, u32, u64

KVM_PIO_PAGE_OFFSET = 1
KVM_COALESCED_MMIO_PAGE_OFFSET = 2

KVM_IOEVENTFD_FLAG_DATAMATCH = 1 << 0
KVM_IOEVENTFD_FLAG_PIO = 1 << 1
KVM_IOEVENTFD_FLAG_DEASSIGN = 1 << 2
KVM_IOEVENTFD_VALID_FLAG_MASK = 0x1F


class _pad_or_pio(Union):
    __slots__ = ()
    _fields_ = [("pad", u32), ("pio", u32)]


class kvm_coalesced_mmio_zone(Struct):
    """KVM_REGISTER_COALESCED_MMIO, KVM_UNREGISTER_COALESCED_MMIO argument."""

    __slots__ = ()
    _anonymous_ = ("u",)
    _fields_ = [("addr", u64), ("size", u32), ("u", _pad_or_pio)]


class kvm_coalesced_mmio(Struct):
    """One write that waits in the ring."""

    __slots__ = ()
    _anonymous_ = ("u",)
    _fields_ = [("phys_addr", u64), ("len", u32), ("u", _pad_or_pio), ("data", u8 * 8)]


class kvm_coalesced_mmio_ring(Struct):
    """The ring's head; it is one page, filled with entries."""

    __slots__ = ()
    _fields_ = [("first", u32), ("last", u32), ("coalesced_mmio", kvm_coalesced_mmio * 0)]


KVM_COALESCED_MMIO_MAX = (4096 - 8) // 24  # with pages of 4 KiB


class kvm_ioeventfd(Struct):
    """KVM_IOEVENTFD argument."""

    __slots__ = ()
    _fields_ = [
        ("datamatch", u64),
        ("addr", u64),
        ("len", u32),
        ("fd", s32),
        ("flags", u32),
        ("pad", u8 * 36),
    ]


KVM_REGISTER_COALESCED_MMIO = IOW("KVM_REGISTER_COALESCED_MMIO", 0x67, kvm_coalesced_mmio_zone)
KVM_UNREGISTER_COALESCED_MMIO = IOW("KVM_UNREGISTER_COALESCED_MMIO", 0x68, kvm_coalesced_mmio_zone)
KVM_IOEVENTFD = IOW("KVM_IOEVENTFD", 0x79, kvm_ioeventfd)
