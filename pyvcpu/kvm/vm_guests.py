"""VmFd's methods for what a guest sees and is: clock, filters, devices, statistics; Xen, Hyper-V, SEV, TDX."""

from __future__ import annotations

import ctypes

from .abi import clock
from .fd import PAGE, U8, U32, U64, bytes_of, fd_number, in_range
from .registration import Registration

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable, Sequence

    from .abi import irq, sev, tdx, xen
    from .device import DeviceFd
    from .fd import HasFileno
    from .msrs import MsrFilterRange
    from .stats import StatsFd
    from .vm import VmFd

MAX_PMU_EVENTS = 300


def get_clock(vm: VmFd) -> clock.kvm_clock_data:
    """Read the guest's clock: ns since the VM's start, and real time and host TSC where `flags` say so.

    KVM_GET_CLOCK, api.rst 4.29. Needs KVM_CAP_ADJUST_CLOCK.
    """
    data = clock.kvm_clock_data()
    vm.ioctl(clock.KVM_GET_CLOCK, data)
    return data


def set_clock(vm: VmFd, data: clock.kvm_clock_data | int) -> None:
    """Set the guest's clock, to a number of ns or with more; of the flags KVM takes only KVM_CLOCK_REALTIME.

    KVM_SET_CLOCK, api.rst 4.30. Needs KVM_CAP_ADJUST_CLOCK.
    """
    if isinstance(data, int):
        data = clock.kvm_clock_data(in_range("a clock", data, U64))
    vm.ioctl(clock.KVM_SET_CLOCK, data)


def get_tsc_khz(vm: VmFd) -> int:
    """Return the TSC rate in kHz that new vCPUs get (KVM_GET_TSC_KHZ, api.rst 4.56).

    Needs KVM_CAP_VM_TSC_CONTROL.
    """
    from .abi.basic import KVM_GET_TSC_KHZ

    return vm.ioctl(KVM_GET_TSC_KHZ)


def set_tsc_khz(vm: VmFd, khz: int) -> None:
    """Set the TSC rate of vCPUs that are created from now on (KVM_SET_TSC_KHZ, api.rst 4.55).

    Needs KVM_CAP_VM_TSC_CONTROL.
    """
    vm.ioctl(clock.KVM_SET_TSC_KHZ, in_range("khz", khz, U32))


def x86_set_msr_filter(vm: VmFd, ranges: Sequence[MsrFilterRange] = (), *, deny_others: bool = False) -> None:
    """Rule which MSRs the guest may touch; what is denied is a #GP, or an exit under KVM_CAP_X86_USER_SPACE_MSR.

    Without ranges and `deny_others`, all is allowed again. KVM_X86_SET_MSR_FILTER, api.rst 4.97. Needs
    KVM_CAP_X86_MSR_FILTER.
    """
    from .abi.msr import KVM_X86_SET_MSR_FILTER
    from .msrs import filter_argument

    argument, kept = filter_argument(ranges, deny_others)
    vm.ioctl(KVM_X86_SET_MSR_FILTER, argument)
    del kept  # the kernel has copied the bitmaps


def set_pmu_event_filter(
    vm: VmFd, action: int, events: Iterable[int], *, fixed_counter_bitmap: int = 0, flags: int = 0
) -> None:
    """Allow (abi.KVM_PMU_EVENT_ALLOW) only these performance events, or deny (_DENY) these.

    KVM_SET_PMU_EVENT_FILTER, api.rst 4.120. Needs KVM_CAP_PMU_EVENT_FILTER.
    """
    from .abi.features import KVM_SET_PMU_EVENT_FILTER, kvm_pmu_event_filter

    listed = [in_range("an event", event, U64) for event in events]
    if len(listed) > MAX_PMU_EVENTS:
        raise ValueError(f"at most {MAX_PMU_EVENTS} events, not {len(listed)}")
    head = kvm_pmu_event_filter(
        in_range("an action", action, U32),
        len(listed),
        in_range("fixed_counter_bitmap", fixed_counter_bitmap, U32),
        in_range("flags", flags, U32),
    )
    raw = bytes(head) + b"".join(event.to_bytes(8, "little") for event in listed)
    vm.ioctl(KVM_SET_PMU_EVENT_FILTER, ctypes.create_string_buffer(raw, len(raw)))


def create_device(vm: VmFd, device_type: int, *, test: bool = False) -> DeviceFd | None:
    """Create a device in the kernel, of those for x86 abi.KVM_DEV_TYPE_VFIO; `test`: only ask, return None.

    KVM_CREATE_DEVICE, api.rst 4.79. Needs KVM_CAP_DEVICE_CTRL.
    """
    from .abi import device as abi
    from .device import DeviceFd

    flags = abi.KVM_CREATE_DEVICE_TEST if test else 0
    request = abi.kvm_create_device(in_range("a device type", device_type, U32), 0, flags)
    vm.ioctl(abi.KVM_CREATE_DEVICE, request)
    return None if test else DeviceFd(vm.kernel, request.fd, f"device of type {device_type}", vm)


def get_stats_fd(vm: VmFd) -> StatsFd:
    """Open the statistics of this VM (KVM_GET_STATS_FD, api.rst 4.133). Needs KVM_CAP_BINARY_STATS_FD."""
    from .stats import open_stats

    return open_stats(vm, "statistics of the VM")


# Xen guests.


