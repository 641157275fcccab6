"""Shifts, rotates and single bits of the cold tier."""

from __future__ import annotations

from .interp import (
    CF,
    M8,
    M32,
    MASK,
    OF,
    STATUS,
    ZF,
    carry,
    get_flags,
    get_reg,
    get_rm,
    get_rm_for_store,
    set_reg,
    set_rm,
    set_status,
    set_with_carry,
)  # fmt: skip
from .interp_alu import to_signed
from .mmu import load, store

TYPE_CHECKING = False

if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .cpu import Cpu
    from .decode import Insn, Operation


# Shifts and rotates.
def shift(kind: int, count_of: Callable[[Cpu, Insn], int]) -> Operation:
    """Make ROL ROR RCL RCR SHL SHR SAL SAR (`kind` is the reg field), with the count from CL, an immediate or 1."""
    function = (rol, ror, rcl, rcr, shl, shr, shl, sar)[kind]

    def operation(cpu: Cpu, i: Insn) -> None:
        count = count_of(cpu, i) & (63 if i.size == 8 else 31)
        value = get_rm_for_store(cpu, i)
        if count:
            function(cpu, i, value, count)
        elif i.mod != 3 or i.size == 4:
            set_rm(cpu, i, value)

    return operation


def by_cl(cpu: Cpu, i: Insn) -> int:
    """Return the count in CL."""
    return cpu.regs[1] & M8


def by_imm(cpu: Cpu, i: Insn) -> int:
    """Return the count that is an immediate byte."""
    return i.imm & M8


def by_one(cpu: Cpu, i: Insn) -> int:
    """Return 1."""
    return 1


def shl(cpu: Cpu, i: Insn, value: int, count: int) -> None:
    """SHL."""
    width = i.size * 8
    result = value << count
    set_rm(cpu, i, result & MASK[i.size])
    bits = result >> width - 1
    set_with_carry(cpu, width, result, bits >> 1 & 1, (bits ^ bits >> 1) & 1)


def shr(cpu: Cpu, i: Insn, value: int, count: int) -> None:
    """SHR."""
    width = i.size * 8
    result = value >> count
    set_rm(cpu, i, result)
    set_with_carry(cpu, width, result, value >> count - 1 & 1, (value >> width - 1 & 1) if count == 1 else 0)


def sar(cpu: Cpu, i: Insn, value: int, count: int) -> None:
    """SAR."""
    number = to_signed(value, i.size)
    result = number >> count & MASK[i.size]
    set_rm(cpu, i, result)
    set_with_carry(cpu, i.size * 8, result, number >> count - 1 & 1, 0)


def rotated(cpu: Cpu, i: Insn, result: int, carry_bit: int, overflow_bit: int) -> None:
    """Finish a rotate: only CF and OF change."""
    set_rm(cpu, i, result)
    flags = get_flags(cpu)
    cpu.flags = flags & ~(CF | OF) | carry_bit | overflow_bit << 11


def rol(cpu: Cpu, i: Insn, value: int, count: int) -> None:
    """ROL."""
    width = i.size * 8
    count %= width
    result = (value << count | value >> width - count) & MASK[i.size]
    rotated(cpu, i, result, result & 1, (result >> width - 1 ^ result) & 1)


def ror(cpu: Cpu, i: Insn, value: int, count: int) -> None:
    """ROR."""
    width = i.size * 8
    count %= width
    result = (value >> count | value << width - count) & MASK[i.size]
    top = result >> width - 2
    rotated(cpu, i, result, top >> 1, (top >> 1 ^ top) & 1)


def rcl(cpu: Cpu, i: Insn, value: int, count: int) -> None:
    """RCL: a rotate of width + 1 bits, CF on top."""
    width = i.size * 8
    count %= width + 1
    if not count:
        set_rm(cpu, i, value)
        return
    whole = value | carry(cpu) << width
    whole = (whole << count | whole >> width + 1 - count) & (1 << width + 1) - 1
    result = whole & MASK[i.size]
    rotated(cpu, i, result, whole >> width, (whole >> width ^ whole >> width - 1) & 1)


def rcr(cpu: Cpu, i: Insn, value: int, count: int) -> None:
    """RCR: a rotate of width + 1 bits, CF on top."""
    width = i.size * 8
    count %= width + 1
    if not count:
        set_rm(cpu, i, value)
        return
    whole = value | carry(cpu) << width
    whole = (whole >> count | whole << width + 1 - count) & (1 << width + 1) - 1
    result = whole & MASK[i.size]
    top = result >> width - 2
    rotated(cpu, i, result, whole >> width, (top >> 1 ^ top) & 1)


