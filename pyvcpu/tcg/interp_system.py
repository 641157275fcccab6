"""System instructions of the cold tier: control registers, tables, MSRs, ports, interrupts, and what CPUID shows."""

from __future__ import annotations

from .contract import EXIT_HALT, EXIT_MSR, EXIT_PIO, UserMsr
from .exceptions import BP, DB, GP, NP, UD, Exit, Fault
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
    ZF,
    get_flags,
    get_reg,
    get_rm,
    pop,
    push,
    set_reg,
    set_rm,
)  # fmt: skip
from .mmu import NXE, PAE, SUPERVISOR, canonical, flush, flush_page, load, read, read_entry, store
from .segments import (
    BUSY16,
    BUSY32,
    CALL16,
    CALL32,
    LDT,
    LDTR_,
    TASK_GATE,
    TR_,
    TSS16,
    TSS32,
    fetch,
    fetch_or,
    install,
    set_busy,
    set_null,
    upper_half,
)  # fmt: skip
from .transfer import set_popped_flags

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn, Operation

PE, MP, EM, TS_, ET, NE, WP, AM, NW, CD, PG = (1 << bit for bit in (0, 1, 2, 3, 4, 5, 16, 18, 29, 30, 31))
CR0_BITS = PE | MP | EM | TS_ | ET | NE | WP | AM | NW | CD | PG
VME, TSD, DE_, PSE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT, UMIP, LA57 = 1, 4, 8, 16, 64, 128, 256, 512, 1024, 2048, 4096
FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP = 1 << 16, 1 << 17, 1 << 18, 1 << 20, 1 << 21
CR4_BITS = (
    TSD | DE_ | PSE | PAE | MCE | PGE | PCE | OSFXSR | OSXMMEXCPT | UMIP | LA57 | FSGSBASE | PCIDE | OSXSAVE | SMEP
    | SMAP
)  # fmt: skip
SCE, LME, LMA = 1, 1 << 8, 1 << 10
EFER = 0xC0000080
FS_BASE, GS_BASE, KERNEL_GS_BASE, TSC_AUX = 0xC0000100, 0xC0000101, 0xC0000102, 0xC0000103
STAR, LSTAR, CSTAR, SFMASK = 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP, PAT = 0x174, 0x175, 0x176, 0x277
OWN_MSRS = (STAR, LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE, TSC_AUX, SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP, PAT)
CANONICAL_MSRS = (LSTAR, CSTAR, KERNEL_GS_BASE, SYSENTER_ESP, SYSENTER_EIP, FS_BASE, GS_BASE)


def privileged(cpu: Cpu) -> None:
    """Raise #GP(0) above ring 0."""
    if cpu.cpl:
        raise Fault(GP, 0)


# Control and debug registers.
def mov_reg_cr(cpu: Cpu, i: Insn) -> None:
    """MOV r, CRn."""
    number = i.reg
    if number not in (0, 2, 3, 4, 8) or (number == 8 and cpu.bits != 64):
        raise Fault(UD)
    privileged(cpu)
    if number == 8:
        value = cpu.platform.get_cr8()
    else:
        value = (cpu.cr0, 0, cpu.cr2, cpu.cr3, cpu.cr4)[number]
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


# Descriptor tables.
def umip(cpu: Cpu) -> None:
    """Raise #GP where CR4.UMIP keeps users from SGDT, SIDT, SLDT, STR and SMSW."""
    if cpu.cr4 & UMIP and cpu.cpl == 3:
        raise Fault(GP, 0)


def table_store(interrupts: bool) -> Operation:
    """Make SGDT and SIDT."""

    def operation(cpu: Cpu, i: Insn) -> None:
        umip(cpu)
        base, limit = (cpu.idt_base, cpu.idt_limit) if interrupts else (cpu.gdt_base, cpu.gdt_limit)
        wide = 8 if cpu.bits == 64 else 4
        data = limit.to_bytes(2, "little") + (base & MASK[wide]).to_bytes(wide, "little")
        cpu.store_bytes(i.seg, i.ea(cpu), data)

    return operation


