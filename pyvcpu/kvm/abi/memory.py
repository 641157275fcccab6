"""Guest memory beyond plain slots: private memory, attributes, faults, dirty pages (linux/kvm.h)."""

from __future__ import annotations

from ctypes import c_void_p

from .base import IO, IOW, IOWR, Struct, Union, u32, u64

KVM_MEM_GUEST_MEMFD = 1 << 2

KVM_MEMORY_ATTRIBUTE_PRIVATE = 1 << 3
GUEST_MEMFD_FLAG_MMAP = 1 << 0
GUEST_MEMFD_FLAG_INIT_SHARED = 1 << 1

# KVM_ENABLE_CAP of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE = 1 << 0
KVM_DIRTY_LOG_INITIALLY_SET = 1 << 1

# Where a vCPU's dirty ring lies in the mapping of its fd, in pages; kvm_dirty_gfn.flags.
KVM_DIRTY_LOG_PAGE_OFFSET = 64
KVM_DIRTY_GFN_F_DIRTY = 1 << 0
KVM_DIRTY_GFN_F_RESET = 1 << 1
KVM_DIRTY_GFN_F_MASK = 3


class kvm_userspace_memory_region2(Struct):
    """KVM_SET_USER_MEMORY_REGION2 argument."""

    __slots__ = ()
    _fields_ = [
        ("slot", u32),
        ("flags", u32),
        ("guest_phys_addr", u64),
        ("memory_size", u64),
        ("userspace_addr", u64),
        ("guest_memfd_offset", u64),
        ("guest_memfd", u32),
        ("pad1", u32),
        ("pad2", u64 * 14),
    ]


class _bitmap(Union):
    __slots__ = ()
    _fields_ = [("dirty_bitmap", c_void_p), ("padding2", u64)]


class kvm_dirty_log(Struct):
    """KVM_GET_DIRTY_LOG argument: one bit per page of the slot."""

    __slots__ = ()
    _anonymous_ = ("u",)
    _fields_ = [("slot", u32), ("padding1", u32), ("u", _bitmap)]


class kvm_clear_dirty_log(Struct):
    """KVM_CLEAR_DIRTY_LOG argument: one bit per page from first_page on."""

    __slots__ = ()
    _anonymous_ = ("u",)
    _fields_ = [("slot", u32), ("num_pages", u32), ("first_page", u64), ("u", _bitmap)]


class kvm_dirty_gfn(Struct):
    """One entry of a dirty ring."""

    __slots__ = ()
    _fields_ = [("flags", u32), ("slot", u32), ("offset", u64)]


class kvm_memory_attributes(Struct):
    """KVM_SET_MEMORY_ATTRIBUTES argument."""

    __slots__ = ()
    _fields_ = [("address", u64), ("size", u64), ("attributes", u64), ("flags", u64)]


class kvm_create_guest_memfd(Struct):
    """KVM_CREATE_GUEST_MEMFD argument."""

    __slots__ = ()
    _fields_ = [("size", u64), ("flags", u64), ("reserved", u64 * 6)]


class kvm_pre_fault_memory(Struct):
    """KVM_PRE_FAULT_MEMORY argument; the kernel moves gpa and size on as it goes."""

    __slots__ = ()
    _fields_ = [("gpa", u64), ("size", u64), ("flags", u64), ("padding", u64 * 5)]


KVM_GET_DIRTY_LOG = IOW("KVM_GET_DIRTY_LOG", 0x42, kvm_dirty_log)
KVM_SET_NR_MMU_PAGES = IO("KVM_SET_NR_MMU_PAGES", 0x44)
KVM_GET_NR_MMU_PAGES = IO("KVM_GET_NR_MMU_PAGES", 0x45)
KVM_SET_USER_MEMORY_REGION2 = IOW("KVM_SET_USER_MEMORY_REGION2", 0x49, kvm_userspace_memory_region2)
KVM_CLEAR_DIRTY_LOG = IOWR("KVM_CLEAR_DIRTY_LOG", 0xC0, kvm_clear_dirty_log)
KVM_RESET_DIRTY_RINGS = IO("KVM_RESET_DIRTY_RINGS", 0xC7)
KVM_SET_MEMORY_ATTRIBUTES = IOW("KVM_SET_MEMORY_ATTRIBUTES", 0xD2, kvm_memory_attributes)
KVM_CREATE_GUEST_MEMFD = IOWR("KVM_CREATE_GUEST_MEMFD", 0xD4, kvm_create_guest_memfd)
KVM_PRE_FAULT_MEMORY = IOWR("KVM_PRE_FAULT_MEMORY", 0xD5, kvm_pre_fault_memory)
