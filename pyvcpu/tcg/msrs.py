"""MSRs: what the platform keeps of them, the lists that KVM gives out, and filters.

The processor has its own (SYSENTER, STAR, EFER, ...) in Cpu.msr and cpu.efer; interp_msrs.get_msr and set_msr know
which. Everything here belongs to a vCPU and is called on its thread, or while it is not in KVM_RUN.
"""

from __future__ import annotations

import ctypes
import errno
from struct import Struct, pack, unpack

from .thing import fetch, give

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .base import Base

M64 = 0xFFFF_FFFF_FFFF_FFFF
ENTRY = Struct("<I4xQ")  # kvm_msr_entry

TSC, APIC_BASE, FEATURE_CONTROL, TSC_ADJUST = 0x10, 0x1B, 0x3A, 0x3B
UCODE_REV, PLATFORM_INFO, MTRR_CAP, ARCH_CAPABILITIES = 0x8B, 0xCE, 0xFE, 0x10A
MCG_CAP, MCG_STATUS, MCG_CTL, MCG_EXT_CTL = 0x179, 0x17A, 0x17B, 0x4D0
MISC_ENABLE, DEBUGCTL, MTRR_DEF_TYPE, MC0_CTL, TSC_DEADLINE = 0x1A0, 0x1D9, 0x2FF, 0x400, 0x6E0
PLATFORM_ID, PERF_STATUS, EFER, FS_BASE, GS_BASE = 0x17, 0x198, 0xC000_0080, 0xC000_0100, 0xC000_0101
WALL_CLOCK, SYSTEM_TIME, WALL_CLOCK_NEW, SYSTEM_TIME_NEW = 0x11, 0x12, 0x4B56_4D00, 0x4B56_4D01
MTRR_FIXED = (0x250, 0x258, 0x259, *range(0x268, 0x270))
MTRR_VARIABLE = range(0x200, 0x210)
X2APIC = range(0x800, 0x900)
BANK_REGISTERS = 4  # CTL, STATUS, ADDR, MISC

# A software processor has none of these: RDCL, IBRS_ALL (no), SKIP_L1DFL_VMENTRY, SSB, MDS, PSCHANGE_MC, TAA,
# SBDR_SSDP, FBSDP, PSDP, BHI, PBRSB, GDS, RFDS, ITS (SDM vol. 4, IA32_ARCH_CAPABILITIES).
NO_FLAWS = sum(1 << bit for bit in (0, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62))
CPUID_FAULT = 1 << 31
FEATURE_MSRS = {UCODE_REV: 1 << 32, ARCH_CAPABILITIES: NO_FLAWS, PLATFORM_INFO: 0}

INDICES = (
    0x174, 0x175, 0x176, 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084, 0xC0000102, 0xC0000103, 0x277, TSC,
    FEATURE_CONTROL, ARCH_CAPABILITIES, SYSTEM_TIME, WALL_CLOCK, SYSTEM_TIME_NEW, WALL_CLOCK_NEW, TSC_ADJUST,
    TSC_DEADLINE, MISC_ENABLE, MCG_STATUS, MCG_CTL, PLATFORM_INFO, UCODE_REV, MTRR_DEF_TYPE, *MTRR_FIXED,
    *MTRR_VARIABLE, DEBUGCTL,
)  # fmt: skip

# Registers that only keep what is written, within a mask of what may be set.
PLAIN = {
    FEATURE_CONTROL: 0x21, MISC_ENABLE: M64, DEBUGCTL: 0, MTRR_DEF_TYPE: 0xCFF,
    **dict.fromkeys(MTRR_FIXED, M64), **dict.fromkeys(MTRR_VARIABLE, M64),
}  # fmt: skip
MISC_ENABLE_START = 1  # fast strings
MTRR_TYPES = (0, 1, 4, 5, 6)
KVM_CAP_USER = 188


def initial() -> dict[int, int]:
    """Return the registers as they are after RESET."""
    return {
        **dict.fromkeys(PLAIN, 0), MISC_ENABLE: MISC_ENABLE_START, MCG_STATUS: 0, MCG_CTL: M64, SYSTEM_TIME: 0,
        WALL_CLOCK: 0, UCODE_REV: 1 << 32, PLATFORM_INFO: 0, ARCH_CAPABILITIES: NO_FLAWS,
    }  # fmt: skip


def read(vcpu: Base, index: int, host: bool = False) -> int | None:
    """Return an MSR of the platform, None where there is none; `host` has rights that a guest has not."""
    if index in vcpu.msrs:
        if not host and index == ARCH_CAPABILITIES and not vcpu.cpuid_table.has("arch_capabilities"):
            return None
        return vcpu.msrs[index]
    if index == TSC:
        return vcpu.tsc()
    if index == TSC_ADJUST:
        return vcpu.tsc_adjust
    if index == APIC_BASE:
        return vcpu.apic_base
    if index in (SYSTEM_TIME_NEW, WALL_CLOCK_NEW):
        return vcpu.msrs[SYSTEM_TIME if index == SYSTEM_TIME_NEW else WALL_CLOCK]
    if index == MTRR_CAP:
        return 0x508  # write combining, fixed ranges, 8 variable ones
    if index == MCG_CAP:
        return vcpu.mcg_cap
    if index == TSC_DEADLINE:
        return vcpu.lapic.tsc_deadline_value() if vcpu.lapic else 0
    if index == PLATFORM_ID:
        return 0
    if index == PERF_STATUS:
        return 4 << 40 | 1000  # what KVM says
    if MC0_CTL <= index < MC0_CTL + BANK_REGISTERS * (vcpu.mcg_cap & 0xFF):
        return vcpu.banks.get(index, M64 if not index & 3 else 0)
    if index in X2APIC and vcpu.lapic is not None:
        return vcpu.lapic.read_msr(index, host)
    return None


