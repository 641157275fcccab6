"""VcpuFd's methods for control: interrupts, debugging, capabilities, memory, rings, statistics; Xen, TDX."""

from __future__ import annotations

import ctypes
import errno

from .abi import basic, irq
from .errors import KvmError
from .fd import PAGE, U32, U64, in_range

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import mmap
    from collections.abc import Iterable, Sequence
    from typing import Any

    from .abi import sev, tdx, xen
    from .rings import CoalescedRing, DirtyRing
    from .stats import StatsFd
    from .vcpu import VcpuFd


def interrupt(vcpu: VcpuFd, vector: int) -> None:
    """Inject an external interrupt, where no controller is in the kernel (KVM_INTERRUPT, api.rst 4.16)."""
    vcpu.ioctl(irq.KVM_INTERRUPT, irq.kvm_interrupt(in_range("a vector", vector, irq.KVM_NR_INTERRUPTS - 1)))


def nmi(vcpu: VcpuFd) -> None:
    """Queue a non-maskable interrupt (KVM_NMI, api.rst 4.64). Needs KVM_CAP_USER_NMI."""
    vcpu.ioctl(irq.KVM_NMI)


def smi(vcpu: VcpuFd) -> None:
    """Queue a system-management interrupt (KVM_SMI, api.rst 4.96). Needs KVM_CAP_X86_SMM."""
    vcpu.ioctl(irq.KVM_SMI)


def set_guest_debug(vcpu: VcpuFd, control: int, debugreg: Sequence[int] = ()) -> None:
    """Single-step, or stop at breakpoints: `control` of abi.KVM_GUESTDBG_*, `debugreg` up to 8 registers.

    KVM_SET_GUEST_DEBUG, api.rst 4.87. Needs KVM_CAP_SET_GUEST_DEBUG.
    """
    from .abi import debug

    if len(debugreg) > 8:
        raise ValueError(f"there are 8 debug registers, not {len(debugreg)}")
    request = debug.kvm_guest_debug(in_range("control", control, U32))
    for i, value in enumerate(debugreg):
        request.arch.debugreg[i] = in_range(f"debug register {i}", value, U64)
    vcpu.ioctl(debug.KVM_SET_GUEST_DEBUG, request)


def set_signal_mask(vcpu: VcpuFd, blocked: Iterable[int] | None) -> None:
    """Block exactly the signals `blocked` while in KVM_RUN; None: the thread's own mask (KVM_SET_SIGNAL_MASK).

    A signal that the thread blocks but `blocked` does not list makes KVM_RUN return EINTR and stays pending:
    no handler runs. api.rst 4.21.
    """
    from .abi.state import KVM_SET_SIGNAL_MASK, kvm_signal_mask

    if blocked is None:
        vcpu.ioctl(KVM_SET_SIGNAL_MASK, 0)
        return
    bits = 0
    for number in blocked:
        bits |= 1 << (in_range("a signal", number, 64, 1) - 1)
    head = kvm_signal_mask(len=8)  # the kernel's sigset has 64 bits
    raw = bytes(head) + bits.to_bytes(8, "little")
    vcpu.ioctl(KVM_SET_SIGNAL_MASK, ctypes.create_string_buffer(raw, len(raw)))


def tpr_access_reporting(vcpu: VcpuFd, enabled: bool) -> None:
    """Ask for an exit at each access to the task-priority register (KVM_TPR_ACCESS_REPORTING).

    Needs KVM_CAP_VAPIC.
    """
    request = irq.kvm_tpr_access_ctl(enabled=in_range("enabled", enabled, 1))
    vcpu.ioctl(irq.KVM_TPR_ACCESS_REPORTING, request)


def set_vapic_addr(vcpu: VcpuFd, address: int) -> None:
    """Put a copy of the task-priority register at a guest physical address (KVM_SET_VAPIC_ADDR).

    Needs KVM_CAP_VAPIC.
    """
    vcpu.ioctl(irq.KVM_SET_VAPIC_ADDR, irq.kvm_vapic_addr(in_range("address", address, U64)))


