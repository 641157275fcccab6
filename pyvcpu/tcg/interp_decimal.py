"""Decimal arithmetic of the cold tier."""

from __future__ import annotations

from .exceptions import DE, Fault
from .interp import (
    AF,
    CF,
    M8,
    M16,
    PARITY,
    SF,
    ZF,
    get_flags,
    set_reg,
    set_status,
)  # fmt: skip

TYPE_CHECKING = False

if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn


# Decimal arithmetic.
def daa(cpu: Cpu, i: Insn) -> None:
    """DAA."""
    adjust(cpu, 1)


def das(cpu: Cpu, i: Insn) -> None:
    """DAS."""
    adjust(cpu, -1)


def adjust(cpu: Cpu, direction: int) -> None:
    """Adjust AL after a decimal addition (1) or subtraction (-1)."""
    flags = get_flags(cpu)
    old = cpu.regs[0] & M8
    value = old
    new = 0
    if old & 15 > 9 or flags & AF:
        value += 6 * direction
        new |= AF
        if direction < 0 and (flags & CF or value < 0):
            new |= CF
    if old > 0x99 or flags & CF:
        value += 0x60 * direction
        new |= CF
    value &= M8
    set_reg(cpu, 0, 1, value)
    set_status(cpu, new | szp(value))


def szp(value: int) -> int:
    """Return SF, ZF and PF of a byte."""
    return value & SF | (0 if value else ZF) | PARITY[value]


def aaa(cpu: Cpu, i: Insn) -> None:
    """AAA."""
    ascii_adjust(cpu, 1)


def aas(cpu: Cpu, i: Insn) -> None:
    """AAS."""
    ascii_adjust(cpu, -1)


def ascii_adjust(cpu: Cpu, direction: int) -> None:
    """Adjust AX after an unpacked decimal addition (1) or subtraction (-1)."""
    flags = get_flags(cpu)
    ax = cpu.regs[0] & M16
    new = 0
    if ax & 15 > 9 or flags & AF:
        ax = ax + 0x106 * direction & M16
        new = AF | CF
    ax &= 0xFF0F
    set_reg(cpu, 0, 2, ax)
    set_status(cpu, new | szp(ax & M8))


def aam(cpu: Cpu, i: Insn) -> None:
    """AAM."""
    if not i.imm:
        raise Fault(DE)
    tens, ones = divmod(cpu.regs[0] & M8, i.imm)
    set_reg(cpu, 0, 2, tens << 8 | ones)
    set_status(cpu, szp(ones))


def aad(cpu: Cpu, i: Insn) -> None:
    """AAD."""
    ax = cpu.regs[0]
    value = (ax & M8) + (ax >> 8 & M8) * i.imm & M8
    set_reg(cpu, 0, 2, value)
    set_status(cpu, szp(value))
