"""Far transfers: JMP, CALL and RET between segments, call gates, IRET, SYSCALL and SYSENTER."""

from __future__ import annotations

from .exceptions import GP, NP, SS, UD, Fault
from .interp import ACF, DF, ID, IF, IOPL, M16, M32, M64, MASK, NT, RF, STATUS, TF, VIF, VIP, VM, add_sp, get_flags
from .interrupts import frame, inner_stack, long_stack, protect_ranges
from .mmu import SUPERVISOR, canonical, load, write
from .segments import (
    BUSY16,
    BUSY32,
    CALL16,
    CALL32,
    CS_,
    DS_,
    ES_,
    FS_,
    GS_,
    SS_,
    TASK_GATE,
    TSS16,
    TSS32,
    Descriptor,
    drop_outer,
    fetch_or,
    install,
    mark_accessed,
    set_code,
    set_null,
    set_real,
    set_v86,
    upper_half,
)  # fmt: skip

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .contract import Segment
    from .cpu import Cpu
    from .decode import Insn


def check_target(cpu: Cpu, code: Segment, offset: int) -> None:
    """Raise #GP(0) where an offset lies outside the code segment."""
    if code.l and cpu.long:
        if not canonical(cpu, offset):
            raise Fault(GP, 0)
    elif offset > code.limit:
        raise Fault(GP, 0)


def check_code(cpu: Cpu, found: Descriptor, selector: int) -> None:
    """Check a code segment that JMP or CALL names directly."""
    code = found.segment
    error = selector & 0xFFFC
    if code.type & 4:
        if code.dpl > cpu.cpl:
            raise Fault(GP, error)
    elif selector & 3 > cpu.cpl or code.dpl != cpu.cpl:
        raise Fault(GP, error)
    if cpu.long and code.l and code.db:
        raise Fault(GP, error)
    if not code.present:
        raise Fault(NP, error)


def real_jump(cpu: Cpu, selector: int, offset: int) -> None:
    """Load CS:rip as real and virtual-8086 mode do."""
    if offset > cpu.segs[CS_].limit:
        raise Fault(GP, 0)
    set_real(cpu, CS_, selector)
    cpu.rip = offset
    cpu.update_mode()


def far_jump(cpu: Cpu, i: Insn, selector: int, offset: int) -> None:
    """JMP far."""
    if not cpu.protected:
        real_jump(cpu, selector, offset)
        return
    found = fetch_or(cpu, selector, GP)
    segment = found.segment
    if segment.s and segment.type & 8:
        check_code(cpu, found, selector)
        check_target(cpu, segment, offset)
        mark_accessed(cpu, found)
        set_code(cpu, segment, cpu.cpl)
        cpu.rip = offset
        return
    if segment.s:
        raise Fault(GP, selector & 0xFFFC)
    if segment.type in (CALL16, CALL32):
        code, target = gate_target(cpu, found, selector)
        if not code.segment.type & 4 and code.segment.dpl != cpu.cpl:
            raise Fault(GP, code.segment.selector & 0xFFFC)
        check_target(cpu, code.segment, target)
        mark_accessed(cpu, code)
        set_code(cpu, code.segment, cpu.cpl)
        cpu.rip = target
        return
    to_task(cpu, found, selector, False)


def to_task(cpu: Cpu, found: Descriptor, selector: int, call: bool) -> None:
    """JMP or CALL to a TSS or a task gate."""
    from .tasks import switch, switch_by_gate

    segment = found.segment
    error = selector & 0xFFFC
    if cpu.long or segment.type not in (TSS16, TSS32, TASK_GATE, BUSY16, BUSY32):
        raise Fault(GP, error)
    if segment.dpl < cpu.cpl or segment.dpl < selector & 3:
        raise Fault(GP, error)
    if segment.type in (BUSY16, BUSY32):
        raise Fault(GP, error)
    if not segment.present:
        raise Fault(NP, error)
    if segment.type == TASK_GATE:
        switch_by_gate(cpu, found.selector, 0, None, call)
    else:
        switch(cpu, found, "call" if call else "jmp")


def gate_target(cpu: Cpu, gate: Descriptor, selector: int) -> tuple[Descriptor, int]:
    """Check a call gate and the code segment behind it."""
    segment = gate.segment
    error = selector & 0xFFFC
    if cpu.long and segment.type != CALL32:
        raise Fault(GP, error)
    if segment.dpl < cpu.cpl or segment.dpl < selector & 3:
        raise Fault(GP, error)
    if not segment.present:
        raise Fault(NP, error)
    offset = gate.offset if segment.type == CALL32 else gate.offset & M16
    if cpu.long:
        offset |= upper_half(cpu, gate) << 32
    code = fetch_or(cpu, gate.selector, GP)
    inner = code.segment
    error = gate.selector & 0xFFFC
    if not inner.s or not inner.type & 8 or inner.dpl > cpu.cpl:
        raise Fault(GP, error)
    if cpu.long and (not inner.l or inner.db):
        raise Fault(GP, error)
    if not inner.present:
        raise Fault(NP, error)
    return code, offset