def shift_double(left: bool, count_of: Callable[[Cpu, Insn], int]) -> Operation:
    """Make SHLD and SHRD. A 16-bit count above 16 goes on with the first operand's bits, as processors do."""

    def operation(cpu: Cpu, i: Insn) -> None:
        width = i.size * 8
        count = count_of(cpu, i) & (63 if width == 64 else 31)
        value, other = get_rm_for_store(cpu, i), get_reg(cpu, i.reg, i.size)
        if not count:
            if i.mod != 3 or i.size == 4:
                set_rm(cpu, i, value)
            return
        mask = MASK[i.size]
        if left:
            whole = value << width * 2 | other << width | (value if width == 16 else 0)
            result = whole >> width * 2 - count & mask
            out = whole >> width * 3 - count & 1
        else:
            whole = (value if width == 16 else 0) << width * 2 | other << width | value
            result = whole >> count & mask
            out = whole >> count - 1 & 1
        set_rm(cpu, i, result)
        set_with_carry(cpu, width, result, out, (result ^ value) >> width - 1 & 1)

    return operation


# Bits.
def bit_test(kind: int, immediate: bool) -> Operation:
    """Make BT BTS BTR BTC (0 to 3). A register count reaches beyond the operand in memory."""

    def operation(cpu: Cpu, i: Insn) -> None:
        size = i.size
        width = size * 8
        number = i.imm if immediate else to_signed(get_reg(cpu, i.reg, size), size)
        bit = number & width - 1
        if i.mod == 3:
            value = get_reg(cpu, i.rm, size)
            offset = 0
        else:
            offset = i.ea(cpu)
            if not immediate:
                offset = offset + (number >> {16: 4, 32: 5, 64: 6}[width]) * size & i.amask
            value = cpu.load_for_store(i.seg, offset, size) if kind else load(cpu, i.seg, offset, size)
        if kind:
            changed = value | 1 << bit if kind == 1 else value & ~(1 << bit) if kind == 2 else value ^ 1 << bit
            if i.mod == 3:
                set_reg(cpu, i.rm, size, changed)
            else:
                store(cpu, i.seg, offset, size, changed)
        flags = get_flags(cpu)
        cpu.flags = flags & ~CF | (value >> bit & 1)

    return operation


def bsf(cpu: Cpu, i: Insn) -> None:
    """BSF: a zero source leaves the destination as it was."""
    value = get_rm(cpu, i)
    if value:
        set_reg(cpu, i.reg, i.size, (value & -value).bit_length() - 1)
    elif i.size == 4 and cpu.bits != 64:
        set_reg(cpu, i.reg, 4, cpu.regs[i.reg] & M32)
    set_status(cpu, get_flags(cpu) & (STATUS & ~ZF) | (0 if value else ZF))


def bsr(cpu: Cpu, i: Insn) -> None:
    """BSR: a zero source leaves the destination as it was."""
    value = get_rm(cpu, i)
    if value:
        set_reg(cpu, i.reg, i.size, value.bit_length() - 1)
    set_status(cpu, get_flags(cpu) & (STATUS & ~ZF) | (0 if value else ZF))


def popcnt(cpu: Cpu, i: Insn) -> None:
    """POPCNT."""
    value = get_rm(cpu, i)
    set_reg(cpu, i.reg, i.size, value.bit_count())
    set_status(cpu, 0 if value else ZF)


def lzcnt(cpu: Cpu, i: Insn) -> None:
    """LZCNT."""
    value = get_rm(cpu, i)
    result = i.size * 8 - value.bit_length()
    set_reg(cpu, i.reg, i.size, result)
    set_status(cpu, get_flags(cpu) & (STATUS & ~(ZF | CF)) | (0 if result else ZF) | (0 if value else CF))


def tzcnt(cpu: Cpu, i: Insn) -> None:
    """TZCNT."""
    value = get_rm(cpu, i)
    result = (value & -value).bit_length() - 1 if value else i.size * 8
    set_reg(cpu, i.reg, i.size, result)
    set_status(cpu, get_flags(cpu) & (STATUS & ~(ZF | CF)) | (0 if result else ZF) | (0 if value else CF))


def bswap(cpu: Cpu, i: Insn) -> None:
    """BSWAP: of a 16-bit register it gives 0, as processors do."""
    if i.size == 2:
        set_reg(cpu, i.reg, 2, 0)
        return
    value = get_reg(cpu, i.reg, i.size)
    set_reg(cpu, i.reg, i.size, int.from_bytes(value.to_bytes(i.size, "little"), "big"))


# CRC32C, one byte at a time.
def crc_table() -> tuple[int, ...]:
    """Make the table of the reflected polynomial 0x82F63B78."""
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return tuple(table)


CRC: list[tuple[int, ...]] = []


def crc32(cpu: Cpu, i: Insn) -> None:
    """CRC32 r, r/m (SSE4.2)."""
    if not CRC:
        CRC.append(crc_table())
    table = CRC[0]
    total = cpu.regs[i.reg] & M32
    for byte in get_rm(cpu, i).to_bytes(i.size, "little"):
        total = total >> 8 ^ table[(total ^ byte) & M8]
    cpu.regs[i.reg] = total
