"""Arithmetic and logic of the cold tier: operations on general registers and memory."""

from __future__ import annotations

from .exceptions import DE, Fault
from .interp import (
    M8,
    M16,
    MASK,
    ZF,
    carry,
    condition,
    get_flags,
    get_reg,
    get_rm,
    get_rm_for_store,
    set_lazy,
    set_reg,
    set_rm,
    set_with_carry,
)  # fmt: skip

TYPE_CHECKING = False


if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn, Operation


ADD, OR, ADC, SBB, AND, SUB, XOR, CMP = range(8)


def calculate(cpu: Cpu, kind: int, first: int, second: int) -> int:
    """Return the result of one of the eight basic operations, not cut to the width."""
    if kind == ADD:
        return first + second
    if kind in (SUB, CMP):
        return first - second
    if kind == OR:
        return first | second
    if kind == AND:
        return first & second
    if kind == XOR:
        return first ^ second
    if kind == ADC:
        return first + second + carry(cpu)
    return first - second - carry(cpu)


def note(cpu: Cpu, kind: int, size: int, result: int, first: int, second: int) -> None:
    """Note the flags of one of the eight basic operations."""
    cpu.fw, cpu.fr = size * 8, result
    if kind in (OR, AND, XOR):
        cpu.fa, cpu.fb = result, 0
    else:
        cpu.fa, cpu.fb = first, second


def alu_rm_reg(kind: int) -> Operation:
    """Make the form `op r/m, r`."""

    def operation(cpu: Cpu, i: Insn) -> None:
        size = i.size
        second = get_reg(cpu, i.reg, size)
        if kind == CMP:
            first = get_rm(cpu, i)
            result = first - second
        else:
            first = get_rm_for_store(cpu, i)
            result = calculate(cpu, kind, first, second)
            set_rm(cpu, i, result & MASK[size])
        note(cpu, kind, size, result, first, second)

    return operation


def alu_reg_rm(kind: int) -> Operation:
    """Make the form `op r, r/m`."""

    def operation(cpu: Cpu, i: Insn) -> None:
        size = i.size
        first, second = get_reg(cpu, i.reg, size), get_rm(cpu, i)
        result = calculate(cpu, kind, first, second)
        if kind != CMP:
            set_reg(cpu, i.reg, size, result & MASK[size])
        note(cpu, kind, size, result, first, second)

    return operation


def alu_rm_imm(kind: int) -> Operation:
    """Make the form `op r/m, imm`."""

    def operation(cpu: Cpu, i: Insn) -> None:
        size = i.size
        mask = MASK[size]
        second = i.imm & mask
        if kind == CMP:
            first = get_rm(cpu, i)
            result = first - second
        else:
            first = get_rm_for_store(cpu, i)
            result = calculate(cpu, kind, first, second)
            set_rm(cpu, i, result & mask)
        note(cpu, kind, size, result, first, second)

    return operation


def alu_acc_imm(kind: int) -> Operation:
    """Make the form `op al/ax/eax/rax, imm`."""

    def operation(cpu: Cpu, i: Insn) -> None:
        size = i.size
        mask = MASK[size]
        first, second = cpu.regs[0] & mask, i.imm & mask
        result = calculate(cpu, kind, first, second)
        if kind != CMP:
            set_reg(cpu, 0, size, result & mask)
        note(cpu, kind, size, result, first, second)

    return operation


def test_rm_reg(cpu: Cpu, i: Insn) -> None:
    """TEST r/m, r."""
    result = get_rm(cpu, i) & get_reg(cpu, i.reg, i.size)
    set_lazy(cpu, i.size * 8, result, result, 0)


def test_rm_imm(cpu: Cpu, i: Insn) -> None:
    """TEST r/m, imm."""
    result = get_rm(cpu, i) & i.imm & MASK[i.size]
    set_lazy(cpu, i.size * 8, result, result, 0)


def test_acc_imm(cpu: Cpu, i: Insn) -> None:
    """TEST al/ax/eax/rax, imm."""
    result = cpu.regs[0] & i.imm & MASK[i.size]
    set_lazy(cpu, i.size * 8, result, result, 0)


def keep_carry(cpu: Cpu, width: int) -> int:
    """Move CF to where an operation that leaves it alone keeps it; returns the new fw."""
    old = cpu.fw
    if not old:
        cpu.fc = cpu.flags
        return width | 1 << 8
    if old < 256:
        cpu.fc = cpu.fr
        return width | old + 1 << 8
    return width | old & ~0xFF


def inc_rm(cpu: Cpu, i: Insn) -> None:
    """INC r/m."""
    first = get_rm_for_store(cpu, i)
    result = first + 1
    set_rm(cpu, i, result & MASK[i.size])
    cpu.fw = keep_carry(cpu, i.size * 8)
    cpu.fr, cpu.fa, cpu.fb = result, first, 1


