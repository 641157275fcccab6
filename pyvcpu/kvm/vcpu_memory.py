"""VcpuFd's methods for memory: mapping it in advance, and the rings in which KVM notes what the guest writes."""

from __future__ import annotations

import errno

from .abi.basic import KVM_CAP_COALESCED_MMIO
from .abi.memory import KVM_DIRTY_LOG_PAGE_OFFSET, KVM_PRE_FAULT_MEMORY, kvm_pre_fault_memory
from .errors import KvmError
from .fd import PAGE, U64, in_range
from .rings import CoalescedRing, DirtyRing

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import mmap
    from typing import Any

    from .vcpu import VcpuFd


def pre_fault_memory(vcpu: VcpuFd, address: int, size: int) -> int:
    """Map guest physical memory before the guest touches it; return how many bytes: `size` unless interrupted.

    KVM_PRE_FAULT_MEMORY, api.rst 4.143. Needs KVM_CAP_PRE_FAULT_MEMORY.
    """
    request = kvm_pre_fault_memory(in_range("address", address, U64), in_range("size", size, U64))
    try:
        while True:
            before = request.size
            vcpu.ioctl(KVM_PRE_FAULT_MEMORY, request)
            if not 0 < request.size < before:
                break
    except KvmError as error:
        if error.errno != errno.EINTR:
            raise
    return int(size - request.size)


def coalesced_ring(vcpu: VcpuFd, run: mmap.mmap) -> CoalescedRing:
    """Return the ring of coalesced writes, all vCPUs' together, in `run`, which is what map_run() returned.

    Needs KVM_CAP_COALESCED_MMIO.
    """
    page = _vm(vcpu).check_extension(KVM_CAP_COALESCED_MMIO)  # where the ring is, in pages
    if not page:
        raise KvmError("KVM_CHECK_EXTENSION", 0, vcpu.where, "this KVM lacks KVM_CAP_COALESCED_MMIO")
    return CoalescedRing(run, page * PAGE)


def map_dirty_ring(vcpu: VcpuFd) -> DirtyRing:
    """Map the ring in which KVM notes the pages that this vCPU writes.

    VmFd.enable_cap(abi.Cap.DIRTY_LOG_RING, bytes) comes first, before any vCPU. Needs KVM_CAP_DIRTY_LOG_RING.
    """
    size = _vm(vcpu).dirty_ring_bytes
    if not size:
        raise ValueError("the VM has no dirty rings: enable_cap(Cap.DIRTY_LOG_RING, bytes) before the first vCPU")
    try:
        return DirtyRing(vcpu.kernel.mmap_at(vcpu.fd, size, KVM_DIRTY_LOG_PAGE_OFFSET * PAGE))
    except OSError as error:
        raise KvmError("mmap", error.errno or 0, vcpu.where) from None


def _vm(vcpu: VcpuFd) -> Any:
    return vcpu.parent