def push_two(cpu: Cpu, size: int, first: int, second: int) -> int:
    """Write two values onto the current stack; returns the new rsp, which is not yet set."""
    mask = cpu.stack_mask
    sp = cpu.regs[4]
    one, two = sp - size & mask, sp - 2 * size & mask
    cpu.probe_store(2, one, size)
    cpu.store(2, two, size, second & MASK[size])
    cpu.store(2, one, size, first & MASK[size])
    return two if mask != M16 else sp & ~M16 | two


def far_call(cpu: Cpu, i: Insn, selector: int, offset: int) -> None:
    """CALL far."""
    old_cs, old_ip, size = cpu.segs[CS_].selector, cpu.rip, i.size
    if not cpu.protected:
        if offset > cpu.segs[CS_].limit:
            raise Fault(GP, 0)
        cpu.regs[4] = push_two(cpu, size, old_cs, old_ip)
        real_jump(cpu, selector, offset)
        return
    found = fetch_or(cpu, selector, GP)
    segment = found.segment
    if segment.s and segment.type & 8:
        check_code(cpu, found, selector)
        check_target(cpu, segment, offset)
        sp = push_two(cpu, size, old_cs, old_ip)
        mark_accessed(cpu, found)
        cpu.regs[4] = sp
        set_code(cpu, segment, cpu.cpl)
        cpu.rip = offset
        return
    if segment.s:
        raise Fault(GP, selector & 0xFFFC)
    if segment.type not in (CALL16, CALL32):
        to_task(cpu, found, selector, True)
        return
    code, target = gate_target(cpu, found, selector)
    size = 8 if cpu.long else 4 if segment.type == CALL32 else 2
    check_target(cpu, code.segment, target)
    if code.segment.type & 4 or code.segment.dpl == cpu.cpl:
        sp = push_two(cpu, size, old_cs, old_ip)
        mark_accessed(cpu, code)
        cpu.regs[4] = sp
        set_code(cpu, code.segment, cpu.cpl)
    else:
        call_inner(cpu, code, found.count, size, (old_cs, old_ip))
    cpu.rip = target


def call_inner(cpu: Cpu, code: Descriptor, count: int, size: int, back: tuple[int, int]) -> None:
    """Call a more privileged segment: a new stack, with `count` parameters copied onto it."""
    level = code.segment.dpl
    old_ss, old_sp = cpu.segs[SS_].selector, cpu.regs[4]
    if cpu.long:
        sp = long_stack(cpu, 4 + 8 * level, 0)
        for value in (old_ss, old_sp, *back):
            sp = sp - 8 & M64
            write(cpu, sp, 8, value, SUPERVISOR)
        mark_accessed(cpu, code)
        set_code(cpu, code.segment, level)
        set_null(cpu, SS_, level)
        cpu.regs[4] = sp
        return
    stack, sp = inner_stack(cpu, level, 0)
    mask = cpu.stack_mask
    parameters = [load(cpu, SS_, old_sp + at * size & mask, size) for at in range(count)]
    values = (old_ss, old_sp, *reversed(parameters), *back)
    wide = M32 if stack.segment.db else M16
    sp = frame(cpu, stack.segment, sp, wide, size, values, SUPERVISOR, Fault(SS, stack.segment.selector & 0xFFFC))
    mark_accessed(cpu, code)
    mark_accessed(cpu, stack)
    set_code(cpu, code.segment, level)
    install(cpu, SS_, stack.segment)
    cpu.regs[4] = sp
    cpu.update_mode()


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


# Fast system calls.
def flat(cpu: Cpu, number: int, selector: int, code: bool, dpl: int, long_code: bool) -> None:
    """Load CS or SS with the fixed flat contents that SYSCALL and SYSENTER give them."""
    segment = type(cpu.segs[0])()
    segment.selector = selector
    segment.limit, segment.g, segment.present, segment.s, segment.dpl = M32, 1, 1, 1, dpl
    segment.type = 11 if code else 3
    segment.l, segment.db = (1, 0) if code and long_code else (0, 1)
    protect_ranges(cpu, segment)
    if code:
        segment.write_high = -1
    cpu.segs[number] = segment
    cpu.mode_key = None


