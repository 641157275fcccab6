"""VmFd's methods for memory beyond plain slots: private memory, dirty logs, dirty rings."""

from __future__ import annotations

import ctypes

from .abi import memory as abi
from .fd import PAGE, U32, U64, Fd, bytes_of, fd_number, in_range

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .fd import HasFileno
    from .vm import VmFd


class GuestMemfd(Fd):
    """Memory that belongs to a guest and not to this process (VmFd.create_guest_memfd())."""

    __slots__ = ()


def set_user_memory_region2(
    vm: VmFd,
    slot: int,
    guest_phys_addr: int,
    memory_size: int,
    userspace_addr: int,
    flags: int = 0,
    guest_memfd: int | HasFileno = 0,
    guest_memfd_offset: int = 0,
) -> None:
    """Do what set_user_memory_region() does; with abi.KVM_MEM_GUEST_MEMFD, private pages come from `guest_memfd`.

    KVM_SET_USER_MEMORY_REGION2, api.rst 4.140. Needs KVM_CAP_USER_MEMORY2.
    """
    region = abi.kvm_userspace_memory_region2(
        in_range("slot", slot, U32),
        in_range("flags", flags, U32),
        in_range("guest_phys_addr", guest_phys_addr, U64),
        in_range("memory_size", memory_size, U64),
        in_range("userspace_addr", userspace_addr, U64),
        in_range("guest_memfd_offset", guest_memfd_offset, U64),
        fd_number("guest_memfd", guest_memfd),
    )
    with vm.slots_lock:
        vm.ioctl(abi.KVM_SET_USER_MEMORY_REGION2, region)
        vm.slot_sizes[slot] = memory_size


def set_memory_attributes(vm: VmFd, address: int, size: int, attributes: int) -> None:
    """Make guest physical memory private (abi.KVM_MEMORY_ATTRIBUTE_PRIVATE) or shared (0); whole pages.

    KVM_SET_MEMORY_ATTRIBUTES, api.rst 4.141. Needs KVM_CAP_MEMORY_ATTRIBUTES.
    """
    request = abi.kvm_memory_attributes(
        in_range("address", address, U64), in_range("size", size, U64), in_range("attributes", attributes, U64)
    )
    vm.ioctl(abi.KVM_SET_MEMORY_ATTRIBUTES, request)


def create_guest_memfd(vm: VmFd, size: int, flags: int = 0) -> GuestMemfd:
    """Create `size` bytes of guest memory that has no address in this process; whole pages.

    `flags`: abi.GUEST_MEMFD_FLAG_*. KVM_CREATE_GUEST_MEMFD, api.rst 4.142. Needs KVM_CAP_GUEST_MEMFD.
    """
    request = abi.kvm_create_guest_memfd(in_range("size", size, U64), in_range("flags", flags, U64))
    return vm.create(GuestMemfd, abi.KVM_CREATE_GUEST_MEMFD, request, "guest memory")


def get_dirty_log(vm: VmFd, slot: int) -> bytes:
    """Return which pages of `slot` were written since the last call, a bit each, lowest first; start over.

    The slot must have the flag abi.KVM_MEM_LOG_DIRTY_PAGES. pages() turns the bits into numbers.
    KVM_GET_DIRTY_LOG, api.rst 4.8.
    """
    in_range("slot", slot, U32)
    with vm.slots_lock:  # so that the kernel does not write more than there is room for
        bitmap = ctypes.create_string_buffer(_slot_pages(vm, slot) // 8 + 8)
        request = abi.kvm_dirty_log(slot=slot)
        request.dirty_bitmap = ctypes.addressof(bitmap)
        vm.ioctl(abi.KVM_GET_DIRTY_LOG, request)
        return bitmap.raw[: (_slot_pages(vm, slot) + 7) // 8]


def clear_dirty_log(vm: VmFd, slot: int, bitmap: bytes, first_page: int = 0, num_pages: int | None = None) -> None:
    """Watch anew those pages of `slot` whose bit is set in `bitmap`; the first bit stands for `first_page`.

    first_page is a multiple of 64, and so is num_pages, unless it ends with the slot; left out, it goes as far as
    bitmap or slot. For slots under abi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE.
    KVM_CLEAR_DIRTY_LOG, api.rst 4.117. Needs KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
    """
    in_range("slot", slot, U32)
    in_range("first_page", first_page, U64)
    bytes_of("bitmap", bitmap)
    with vm.slots_lock:
        left = max(_slot_pages(vm, slot) - first_page, 0)
    count = min(left, 8 * len(bitmap)) if num_pages is None else in_range("num_pages", num_pages, 8 * len(bitmap))
    room = (in_range("num_pages", count, U32) + 63) // 64 * 8  # the kernel reads whole longs
    buffer = ctypes.create_string_buffer(bitmap[:room], room)
    request = abi.kvm_clear_dirty_log(slot=slot, num_pages=count, first_page=first_page)
    request.dirty_bitmap = ctypes.addressof(buffer)
    vm.ioctl(abi.KVM_CLEAR_DIRTY_LOG, request)


def _slot_pages(vm: VmFd, slot: int) -> int:
    if not vm.slot_sizes.get(slot):
        raise ValueError(f"slot {slot} was not set through this object: its size must be known")
    return vm.slot_sizes[slot] // PAGE


def reset_dirty_rings(vm: VmFd) -> int:
    """Watch anew the pages that were harvested from dirty rings; return how many (KVM_RESET_DIRTY_RINGS).

    api.rst 8.29. Needs KVM_CAP_DIRTY_LOG_RING.
    """
    return vm.ioctl(abi.KVM_RESET_DIRTY_RINGS)


def set_nr_mmu_pages(vm: VmFd, pages: int) -> None:
    """Limit the pages that shadow page tables take (KVM_SET_NR_MMU_PAGES).

    Needs KVM_CAP_MMU_SHADOW_CACHE_CONTROL.
    """
    vm.ioctl(abi.KVM_SET_NR_MMU_PAGES, in_range("pages", pages, U32))


def get_nr_mmu_pages(vm: VmFd) -> int:
    """Return the limit of set_nr_mmu_pages(); kernels from 6.3 on have no such request (KVM_GET_NR_MMU_PAGES)."""
    return vm.ioctl(abi.KVM_GET_NR_MMU_PAGES)


def pages(bitmap: bytes) -> list[int]:
    """Return the numbers of the pages whose bits are set in a dirty log, in order.

    >>> pages(bytes([0b101, 0, 0b1]))
    [0, 2, 16]
    """
    return [8 * at + bit for at, byte in enumerate(bitmap) if byte for bit in range(8) if byte >> bit & 1]
