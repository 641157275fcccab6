"""Sums, products and quotients of normal 80-bit numbers under the usual control word (37FH), without detours.

Each function takes two 80-bit patterns and returns the result and its flags, or None where x87.py must do it.
"""

from __future__ import annotations

from . import x87
from .softfloat import M64, PE, UP

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    Quick = Callable[[int, int], tuple[int, int] | None]

USUAL = 0x37F
LOW, HIGH = 1, 0x7FFE  # exponents of normal numbers
SIGN = 1 << 79


def rounded(sign: int, mantissa: int, exponent: int) -> tuple[int, int] | None:
    """Round mantissa * 2**exponent to nearest; `exponent` has the bias of an 80-bit pattern, `sign` is in its place."""
    drop = mantissa.bit_length() - 64
    exponent += drop
    flags = 0
    if drop > 0:
        rest = mantissa & (1 << drop) - 1
        mantissa >>= drop
        if rest:
            half = 1 << drop - 1
            if rest > half or (rest == half and mantissa & 1):
                mantissa += 1
                flags = PE | UP
                if mantissa >> 64:
                    mantissa >>= 1
                    exponent += 1
            else:
                flags = PE
    else:
        mantissa <<= -drop
    if LOW <= exponent <= HIGH:
        return sign | exponent << 64 | mantissa, flags
    return None


def add(a: int, b: int) -> tuple[int, int] | None:
    """Add."""
    exponent_a, exponent_b = a >> 64 & 0x7FFF, b >> 64 & 0x7FFF
    gap = exponent_a - exponent_b
    if not -64 <= gap <= 64 or not LOW <= exponent_a <= HIGH or not LOW <= exponent_b <= HIGH:
        return None
    mantissa_a, mantissa_b = a & M64, b & M64
    if not mantissa_a & mantissa_b & 1 << 63:
        return None
    if gap >= 0:
        mantissa_a <<= gap
        exponent_a = exponent_b
    else:
        mantissa_b <<= -gap
    if (a ^ b) & SIGN:
        total = mantissa_a - mantissa_b
        if total > 0:
            return rounded(a & SIGN, total, exponent_a)
        return rounded(b & SIGN, -total, exponent_a) if total else None
    return rounded(a & SIGN, mantissa_a + mantissa_b, exponent_a)


def multiply(a: int, b: int) -> tuple[int, int] | None:
    """Multiply."""
    exponent_a, exponent_b = a >> 64 & 0x7FFF, b >> 64 & 0x7FFF
    mantissa_a, mantissa_b = a & M64, b & M64
    if LOW <= exponent_a <= HIGH and LOW <= exponent_b <= HIGH and mantissa_a & mantissa_b & 1 << 63:
        return rounded((a ^ b) & SIGN, mantissa_a * mantissa_b, exponent_a + exponent_b - 16446)
    return None


def divide(a: int, b: int) -> tuple[int, int] | None:
    """Divide."""
    exponent_a, exponent_b = a >> 64 & 0x7FFF, b >> 64 & 0x7FFF
    mantissa_a, mantissa_b = a & M64, b & M64
    if LOW <= exponent_a <= HIGH and LOW <= exponent_b <= HIGH and mantissa_a & mantissa_b & 1 << 63:
        quotient, rest = divmod(mantissa_a << 66, mantissa_b)
        return rounded((a ^ b) & SIGN, quotient << 1 | (rest != 0), exponent_a - exponent_b + 16379)
    return None


QUICK: dict[object, Quick] = {
    x87.fadd: add, x87.fsub: lambda a, b: add(a, b ^ SIGN), x87.fsubr: lambda a, b: add(b, a ^ SIGN),
    x87.fmul: multiply, x87.fdiv: divide, x87.fdivr: lambda a, b: divide(b, a),
}  # fmt: skip