def xen_hvm_config(vm: VmFd, flags: int, msr: int, blob_32: bytes = b"", blob_64: bytes = b"") -> None:
    """Say how Xen hypercalls are set up: at a write to `msr`, KVM copies a page of a blob, or makes its own.

    The blobs are whole pages; they are kept as long as the VM. `flags`: abi.KVM_XEN_HVM_CONFIG_*.
    KVM_XEN_HVM_CONFIG, api.rst 4.28. Needs KVM_CAP_XEN_HVM.
    """
    from .abi import xen as abi

    config = abi.kvm_xen_hvm_config(in_range("flags", flags, U32), in_range("an MSR index", msr, U32))
    for bits, blob in ((32, blob_32), (64, blob_64)):
        if len(bytes_of("a hypercall blob", blob)) % PAGE or len(blob) // PAGE > U8:
            raise ValueError("a hypercall blob must be bytes, at most 255 whole pages")
        if blob:
            copy = ctypes.create_string_buffer(blob, len(blob))
            vm.kept.append(copy)  # the kernel reads it at the guest's write, not now
            setattr(config, f"blob_addr_{bits}", ctypes.addressof(copy))
            setattr(config, f"blob_size_{bits}", len(blob) // PAGE)
    vm.ioctl(abi.KVM_XEN_HVM_CONFIG, config)


def xen_hvm_get_attr(vm: VmFd, attr_type: int) -> xen.kvm_xen_hvm_attr:
    """Read an attribute of a Xen guest, abi.KVM_XEN_ATTR_TYPE_* (KVM_XEN_HVM_GET_ATTR, api.rst 4.127).

    Needs KVM_CAP_XEN_HVM.
    """
    from .abi import xen as abi

    attr = abi.kvm_xen_hvm_attr(type=in_range("an attribute type", attr_type, 0xFFFF))
    vm.ioctl(abi.KVM_XEN_HVM_GET_ATTR, attr)
    return attr


def xen_hvm_set_attr(vm: VmFd, attr: xen.kvm_xen_hvm_attr) -> None:
    """Set an attribute of a Xen guest (KVM_XEN_HVM_SET_ATTR, api.rst 4.126). Needs KVM_CAP_XEN_HVM."""
    from .abi import xen as abi

    vm.ioctl(abi.KVM_XEN_HVM_SET_ATTR, attr)


def xen_hvm_evtchn_send(vm: VmFd, port: int, vcpu: int, priority: int = 0xFFFF_FFFF) -> None:
    """Signal an event channel of a Xen guest (KVM_XEN_HVM_EVTCHN_SEND, api.rst 4.135). Needs KVM_CAP_XEN_HVM."""
    from .abi import xen as abi
    from .abi.irq import kvm_irq_routing_xen_evtchn

    event: irq.kvm_irq_routing_xen_evtchn = kvm_irq_routing_xen_evtchn(
        in_range("a port", port, U32), in_range("a vCPU", vcpu, U32), in_range("a priority", priority, U32)
    )
    vm.ioctl(abi.KVM_XEN_HVM_EVTCHN_SEND, event)


# Hyper-V guests.


def hyperv_eventfd(vm: VmFd, conn_id: int, eventfd: int | HasFileno) -> Registration:
    """Signal `eventfd` at the guest's HvSignalEvent for connection `conn_id`, instead of an exit.

    KVM_HYPERV_EVENTFD, api.rst 4.113. Needs KVM_CAP_HYPERV_EVENTFD.
    """
    from .abi import hyperv as abi

    in_range("a connection", conn_id, abi.KVM_HYPERV_CONN_ID_MASK)
    request = abi.kvm_hyperv_eventfd(conn_id, fd_number("an eventfd", eventfd))
    vm.ioctl(abi.KVM_HYPERV_EVENTFD, request)
    undo = abi.kvm_hyperv_eventfd(conn_id, -1, abi.KVM_HYPERV_EVENTFD_DEASSIGN)
    return Registration(f"Hyper-V connection {conn_id:#x}", vm, abi.KVM_HYPERV_EVENTFD, undo)


# Encrypted guests.


def memory_encrypt_op(
    vm: VmFd, command: sev.kvm_sev_cmd | tdx.kvm_tdx_cmd | None = None, data: ctypes.Structure | None = None
) -> None:
    """Do a command of SEV or TDX with `data`, the structure that belongs to it; None: only ask whether KVM can.

    Addresses in `data` are of this process and must stay valid until the call returns.
    KVM_MEMORY_ENCRYPT_OP, api.rst 4.110. Needs KVM_CAP_VM_TYPES with one of the encrypted types, or older SEV.
    """
    from .encryption import encrypt_op

    encrypt_op(vm, command, data)


def memory_encrypt_reg_region(vm: VmFd, address: int, size: int) -> Registration:
    """Pin memory of this process that an SEV guest uses, until the registration is closed.

    KVM_MEMORY_ENCRYPT_REG_REGION, api.rst 4.111.
    """
    from .abi import sev as abi

    region = abi.kvm_enc_region(in_range("address", address, U64), in_range("size", size, U64))
    vm.ioctl(abi.KVM_MEMORY_ENCRYPT_REG_REGION, region)
    what = f"encrypted region {address:#x}, {size} bytes"
    return Registration(what, vm, abi.KVM_MEMORY_ENCRYPT_UNREG_REGION, region)


def memory_encrypt_unreg_region(vm: VmFd, address: int, size: int) -> None:
    """Release what memory_encrypt_reg_region() pinned (KVM_MEMORY_ENCRYPT_UNREG_REGION, api.rst 4.112)."""
    from .abi import sev as abi

    region = abi.kvm_enc_region(in_range("address", address, U64), in_range("size", size, U64))
    vm.ioctl(abi.KVM_MEMORY_ENCRYPT_UNREG_REGION, region)
