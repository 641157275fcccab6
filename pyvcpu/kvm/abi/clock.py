"""The guest's clock and time-stamp counter (linux/kvm.h)."""

from __future__ import annotations

from .base import IO, IOR, IOW, Struct, u32, u64

KVM_CLOCK_TSC_STABLE = 1 << 1
KVM_CLOCK_REALTIME = 1 << 2
KVM_CLOCK_HOST_TSC = 1 << 3

# Attributes of a vCPU (KVM_CAP_VCPU_ATTRIBUTES; asm/kvm.h).
KVM_VCPU_TSC_CTRL = 0
KVM_VCPU_TSC_OFFSET = 0


class kvm_clock_data(Struct):
    """KVM_GET_CLOCK, KVM_SET_CLOCK: `clock` and `realtime` in ns."""

    __slots__ = ()
    _fields_ = [
        ("clock", u64),
        ("flags", u32),
        ("pad0", u32),
        ("realtime", u64),
        ("host_tsc", u64),
        ("pad", u32 * 4),
    ]


KVM_SET_CLOCK = IOW("KVM_SET_CLOCK", 0x7B, kvm_clock_data)
KVM_GET_CLOCK = IOR("KVM_GET_CLOCK", 0x7C, kvm_clock_data)
KVM_SET_TSC_KHZ = IO("KVM_SET_TSC_KHZ", 0xA2)
