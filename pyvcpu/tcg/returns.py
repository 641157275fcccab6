"""Returns: RETF and IRET in all their forms."""

from __future__ import annotations

from .exceptions import GP, NP, SS, Fault
from .interp import ACF, DF, ID, IF, IOPL, M16, NT, RF, STATUS, TF, VIF, VIP, VM, add_sp, get_flags
from .mmu import load
from .segments import (
    CS_,
    DS_,
    ES_,
    FS_,
    GS_,
    SS_,
    Descriptor,
    drop_outer,
    fetch_or,
    install,
    mark_accessed,
    set_code,
    set_null,
    set_v86,
)  # fmt: skip
from .transfer import check_target, real_jump

TYPE_CHECKING = False

if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn


def return_code(cpu: Cpu, selector: int) -> Descriptor:
    """Check the code segment of a far return or IRET."""
    found = fetch_or(cpu, selector, GP)
    code = found.segment
    error = selector & 0xFFFC
    rpl = selector & 3
    if not code.s or not code.type & 8 or rpl < cpu.cpl:
        raise Fault(GP, error)
    if (code.dpl > rpl) if code.type & 4 else (code.dpl != rpl):
        raise Fault(GP, error)
    if cpu.long and code.l and code.db:
        raise Fault(GP, error)
    if not code.present:
        raise Fault(NP, error)
    return found


def return_stack(cpu: Cpu, selector: int, rpl: int, long_code: bool) -> Descriptor | None:
    """Check the stack segment of a return to an outer level; None is the null selector where that may be."""
    if not selector & 0xFFFC:
        if long_code and rpl != 3 and selector & 3 == rpl:
            return None
        raise Fault(GP, 0)
    found = fetch_or(cpu, selector, GP)
    segment = found.segment
    error = selector & 0xFFFC
    if selector & 3 != rpl or not segment.s or segment.type & 10 != 2 or segment.dpl != rpl:
        raise Fault(GP, error)
    if not segment.present:
        raise Fault(SS, error)
    return found


def return_outer(cpu: Cpu, code: Descriptor, stack: Descriptor | None, selector: int, sp: int) -> None:
    """Load CS and SS of an outer level, or of the same one in long mode."""
    rpl = code.segment.selector & 3
    outer = rpl > cpu.cpl
    mark_accessed(cpu, code)
    if stack is not None:
        mark_accessed(cpu, stack)
    set_code(cpu, code.segment, rpl)
    if stack is None:
        set_null(cpu, SS_, selector)
    else:
        install(cpu, SS_, stack.segment)
    cpu.update_mode()
    mask = cpu.stack_mask
    cpu.regs[4] = sp & mask if mask != M16 else cpu.regs[4] & ~M16 | sp & M16
    if outer:
        drop_outer(cpu)


def far_ret(cpu: Cpu, i: Insn) -> None:
    """RETF and RETF imm16."""
    size, mask = i.size, cpu.stack_mask
    sp = cpu.regs[4]
    offset = load(cpu, SS_, sp & mask, size)
    selector = load(cpu, SS_, sp + size & mask, size) & M16
    if not cpu.protected:
        real_jump(cpu, selector, offset)
        add_sp(cpu, 2 * size + i.imm)
        return
    found = return_code(cpu, selector)
    code = found.segment
    rpl = selector & 3
    if rpl == cpu.cpl:
        check_target(cpu, code, offset)
        mark_accessed(cpu, found)
        add_sp(cpu, 2 * size + i.imm)
        set_code(cpu, code, rpl)
        cpu.rip = offset
        return
    base = sp + 2 * size + i.imm
    new_sp = load(cpu, SS_, base & mask, size)
    new_ss = load(cpu, SS_, base + size & mask, size) & M16
    stack = return_stack(cpu, new_ss, rpl, bool(cpu.long and code.l))
    check_target(cpu, code, offset)
    return_outer(cpu, found, stack, new_ss, new_sp)
    add_sp(cpu, i.imm)
    cpu.rip = offset


def set_popped_flags(cpu: Cpu, value: int, size: int, cpl: int) -> None:
    """Set the flags that POPF and IRET may change at a privilege level."""
    change = STATUS | TF | DF | NT
    if size > 2:
        change |= ACF | ID
    flags = get_flags(cpu)
    if cpl == 0:
        change |= IOPL
    if cpl <= flags >> 12 & 3:
        change |= IF
    cpu.flags = flags & ~change | value & change | 2


def iret(cpu: Cpu, i: Insn) -> None:
    """IRET in all its forms."""
    size, mask, sp = i.size, cpu.stack_mask, cpu.regs[4]
    if cpu.protected and get_flags(cpu) & NT:
        if cpu.long:
            raise Fault(GP, 0)
        from .tasks import switch_back

        switch_back(cpu)
        return
    if cpu.v86 and get_flags(cpu) & IOPL != IOPL:
        raise Fault(GP, 0)
    offset, selector, flags = (load(cpu, SS_, sp + at * size & mask, size) for at in range(3))
    selector &= M16
    if not cpu.protected:
        real_jump(cpu, selector, offset)
        add_sp(cpu, 3 * size)
        set_popped_flags(cpu, flags, size, 3 if cpu.v86 else 0)
    elif flags & VM and size == 4 and cpu.cpl == 0 and not cpu.long:
        iret_to_v86(cpu, offset, selector, flags)
    else:
        iret_protected(cpu, i, offset, selector, flags)
    if size > 2:
        cpu.flags = cpu.flags & ~RF | flags & RF
    cpu.nmi_blocked = False
    cpu.update_mode()
    cpu.window()


def iret_to_v86(cpu: Cpu, offset: int, selector: int, flags: int) -> None:
    """Return to virtual-8086 mode."""
    mask, sp = cpu.stack_mask, cpu.regs[4]
    new_sp, *selectors = (load(cpu, SS_, sp + at * 4 & mask, 4) for at in range(3, 9))
    keep = ~(STATUS | TF | IF | DF | IOPL | NT | RF | VM | ACF | VIF | VIP | ID)
    cpu.flags = get_flags(cpu) & keep | flags & ~keep | 2
    cpu.fw = 0
    for number, value in zip((SS_, ES_, DS_, FS_, GS_, CS_), (*selectors, selector), strict=True):
        segment = type(cpu.segs[0])()
        segment.selector = value & M16
        set_v86(segment)
        segment.read_high = segment.write_high = M16
        cpu.segs[number] = segment
    cpu.mode_key = None
    cpu.cpl = 3
    cpu.regs[4] = new_sp
    cpu.rip = offset & M16


def iret_protected(cpu: Cpu, i: Insn, offset: int, selector: int, flags: int) -> None:
    """Return within protected or long mode."""
    size, mask, sp = i.size, cpu.stack_mask, cpu.regs[4]
    found = return_code(cpu, selector)
    code = found.segment
    rpl = selector & 3
    cpl = cpu.cpl
    in_64 = cpu.bits == 64
    if rpl == cpl and not in_64:
        check_target(cpu, code, offset)
        mark_accessed(cpu, found)
        add_sp(cpu, 3 * size)
        set_popped_flags(cpu, flags, size, cpl)
        set_code(cpu, code, cpl)
    else:
        new_sp = load(cpu, SS_, sp + 3 * size & mask, size)
        new_ss = load(cpu, SS_, sp + 4 * size & mask, size) & M16
        stack = return_stack(cpu, new_ss, rpl, bool(cpu.long and code.l))
        check_target(cpu, code, offset)
        return_outer(cpu, found, stack, new_ss, new_sp)
        set_popped_flags(cpu, flags, size, cpl)
    cpu.rip = offset
