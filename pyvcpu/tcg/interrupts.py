"""Delivery of interrupts and exceptions (SDM vol. 3A chapter 6), with the rules of double and triple faults."""

from __future__ import annotations

from .contract import EVENT_EXCEPTION, EVENT_NMI, EVENT_SOFTWARE, EXIT_SHUTDOWN
from .exceptions import DB, DE, DF, GP, NP, PF, SS, TS, Exit, Fault
from .interp import ACF, IF, M16, NT, RF, TF, VM, get_flags
from .mmu import read, write
from .paging import M32, M64, SUPERVISOR, USER, canonical
from .segments import (
    CS_,
    DS_,
    ES_,
    FS_,
    GS_,
    INTERRUPT16,
    INTERRUPT32,
    SS_,
    TASK_GATE,
    TR_,
    TRAP16,
    TRAP32,
    Descriptor,
    fetch_or,
    install,
    mark_accessed,
    set_code,
    set_null,
)  # fmt: skip

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .contract import Segment
    from .cpu import Cpu

CONTRIBUTORY = (DE, TS, NP, SS, GP)


def deliver(cpu: Cpu, vector: int, error: int | None, kind: int) -> None:
    """Deliver an event; faults on the way are delivered in its place. Exit(EXIT_SHUTDOWN) is a triple fault."""
    while True:
        try:
            cpu.after = 0
            once(cpu, vector, error, kind)
            return
        except Fault as fault:
            first = vector if kind == EVENT_EXCEPTION else -1
            second = fault.vector
            if first == DF and (second in CONTRIBUTORY or second == PF):
                raise Exit(EXIT_SHUTDOWN) from None
            if (first in CONTRIBUTORY and second in CONTRIBUTORY) or (
                first == PF and (second in CONTRIBUTORY or second == PF)
            ):
                vector, error = DF, 0
            else:
                vector, error = second, fault.error
            kind = EVENT_EXCEPTION


def once(cpu: Cpu, vector: int, error: int | None, kind: int) -> None:
    """Deliver an event, or raise what stands in the way with nothing changed."""
    if cpu.cr0 & 1:
        if cpu.long:
            through_long_gate(cpu, vector, error, kind)
        else:
            through_gate(cpu, vector, error, kind)
    else:
        through_vector_table(cpu, vector)
    if kind == EVENT_NMI:
        cpu.nmi_blocked = True
    cpu.interrupt_shadow = False


def through_vector_table(cpu: Cpu, vector: int) -> None:
    """Deliver as real mode does."""
    if vector * 4 + 3 > cpu.idt_limit:
        raise Fault(GP, vector * 8 + 2)
    entry = read(cpu, cpu.idt_base + vector * 4 & M32, 4, SUPERVISOR)
    flags = get_flags(cpu)
    sp = cpu.regs[4]
    values = (flags & M16, cpu.segs[CS_].selector, cpu.rip & M16)
    sp = frame(cpu, cpu.segs[SS_], sp, M16, 2, values, SUPERVISOR, Fault(SS, 0))
    cpu.regs[4] = sp
    cpu.flags = flags & ~(IF | TF | ACF | RF)
    segment = cpu.segs[CS_]
    segment.selector, segment.base = entry >> 16, entry >> 16 << 4
    cpu.rip = entry & M16
    cpu.update_mode()


def frame(
    cpu: Cpu, segment: Segment, sp: int, mask: int, size: int, values: tuple[int, ...], user: int, wrong: Fault
) -> int:
    """Push values through a stack segment; returns the new stack pointer. `wrong` is raised outside its limit."""
    places = []
    top = sp
    for _ in values:
        top = top - size & mask
        if not segment.write_low <= top <= segment.write_high - size + 1:
            raise wrong
        places.append(segment.base + top & M32)
    for place, value in zip(places, values, strict=True):
        write(cpu, place, size, value & (1 << size * 8) - 1, user)
    return top if mask != M16 else sp & ~M16 | top


def pushed_flags(cpu: Cpu, vector: int, kind: int) -> int:
    """Return RFLAGS as they are saved: RF is set for faults."""
    flags = get_flags(cpu)
    if kind == EVENT_EXCEPTION and vector not in (DB, 3, 4, DF, 18):
        flags |= RF
    return flags


