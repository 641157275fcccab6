"""Ports of the cold tier: IN and OUT, and who may use them."""

from __future__ import annotations

from .contract import EXIT_PIO
from .control import (
    PE,
)
from .exceptions import GP, Exit, Fault
from .interp import (
    M16,
    M32,
    M64,
    MASK,
    set_reg,
)  # fmt: skip
from .mmu import read
from .paging import SUPERVISOR
from .segments import (
    TR_,
)  # fmt: skip

TYPE_CHECKING = False

if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn


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