def dec_rm(cpu: Cpu, i: Insn) -> None:
    """DEC r/m."""
    first = get_rm_for_store(cpu, i)
    result = first - 1
    set_rm(cpu, i, result & MASK[i.size])
    cpu.fw = keep_carry(cpu, i.size * 8)
    cpu.fr, cpu.fa, cpu.fb = result, first, 1


def inc_reg(cpu: Cpu, i: Insn) -> None:
    """INC r16/r32 (40 to 47)."""
    first = get_reg(cpu, i.reg, i.size)
    set_reg(cpu, i.reg, i.size, first + 1 & MASK[i.size])
    cpu.fw = keep_carry(cpu, i.size * 8)
    cpu.fr, cpu.fa, cpu.fb = first + 1, first, 1


def dec_reg(cpu: Cpu, i: Insn) -> None:
    """DEC r16/r32 (48 to 4F)."""
    first = get_reg(cpu, i.reg, i.size)
    set_reg(cpu, i.reg, i.size, first - 1 & MASK[i.size])
    cpu.fw = keep_carry(cpu, i.size * 8)
    cpu.fr, cpu.fa, cpu.fb = first - 1, first, 1


def neg_rm(cpu: Cpu, i: Insn) -> None:
    """NEG r/m."""
    value = get_rm_for_store(cpu, i)
    set_rm(cpu, i, -value & MASK[i.size])
    set_lazy(cpu, i.size * 8, -value, 0, value)


def not_rm(cpu: Cpu, i: Insn) -> None:
    """NOT r/m."""
    set_rm(cpu, i, get_rm_for_store(cpu, i) ^ MASK[i.size])


def to_signed(value: int, size: int) -> int:
    """Read a number of `size` bytes as two's complement."""
    half = 1 << size * 8 - 1
    return (value ^ half) - half


def set_product(cpu: Cpu, size: int, product: int, over: bool) -> None:
    """Set the flags of a multiplication: CF and OF tell that the upper half is needed."""
    set_with_carry(cpu, size * 8, product, int(over), int(over))


def mul_rm(cpu: Cpu, i: Insn) -> None:
    """MUL r/m."""
    size = i.size
    product = get_rm(cpu, i) * (cpu.regs[0] & MASK[size])
    store_product(cpu, size, product)
    set_product(cpu, size, product, product >> size * 8 != 0)


def imul_rm(cpu: Cpu, i: Insn) -> None:
    """IMUL r/m."""
    size = i.size
    product = to_signed(get_rm(cpu, i), size) * to_signed(cpu.regs[0] & MASK[size], size)
    store_product(cpu, size, product)
    set_product(cpu, size, product, product != to_signed(product & MASK[size], size))


def store_product(cpu: Cpu, size: int, product: int) -> None:
    """Put a product into AX, or the two halves into rDX:rAX."""
    if size == 1:
        set_reg(cpu, 0, 2, product & M16)
    else:
        set_reg(cpu, 0, size, product & MASK[size])
        set_reg(cpu, 2, size, product >> size * 8 & MASK[size])


def imul_reg_rm(cpu: Cpu, i: Insn) -> None:
    """IMUL r, r/m."""
    times(cpu, i, get_reg(cpu, i.reg, i.size))


def imul_reg_rm_imm(cpu: Cpu, i: Insn) -> None:
    """IMUL r, r/m, imm."""
    times(cpu, i, i.imm & MASK[i.size])


def times(cpu: Cpu, i: Insn, factor: int) -> None:
    """Multiply r/m, cut to the operand's size."""
    size = i.size
    product = to_signed(get_rm(cpu, i), size) * to_signed(factor, size)
    set_reg(cpu, i.reg, size, product & MASK[size])
    set_product(cpu, size, product, product != to_signed(product & MASK[size], size))


def dividend(cpu: Cpu, size: int) -> int:
    """Return AX, or rDX:rAX."""
    if size == 1:
        return cpu.regs[0] & M16
    return get_reg(cpu, 2, size) << size * 8 | get_reg(cpu, 0, size)


def store_quotient(cpu: Cpu, size: int, quotient: int, remainder: int) -> None:
    """Put quotient and remainder where DIV and IDIV leave them."""
    mask = MASK[size]
    if size == 1:
        set_reg(cpu, 0, 2, quotient & M8 | (remainder & M8) << 8)
    else:
        set_reg(cpu, 0, size, quotient & mask)
        set_reg(cpu, 2, size, remainder & mask)


def div_rm(cpu: Cpu, i: Insn) -> None:
    """DIV r/m."""
    size = i.size
    divisor = get_rm(cpu, i)
    if not divisor:
        raise Fault(DE)
    quotient, remainder = divmod(dividend(cpu, size), divisor)
    if quotient >> size * 8:
        raise Fault(DE)
    store_quotient(cpu, size, quotient, remainder)


