"""The state of a guest that is itself a hypervisor (asm/kvm.h; KVM_CAP_NESTED_STATE)."""

from __future__ import annotations

from .base import IOW, IOWR, Struct, Union, u8, u16, u32, u64

KVM_STATE_NESTED_FORMAT_VMX = 0
KVM_STATE_NESTED_FORMAT_SVM = 1
KVM_STATE_NESTED_GUEST_MODE = 1 << 0
KVM_STATE_NESTED_RUN_PENDING = 1 << 1
KVM_STATE_NESTED_EVMCS = 1 << 2
KVM_STATE_NESTED_MTF_PENDING = 1 << 3
KVM_STATE_NESTED_GIF_SET = 1 << 8
KVM_STATE_NESTED_SMM_GUEST_MODE = 1 << 0
KVM_STATE_NESTED_SMM_VMXON = 1 << 1
KVM_STATE_NESTED_VMX_VMCS_SIZE = 0x1000
KVM_STATE_NESTED_SVM_VMCB_SIZE = 0x1000
KVM_STATE_VMX_PREEMPTION_TIMER_DEADLINE = 1 << 0


class kvm_vmx_nested_state_data(Struct):
    """What follows the head in VMX format."""

    __slots__ = ()
    _fields_ = [("vmcs12", u8 * 0x1000), ("shadow_vmcs12", u8 * 0x1000)]


class kvm_svm_nested_state_data(Struct):
    """What follows the head in SVM format."""

    __slots__ = ()
    _fields_ = [("vmcb12", u8 * 0x1000)]


class _smm(Struct):
    __slots__ = ()
    _fields_ = [("flags", u16)]


class kvm_vmx_nested_state_hdr(Struct):
    """The head's part for VMX."""

    __slots__ = ()
    _fields_ = [
        ("vmxon_pa", u64),
        ("vmcs12_pa", u64),
        ("smm", _smm),
        ("pad", u16),
        ("flags", u32),
        ("preemption_timer_deadline", u64),
    ]


class kvm_svm_nested_state_hdr(Struct):
    """The head's part for SVM; older kernels have no gpat."""

    __slots__ = ()
    _fields_ = [("vmcb_pa", u64), ("gpat", u64)]


class _hdr(Union):
    __slots__ = ()
    _fields_ = [("vmx", kvm_vmx_nested_state_hdr), ("svm", kvm_svm_nested_state_hdr), ("pad", u8 * 120)]


class _data(Union):
    __slots__ = ()
    _fields_ = [("vmx", kvm_vmx_nested_state_data * 0), ("svm", kvm_svm_nested_state_data * 0)]


class kvm_nested_state(Struct):
    """Head of KVM_GET_NESTED_STATE, KVM_SET_NESTED_STATE; `size` counts the data behind it, too."""

    __slots__ = ()
    _fields_ = [("flags", u16), ("format", u16), ("size", u32), ("hdr", _hdr), ("data", _data)]


KVM_GET_NESTED_STATE = IOWR("KVM_GET_NESTED_STATE", 0xBE, kvm_nested_state)
KVM_SET_NESTED_STATE = IOW("KVM_SET_NESTED_STATE", 0xBF, kvm_nested_state)
