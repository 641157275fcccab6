"""MSRs, the time stamp counter, CPUID and XCR0 of the cold tier."""

from __future__ import annotations

from .contract import EXIT_MSR, UserMsr
from .control import (
    FSGSBASE,
    LMA,
    LME,
    OSXSAVE,
    PG,
    SCE,
    TSD,
    privileged,
)
from .exceptions import GP, UD, Exit, Fault
from .interp import (
    M32,
    MASK,
    get_reg,
    set_reg,
)  # fmt: skip
from .mmu import flush
from .paging import NXE, canonical

TYPE_CHECKING = False

if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn, Operation


EFER = 0xC0000080


FS_BASE, GS_BASE, KERNEL_GS_BASE, TSC_AUX = 0xC0000100, 0xC0000101, 0xC0000102, 0xC0000103


STAR, LSTAR, CSTAR, SFMASK = 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084


SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP, PAT = 0x174, 0x175, 0x176, 0x277


OWN_MSRS = (STAR, LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE, TSC_AUX, SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP, PAT)


CANONICAL_MSRS = (LSTAR, CSTAR, KERNEL_GS_BASE, SYSENTER_ESP, SYSENTER_EIP, FS_BASE, GS_BASE)


# MSRs and what belongs to them.
def get_msr(cpu: Cpu, index: int) -> int | None:
    """Read an MSR; None where there is none."""
    if index == EFER:
        return cpu.efer
    if index in (FS_BASE, GS_BASE):
        return cpu.segs[4 + (index & 1)].base
    if index in OWN_MSRS:
        return cpu.msr.get(index, 0)
    return cpu.platform.read_msr(index)


def set_msr(cpu: Cpu, index: int, value: int) -> bool:
    """Write an MSR; tells whether that may be."""
    if index in CANONICAL_MSRS and not canonical(cpu, value):
        return False
    if index == EFER:
        if value & ~(SCE | LME | LMA | NXE) or (cpu.cr0 & PG and (value ^ cpu.efer) & LME):
            return False
        cpu.efer = value & ~LMA | cpu.efer & LMA
        cpu.update_mode()
        flush(cpu)
        return True
    if index in (FS_BASE, GS_BASE):
        cpu.segs[4 + (index & 1)].base = value
        return True
    if index in OWN_MSRS:
        if index == PAT and any(value >> at & 0xFF not in (0, 1, 4, 5, 6, 7) for at in range(0, 64, 8)):
            return False
        if index in (SFMASK, TSC_AUX) and value >> 32:
            return index == SFMASK
        cpu.msr[index] = value
        return True
    return cpu.platform.write_msr(index, value)


def rdmsr(cpu: Cpu, i: Insn) -> None:
    """RDMSR."""
    privileged(cpu)
    index = cpu.regs[1] & M32
    try:
        cpu.platform.check_msr(index, False)
        value = get_msr(cpu, index)
    except UserMsr:
        cpu.exit_msr, cpu.exit_write, cpu.exit_data, cpu.exit_insn = index, False, b"", i
        raise Exit(EXIT_MSR) from None
    if value is None:
        raise Fault(GP, 0)
    cpu.regs[0], cpu.regs[2] = value & M32, value >> 32


def wrmsr(cpu: Cpu, i: Insn) -> None:
    """WRMSR."""
    privileged(cpu)
    index = cpu.regs[1] & M32
    value = (cpu.regs[2] & M32) << 32 | cpu.regs[0] & M32
    try:
        cpu.platform.check_msr(index, True)
        fine = set_msr(cpu, index, value)
    except UserMsr:
        cpu.exit_msr, cpu.exit_write, cpu.exit_insn = index, True, i
        cpu.exit_data = value.to_bytes(8, "little")
        raise Exit(EXIT_MSR) from None
    if not fine:
        raise Fault(GP, 0)
    cpu.window()


def rdtsc(cpu: Cpu, i: Insn) -> None:
    """RDTSC."""
    if cpu.cr4 & TSD and cpu.cpl:
        raise Fault(GP, 0)
    value = cpu.platform.tsc()
    cpu.regs[0], cpu.regs[2] = value & M32, value >> 32 & M32


def rdtscp(cpu: Cpu, i: Insn) -> None:
    """RDTSCP."""
    rdtsc(cpu, i)
    cpu.regs[1] = cpu.msr.get(TSC_AUX, 0) & M32


def rdpid(cpu: Cpu, i: Insn) -> None:
    """RDPID."""
    cpu.regs[i.rm] = cpu.msr.get(TSC_AUX, 0) & M32


def rdpmc(cpu: Cpu, i: Insn) -> None:
    """RDPMC: there are no counters."""
    raise Fault(GP, 0)


def cpuid(cpu: Cpu, i: Insn) -> None:
    """CPUID."""
    regs = cpu.regs
    regs[0], regs[3], regs[1], regs[2] = cpu.platform.cpuid(regs[0] & M32, regs[1] & M32)


def xgetbv(cpu: Cpu, i: Insn) -> None:
    """XGETBV."""
    if not cpu.cr4 & OSXSAVE:
        raise Fault(UD)
    if cpu.regs[1] & M32:
        raise Fault(GP, 0)
    cpu.regs[0], cpu.regs[2] = cpu.xcr0 & M32, cpu.xcr0 >> 32


def xsetbv(cpu: Cpu, i: Insn) -> None:
    """XSETBV."""
    if not cpu.cr4 & OSXSAVE:
        raise Fault(UD)
    privileged(cpu)
    value = (cpu.regs[2] & M32) << 32 | cpu.regs[0] & M32
    if cpu.regs[1] & M32 or not value & 1 or value & ~3:
        raise Fault(GP, 0)
    cpu.xcr0 = value


def swapgs(cpu: Cpu, i: Insn) -> None:
    """SWAPGS."""
    privileged(cpu)
    gs = cpu.segs[5]
    gs.base, cpu.msr[KERNEL_GS_BASE] = cpu.msr.get(KERNEL_GS_BASE, 0), gs.base


def segment_base(number: int, write: bool) -> Operation:
    """Make RDFSBASE RDGSBASE WRFSBASE WRGSBASE."""

    def operation(cpu: Cpu, i: Insn) -> None:
        if not cpu.cr4 & FSGSBASE:
            raise Fault(UD)
        if not write:
            set_reg(cpu, i.rm, i.size, cpu.segs[number].base & MASK[i.size])
            return
        value = get_reg(cpu, i.rm, i.size)
        if not canonical(cpu, value):
            raise Fault(GP, 0)
        cpu.segs[number].base = value

    return operation
