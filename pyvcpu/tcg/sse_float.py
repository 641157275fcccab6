"""Floating-point arithmetic of SSE to SSE3, packed and scalar, single and double (SDM vol. 1 chapter 11).

A quick way through Python's floats serves normal numbers when rounding is to nearest; softfloat serves all else.
"""

from __future__ import annotations

from math import sqrt
from struct import Struct

from . import softfloat as sf
from .fpu import simd_exception
from .softfloat import BAD, DE, DENORMAL, F32, F64, IE, PE, QNAN, SNAN, ZE, ZERO, Format, Number, nan_of, split
from .sse import M32, M64, M128, add, load128, load_low, ready

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .cpu import Cpu
    from .decode import Insn
    from .sse import Operation

    # Two operands as bits, and MXCSR, to the bits of the result and the exceptions.
    Element = Callable[[int, int, int], tuple[int, int]]

DAZ, FTZ, PM, RC = 0x40, 0x8000, 0x1000, 0x6000
BEFORE = IE | DE | ZE
D, Q, F, I = Struct("<d"), Struct("<Q"), Struct("<f"), Struct("<I")  # noqa: E741
E64, E32 = 0x7FF << 52, 0xFF << 23


def operand(f: Format, raw: int, mxcsr: int) -> Number:
    """Take an operand apart; with DAZ a denormal is a zero."""
    number = split(f, raw)
    if mxcsr & DAZ and number[0] == DENORMAL:
        return ZERO, number[1], 0, 0
    return number


def nan_result(f: Format, a: Number, b: Number) -> tuple[int, int]:
    """Return the first NaN of two operands, quiet, and IE where one is signalling (SDM vol. 1 table 4-7)."""
    chosen = a if a[0] >= QNAN else b
    return nan_of(f, chosen[1], chosen[2]), IE if SNAN in (a[0], b[0]) else 0


def signal(cpu: Cpu, flags: int) -> None:
    """Note exceptions in MXCSR; raise #XM (#UD without CR4.OSXMMEXCPT) for one that is not masked."""
    fpu = cpu.fpu
    unmasked = flags & ~(fpu.mxcsr >> 7) & 0x3F
    if unmasked:
        fpu.mxcsr |= flags & (BEFORE if unmasked & BEFORE else 0x3F)
        raise simd_exception(cpu)
    fpu.mxcsr |= flags & 0x3F


def soft(f: Format, rounded: Callable[..., tuple[int, int]]) -> Element:
    """Make an operation by softfloat."""

    def fn(a_raw: int, b_raw: int, mxcsr: int) -> tuple[int, int]:
        a, b = operand(f, a_raw, mxcsr), operand(f, b_raw, mxcsr)
        if a[0] >= QNAN or b[0] >= QNAN:
            return nan_result(f, a, b)
        result, flags = rounded(f, a, b, mxcsr >> 13 & 3, mxcsr >> 7, 0, bool(mxcsr & FTZ))
        if (a[0] == DENORMAL or b[0] == DENORMAL) and not flags & (IE | ZE):
            flags |= DE
        return result, flags

    return fn


def quick64(operation: Callable[[float, float], float], slow: Element, sums: float = 0.0) -> Element:
    """Put Python's double before softfloat. `sums`: 1.0 for an addition, -1.0 for a subtraction, with a known error."""
    unpack, pack, to_int, to_bytes = D.unpack, D.pack, Q.unpack, Q.pack

    def fn(a: int, b: int, mxcsr: int) -> tuple[int, int]:
        if mxcsr & RC or not mxcsr & PM or not 0 < a & E64 < E64 or not 0 < b & E64 < E64:
            if not (a | b | mxcsr & RC) and operation is not over:
                return 0, 0
            return slow(a, b, mxcsr)
        x, y = unpack(to_bytes(a))[0], unpack(to_bytes(b))[0]
        r = operation(x, y)
        result = to_int(pack(r))[0]
        if not 0 < result & E64 < E64:
            return slow(a, b, mxcsr)
        if mxcsr & PE:
            return result, 0
        if sums:
            part = r - x  # the error of a sum (Knuth's TwoSum)
            return result, PE if (x - (r - part)) + (sums * y - part) else 0
        return slow(a, b, mxcsr)

    return fn


def quick32(operation: Callable[[float, float], float], slow: Element) -> Element:
    """The same for single precision: the double result, rounded once more, is right (53 >= 2 * 24 + 2)."""
    unpack, pack, to_int, to_bytes = F.unpack, F.pack, I.unpack, I.pack

    def fn(a: int, b: int, mxcsr: int) -> tuple[int, int]:
        if mxcsr & (RC | PE) != PE or not mxcsr & PM or not 0 < a & E32 < E32 or not 0 < b & E32 < E32:
            if not (a | b | mxcsr & RC) and operation is not over:
                return 0, 0
            return slow(a, b, mxcsr)
        try:
            result = to_int(pack(operation(unpack(to_bytes(a))[0], unpack(to_bytes(b))[0])))[0]
        except OverflowError:
            return slow(a, b, mxcsr)
        if not 1 << 23 < result & E32 < E32:  # what came near to the smallest may have been tiny
            return slow(a, b, mxcsr)
        return result, 0

    return fn


