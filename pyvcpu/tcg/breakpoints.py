"""Breakpoints and watchpoints, the guest's and the host's, and what is reported when an instruction is complete."""

from __future__ import annotations

from .contract import EXIT_DEBUG
from .exceptions import DB, Exit, Fault
from .interp import RF
from .mmio import AFTER_WATCH

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn


SINGLE_STEP, USE_SW_BP, USE_HW_BP = 2, 0x10000, 0x20000  # KVM_GUESTDBG_*
ENABLE = 1


def update_breakpoints(cpu: Cpu) -> None:
    """Work out which addresses and pages the breakpoints concern, the guest's and the host's."""
    cpu.break_rips, cpu.watchpoints, cpu.watched = {}, [], set()
    host = cpu.debug_control & ENABLE and cpu.debug_control & USE_HW_BP
    dr = cpu.debug_dr if host else cpu.dr
    control = dr[7]
    for number in range(4):
        if not control >> 2 * number & 3:
            continue
        kind, length = control >> 16 + 4 * number & 3, (1, 2, 8, 4)[control >> 18 + 4 * number & 3]
        start = dr[number]
        if kind == 0:
            cpu.break_rips[start] = cpu.break_rips.get(start, 0) | 1 << number
        elif kind != 2:
            start &= ~(length - 1)
            cpu.watchpoints.append((number, start, length, kind))
            cpu.watched.add(start >> 12)
    cpu.forget_pages()
    cpu.code_maps.clear()
    cpu.select_code_map()
    cpu.wake = 1


def host_breakpoint(cpu: Cpu, insn: Insn) -> None:
    """Leave for the host's debugger at an INT3."""
    cpu.rip = insn.rip
    cpu.exit_exception, cpu.exit_dr6 = 3, 0
    cpu.exit_pc = cpu.linear_rip()
    raise Exit(EXIT_DEBUG)


def leave_for_debugger(cpu: Cpu, dr6: int) -> None:
    """Report a debug event to the host."""
    cpu.exit_exception, cpu.exit_dr6, cpu.exit_pc = DB, 0xFFFF0FF0 | dr6, cpu.linear_rip()
    raise Exit(EXIT_DEBUG, True)


def breakpoint_here(cpu: Cpu) -> None:
    """Raise #DB, or leave for the host, where an instruction breakpoint is at rip."""
    if cpu.flags & RF:
        return
    hits = cpu.break_rips.get(cpu.linear_rip())
    if hits is None:
        return
    if cpu.debug_control & ENABLE and cpu.debug_control & USE_HW_BP:
        cpu.leave_for_debugger(hits)
    cpu.dr[6] |= hits
    raise Fault(DB)


def finish(cpu: Cpu) -> None:
    """Do what was left for the end of an instruction: forget answered device accesses, report watchpoints."""
    after, cpu.after = cpu.after, 0
    cpu.mmio_done()
    if after & AFTER_WATCH:
        hits, cpu.watch_hits = cpu.watch_hits, 0
        if cpu.debug_control & ENABLE and cpu.debug_control & USE_HW_BP:
            cpu.leave_for_debugger(hits)
        cpu.dr[6] |= hits
        raise Fault(DB, trap=True)


def mmio_done(cpu: Cpu) -> None:
    """Forget the device accesses of an instruction that is complete."""
    cpu.mmio_replay.clear()
    cpu.mmio_at = 0
