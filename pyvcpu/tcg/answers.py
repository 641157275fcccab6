"""Answers of the user space to exits: they finish an instruction, or let it run again."""

from __future__ import annotations

from .contract import EVENT_EXCEPTION, Event
from .exceptions import GP
from .interp import M32
from .interp_portstrings import finish_in, finish_out

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu


def complete_in(cpu: Cpu, data: bytes) -> None:
    """Finish an IN or INS that caused EXIT_PIO."""
    if cpu.exit_insn is not None:
        finish_in(cpu, cpu.exit_insn, data)
    cpu.exit_insn = None


def complete_out(cpu: Cpu) -> None:
    """Finish an OUT or OUTS that caused EXIT_PIO."""
    if cpu.exit_insn is not None:
        finish_out(cpu, cpu.exit_insn)
    cpu.exit_insn = None


def complete_mmio(cpu: Cpu, data: bytes | None) -> None:
    """Answer an EXIT_MMIO: the data read, None for a write. The instruction is run again from its start."""
    cpu.mmio_replay.append(data)


def complete_msr(cpu: Cpu, value: int | None) -> None:
    """Answer an EXIT_MSR: the value read (any number for a write), or None for #GP."""
    insn, cpu.exit_insn = cpu.exit_insn, None
    if insn is None:
        return
    if value is None:
        cpu.pending = Event(GP, 0, EVENT_EXCEPTION)
        cpu.wake = 1
        return
    if not cpu.exit_write:
        cpu.regs[0], cpu.regs[2] = value & M32, value >> 32 & M32
    cpu.rip = insn.next