def idiv_rm(cpu: Cpu, i: Insn) -> None:
    """IDIV r/m: the quotient is rounded toward zero."""
    size = i.size
    divisor = to_signed(get_rm(cpu, i), size)
    if not divisor:
        raise Fault(DE)
    number = to_signed(dividend(cpu, size), size * 2)
    quotient = abs(number) // abs(divisor)
    if (number < 0) != (divisor < 0):
        quotient = -quotient
    half = 1 << size * 8 - 1
    if not -half <= quotient < half:
        raise Fault(DE)
    store_quotient(cpu, size, quotient, number - quotient * divisor)


def add_with(flag: int) -> Operation:
    """Make ADCX (CF) and ADOX (OF): a carry chain in one flag, all others kept."""

    def operation(cpu: Cpu, i: Insn) -> None:
        flags = get_flags(cpu)
        total = get_reg(cpu, i.reg, i.size) + get_rm(cpu, i) + (1 if flags & flag else 0)
        set_reg(cpu, i.reg, i.size, total & MASK[i.size])
        cpu.flags = flags | flag if total >> i.size * 8 else flags & ~flag

    return operation


# Exchange and compare.
def xchg_rm_reg(cpu: Cpu, i: Insn) -> None:
    """XCHG r/m, r."""
    size = i.size
    value, other = get_rm_for_store(cpu, i), get_reg(cpu, i.reg, size)
    set_rm(cpu, i, other)
    set_reg(cpu, i.reg, size, value)


def xchg_acc(cpu: Cpu, i: Insn) -> None:
    """XCHG rAX, r."""
    value, other = get_reg(cpu, 0, i.size), get_reg(cpu, i.reg, i.size)
    set_reg(cpu, 0, i.size, other)
    set_reg(cpu, i.reg, i.size, value)


def xadd(cpu: Cpu, i: Insn) -> None:
    """XADD."""
    size = i.size
    value, other = get_rm_for_store(cpu, i), get_reg(cpu, i.reg, size)
    if i.mod == 3:
        set_reg(cpu, i.reg, size, value)
        set_rm(cpu, i, value + other & MASK[size])
    else:
        set_rm(cpu, i, value + other & MASK[size])
        set_reg(cpu, i.reg, size, value)
    set_lazy(cpu, size * 8, value + other, value, other)


def cmpxchg(cpu: Cpu, i: Insn) -> None:
    """CMPXCHG: memory is written in either case."""
    size = i.size
    value, expected = get_rm_for_store(cpu, i), get_reg(cpu, 0, size)
    if value == expected:
        set_rm(cpu, i, get_reg(cpu, i.reg, size))
    else:
        set_rm(cpu, i, value)
        set_reg(cpu, 0, size, value)
    set_lazy(cpu, size * 8, expected - value, expected, value)


def cmpxchg8b(cpu: Cpu, i: Insn) -> None:
    """CMPXCHG8B and, with REX.W, CMPXCHG16B."""
    half = 8 if i.size == 8 else 4
    offset = i.ea(cpu)
    mask = MASK[half]
    if half == 8 and (offset + (cpu.segs[i.seg].base if i.seg >= 4 else 0)) & 15:
        raise Fault(13, 0)
    cpu.probe_store(i.seg, offset, half * 2)
    value = int.from_bytes(cpu.load_bytes(i.seg, offset, half * 2), "little")
    regs = cpu.regs
    flags = get_flags(cpu)
    if value == (regs[2] & mask) << half * 8 | regs[0] & mask:
        data = (regs[1] & mask) << half * 8 | regs[3] & mask
        cpu.store_bytes(i.seg, offset, data.to_bytes(half * 2, "little"))
        cpu.flags = flags | ZF
    else:
        cpu.store_bytes(i.seg, offset, value.to_bytes(half * 2, "little"))
        regs[0], regs[2] = value & mask, value >> half * 8
        cpu.flags = flags & ~ZF


def setcc(cpu: Cpu, i: Insn) -> None:
    """SETcc."""
    set_rm(cpu, i, int(condition(cpu, i.op)))


def cmov(cpu: Cpu, i: Insn) -> None:
    """CMOVcc: the source is read in either case, and a 32-bit destination zero-extended."""
    value = get_rm(cpu, i)
    set_reg(cpu, i.reg, i.size, value if condition(cpu, i.op) else get_reg(cpu, i.reg, i.size))


# Conversions.
def cbw(cpu: Cpu, i: Insn) -> None:
    """CBW CWDE CDQE."""
    half = i.size // 2
    set_reg(cpu, 0, i.size, to_signed(get_reg(cpu, 0, half), half) & MASK[i.size])


def cwd(cpu: Cpu, i: Insn) -> None:
    """CWD CDQ CQO."""
    set_reg(cpu, 2, i.size, MASK[i.size] if get_reg(cpu, 0, i.size) >> i.size * 8 - 1 else 0)
