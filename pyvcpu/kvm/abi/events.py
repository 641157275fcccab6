"""Exceptions, interrupts, NMI and SMI that a vCPU has pending (asm/kvm.h)."""

from __future__ import annotations

from .base import IOR, IOW, Struct, u8, u32, u64

# kvm_vcpu_events.flags: which parts KVM_SET_VCPU_EVENTS is to take.
KVM_VCPUEVENT_VALID_NMI_PENDING = 1 << 0
KVM_VCPUEVENT_VALID_SIPI_VECTOR = 1 << 1
KVM_VCPUEVENT_VALID_SHADOW = 1 << 2
KVM_VCPUEVENT_VALID_SMM = 1 << 3
KVM_VCPUEVENT_VALID_PAYLOAD = 1 << 4
KVM_VCPUEVENT_VALID_TRIPLE_FAULT = 1 << 5

# kvm_vcpu_events.interrupt.shadow
KVM_X86_SHADOW_INT_MOV_SS = 1 << 0
KVM_X86_SHADOW_INT_STI = 1 << 1


class _exception(Struct):
    __slots__ = ()
    _fields_ = [("injected", u8), ("nr", u8), ("has_error_code", u8), ("pending", u8), ("error_code", u32)]


class _interrupt(Struct):
    __slots__ = ()
    _fields_ = [("injected", u8), ("nr", u8), ("soft", u8), ("shadow", u8)]


class _nmi(Struct):
    __slots__ = ()
    _fields_ = [("injected", u8), ("pending", u8), ("masked", u8), ("pad", u8)]


class _smi(Struct):
    __slots__ = ()
    _fields_ = [("smm", u8), ("pending", u8), ("smm_inside_nmi", u8), ("latched_init", u8)]


class _triple_fault(Struct):
    __slots__ = ()
    _fields_ = [("pending", u8)]


class kvm_vcpu_events(Struct):
    """KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS (asm/kvm.h)."""

    __slots__ = ()
    _fields_ = [
        ("exception", _exception),
        ("interrupt", _interrupt),
        ("nmi", _nmi),
        ("sipi_vector", u32),
        ("flags", u32),
        ("smi", _smi),
        ("triple_fault", _triple_fault),
        ("reserved", u8 * 26),
        ("exception_has_payload", u8),
        ("exception_payload", u64),
    ]


KVM_GET_VCPU_EVENTS = IOR("KVM_GET_VCPU_EVENTS", 0x9F, kvm_vcpu_events)
KVM_SET_VCPU_EVENTS = IOW("KVM_SET_VCPU_EVENTS", 0xA0, kvm_vcpu_events)