def syscall(cpu: Cpu, i: Insn) -> None:
    """SYSCALL."""
    if not cpu.efer & 1 or not cpu.cr0 & 1 or (cpu.vendor_intel and cpu.bits != 64):
        raise Fault(UD)
    star = cpu.msr.get(0xC0000081, 0)
    flags = get_flags(cpu)
    selector = star >> 32 & 0xFFFC
    if cpu.long:
        cpu.regs[1] = cpu.rip
        cpu.regs[11] = flags & ~RF
        target = cpu.msr.get(0xC0000082 if cpu.bits == 64 else 0xC0000083, 0)
        cpu.flags = flags & ~(cpu.msr.get(0xC0000084, 0) | RF) | 2
        flat(cpu, CS_, selector, True, 0, True)
    else:
        cpu.regs[1] = cpu.rip
        target = star & M32
        cpu.flags = flags & ~(IF | VM | RF)
        flat(cpu, CS_, selector, True, 0, False)
    flat(cpu, SS_, selector + 8 & M16, False, 0, False)
    cpu.cpl = 0
    cpu.rip = target
    cpu.update_mode()


def sysret(cpu: Cpu, i: Insn) -> None:
    """SYSRET."""
    if not cpu.efer & 1 or (cpu.vendor_intel and cpu.bits != 64):
        raise Fault(UD)
    if not cpu.protected or cpu.cpl:
        raise Fault(GP, 0)
    selector = cpu.msr.get(0xC0000081, 0) >> 48
    target = cpu.regs[1]
    if cpu.long:
        if i.size == 8:
            if not canonical(cpu, target):
                raise Fault(GP, 0)
            selector += 16
        else:
            target &= M32
        cpu.flags = cpu.regs[11] & 0x3C7FD7 | 2
        cpu.fw = 0
        flat(cpu, CS_, (selector | 3) & M16, True, 3, i.size == 8)
        stack = (cpu.msr.get(0xC0000081, 0) >> 48) + 8
    else:
        cpu.flags = get_flags(cpu) | IF
        target &= M32
        flat(cpu, CS_, (selector | 3) & M16, True, 3, False)
        stack = selector + 8
    flat(cpu, SS_, (stack | 3) & M16, False, 3, False)
    cpu.cpl = 3
    cpu.rip = target
    cpu.update_mode()
    cpu.window()


def sysenter(cpu: Cpu, i: Insn) -> None:
    """SYSENTER."""
    selector = cpu.msr.get(0x174, 0)
    if not cpu.cr0 & 1 or not selector & 0xFFFC:
        raise Fault(GP, 0)
    mask = M64 if cpu.long else M32
    cpu.flags = get_flags(cpu) & ~(VM | IF | RF)
    flat(cpu, CS_, selector & 0xFFFC, True, 0, bool(cpu.long))
    flat(cpu, SS_, (selector & 0xFFFC) + 8 & M16, False, 0, False)
    cpu.cpl = 0
    cpu.regs[4] = cpu.msr.get(0x175, 0) & mask
    cpu.rip = cpu.msr.get(0x176, 0) & mask
    cpu.update_mode()


def sysexit(cpu: Cpu, i: Insn) -> None:
    """SYSEXIT."""
    selector = cpu.msr.get(0x174, 0)
    if not cpu.protected or not selector & 0xFFFC or cpu.cpl:
        raise Fault(GP, 0)
    wide = i.size == 8
    target, sp = cpu.regs[2], cpu.regs[1]
    if wide:
        if not canonical(cpu, target) or not canonical(cpu, sp):
            raise Fault(GP, 0)
    else:
        target, sp = target & M32, sp & M32
    base = selector + (32 if wide else 16)
    flat(cpu, CS_, (base | 3) & M16, True, 3, wide)
    flat(cpu, SS_, (base + 8 | 3) & M16, False, 3, False)
    cpu.cpl = 3
    cpu.rip, cpu.regs[4] = target, sp
    cpu.update_mode()


# Instructions.
def jmp_far_imm(cpu: Cpu, i: Insn) -> None:
    """JMP ptr16:16/32."""
    far_jump(cpu, i, i.imm2, i.imm)


def call_far_imm(cpu: Cpu, i: Insn) -> None:
    """CALL ptr16:16/32."""
    far_call(cpu, i, i.imm2, i.imm)


def far_pointer(cpu: Cpu, i: Insn) -> tuple[int, int]:
    """Read a far pointer from memory."""
    offset = i.ea(cpu)
    return load(cpu, i.seg, offset + i.size & i.amask, 2), load(cpu, i.seg, offset, i.size)


def jmp_far_mem(cpu: Cpu, i: Insn) -> None:
    """JMP m16:16/32/64."""
    far_jump(cpu, i, *far_pointer(cpu, i))


def call_far_mem(cpu: Cpu, i: Insn) -> None:
    """CALL m16:16/32/64."""
    far_call(cpu, i, *far_pointer(cpu, i))