def table_load(interrupts: bool) -> Operation:
    """Make LGDT and LIDT."""

    def operation(cpu: Cpu, i: Insn) -> None:
        privileged(cpu)
        offset = i.ea(cpu)
        limit = load(cpu, i.seg, offset, 2)
        base = load(cpu, i.seg, offset + 2 & i.amask, 8 if cpu.bits == 64 else 4)
        if cpu.bits == 64:
            if not canonical(cpu, base):
                raise Fault(GP, 0)
        elif i.size == 2:
            base &= 0xFFFFFF
        if interrupts:
            cpu.idt_base, cpu.idt_limit = base, limit
        else:
            cpu.gdt_base, cpu.gdt_limit = base, limit

    return operation


def protected_only(cpu: Cpu) -> None:
    """Raise #UD in real and virtual-8086 mode."""
    if not cpu.protected:
        raise Fault(UD)


def store_selector(number: int) -> Operation:
    """Make SLDT and STR."""

    def operation(cpu: Cpu, i: Insn) -> None:
        protected_only(cpu)
        umip(cpu)
        selector = cpu.segs[number].selector
        if i.mod == 3:
            set_reg(cpu, i.rm, i.size, selector)
        else:
            store(cpu, i.seg, i.ea(cpu), 2, selector)

    return operation


def selector_operand(cpu: Cpu, i: Insn) -> int:
    """Read the 16-bit operand that ModRM names."""
    return cpu.regs[i.rm] & M16 if i.mod == 3 else load(cpu, i.seg, i.ea(cpu), 2)


def lldt(cpu: Cpu, i: Insn) -> None:
    """LLDT."""
    protected_only(cpu)
    privileged(cpu)
    selector = selector_operand(cpu, i)
    if not selector & 0xFFFC:
        set_null(cpu, LDTR_, selector)
        return
    if selector & 4:
        raise Fault(GP, selector & 0xFFFC)
    found = fetch_or(cpu, selector, GP)
    segment = found.segment
    if segment.s or segment.type != LDT:
        raise Fault(GP, selector & 0xFFFC)
    if not segment.present:
        raise Fault(NP, selector & 0xFFFC)
    if cpu.long:
        segment.base |= upper_half(cpu, found) << 32
    install(cpu, LDTR_, segment)


def ltr(cpu: Cpu, i: Insn) -> None:
    """LTR."""
    protected_only(cpu)
    privileged(cpu)
    selector = selector_operand(cpu, i)
    if not selector & 0xFFFC:
        raise Fault(GP, 0)
    if selector & 4:
        raise Fault(GP, selector & 0xFFFC)
    found = fetch_or(cpu, selector, GP)
    segment = found.segment
    if segment.s or segment.type not in ((TSS32,) if cpu.long else (TSS16, TSS32)):
        raise Fault(GP, selector & 0xFFFC)
    if not segment.present:
        raise Fault(NP, selector & 0xFFFC)
    if cpu.long:
        segment.base |= upper_half(cpu, found) << 32
    set_busy(cpu, found, True)
    segment.type |= 2
    install(cpu, TR_, segment)


def look_up(cpu: Cpu, i: Insn, types: tuple[int, ...], limit: bool) -> tuple[int, bool]:
    """Find the descriptor that LAR or LSL asks for: its upper half, and whether it may be seen."""
    selector = selector_operand(cpu, i)
    found = fetch(cpu, selector) if selector & 0xFFFC else None
    if found is None:
        return 0, False
    segment = found.segment
    high = read(cpu, found.address + 4 & (M64 if cpu.long else M32), 4, SUPERVISOR)
    if not segment.s and segment.type not in types:
        return 0, False
    if not (segment.s and segment.type & 12 == 12) and (segment.dpl < cpu.cpl or segment.dpl < selector & 3):
        return 0, False
    return segment.limit if limit else high & 0xF0FF00, True


def lar(cpu: Cpu, i: Insn) -> None:
    """LAR."""
    protected_only(cpu)
    types = (LDT, TSS32, BUSY32, CALL32) if cpu.long else (
        TSS16, LDT, BUSY16, CALL16, TASK_GATE, TSS32, BUSY32, CALL32
    )  # fmt: skip
    value, fine = look_up(cpu, i, types, False)
    answer(cpu, i, value, fine)


def lsl(cpu: Cpu, i: Insn) -> None:
    """LSL."""
    protected_only(cpu)
    types = (LDT, TSS32, BUSY32) if cpu.long else (TSS16, LDT, BUSY16, TSS32, BUSY32)
    value, fine = look_up(cpu, i, types, True)
    answer(cpu, i, value, fine)


