"""System instructions of the cold tier: control registers, tables, MSRs, ports, interrupts, and what CPUID shows."""

from __future__ import annotations

from .contract import EXIT_HALT
from .control import (
    AM,
    CD,
    CR0_BITS,
    CR4_BITS,
    DE_,
    EM,
    ET,
    LA57,
    LMA,
    LME,
    MP,
    NW,
    PCIDE,
    PE,
    PG,
    PGE,
    PSE,
    SMEP,
    TS_,
    WP,
    privileged,
)
from .exceptions import BP, DB, GP, UD, Exit, Fault
from .interp import (
    ACF,
    IF,
    IOPL,
    M16,
    M32,
    M64,
    MASK,
    RF,
    VM,
    get_flags,
    get_reg,
    pop,
    push,
    set_reg,
)  # fmt: skip
from .interp_tables import umip
from .mmu import flush, flush_page, load, store
from .paging import PAE, read_entry
from .returns import set_popped_flags

TYPE_CHECKING = False


if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn, Operation


# Control and debug registers.
def mov_reg_cr(cpu: Cpu, i: Insn) -> None:
    """MOV r, CRn."""
    number = i.reg
    if number not in (0, 2, 3, 4, 8) or (number == 8 and cpu.bits != 64):
        raise Fault(UD)
    privileged(cpu)
    value = cpu.platform.get_cr8() if number == 8 else (cpu.cr0, 0, cpu.cr2, cpu.cr3, cpu.cr4)[number]
    cpu.regs[i.rm] = value if cpu.bits == 64 else value & M32


def mov_cr_reg(cpu: Cpu, i: Insn) -> None:
    """MOV CRn, r."""
    number = i.reg
    if number not in (0, 2, 3, 4, 8) or (number == 8 and cpu.bits != 64):
        raise Fault(UD)
    privileged(cpu)
    value = cpu.regs[i.rm] if cpu.bits == 64 else cpu.regs[i.rm] & M32
    if number == 0:
        set_cr0(cpu, value)
    elif number == 2:
        cpu.cr2 = value
    elif number == 3:
        set_cr3(cpu, value)
    elif number == 4:
        set_cr4(cpu, value)
    else:
        if value >> 4:
            raise Fault(GP, 0)
        cpu.platform.set_cr8(value)
        cpu.window()


def load_pdptrs(cpu: Cpu, cr3: int, checked: bool = True) -> None:
    """Load the four page directory pointers of PAE paging; #GP where a present one has reserved bits set."""
    found = [read_entry(cpu, (cr3 & 0xFFFFFFE0) + at * 8, 8) for at in range(4)]
    reserved = (M64 & ~((1 << cpu.phys_bits) - 1)) | 0x1E6
    if checked and any(entry & 1 and entry & reserved for entry in found):
        raise Fault(GP, 0)
    cpu.pdptr = found


def set_cr0(cpu: Cpu, value: int) -> None:
    """Write CR0 with all its checks."""
    if value >> 32 or (value & PG and not value & PE) or (value & NW and not value & CD):
        raise Fault(GP, 0)
    value = value & CR0_BITS | ET
    changed = value ^ cpu.cr0
    efer = cpu.efer
    if changed & PG:
        if value & PG:
            if efer & LME:
                if not cpu.cr4 & PAE or cpu.segs[1].l:
                    raise Fault(GP, 0)
                efer |= LMA
            elif cpu.cr4 & PAE:
                load_pdptrs(cpu, cpu.cr3)
        else:
            if cpu.bits == 64 or cpu.cr4 & PCIDE:
                raise Fault(GP, 0)
            efer &= ~LMA
    elif value & PG and cpu.cr4 & PAE and not efer & LMA and changed & (CD | NW):
        load_pdptrs(cpu, cpu.cr3)
    cpu.cr0, cpu.efer = value, efer
    if changed & (PG | PE | WP | AM):
        cpu.update_mode()
        flush(cpu)


def set_cr3(cpu: Cpu, value: int) -> None:
    """Write CR3."""
    if cpu.long:
        if value >> 63:
            value &= M64 >> 1  # with CR4.PCIDE: keep what the TLB has; it is flushed all the same
            if not cpu.cr4 & PCIDE:
                raise Fault(GP, 0)
        if value >> cpu.phys_bits:
            raise Fault(GP, 0)
    else:
        value &= M32
        if cpu.cr0 & PG and cpu.cr4 & PAE:
            load_pdptrs(cpu, value)
    cpu.cr3 = value
    flush(cpu)


def set_cr4(cpu: Cpu, value: int) -> None:
    """Write CR4 with all its checks."""
    if value & ~(CR4_BITS & cpu.cr4_allowed):
        raise Fault(GP, 0)
    changed = value ^ cpu.cr4
    if cpu.long and (not value & PAE or changed & LA57):
        raise Fault(GP, 0)
    if changed & value & PCIDE and (not cpu.long or cpu.cr3 & 0xFFF):
        raise Fault(GP, 0)
    if cpu.cr0 & PG and not cpu.long and value & PAE and changed & (PAE | PSE | PGE | SMEP):
        load_pdptrs(cpu, cpu.cr3)
    cpu.cr4 = value
    cpu.update_mode()
    flush(cpu)


def smsw(cpu: Cpu, i: Insn) -> None:
    """SMSW."""
    umip(cpu)
    if i.mod == 3:
        set_reg(cpu, i.rm, i.size, cpu.cr0 & MASK[i.size])
    else:
        store(cpu, i.seg, i.ea(cpu), 2, cpu.cr0 & M16)


