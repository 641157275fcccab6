"""One instruction at a time: for single steps, for what waits for an instruction's end, and at breakpoints."""

from __future__ import annotations

from .blocks import find
from .breakpoints import ENABLE, SINGLE_STEP
from .contract import EXIT_ATTENTION
from .exceptions import DB, Exit, Fault
from .interp import RF, TF
from .interrupts import deliver

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu


def alone(cpu: Cpu) -> None:
    """Run one instruction, then do what was waiting for that: end of the shadow, RF, single step."""
    cpu.wake = 1
    flags = cpu.flags
    shadow, cpu.interrupt_shadow = cpu.interrupt_shadow, False
    stepped = cpu.debug_control & ENABLE and cpu.debug_control & SINGLE_STEP
    step = flags & TF or stepped
    cpu.single = bool(step)
    try:
        cpu.one()
    except Exit as leaving:
        if leaving.done and not stepped:
            cpu.flags &= ~RF
        elif not leaving.done:
            cpu.interrupt_shadow = shadow
            raise
        if not step:
            raise
    finally:
        cpu.single = False
    if flags & RF and cpu.flags & RF:
        cpu.flags &= ~RF
    if stepped:
        cpu.leave_for_debugger(0x4000)
    if flags & TF and not cpu.interrupt_shadow and cpu.flags & TF:
        cpu.dr[6] |= 0x4000
        raise Fault(DB, trap=True)


def one(cpu: Cpu) -> None:
    """Run one instruction in the cold tier; faults are delivered."""
    insn = None
    try:
        block = cpu.code_map.get(cpu.rip) or find(cpu)
        if cpu.break_rips:
            cpu.breakpoint_here()
        insn = block.insns[0]
        cpu.rip = insn.next
        cpu.mmio_at = 0
        insn.fn(cpu, insn)
        if cpu.after:
            cpu.finish()
    except Fault as fault:
        cpu.fault(fault, insn)
    except Exit as leaving:
        if not leaving.done and insn is not None:
            cpu.rip = insn.rip
        raise


def step(cpu: Cpu) -> int:
    """Run exactly one instruction. Returns EXIT_ATTENTION when it is complete, else as execute() does."""
    cpu.enter()
    try:
        cpu.wake = 0
        shadow, cpu.interrupt_shadow = cpu.interrupt_shadow, False
        if cpu.pending is not None and not cpu.mmio_replay and cpu.port_answer is None:
            event, cpu.pending = cpu.pending, None
            deliver(cpu, event.vector, event.error, event.kind)
        try:
            cpu.single = True
            cpu.one()
        except Exit as leaving:
            if not leaving.done:
                cpu.interrupt_shadow = shadow
            raise
        finally:
            cpu.single = False
            cpu.wake = 1
    except Exit as leaving:
        return leaving.code
    return EXIT_ATTENTION