def answer(cpu: Cpu, i: Insn, value: int, fine: bool) -> None:
    """Finish LAR or LSL: the register is written, and ZF set, where the descriptor may be seen."""
    flags = get_flags(cpu)
    if fine:
        set_reg(cpu, i.reg, i.size, value & MASK[i.size])
    cpu.flags = flags | ZF if fine else flags & ~ZF


def verify(write: bool) -> Operation:
    """Make VERR and VERW."""

    def operation(cpu: Cpu, i: Insn) -> None:
        protected_only(cpu)
        selector = selector_operand(cpu, i)
        fine = False
        found = fetch(cpu, selector) if selector & 0xFFFC else None
        if found is not None and found.segment.s:
            segment = found.segment
            kind = segment.type
            allowed = kind & 12 == 12 or not (segment.dpl < cpu.cpl or segment.dpl < selector & 3)
            fine = allowed and (kind & 10 == 2 if write else not kind & 8 or bool(kind & 2))
        flags = get_flags(cpu)
        cpu.flags = flags | ZF if fine else flags & ~ZF

    return operation


def arpl(cpu: Cpu, i: Insn) -> None:
    """ARPL."""
    protected_only(cpu)
    i.size = 2
    value, other = get_rm(cpu, i), cpu.regs[i.reg] & 3
    flags = get_flags(cpu)
    if value & 3 < other:
        set_rm(cpu, i, value & 0xFFFC | other)
        cpu.flags = flags | ZF
    else:
        cpu.flags = flags & ~ZF


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


# Ports.
def check_io(cpu: Cpu, port: int, size: int) -> None:
    """Raise #GP(0) where neither IOPL nor the I/O permission bitmap of the TSS allows a port."""
    if not cpu.cr0 & PE or (cpu.cpl <= cpu.flags >> 12 & 3 and not cpu.v86):
        return
    task = cpu.segs[TR_]
    if task.type & 13 != 9 or task.limit < 103 or not task.present:
        raise Fault(GP, 0)
    wrap = M64 if cpu.long else M32
    offset = read(cpu, task.base + 102 & wrap, 2, SUPERVISOR) + port // 8
    if offset + 1 > task.limit:
        raise Fault(GP, 0)
    if read(cpu, task.base + offset & wrap, 2, SUPERVISOR) >> (port & 7) & (1 << size) - 1:
        raise Fault(GP, 0)


def in_port(cpu: Cpu, i: Insn, port: int) -> None:
    """IN."""
    check_io(cpu, port, i.size)
    value = cpu.platform.port_read(port, i.size)
    if value is None:
        cpu.exit_port, cpu.exit_size, cpu.exit_count, cpu.exit_in, cpu.exit_data = port, i.size, 1, True, b""
        cpu.exit_insn = i
        raise Exit(EXIT_PIO)
    set_reg(cpu, 0, i.size, value & MASK[i.size])


def out_port(cpu: Cpu, i: Insn, port: int) -> None:
    """OUT."""
    check_io(cpu, port, i.size)
    value = cpu.regs[0] & MASK[i.size]
    if not cpu.platform.port_write(port, i.size, value):
        cpu.exit_port, cpu.exit_size, cpu.exit_count, cpu.exit_in = port, i.size, 1, False
        cpu.exit_data = value.to_bytes(i.size, "little")
        cpu.exit_insn = i
        raise Exit(EXIT_PIO)


def in_imm(cpu: Cpu, i: Insn) -> None:
    """IN rAX, imm8."""
    in_port(cpu, i, i.imm)


def in_dx(cpu: Cpu, i: Insn) -> None:
    """IN rAX, DX."""
    in_port(cpu, i, cpu.regs[2] & M16)


def out_imm(cpu: Cpu, i: Insn) -> None:
    """OUT imm8, rAX."""
    out_port(cpu, i, i.imm)


def out_dx(cpu: Cpu, i: Insn) -> None:
    """OUT DX, rAX."""
    out_port(cpu, i, cpu.regs[2] & M16)


def clflush(cpu: Cpu, i: Insn) -> None:
    """CLFLUSH CLFLUSHOPT CLWB: checked like a load."""
    load(cpu, i.seg, i.ea(cpu), 1)
