"""Conversions of SSE and SSE2 between integers, singles and doubles; ROUNDxx of SSE4.1."""

from __future__ import annotations

from struct import Struct

from . import softfloat as sf
from .fpu import check_mmx
from .softfloat import CHOP, DE, DENORMAL, F32, F64, IE, PE, QNAN, Format, from_integer, nan_of, shift_round
from .sse import M32, M64, add, general, load128, load_low, load_mmx, ready, set_mmx
from .sse_float import FTZ, operand, signal

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn
    from .sse import Operation

EXPONENT = 0x7FF << 52
unpack, to_bytes = Struct("<d").unpack, Struct("<Q").pack
IMPRECISE = 8  # ROUNDxx: no precision exception


def to_int(f: Format, raw: int, bits: int, mxcsr: int, chop: bool) -> tuple[int, int]:
    """Convert to a signed integer, as bits: the indefinite with IE where it does not fit."""
    if f is F64 and chop and 0x3FF << 52 <= raw & EXPONENT < 0x41D << 52:
        number: float = unpack(to_bytes(raw))[0]  # between 1 and 2**30 in magnitude
        whole = int(number)
        return whole & (1 << bits) - 1, 0 if whole == number else PE
    found = sf.to_integer(operand(f, raw, mxcsr), bits, CHOP if chop else mxcsr >> 13 & 3)
    if found is None:
        return 1 << bits - 1, IE
    return found[0] & (1 << bits) - 1, found[1]


def to_float(f: Format, value: int, mxcsr: int) -> tuple[int, int]:
    """Convert a signed integer."""
    return sf.convert(f, from_integer(value), mxcsr >> 13 & 3, mxcsr >> 7)


def resize(source: Format, target: Format, raw: int, mxcsr: int) -> tuple[int, int]:
    """Convert between single and double."""
    a = operand(source, raw, mxcsr)
    result, flags = sf.convert(target, a, mxcsr >> 13 & 3, mxcsr >> 7, bool(mxcsr & FTZ))
    return result, flags | DE if a[0] == DENORMAL else flags


def signed(value: int, bits: int) -> int:
    """Read a number as signed."""
    half = 1 << bits - 1
    return (value ^ half) - half


def scalar_from_general(f: Format) -> Operation:
    """CVTSI2SS, CVTSI2SD."""
    mask = (1 << f.width) - 1

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        fpu = cpu.fpu
        value = signed(general(cpu, i), 64 if i.size == 8 else 32)
        result, flags = to_float(f, value, fpu.mxcsr)
        signal(cpu, flags)
        fpu.xmm[i.reg] = fpu.xmm[i.reg] & ~mask | result

    return fn


def scalar_to_general(f: Format, chop: bool) -> Operation:
    """CVTSS2SI, CVTTSD2SI and theirs."""

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        raw = load_low(cpu, i, f.width >> 3)
        result, flags = to_int(f, raw, 64 if i.size == 8 else 32, cpu.fpu.mxcsr, chop)
        signal(cpu, flags)
        cpu.regs[i.reg] = result

    return fn


def scalar_resize(source: Format, target: Format) -> Operation:
    """CVTSS2SD, CVTSD2SS."""
    mask = (1 << target.width) - 1

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        fpu = cpu.fpu
        result, flags = resize(source, target, load_low(cpu, i, source.width >> 3), fpu.mxcsr)
        signal(cpu, flags)
        fpu.xmm[i.reg] = fpu.xmm[i.reg] & ~mask | result

    return fn


def packed(kind: str, source: int, target: int, chop: bool = False) -> Operation:
    """Convert elements of `source` bits to `target` bits; `kind` names both: f or i. Narrowing leaves zeros above."""
    count = 2 if 64 in (source, target) else 4
    mask = (1 << source) - 1
    formats = {32: F32, 64: F64}

    def element(raw: int, mxcsr: int) -> tuple[int, int]:
        if kind == "if":
            return to_float(formats[target], signed(raw, 32), mxcsr)
        if kind == "fi":
            return to_int(formats[source], raw, 32, mxcsr, chop)
        return resize(formats[source], formats[target], raw, mxcsr)

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        value = load_low(cpu, i, 8) if source * count == 64 else load128(cpu, i)
        fpu = cpu.fpu
        total = flags = 0
        for n in range(count):
            result, more = element(value >> n * source & mask, fpu.mxcsr)
            total |= result << n * target
            flags |= more
        signal(cpu, flags)
        fpu.xmm[i.reg] = total

    return fn