def target_code(cpu: Cpu, selector: int, external: int) -> tuple[Descriptor, int]:
    """Check the code segment of a gate; returns it with the new privilege level."""
    found = fetch_or(cpu, selector, GP, external)
    code = found.segment
    error = selector & 0xFFFC | external
    if not code.s or not code.type & 8 or code.dpl > cpu.cpl:
        raise Fault(GP, error)
    if not code.present:
        raise Fault(NP, error)
    level = cpu.cpl if code.type & 4 else code.dpl
    return found, level


def through_gate(cpu: Cpu, vector: int, error: int | None, kind: int) -> None:
    """Deliver through a 16- or 32-bit gate of the IDT."""
    external = 0 if kind == EVENT_SOFTWARE else 1
    where = vector * 8 + 2 + external
    if vector * 8 + 7 > cpu.idt_limit:
        raise Fault(GP, where)
    low = read(cpu, cpu.idt_base + vector * 8 & M32, 8, SUPERVISOR)
    gate = low >> 40 & 31
    if gate not in (TASK_GATE, INTERRUPT16, TRAP16, INTERRUPT32, TRAP32):
        raise Fault(GP, where)
    if kind == EVENT_SOFTWARE and low >> 45 & 3 < cpu.cpl:
        raise Fault(GP, where)
    if not low >> 47 & 1:
        raise Fault(NP, where)
    selector = low >> 16 & M16
    if gate == TASK_GATE:
        from .tasks import switch_by_gate

        switch_by_gate(cpu, selector, external, error if kind == EVENT_EXCEPTION else None)
        return
    offset = low & M16 | (low >> 32 & 0xFFFF0000 if gate & 8 else 0)
    size = 4 if gate & 8 else 2
    found, level = target_code(cpu, selector, external)
    code = found.segment
    flags = pushed_flags(cpu, vector, kind)
    old_ss, old_cs = cpu.segs[SS_], cpu.segs[CS_].selector
    values: tuple[int, ...] = (flags, old_cs, cpu.rip)
    if error is not None and kind == EVENT_EXCEPTION:
        values = (*values, error)
    sp = cpu.regs[4]
    stack = None
    user = USER if level == 3 else SUPERVISOR
    if cpu.v86 and level != 0:
        raise Fault(GP, selector & 0xFFFC | external)
    if level < cpu.cpl:
        new_ss, new_sp = inner_stack(cpu, level, external)
        stack = new_ss.segment
        values = (old_ss.selector, sp, *values)
        if cpu.v86:
            values = (*(cpu.segs[n].selector for n in (GS_, FS_, DS_, ES_)), *values)
        mask = M32 if stack.db else M16
        new_sp = frame(cpu, stack, new_sp, mask, size, values, user, Fault(SS, stack.selector & 0xFFFC | external))
    else:
        mask = M32 if old_ss.db else M16
        new_sp = frame(cpu, old_ss, sp, mask, size, values, user, Fault(SS, external))
    if offset > code.limit:
        raise Fault(GP, external)
    mark_accessed(cpu, found)
    if stack is not None:
        mark_accessed(cpu, new_ss)
    was_v86 = cpu.v86
    cpu.flags = flags & ~(TF | NT | RF | VM | (0 if gate & 1 else IF))
    code.selector = selector
    if was_v86:
        cpu.update_mode()
        cpu.cpl = 0
    set_code(cpu, code, level)
    if stack is not None:
        install(cpu, SS_, stack)
    if was_v86:
        for number in (ES_, DS_, FS_, GS_):
            set_null(cpu, number, 0)
    cpu.regs[4] = new_sp
    cpu.rip = offset
    cpu.update_mode()


