"""Methods of VmFd and VcpuFd for Xen guests."""

from __future__ import annotations

import ctypes

from .abi import xen as abi
from .abi.irq import KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL, kvm_irq_routing_xen_evtchn
from .fd import PAGE, U8, U16, U32, bytes_of, in_range

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .vcpu import VcpuFd
    from .vm import VmFd


def xen_hvm_config(vm: VmFd, flags: int, msr: int, blob_32: bytes = b"", blob_64: bytes = b"") -> None:
    """Choose how a Xen guest gets its hypercall page when it writes to `msr`: KVM copies it from a blob, or makes it.

    The blobs are whole pages; they are kept as long as the VM. `flags`: abi.KVM_XEN_HVM_CONFIG_*.
    KVM_XEN_HVM_CONFIG, api.rst 4.28. Needs KVM_CAP_XEN_HVM.
    """
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


def xen_hvm_get_attr(vm: VmFd, attr_type: int) -> abi.kvm_xen_hvm_attr:
    """Read an attribute of a Xen guest, abi.KVM_XEN_ATTR_TYPE_* (KVM_XEN_HVM_GET_ATTR, api.rst 4.127).

    Needs KVM_CAP_XEN_HVM.
    """
    attr = abi.kvm_xen_hvm_attr(type=in_range("an attribute type", attr_type, U16))
    vm.ioctl(abi.KVM_XEN_HVM_GET_ATTR, attr)
    return attr


def xen_hvm_set_attr(vm: VmFd, attr: abi.kvm_xen_hvm_attr) -> None:
    """Set an attribute of a Xen guest (KVM_XEN_HVM_SET_ATTR, api.rst 4.126). Needs KVM_CAP_XEN_HVM."""
    vm.ioctl(abi.KVM_XEN_HVM_SET_ATTR, attr)


def xen_hvm_evtchn_send(vm: VmFd, port: int, vcpu: int, priority: int = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL) -> None:
    """Signal an event channel of a Xen guest (KVM_XEN_HVM_EVTCHN_SEND, api.rst 4.135). Needs KVM_CAP_XEN_HVM."""
    event = kvm_irq_routing_xen_evtchn(
        in_range("a port", port, U32), in_range("a vCPU", vcpu, U32), in_range("a priority", priority, U32)
    )
    vm.ioctl(abi.KVM_XEN_HVM_EVTCHN_SEND, event)


def xen_vcpu_get_attr(vcpu: VcpuFd, attr_type: int) -> abi.kvm_xen_vcpu_attr:
    """Read an attribute of a Xen vCPU, abi.KVM_XEN_VCPU_ATTR_TYPE_* (KVM_XEN_VCPU_GET_ATTR, api.rst 4.129).

    Needs KVM_CAP_XEN_HVM.
    """
    attr = abi.kvm_xen_vcpu_attr(type=in_range("an attribute type", attr_type, U16))
    vcpu.ioctl(abi.KVM_XEN_VCPU_GET_ATTR, attr)
    return attr


def xen_vcpu_set_attr(vcpu: VcpuFd, attr: abi.kvm_xen_vcpu_attr) -> None:
    """Set an attribute of a Xen vCPU (KVM_XEN_VCPU_SET_ATTR, api.rst 4.128). Needs KVM_CAP_XEN_HVM."""
    vcpu.ioctl(abi.KVM_XEN_VCPU_SET_ATTR, attr)
