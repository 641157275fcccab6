"""Devices in the kernel and attributes of devices, vCPUs and the system (linux/kvm.h)."""

from __future__ import annotations

from .base import IOW, IOWR, Struct, u32, u64

KVM_CREATE_DEVICE_TEST = 1
KVM_DEV_TYPE_VFIO = 4

KVM_DEV_VFIO_FILE = 1
KVM_DEV_VFIO_FILE_ADD = 1
KVM_DEV_VFIO_FILE_DEL = 2
KVM_DEV_VFIO_GROUP = 1
KVM_DEV_VFIO_GROUP_ADD = 1
KVM_DEV_VFIO_GROUP_DEL = 2

# Attributes of the system fd (KVM_CAP_SYS_ATTRIBUTES; asm/kvm.h).
KVM_X86_GRP_SYSTEM = 0
KVM_X86_XCOMP_GUEST_SUPP = 0
KVM_X86_GRP_SEV = 1
KVM_X86_SEV_VMSA_FEATURES = 0
KVM_X86_SNP_POLICY_BITS = 1
KVM_X86_SEV_SNP_REQ_CERTS = 2


class kvm_create_device(Struct):
    """KVM_CREATE_DEVICE argument; the kernel fills in `fd`."""

    __slots__ = ()
    _fields_ = [("type", u32), ("fd", u32), ("flags", u32)]


class kvm_device_attr(Struct):
    """KVM_SET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR, KVM_HAS_DEVICE_ATTR argument; `addr` is in this process."""

    __slots__ = ()
    _fields_ = [("flags", u32), ("group", u32), ("attr", u64), ("addr", u64)]


KVM_CREATE_DEVICE = IOWR("KVM_CREATE_DEVICE", 0xE0, kvm_create_device)
KVM_SET_DEVICE_ATTR = IOW("KVM_SET_DEVICE_ATTR", 0xE1, kvm_device_attr)
KVM_GET_DEVICE_ATTR = IOW("KVM_GET_DEVICE_ATTR", 0xE2, kvm_device_attr)
KVM_HAS_DEVICE_ATTR = IOW("KVM_HAS_DEVICE_ATTR", 0xE3, kvm_device_attr)