def inner_stack(cpu: Cpu, level: int, external: int) -> tuple[Descriptor, int]:
    """Return the stack of an inner privilege level, from the TSS, checked."""
    task = cpu.segs[TR_]
    wide = task.type & 8
    place = 4 + 8 * level if wide else 2 + 4 * level
    if place + (7 if wide else 3) > task.limit:
        raise Fault(TS, task.selector & 0xFFFC | external)
    base = task.base + place & M32
    if wide:
        pointer, selector = read(cpu, base, 4, SUPERVISOR), read(cpu, base + 4 & M32, 2, SUPERVISOR)
    else:
        pointer, selector = read(cpu, base, 2, SUPERVISOR), read(cpu, base + 2 & M32, 2, SUPERVISOR)
    found = fetch_or(cpu, selector, TS, external)
    segment = found.segment
    error = selector & 0xFFFC | external
    if selector & 3 != level or segment.dpl != level or not segment.s or segment.type & 10 != 2:
        raise Fault(TS, error)
    if not segment.present:
        raise Fault(SS, error)
    protect_ranges(cpu, segment)
    return found, pointer


def protect_ranges(cpu: Cpu, segment: Segment) -> None:
    """Work out the ranges of a stack segment that protected mode is about to use."""
    low, high = (segment.limit + 1, M32 if segment.db else M16) if segment.type & 4 else (0, segment.limit)
    segment.read_low = segment.write_low = low
    segment.read_high = segment.write_high = high


def long_stack(cpu: Cpu, place: int, external: int) -> int:
    """Read a stack pointer from the 64-bit TSS."""
    task = cpu.segs[TR_]
    if place + 7 > task.limit:
        raise Fault(TS, task.selector & 0xFFFC | external)
    pointer = read(cpu, task.base + place & M64, 8, SUPERVISOR)
    if not canonical(cpu, pointer):
        raise Fault(SS, external)
    return pointer


def through_long_gate(cpu: Cpu, vector: int, error: int | None, kind: int) -> None:
    """Deliver through a 64-bit gate of the IDT."""
    external = 0 if kind == EVENT_SOFTWARE else 1
    where = vector * 8 + 2 + external
    if vector * 16 + 15 > cpu.idt_limit:
        raise Fault(GP, where)
    place = cpu.idt_base + vector * 16 & M64
    low, high = read(cpu, place, 8, SUPERVISOR), read(cpu, place + 8 & M64, 8, SUPERVISOR)
    gate = low >> 40 & 31
    if gate not in (INTERRUPT32, TRAP32):
        raise Fault(GP, where)
    if kind == EVENT_SOFTWARE and low >> 45 & 3 < cpu.cpl:
        raise Fault(GP, where)
    if not low >> 47 & 1:
        raise Fault(NP, where)
    selector = low >> 16 & M16
    offset = low & M16 | low >> 32 & 0xFFFF0000 | (high & M32) << 32
    found, level = target_code(cpu, selector, external)
    code = found.segment
    if not code.l or code.db:
        raise Fault(GP, selector & 0xFFFC | external)
    ist = low >> 32 & 7
    if ist:
        sp = long_stack(cpu, 28 + 8 * ist, external)
    elif level < cpu.cpl:
        sp = long_stack(cpu, 4 + 8 * level, external)
    else:
        sp = cpu.regs[4]
    flags = pushed_flags(cpu, vector, kind)
    values: tuple[int, ...] = (cpu.segs[SS_].selector, cpu.regs[4], flags, cpu.segs[CS_].selector, cpu.rip)
    if error is not None and kind == EVENT_EXCEPTION:
        values = (*values, error)
    sp &= ~15
    user = USER if level == 3 else SUPERVISOR
    if not canonical(cpu, sp - 8 & M64) or not canonical(cpu, sp - 8 * len(values) & M64):
        raise Fault(SS, external)
    if not canonical(cpu, offset):
        raise Fault(GP, external)
    for value in values:
        sp = sp - 8 & M64
        write(cpu, sp, 8, value, user)
    mark_accessed(cpu, found)
    code.selector = selector
    cpu.flags = flags & ~(TF | NT | RF | VM | (0 if gate & 1 else IF))
    inner = level < cpu.cpl
    set_code(cpu, code, level)
    if inner:
        set_null(cpu, SS_, level)
    cpu.regs[4] = sp
    cpu.rip = offset
    cpu.update_mode()