def enable_cap(vcpu: VcpuFd, cap: int, *args: int, flags: int = 0) -> None:
    """Turn on a capability of the vCPU, such as the Hyper-V ones; `args` as it defines them.

    KVM_ENABLE_CAP, api.rst 4.37. Needs KVM_CAP_ENABLE_CAP.
    """
    if len(args) > 4:
        raise ValueError(f"a capability takes at most 4 arguments, not {len(args)}")
    request = basic.kvm_enable_cap(in_range("a capability", cap, U32), in_range("flags", flags, U32))
    request.args[: len(args)] = [in_range("an argument", arg, U64) for arg in args]
    vcpu.ioctl(basic.KVM_ENABLE_CAP, request)


def pre_fault_memory(vcpu: VcpuFd, address: int, size: int) -> int:
    """Map guest physical memory before the guest touches it; return how many bytes were, `size` unless interrupted.

    KVM_PRE_FAULT_MEMORY, api.rst 4.143. Needs KVM_CAP_PRE_FAULT_MEMORY.
    """
    from .abi.memory import KVM_PRE_FAULT_MEMORY, kvm_pre_fault_memory

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
    from .rings import CoalescedRing

    page = _vm(vcpu).check_extension(basic.KVM_CAP_COALESCED_MMIO)  # where the ring is, in pages
    if not page:
        raise KvmError("KVM_CHECK_EXTENSION", 0, vcpu.where, "this KVM lacks KVM_CAP_COALESCED_MMIO")
    return CoalescedRing(run, page * PAGE)


def map_dirty_ring(vcpu: VcpuFd) -> DirtyRing:
    """Map the ring in which KVM notes the pages that this vCPU writes.

    VmFd.enable_cap(abi.Cap.DIRTY_LOG_RING, bytes) comes first, before any vCPU. Needs KVM_CAP_DIRTY_LOG_RING.
    """
    from .abi.memory import KVM_DIRTY_LOG_PAGE_OFFSET
    from .rings import DirtyRing

    size = _vm(vcpu).dirty_ring_bytes
    if not size:
        raise ValueError("the VM has no dirty rings: enable_cap(Cap.DIRTY_LOG_RING, bytes) before the first vCPU")
    try:
        return DirtyRing(vcpu.kernel.mmap_at(vcpu.fd, size, KVM_DIRTY_LOG_PAGE_OFFSET * PAGE))
    except OSError as error:
        raise KvmError("mmap", error.errno or 0, vcpu.where) from None


def _vm(vcpu: VcpuFd) -> Any:
    return vcpu.parent


def get_stats_fd(vcpu: VcpuFd) -> StatsFd:
    """Open the statistics of this vCPU (KVM_GET_STATS_FD, api.rst 4.133). Needs KVM_CAP_BINARY_STATS_FD."""
    from .stats import open_stats

    return open_stats(vcpu, f"statistics of {vcpu.where}")


def xen_vcpu_get_attr(vcpu: VcpuFd, attr_type: int) -> xen.kvm_xen_vcpu_attr:
    """Read an attribute of a Xen vCPU, abi.KVM_XEN_VCPU_ATTR_TYPE_* (KVM_XEN_VCPU_GET_ATTR, api.rst 4.129).

    Needs KVM_CAP_XEN_HVM.
    """
    from .abi import xen as abi

    attr = abi.kvm_xen_vcpu_attr(type=in_range("an attribute type", attr_type, 0xFFFF))
    vcpu.ioctl(abi.KVM_XEN_VCPU_GET_ATTR, attr)
    return attr


def xen_vcpu_set_attr(vcpu: VcpuFd, attr: xen.kvm_xen_vcpu_attr) -> None:
    """Set an attribute of a Xen vCPU (KVM_XEN_VCPU_SET_ATTR, api.rst 4.128). Needs KVM_CAP_XEN_HVM."""
    from .abi import xen as abi

    vcpu.ioctl(abi.KVM_XEN_VCPU_SET_ATTR, attr)


def memory_encrypt_op(
    vcpu: VcpuFd, command: sev.kvm_sev_cmd | tdx.kvm_tdx_cmd | None = None, data: ctypes.Structure | None = None
) -> None:
    """Do a command of TDX that is for one vCPU (KVM_MEMORY_ENCRYPT_OP, api.rst 4.110).

    Needs KVM_CAP_VM_TYPES with abi.KVM_X86_TDX_VM. See VmFd.memory_encrypt_op().
    """
    from .encryption import encrypt_op

    encrypt_op(vcpu, command, data)
