"""Descriptor tables and selectors of the cold tier: LGDT to VERW, and ARPL."""

from __future__ import annotations

from .control import (
    UMIP,
    privileged,
)
from .exceptions import GP, NP, UD, Fault
from .interp import (
    M16,
    M32,
    M64,
    MASK,
    ZF,
    get_flags,
    get_rm,
    set_reg,
    set_rm,
)  # fmt: skip
from .mmu import load, read, store
from .paging import SUPERVISOR, canonical
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

TYPE_CHECKING = False

if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn, Operation


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
