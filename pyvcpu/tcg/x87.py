"""Arithmetic of the x87: 80-bit results from numbers taken apart, with the status word's flags (SDM vol. 1 chapter 8).

Every function takes the control word, whose masks and RC and PC fields it needs, and returns the 80-bit result and the
exceptions (UP with them, for C1). Callers decide by the masks whether the result is stored.
"""

from __future__ import annotations

from . import softfloat as sf
from .softfloat import (
    BAD,
    DE,
    DENORMAL,
    F80,
    IE,
    INF,
    QNAN,
    SNAN,
    UP,
    ZE,
    ZERO,
    Number,
    nan_of,
    round_pack,
    shift_round,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    Rounded = Callable[[sf.Format, Number, Number, int, int, int], tuple[int, int]]
    Binary = Callable[[Number, Number, int], tuple[int, int]]

PRECISION = (24, 64, 53, 64)  # by the PC field; 1 is reserved
INDEFINITE = F80.nan
SIGN = 1 << 79
ONE = 0x3FFF << 64 | 1 << 63


def nan_result(a: Number, b: Number) -> tuple[int, int]:
    """Return what an operation with a NaN (or an unsupported pattern) among its operands gives (table 4-7)."""
    kind_a, kind_b = a[0], b[0]
    if kind_a == BAD or kind_b == BAD:
        return INDEFINITE, IE
    flags = IE if SNAN in (kind_a, kind_b) else 0
    if kind_b < QNAN:
        chosen = a
    elif kind_a < QNAN:
        chosen = b
    elif kind_a != kind_b:
        chosen = a if kind_a == QNAN else b
    elif a[2] != b[2]:
        chosen = a if a[2] > b[2] else b
    else:
        chosen = b if a[1] else a
    return nan_of(F80, chosen[1], chosen[2]), flags


def with_denormal(result: int, flags: int, cw: int) -> tuple[int, int]:
    """Add DE. Not masked, it stops the operation before the exceptions of its result; #Z and #I come before it."""
    if flags & (IE | ZE):
        return result, flags
    if not cw & DE:
        return result, DE
    return result, flags | DE


def binary(rounded: Rounded, reverse: bool = False) -> Binary:
    """Make the x87 form of an operation on two numbers."""

    def operation(a: Number, b: Number, cw: int) -> tuple[int, int]:
        if a[0] >= QNAN or b[0] >= QNAN:
            return nan_result(a, b)
        left, right = (b, a) if reverse else (a, b)
        result, flags = rounded(F80, left, right, cw >> 10 & 3, cw, PRECISION[cw >> 8 & 3])
        if a[0] == DENORMAL or b[0] == DENORMAL:
            return with_denormal(result, flags, cw)
        return result, flags

    return operation


fadd = binary(sf.add)
fmul = binary(sf.multiply)
fsub = binary(sf.subtract)
fsubr = binary(sf.subtract, True)
fdiv = binary(sf.divide)
fdivr = binary(sf.divide, True)


def compare(a: Number, b: Number, quiet: bool, cw: int) -> tuple[int, int]:
    """Return -1, 0, 1, or 2 for unordered, and the flags; `quiet` as FUCOM: no IE for a quiet NaN."""
    kinds = a[0], b[0]
    if a[0] >= QNAN or b[0] >= QNAN:
        return 2, IE if not quiet or SNAN in kinds or BAD in kinds else 0
    return sf.compare(a, b), DE if DENORMAL in kinds else 0


def fsqrt(a: Number, cw: int) -> tuple[int, int]:
    """FSQRT."""
    if a[0] >= QNAN:
        return nan_result(a, a)
    result, flags = sf.square_root(F80, a, cw >> 10 & 3, cw, PRECISION[cw >> 8 & 3])
    return with_denormal(result, flags, cw) if a[0] == DENORMAL else (result, flags)


def frndint(a: Number, cw: int) -> tuple[int, int]:
    """FRNDINT: round to an integer by RC."""
    kind, sign, mantissa, exponent = a
    if kind >= QNAN:
        return nan_result(a, a)
    if kind == INF:
        return sign << 79 | F80.inf, 0
    if kind == ZERO:
        return sign << 79, 0
    if exponent >= 0:
        return round_pack(F80, sign, mantissa, exponent, 0, cw)
    value, flags = shift_round(sign, mantissa, -exponent, cw >> 10 & 3)
    result = round_pack(F80, sign, value, 0, 0, cw)[0] if value else sign << 79
    return with_denormal(result, flags, cw) if kind == DENORMAL else (result, flags)


def fscale(a: Number, b: Number, cw: int) -> tuple[int, int]:
    """FSCALE: a * 2**trunc(b) (table 3-28)."""
    if a[0] >= QNAN or b[0] >= QNAN:
        return nan_result(a, b)
    kind, sign, mantissa, exponent = a
    flags = DE if DENORMAL in (kind, b[0]) else 0
    if b[0] == INF:
        if b[1]:
            return (INDEFINITE, IE) if kind == INF else (sign << 79, flags)
        return (INDEFINITE, IE) if kind == ZERO else (sign << 79 | F80.inf, flags)
    if kind == INF:
        return sign << 79 | F80.inf, flags
    if kind == ZERO:
        return sign << 79, flags
    count = b[2] << b[3] if 0 <= b[3] < 64 else b[2] >> -b[3] if b[3] < 0 else 1 << 20
    count = min(count, 1 << 17)
    if not count:
        cw |= sf.UE  # the operand as it is: no result that could be tiny
    result, more = round_pack(F80, sign, mantissa, exponent + (-count if b[1] else count), cw >> 10 & 3, cw)
    if result & F80.inf == 0 and not cw & sf.UE:
        more &= ~sf.UP
    return with_denormal(result, more, cw) if flags else (result, more)


def fxtract(a: Number, cw: int) -> tuple[int, int, int]:
    """FXTRACT: exponent (to replace ST(0)), significand (to push), flags."""
    kind, sign, mantissa, exponent = a
    if kind >= QNAN:
        result, flags = nan_result(a, a)
        return result, result, flags
    if kind == INF:
        return F80.inf, sign << 79 | F80.inf, 0
    if kind == ZERO:
        return SIGN | F80.inf, sign << 79, ZE
    bits = mantissa.bit_length()
    top = bits - 1 + exponent
    significand = sign << 79 | 0x3FFF << 64 | mantissa << (64 - bits)
    number = round_pack(F80, int(top < 0), abs(top), 0, 0, cw)[0] if top else 0
    return number, significand, DE if kind == DENORMAL else 0


def remainder(a: Number, b: Number, nearest: bool, cw: int) -> tuple[int, int, int]:
    """FPREM, FPREM1 (`nearest`): result, flags, and the quotient's low bits; -1 there: the reduction is partial."""
    if a[0] >= QNAN or b[0] >= QNAN:
        return (*nan_result(a, b), 0)
    if a[0] == INF or b[0] == ZERO:
        return INDEFINITE, IE, 0
    flags = DE if DENORMAL in (a[0], b[0]) else 0
    sign = a[1]
    if a[0] == ZERO:
        return sign << 79, flags, 0
    if b[0] == INF:
        result, more = round_pack(F80, sign, a[2], a[3], 0, cw)
        result, flags = with_denormal(result, more, cw) if flags else (result, more)
        return result, flags, 0
    top_a, top_b = a[2].bit_length() + a[3], b[2].bit_length() + b[3]
    distance = top_a - top_b
    if distance >= 64:
        # A partial reduction: by 32 to 63 bits of the quotient.
        exponent = b[3] + distance - (32 + distance % 32)
        done = -1
    else:
        exponent = b[3]
        done = 0
    base = min(a[3], exponent)
    big, small = a[2] << (a[3] - base), b[2] << (exponent - base)
    quotient, rest = divmod(big, small)
    if done == 0:
        if nearest and (rest * 2 > small or (rest * 2 == small and quotient & 1)):
            quotient += 1
            rest -= small
            if rest < 0:
                sign, rest = sign ^ 1, -rest
        done = quotient & 7
    if not rest:
        return a[1] << 79, flags, done
    result, more = round_pack(F80, sign, rest, base, 0, cw)
    if flags:
        result, more = with_denormal(result, more, cw)
    return result, more & ~UP, done