def plus(x: float, y: float) -> float:
    """Add."""
    return x + y


def minus(x: float, y: float) -> float:
    """Subtract."""
    return x - y


def by(x: float, y: float) -> float:
    """Multiply."""
    return x * y


def over(x: float, y: float) -> float:
    """Divide."""
    return x / y


def extreme(f: Format, largest: bool) -> Element:
    """MINxx, MAXxx: the second operand where either is a NaN or both are zeros."""

    def fn(a_raw: int, b_raw: int, mxcsr: int) -> tuple[int, int]:
        a, b = operand(f, a_raw, mxcsr), operand(f, b_raw, mxcsr)
        if a[0] == ZERO:
            a_raw = a[1] << f.sign
        if b[0] == ZERO:
            b_raw = b[1] << f.sign
        if a[0] >= QNAN or b[0] >= QNAN:
            return b_raw, IE
        flags = DE if DENORMAL in (a[0], b[0]) else 0
        order = sf.compare(a, b)
        return (a_raw if (order > 0 if largest else order < 0) else b_raw), flags

    return fn


def square_root(f: Format) -> Element:
    """SQRTxx, of the second operand."""
    unpack, pack, to_int, to_bytes = (
        (D.unpack, D.pack, Q.unpack, Q.pack) if f is F64 else (F.unpack, F.pack, I.unpack, I.pack)
    )
    exponent = E64 if f is F64 else E32

    def fn(_: int, raw: int, mxcsr: int) -> tuple[int, int]:
        if mxcsr & (RC | PE) == PE and mxcsr & PM and 0 < raw & exponent < exponent and not raw >> f.sign:
            return to_int(pack(sqrt(unpack(to_bytes(raw))[0])))[0], 0
        a = operand(f, raw, mxcsr)
        if a[0] >= QNAN:
            return nan_result(f, a, a)
        result, flags = sf.square_root(f, a, mxcsr >> 13 & 3, mxcsr >> 7)
        return result, flags | DE if a[0] == DENORMAL and not flags & IE else flags

    return fn


def approximate(root: bool) -> Element:
    """RCPxS, RSQRTxS: no exceptions, denormals are zeros. The error is less than the 1.5 * 2**-12 that is allowed."""

    def fn(_: int, raw: int, mxcsr: int) -> tuple[int, int]:
        kind, sign, mantissa, exponent = split(F32, raw)
        if kind >= QNAN:
            return nan_of(F32, sign, mantissa), 0
        if kind in (ZERO, DENORMAL):
            return sign << 31 | F32.inf, 0
        if root and sign:
            return F32.nan, 0
        if kind == sf.INF:
            return sign << 31, 0
        number = (kind, sign, mantissa, exponent)
        one = (sf.NORMAL, 0, 1, 0)
        if root:
            wide = split(F64, sf.square_root(F64, number, 0, 0x3F)[0])
            return sf.divide(F32, one, wide, 0, 0x3F)[0], 0
        return sf.divide(F32, one, number, 0, 0x3F, 0, True)[0], 0

    return fn


PREDICATES = ((0,), (-1,), (-1, 0), (2,), (-1, 1, 2), (0, 1, 2), (1, 2), (-1, 0, 1))


def compared(f: Format, raw_a: int, raw_b: int, mxcsr: int, quiet: bool) -> tuple[int, int]:
    """Return -1, 0, 1 or 2 for unordered, and the flags."""
    exponent = f.exponent_mask << f.stored
    if 0 < raw_a & exponent < exponent and 0 < raw_b & exponent < exponent:
        if raw_a == raw_b:
            return 0, 0
        negative = raw_a >> f.sign
        if negative != raw_b >> f.sign:
            return -1 if negative else 1, 0
        return -1 if (raw_a < raw_b) != negative else 1, 0
    a, b = operand(f, raw_a, mxcsr), operand(f, raw_b, mxcsr)
    kinds = a[0], b[0]
    if a[0] >= QNAN or b[0] >= QNAN:
        return 2, IE if not quiet or SNAN in kinds or BAD in kinds else 0
    return sf.compare(a, b), DE if DENORMAL in kinds else 0


def scalar(f: Format, element: Element) -> Operation:
    """Make an instruction on the lowest element."""
    mask = M64 if f is F64 else M32
    size = 8 if f is F64 else 4

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        b = load_low(cpu, i, size)
        fpu = cpu.fpu
        whole = fpu.xmm[i.reg]
        result, flags = element(whole & mask, b, fpu.mxcsr)
        if flags:
            signal(cpu, flags)
        fpu.xmm[i.reg] = whole & ~mask | result

    return fn


def gather(pairs: list[tuple[int, int]], element: Element, cpu: Cpu, width: int) -> int:
    """Do an operation on pairs of elements, note the exceptions of all, and join the results."""
    mxcsr = cpu.fpu.mxcsr
    total = flags = at = 0
    for a, b in pairs:
        result, more = element(a, b, mxcsr)
        total |= result << at
        at += width
        flags |= more
    if flags:
        signal(cpu, flags)
    return total


