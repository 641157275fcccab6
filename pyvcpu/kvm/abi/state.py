"""The state of a vCPU beyond its general registers: FPU, XSAVE, local APIC, SREGS2, single registers, signal mask."""

from __future__ import annotations

from .base import IO, IOR, IOW, IOWR, Struct, u8, u16, u32, u64
from .basic import kvm_dtable, kvm_segment

KVM_APIC_REG_SIZE = 0x400
KVM_SREGS2_FLAGS_PDPTRS_VALID = 1
KVM_MAX_XCRS = 16
KVM_SYNC_X86_VALID_FIELDS = 7

KVM_MP_STATE_STOPPED = 5
KVM_MP_STATE_CHECK_STOP = 6
KVM_MP_STATE_OPERATING = 7
KVM_MP_STATE_LOAD = 8
KVM_MP_STATE_AP_RESET_HOLD = 9
KVM_MP_STATE_SUSPENDED = 10

# The id of a register: architecture, size, type, index (linux/kvm.h; KVM_CAP_ONE_REG).
KVM_REG_ARCH_MASK = 0xFF00_0000_0000_0000
KVM_REG_GENERIC = 0
KVM_REG_X86 = 0x2000_0000_0000_0000
KVM_REG_SIZE_SHIFT = 52
KVM_REG_SIZE_MASK = 0x00F0_0000_0000_0000
KVM_REG_SIZE_U8 = 0 << 52
KVM_REG_SIZE_U16 = 1 << 52
KVM_REG_SIZE_U32 = 2 << 52
KVM_REG_SIZE_U64 = 3 << 52
KVM_REG_SIZE_U128 = 4 << 52
KVM_REG_SIZE_U256 = 5 << 52
KVM_REG_SIZE_U512 = 6 << 52
KVM_REG_SIZE_U1024 = 7 << 52
KVM_REG_SIZE_U2048 = 8 << 52
KVM_X86_REG_TYPE_MSR = 2
KVM_X86_REG_TYPE_KVM = 3
KVM_REG_GUEST_SSP = 0


class kvm_lapic_state(Struct):
    """KVM_GET_LAPIC, KVM_SET_LAPIC: the register page of the local APIC."""

    __slots__ = ()
    _fields_ = [("regs", u8 * KVM_APIC_REG_SIZE)]


class kvm_sregs2(Struct):
    """KVM_GET_SREGS2, KVM_SET_SREGS2: as kvm_sregs, with the PDPTRs of PAE paging."""

    __slots__ = ()
    _fields_ = [
        ("cs", kvm_segment),
        ("ds", kvm_segment),
        ("es", kvm_segment),
        ("fs", kvm_segment),
        ("gs", kvm_segment),
        ("ss", kvm_segment),
        ("tr", kvm_segment),
        ("ldt", kvm_segment),
        ("gdt", kvm_dtable),
        ("idt", kvm_dtable),
        ("cr0", u64),
        ("cr2", u64),
        ("cr3", u64),
        ("cr4", u64),
        ("cr8", u64),
        ("efer", u64),
        ("apic_base", u64),
        ("flags", u64),
        ("pdptrs", u64 * 4),
    ]


class kvm_fpu(Struct):
    """KVM_GET_FPU, KVM_SET_FPU: x87 and SSE; ftwx is in FXSAVE format."""

    __slots__ = ()
    _fields_ = [
        ("fpr", (u8 * 16) * 8),
        ("fcw", u16),
        ("fsw", u16),
        ("ftwx", u8),
        ("pad1", u8),
        ("last_opcode", u16),
        ("last_ip", u64),
        ("last_dp", u64),
        ("xmm", (u8 * 16) * 16),
        ("mxcsr", u32),
        ("pad2", u32),
    ]


class kvm_xsave(Struct):
    """KVM_GET_XSAVE, KVM_SET_XSAVE, head of KVM_GET_XSAVE2: laid out as CPUID leaf 0xD of the host says."""

    __slots__ = ()
    _fields_ = [("region", u32 * 1024), ("extra", u32 * 0)]


class kvm_xcr(Struct):
    """One extended control register."""

    __slots__ = ()
    _fields_ = [("xcr", u32), ("reserved", u32), ("value", u64)]


class kvm_xcrs(Struct):
    """KVM_GET_XCRS, KVM_SET_XCRS argument."""

    __slots__ = ()
    _fields_ = [("nr_xcrs", u32), ("flags", u32), ("xcrs", kvm_xcr * KVM_MAX_XCRS), ("padding", u64 * 16)]


class kvm_one_reg(Struct):
    """KVM_GET_ONE_REG, KVM_SET_ONE_REG argument; `addr` is where the value is in this process."""

    __slots__ = ()
    _fields_ = [("id", u64), ("addr", u64)]


class kvm_reg_list(Struct):
    """Head of KVM_GET_REG_LIST: `n` ids follow it."""

    __slots__ = ()
    _fields_ = [("n", u64), ("reg", u64 * 0)]


class kvm_signal_mask(Struct):
    """KVM_SET_SIGNAL_MASK argument: `len` bytes of kernel sigset follow it (linux/kvm.h)."""

    __slots__ = ()
    _fields_ = [("len", u32), ("sigset", u8 * 0)]


KVM_SET_SIGNAL_MASK = IOW("KVM_SET_SIGNAL_MASK", 0x8B, kvm_signal_mask)
KVM_GET_FPU = IOR("KVM_GET_FPU", 0x8C, kvm_fpu)
KVM_SET_FPU = IOW("KVM_SET_FPU", 0x8D, kvm_fpu)
KVM_GET_LAPIC = IOR("KVM_GET_LAPIC", 0x8E, kvm_lapic_state)
KVM_SET_LAPIC = IOW("KVM_SET_LAPIC", 0x8F, kvm_lapic_state)
KVM_GET_XSAVE = IOR("KVM_GET_XSAVE", 0xA4, kvm_xsave)
KVM_SET_XSAVE = IOW("KVM_SET_XSAVE", 0xA5, kvm_xsave)
KVM_GET_XCRS = IOR("KVM_GET_XCRS", 0xA6, kvm_xcrs)
KVM_SET_XCRS = IOW("KVM_SET_XCRS", 0xA7, kvm_xcrs)
KVM_GET_ONE_REG = IOW("KVM_GET_ONE_REG", 0xAB, kvm_one_reg)
KVM_SET_ONE_REG = IOW("KVM_SET_ONE_REG", 0xAC, kvm_one_reg)
KVM_KVMCLOCK_CTRL = IO("KVM_KVMCLOCK_CTRL", 0xAD)
KVM_GET_REG_LIST = IOWR("KVM_GET_REG_LIST", 0xB0, kvm_reg_list)
KVM_GET_SREGS2 = IOR("KVM_GET_SREGS2", 0xCC, kvm_sregs2)
KVM_SET_SREGS2 = IOW("KVM_SET_SREGS2", 0xCD, kvm_sregs2)
KVM_GET_XSAVE2 = IOR("KVM_GET_XSAVE2", 0xCF, kvm_xsave)
