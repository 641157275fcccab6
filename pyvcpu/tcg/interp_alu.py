"""Arithmetic and logic of the cold tier: operations on general registers and memory."""

from __future__ import annotations

from .exceptions import DE, Fault
from .interp import (
    AF,
    CF,
    M8,
    M16,
    M32,
    MASK,
    OF,
    PARITY,
    SF,
    STATUS,
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
    set_status,
    set_with_carry,
)  # fmt: skip
from .mmu import load, store

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

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