def lmsw(cpu: Cpu, i: Insn) -> None:
    """LMSW: sets PE, never clears it."""
    privileged(cpu)
    value = get_reg(cpu, i.rm, 2) if i.mod == 3 else load(cpu, i.seg, i.ea(cpu), 2)
    set_cr0(cpu, cpu.cr0 & ~(MP | EM | TS_) | value & (PE | MP | EM | TS_))


def clts(cpu: Cpu, i: Insn) -> None:
    """CLTS."""
    privileged(cpu)
    cpu.cr0 &= ~TS_


def debug_checks(cpu: Cpu, number: int) -> int:
    """Check an access to a debug register; returns the number that it really names."""
    if number > 7 or (number in (4, 5) and cpu.cr4 & DE_):
        raise Fault(UD)
    privileged(cpu)
    if cpu.dr[7] & 0x2000:
        cpu.dr[7] &= ~0x2000
        cpu.dr[6] |= 0x2000
        cpu.update_breakpoints()
        raise Fault(DB)
    return number + 2 if number in (4, 5) else number


def mov_reg_dr(cpu: Cpu, i: Insn) -> None:
    """MOV r, DRn."""
    value = cpu.dr[debug_checks(cpu, i.reg)]
    cpu.regs[i.rm] = value if cpu.bits == 64 else value & M32


def mov_dr_reg(cpu: Cpu, i: Insn) -> None:
    """MOV DRn, r."""
    number = debug_checks(cpu, i.reg)
    value = cpu.regs[i.rm] if cpu.bits == 64 else cpu.regs[i.rm] & M32
    if number >= 6 and value >> 32:
        raise Fault(GP, 0)
    if number == 6:
        value = value & 0xE00F | 0xFFFF0FF0
    elif number == 7:
        value = value & 0xFFFF2BFF | 0x400
    cpu.dr[number] = value
    cpu.update_breakpoints()


def invlpg(cpu: Cpu, i: Insn) -> None:
    """INVLPG."""
    privileged(cpu)
    flush_page(cpu, i.ea(cpu))


def cache_control(cpu: Cpu, i: Insn) -> None:
    """INVD WBINVD: nothing is cached."""
    privileged(cpu)


def access_flag(put: int) -> Operation:
    """Make CLAC and STAC."""

    def operation(cpu: Cpu, i: Insn) -> None:
        if cpu.cpl:
            raise Fault(UD)
        cpu.flags = get_flags(cpu) & ~ACF | put
        cpu.update_mode()

    return operation


# Flags and interrupts.
def pushf(cpu: Cpu, i: Insn) -> None:
    """PUSHF: VM and RF are shown as 0."""
    flags = get_flags(cpu)
    if cpu.v86 and flags & IOPL != IOPL:
        raise Fault(GP, 0)
    push(cpu, flags & ~(VM | RF) & MASK[i.size], i.size)


def popf(cpu: Cpu, i: Insn) -> None:
    """POPF."""
    flags = get_flags(cpu)
    if cpu.v86 and flags & IOPL != IOPL:
        raise Fault(GP, 0)
    value = pop(cpu, i.size)
    set_popped_flags(cpu, value, i.size, cpu.cpl)
    cpu.flags &= ~RF
    if (flags ^ cpu.flags) & ACF:
        cpu.update_mode()
    cpu.window()


def may_change_if(cpu: Cpu) -> None:
    """Raise #GP(0) where CLI and STI are not allowed."""
    if cpu.cpl > cpu.flags >> 12 & 3:
        raise Fault(GP, 0)


def cli(cpu: Cpu, i: Insn) -> None:
    """CLI."""
    if cpu.cpl:
        may_change_if(cpu)
    cpu.flags &= ~IF


def sti(cpu: Cpu, i: Insn) -> None:
    """STI: interrupts are held off until the next instruction is complete."""
    if cpu.cpl:
        may_change_if(cpu)
    if not cpu.flags & IF:
        cpu.flags |= IF
        cpu.shadow()


def int_n(cpu: Cpu, i: Insn) -> None:
    """INT n."""
    if cpu.v86 and cpu.flags & IOPL != IOPL:
        raise Fault(GP, 0)
    cpu.software_interrupt(i.imm)


def int_3(cpu: Cpu, i: Insn) -> None:
    """INT3."""
    if cpu.debug_control & 0x10000 and cpu.debug_control & 1:
        cpu.host_breakpoint(i)
    cpu.software_interrupt(BP)


def int_1(cpu: Cpu, i: Insn) -> None:
    """INT1 (F1): a #DB trap without anything in DR6."""
    raise Fault(DB, trap=True)


def hlt(cpu: Cpu, i: Insn) -> None:
    """HLT."""
    privileged(cpu)
    raise Exit(EXIT_HALT, True)


def pause(cpu: Cpu, i: Insn) -> None:
    """PAUSE."""
    cpu.platform.pause()


def monitor(cpu: Cpu, i: Insn) -> None:
    """MONITOR: the address is checked like a load."""
    if cpu.cpl:
        raise Fault(UD)
    if cpu.regs[1] & M32:
        raise Fault(GP, 0)
    load(cpu, i.seg, cpu.regs[0] & i.amask, 1)


def mwait(cpu: Cpu, i: Insn) -> None:
    """MWAIT: wakes at once, which it may."""
    if cpu.cpl:
        raise Fault(UD)
    if cpu.regs[1] & M32 > 1:
        raise Fault(GP, 0)
    cpu.platform.pause()


def rsm(cpu: Cpu, i: Insn) -> None:
    """RSM: there is no system management mode."""
    raise Fault(UD)


def clflush(cpu: Cpu, i: Insn) -> None:
    """CLFLUSH CLFLUSHOPT CLWB: checked like a load."""
    load(cpu, i.seg, i.ea(cpu), 1)