def write(vcpu: Base, index: int, value: int, host: bool = False) -> bool:
    """Write an MSR of the platform; False where there is none, or it does not take the value."""
    if index in PLAIN:
        return _write_plain(vcpu, index, value, host)
    if index == TSC:
        vcpu.set_tsc(value, host)
    elif index == TSC_ADJUST:
        if not host:
            vcpu.tsc_offset += value - vcpu.tsc_adjust
        vcpu.tsc_adjust = value
    elif index == APIC_BASE:
        return vcpu.set_apic_base(value, host)
    elif index in (SYSTEM_TIME, SYSTEM_TIME_NEW):
        vcpu.set_system_time(value)
    elif index in (WALL_CLOCK, WALL_CLOCK_NEW):
        vcpu.msrs[WALL_CLOCK] = value
        vcpu.vm.write_wall_clock(value)
    elif index == UCODE_REV:
        if host:
            vcpu.msrs[index] = value
        return True
    elif index in (PLATFORM_INFO, ARCH_CAPABILITIES):
        if not host or (index == PLATFORM_INFO and value & ~CPUID_FAULT):
            return False
        vcpu.msrs[index] = value
    elif index == MCG_STATUS:
        vcpu.msrs[index] = value
    elif index == MCG_CTL:
        if value not in (0, M64) or (not vcpu.mcg_cap & 1 << 8 and (value or not host)):
            return False
        vcpu.msrs[index] = value
    elif index == TSC_DEADLINE:
        if vcpu.lapic is not None:
            vcpu.lapic.set_tsc_deadline(value)
    elif MC0_CTL <= index < MC0_CTL + BANK_REGISTERS * (vcpu.mcg_cap & 0xFF):
        return _write_bank(vcpu, index, value, host)
    elif index in X2APIC and vcpu.lapic is not None:
        return vcpu.lapic.write_msr(index, value, host)
    else:
        return False
    return True


def _write_plain(vcpu: Base, index: int, value: int, host: bool) -> bool:
    if value & ~PLAIN[index]:
        return False
    if index == FEATURE_CONTROL and not host and vcpu.msrs[index] & 1:  # locked
        return False
    if index == MTRR_DEF_TYPE and value & 0xFF not in MTRR_TYPES:
        return False
    if index in MTRR_FIXED and any(value >> at & 0xFF not in MTRR_TYPES for at in range(0, 64, 8)):
        return False
    if index in MTRR_VARIABLE:
        if index & 1:
            if value & 0x7FF or value >> vcpu.cpu.phys_bits:
                return False
        elif value & 0xF00 or value & 0xFF not in MTRR_TYPES or value >> vcpu.cpu.phys_bits:
            return False
    vcpu.msrs[index] = value
    return True


def _write_bank(vcpu: Base, index: int, value: int, host: bool) -> bool:
    """Write a register of a machine-check bank: CTL all or nothing, the others 0 unless by the host."""
    if not index & 3:
        if value not in (0, M64) and value | 1 << 10 != M64 and value | 1 != M64:
            return False
    elif value and not host and index & 3 == 1:
        return False
    vcpu.banks[index] = value
    return True


# The requests.


def get_list(address: int, reader: Callable[[int], int | None]) -> int:
    """Serve KVM_GET_MSRS: fill in values until one is refused; return how many."""
    (count,) = unpack("<I", fetch(address, 4))
    if count >= 256:
        raise OSError(errno.E2BIG, "too many")
    for at in range(count):
        place = address + 8 + 16 * at
        value = reader(int.from_bytes(ctypes.string_at(place, 4), "little"))
        if value is None:
            return at
        give(place + 8, pack("<Q", value))
    return int(count)


def set_list(address: int, writer: Callable[[int, int], bool]) -> int:
    """Serve KVM_SET_MSRS: take values until one is refused; return how many."""
    (count,) = unpack("<I", fetch(address, 4))
    if count >= 256:
        raise OSError(errno.E2BIG, "too many")
    for at, (index, value) in enumerate(ENTRY.iter_unpack(ctypes.string_at(address + 8, 16 * count))):
        if not writer(index, value):
            return at
    return int(count)


class Filter:
    """What KVM_X86_SET_MSR_FILTER says: ranges with a bitmap each, and a default."""

    __slots__ = ("allow", "ranges")

    def __init__(self, data: bytes) -> None:
        """Read a kvm_msr_filter. Raise OSError EINVAL."""
        (flags,) = unpack("<I", data[:4])
        if flags & ~1:
            raise OSError(errno.EINVAL, "flags")
        self.allow = not flags & 1
        self.ranges: list[tuple[int, int, int, bytes]] = []
        for at in range(8, 8 + 16 * 24, 24):
            kinds, count, base, bitmap = unpack("<III4xQ", data[at : at + 24])
            if not count:
                continue
            size = (count + 7) // 8
            if not kinds & 3 or kinds & ~3 or size > 0x600:
                raise OSError(errno.EINVAL, "range")
            self.ranges.append((kinds, base, count, fetch(bitmap, size)))
        if not self.allow and not self.ranges:
            raise OSError(errno.EINVAL, "nothing would be allowed")

    def allowed(self, index: int, kind: int) -> bool:
        """Tell whether a guest may read (kind 1) or write (2) an MSR."""
        if index in X2APIC:
            return True
        for kinds, base, count, bitmap in self.ranges:
            if base <= index < base + count and kinds & kind:
                at = index - base
                return bool(bitmap[at >> 3] >> (at & 7) & 1)
        return self.allow