def packed(f: Format, element: Element) -> Operation:
    """Make an instruction on all elements."""
    w = f.width
    mask = M64 if f is F64 else M32

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        b = load128(cpu, i)
        xmm = cpu.fpu.xmm
        a = xmm[i.reg]
        xmm[i.reg] = gather([(a >> n & mask, b >> n & mask) for n in range(0, 128, w)], element, cpu, w)

    return fn


def horizontal(f: Format, element: Element) -> Operation:
    """HADDxx, HSUBxx: neighbours of the first operand, then of the second."""
    w = f.width
    mask = M64 if f is F64 else M32

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        both = cpu.fpu.xmm[i.reg] | load128(cpu, i) << 128
        cpu.fpu.xmm[i.reg] = gather(
            [(both >> n & mask, both >> n + w & mask) for n in range(0, 256, 2 * w)], element, cpu, w
        )

    return fn


def alternating(f: Format, subtract: Element, addition: Element) -> Operation:
    """ADDSUBxx: even elements are subtracted, odd ones added."""
    w = f.width
    mask = M64 if f is F64 else M32

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        b = load128(cpu, i)
        a = cpu.fpu.xmm[i.reg]
        mxcsr = cpu.fpu.mxcsr
        total = flags = 0
        for n in range(0, 128, w):
            element = addition if n // w & 1 else subtract
            result, more = element(a >> n & mask, b >> n & mask, mxcsr)
            total |= result << n
            flags |= more
        signal(cpu, flags)
        cpu.fpu.xmm[i.reg] = total

    return fn


def compare(f: Format, is_packed: bool) -> Operation:
    """CMPxx with a predicate."""
    w = f.width
    mask = M64 if f is F64 else M32

    def fn(cpu: Cpu, i: Insn) -> None:
        kind = i.imm & 7
        wanted = PREDICATES[kind]

        def element(a: int, b: int, mxcsr: int) -> tuple[int, int]:
            result, flags = compared(f, a, b, mxcsr, kind not in (1, 2, 5, 6))
            return (mask if result in wanted else 0), flags

        ready(cpu)
        b = load128(cpu, i) if is_packed else load_low(cpu, i, w >> 3)
        xmm = cpu.fpu.xmm
        a = xmm[i.reg]
        count = 128 if is_packed else w
        result = gather([(a >> n & mask, b >> n & mask) for n in range(0, count, w)], element, cpu, w)
        xmm[i.reg] = result if is_packed else a & ~mask & M128 | result

    return fn


FLAGS = {-1: 1, 0: 0x40, 1: 0, 2: 0x45}


def compare_flags(f: Format, quiet: bool) -> Operation:
    """COMISx, UCOMISx."""
    size = f.width >> 3

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        b = load_low(cpu, i, size)
        fpu = cpu.fpu
        result, flags = compared(f, fpu.xmm[i.reg] & (1 << size * 8) - 1, b, fpu.mxcsr, quiet)
        if flags:
            signal(cpu, flags)
        cpu.set_status(FLAGS[result])

    return fn


ADD64, SUB64 = quick64(plus, soft(F64, sf.add), 1.0), quick64(minus, soft(F64, sf.subtract), -1.0)
MUL64, DIV64 = quick64(by, soft(F64, sf.multiply)), quick64(over, soft(F64, sf.divide))
ADD32, SUB32 = quick32(plus, soft(F32, sf.add)), quick32(minus, soft(F32, sf.subtract))
MUL32, DIV32 = quick32(by, soft(F32, sf.multiply)), quick32(over, soft(F32, sf.divide))


def fill() -> None:
    """Enter the arithmetic."""
    for f, all_prefix, one_prefix, kinds in (
        (F32, 0, 0xF3, (ADD32, MUL32, SUB32, DIV32)),
        (F64, 0x66, 0xF2, (ADD64, MUL64, SUB64, DIV64)),
    ):
        addition, product, difference, quotient = kinds
        for opcode, element in (
            (0x51, square_root(f)), (0x58, addition), (0x59, product), (0x5C, difference),
            (0x5D, extreme(f, False)), (0x5E, quotient), (0x5F, extreme(f, True)),
        ):  # fmt: skip
            add(all_prefix, opcode, packed(f, element))
            add(one_prefix, opcode, scalar(f, element))
        add(all_prefix, 0xC2, compare(f, True), True)
        add(one_prefix, 0xC2, compare(f, False), True)
        add(all_prefix, 0x2E, compare_flags(f, True))
        add(all_prefix, 0x2F, compare_flags(f, False))
        prefix = 0x66 if f is F64 else 0xF2
        add(prefix, 0x7C, horizontal(f, addition))
        add(prefix, 0x7D, horizontal(f, difference))
        add(prefix, 0xD0, alternating(f, difference, addition))
    for opcode, root in ((0x52, True), (0x53, False)):
        element = approximate(root)
        add(0, opcode, packed(F32, element))
        add(0xF3, opcode, scalar(F32, element))


fill()
