"""Debugging a guest, and machine checks (asm/kvm.h, linux/kvm.h)."""

from __future__ import annotations

from .base import IOR, IOW, Struct, u8, u32, u64

KVM_GUESTDBG_ENABLE = 1 << 0
KVM_GUESTDBG_SINGLESTEP = 1 << 1
KVM_GUESTDBG_USE_SW_BP = 1 << 16
KVM_GUESTDBG_USE_HW_BP = 1 << 17
KVM_GUESTDBG_INJECT_DB = 1 << 18
KVM_GUESTDBG_INJECT_BP = 1 << 19
KVM_GUESTDBG_BLOCKIRQ = 1 << 20

# Exception vectors.
DE_VECTOR = 0
DB_VECTOR = 1
BP_VECTOR = 3
OF_VECTOR = 4
BR_VECTOR = 5
UD_VECTOR = 6
NM_VECTOR = 7
DF_VECTOR = 8
TS_VECTOR = 10
NP_VECTOR = 11
SS_VECTOR = 12
GP_VECTOR = 13
PF_VECTOR = 14
MF_VECTOR = 16
AC_VECTOR = 17
MC_VECTOR = 18
XM_VECTOR = 19
VE_VECTOR = 20
CP_VECTOR = 21
HV_VECTOR = 28
VC_VECTOR = 29
SX_VECTOR = 30


class kvm_guest_debug_arch(Struct):
    """Debug registers 0 to 7 for hardware breakpoints."""

    __slots__ = ()
    _fields_ = [("debugreg", u64 * 8)]


class kvm_guest_debug(Struct):
    """KVM_SET_GUEST_DEBUG argument."""

    __slots__ = ()
    _fields_ = [("control", u32), ("pad", u32), ("arch", kvm_guest_debug_arch)]


class kvm_debugregs(Struct):
    """KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS: the guest's own debug registers."""

    __slots__ = ()
    _fields_ = [("db", u64 * 4), ("dr6", u64), ("dr7", u64), ("flags", u64), ("reserved", u64 * 9)]


class kvm_x86_mce(Struct):
    """KVM_X86_SET_MCE argument: a machine check in `bank`."""

    __slots__ = ()
    _fields_ = [
        ("status", u64),
        ("addr", u64),
        ("misc", u64),
        ("mcg_status", u64),
        ("bank", u8),
        ("pad1", u8 * 7),
        ("pad2", u64 * 3),
    ]


KVM_SET_GUEST_DEBUG = IOW("KVM_SET_GUEST_DEBUG", 0x9B, kvm_guest_debug)
KVM_X86_SET_MCE = IOW("KVM_X86_SET_MCE", 0x9E, kvm_x86_mce)
KVM_GET_DEBUGREGS = IOR("KVM_GET_DEBUGREGS", 0xA1, kvm_debugregs)
KVM_SET_DEBUGREGS = IOW("KVM_SET_DEBUGREGS", 0xA2, kvm_debugregs)
