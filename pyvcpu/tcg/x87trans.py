"""Transcendental instructions of the x87: special operands (tables in SDM vol. 2), and the way to the arithmetic."""

from __future__ import annotations

from . import x87math as math
from .softfloat import DE, DENORMAL, F80, IE, INF, NORMAL, PE, QNAN, ZE, ZERO, Number, round_pack
from .x87 import INDEFINITE, ONE, nan_result, with_denormal

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

INFINITY = F80.inf
MINUS_HALF = 1 << 79 | 0x3FFE << 64 | 1 << 63


def finish(exact: math.Wide, cw: int, denormal: bool = False) -> tuple[int, int]:
    """Round a wide result by RC; precision control does not apply."""
    sign, mantissa, exponent = exact
    result, flags = round_pack(F80, sign, mantissa, exponent, cw >> 10 & 3, cw) if mantissa else (sign << 79, 0)
    return with_denormal(result, flags, cw) if denormal else (result, flags)


def out_of_range(a: Number) -> bool:
    """Tell whether an angle is beyond 2**63: C2 is set and nothing done."""
    return a[0] in (NORMAL, DENORMAL) and a[2].bit_length() + a[3] > 63


def circular(fn: Callable[[Number], math.Wide], at_zero: int | None) -> Callable[[Number, int], tuple[int, int]]:
    """Make a function of an angle; `at_zero` is its value there, None for the zero itself."""

    def operation(a: Number, cw: int) -> tuple[int, int]:
        kind = a[0]
        if kind >= QNAN:
            return nan_result(a, a)
        if kind == INF:
            return INDEFINITE, IE
        if kind == ZERO:
            return a[1] << 79 if at_zero is None else at_zero, 0
        return finish(fn(a), cw, kind == DENORMAL)

    return operation


fsin = circular(math.sine, None)
fcos = circular(math.cosine, ONE)
fptan = circular(math.tangent, None)


def f2xm1(a: Number, cw: int) -> tuple[int, int]:
    """F2XM1. Outside of -1 to 1 the result is undefined: the operand, here."""
    kind, sign, mantissa, exponent = a
    if kind >= QNAN:
        return nan_result(a, a)
    if kind == INF:
        return (1 << 79 | ONE if sign else INFINITY), 0
    if kind == ZERO:
        return sign << 79, 0
    top = mantissa.bit_length() + exponent
    if top > 0:
        if top == 1 and mantissa == 1 << mantissa.bit_length() - 1:
            return (MINUS_HALF if sign else ONE), PE
        return round_pack(F80, sign, mantissa, exponent, 0, cw)[0], PE
    return finish(math.power_less_one(a), cw, kind == DENORMAL)


def infinity(sign: int, flags: int = 0) -> tuple[int, int]:
    """Return an infinity."""
    return sign << 79 | INFINITY, flags


def fyl2x(x: Number, y: Number, cw: int) -> tuple[int, int]:
    """FYL2X: y * log2(x)."""
    if x[0] >= QNAN or y[0] >= QNAN:
        return nan_result(x, y)
    kind, denormal = x[0], DENORMAL in (x[0], y[0])
    if kind == ZERO:
        if y[0] == ZERO:
            return INDEFINITE, IE
        return infinity(y[1] ^ 1, 0 if y[0] == INF else ZE)
    if x[1]:
        return INDEFINITE, IE
    if kind == INF:
        return (INDEFINITE, IE) if y[0] == ZERO else infinity(y[1], DE if denormal else 0)
    top = x[2].bit_length() + x[3]
    one = top == 1 and x[2] == 1 << x[2].bit_length() - 1
    below = int(top < 1)
    flags = DE if denormal else 0
    if y[0] == INF:
        return (INDEFINITE, IE) if one else infinity(y[1] ^ below, flags)
    if y[0] == ZERO:
        return (y[1] ^ below) << 79, flags
    result, more = finish(math.log_product(x, y), cw, denormal)
    if denormal and not cw & DE:
        return result, more
    return result, more | PE  # also where the logarithm is an integer


def fyl2xp1(x: Number, y: Number, cw: int) -> tuple[int, int]:
    """FYL2XP1: y * log2(x + 1)."""
    if x[0] >= QNAN or y[0] >= QNAN:
        return nan_result(x, y)
    denormal = DENORMAL in (x[0], y[0])
    flags = DE if denormal else 0
    sign = x[1] ^ y[1]
    if x[0] == ZERO:
        return (INDEFINITE, IE) if y[0] == INF else (sign << 79, flags)
    if x[0] == INF:
        return (INDEFINITE, IE) if x[1] or y[0] == ZERO else infinity(sign, flags)
    if x[1] and x[2].bit_length() + x[3] > 0:  # -1 or less: undefined
        return INDEFINITE, IE
    if y[0] == INF:
        return infinity(sign, flags)
    if y[0] == ZERO:
        return sign << 79, flags
    return finish(math.log_plus_one(x, y), cw, denormal)


def fpatan(x: Number, y: Number, cw: int) -> tuple[int, int]:
    """FPATAN: the angle of the point (x, y)."""
    if x[0] >= QNAN or y[0] >= QNAN:
        return nan_result(x, y)
    denormal = DENORMAL in (x[0], y[0])
    sign = y[1]
    if y[0] == INF:
        if x[0] == INF:
            return finish(math.pi_times(sign, 3 if x[1] else 1, 2), cw)
        return finish(math.pi_times(sign, 1, 1), cw, denormal)
    if y[0] == ZERO or x[0] == INF:
        if x[1]:
            return finish(math.pi_times(sign, 1, 0), cw, denormal)
        return sign << 79, DE if denormal else 0
    if x[0] == ZERO:
        return finish(math.pi_times(sign, 1, 1), cw, denormal)
    return finish(math.arctan(y, x), cw, denormal)