def from_mmx(f: Format) -> Operation:
    """CVTPI2PS, CVTPI2PD."""

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        touches = i.mod == 3  # with a memory operand the x87 is left alone
        if touches:
            check_mmx(cpu)
        value = load_mmx(cpu, i)
        fpu = cpu.fpu
        low, flags = to_float(f, signed(value & M32, 32), fpu.mxcsr)
        high, more = to_float(f, signed(value >> 32, 32), fpu.mxcsr)
        if touches:
            fpu.top, fpu.valid = 0, 0xFF
        signal(cpu, flags | more)
        result = low | high << f.width
        fpu.xmm[i.reg] = fpu.xmm[i.reg] & ~M64 | result if f is F32 else result

    return fn


def to_mmx(f: Format, chop: bool) -> Operation:
    """CVTPS2PI, CVTTPD2PI and theirs."""

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        check_mmx(cpu)
        value = load128(cpu, i) if f is F64 else load_low(cpu, i, 8)
        mask = (1 << f.width) - 1
        low, flags = to_int(f, value & mask, 32, cpu.fpu.mxcsr, chop)
        high, more = to_int(f, value >> f.width & mask, 32, cpu.fpu.mxcsr, chop)
        signal(cpu, flags | more)
        set_mmx(cpu, i.reg, low | high << 32)

    return fn


def rounded(f: Format, raw: int, mxcsr: int, control: int) -> tuple[int, int]:
    """ROUNDxx of one element. Neither denormals nor tiny results are exceptions."""
    a = operand(f, raw, mxcsr)
    kind, sign, mantissa, exponent = a
    if kind >= QNAN:
        return nan_of(f, sign, mantissa), IE if kind == sf.SNAN else 0
    if kind == sf.ZERO:
        return sign << f.sign, 0
    if kind == sf.INF or exponent >= 0:
        return raw, 0
    value, flags = shift_round(sign, mantissa, -exponent, mxcsr >> 13 & 3 if control & 4 else control & 3)
    if control & IMPRECISE:
        flags = 0
    if not value:
        return sign << f.sign, flags
    return sf.round_pack(f, sign, value, 0, 0, 0x3F)[0], flags


def round_packed(f: Format) -> Operation:
    """ROUNDPS, ROUNDPD."""
    mask = (1 << f.width) - 1

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        value = load128(cpu, i)
        total = flags = 0
        for n in range(0, 128, f.width):
            result, more = rounded(f, value >> n & mask, cpu.fpu.mxcsr, i.imm)
            total |= result << n
            flags |= more
        signal(cpu, flags)
        cpu.fpu.xmm[i.reg] = total

    return fn


def round_scalar(f: Format) -> Operation:
    """ROUNDSS, ROUNDSD."""
    mask = (1 << f.width) - 1

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        fpu = cpu.fpu
        result, flags = rounded(f, load_low(cpu, i, f.width >> 3), fpu.mxcsr, i.imm)
        signal(cpu, flags)
        fpu.xmm[i.reg] = fpu.xmm[i.reg] & ~mask | result

    return fn


def fill() -> None:
    """Enter the conversions."""
    for f, one, all_of in ((F32, 0xF3, 0), (F64, 0xF2, 0x66)):
        add(one, 0x2A, scalar_from_general(f))
        add(one, 0x2C, scalar_to_general(f, True))
        add(one, 0x2D, scalar_to_general(f, False))
        add(all_of, 0x2A, from_mmx(f))
        add(all_of, 0x2C, to_mmx(f, True))
        add(all_of, 0x2D, to_mmx(f, False))
    for number, f in enumerate((F32, F64)):
        add(0x66, 8 + number, round_packed(f), True, 3)
        add(0x66, 0xA + number, round_scalar(f), True, 3)
    add(0xF3, 0x5A, scalar_resize(F32, F64))
    add(0xF2, 0x5A, scalar_resize(F64, F32))
    add(0, 0x5A, packed("ff", 32, 64))
    add(0x66, 0x5A, packed("ff", 64, 32))
    add(0, 0x5B, packed("if", 32, 32))
    add(0x66, 0x5B, packed("fi", 32, 32))
    add(0xF3, 0x5B, packed("fi", 32, 32, True))
    add(0xF2, 0xE6, packed("fi", 64, 32))
    add(0x66, 0xE6, packed("fi", 64, 32, True))
    add(0xF3, 0xE6, packed("if", 32, 64))


fill()
