"""Far transfers: JMP, CALL and RET between segments, call gates, IRET, SYSCALL and SYSENTER."""

from __future__ import annotations

from .exceptions import GP, NP, SS, Fault
from .interp import M16, M32, M64, MASK
from .interrupts import frame, inner_stack, long_stack
from .mmu import load, write
from .paging import SUPERVISOR, canonical
from .segments import (
    BUSY16,
    BUSY32,
    CALL16,
    CALL32,
    CS_,
    SS_,
    TASK_GATE,
    TSS16,
    TSS32,
    Descriptor,
    fetch_or,
    install,
    mark_accessed,
    set_code,
    set_null,
    set_real,
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
