"""IEEE 754 arithmetic on integers, for every format of x87 and SSE: exact, then rounded once (SDM vol. 1 chapter 4).

A number taken apart is `(kind, sign, mantissa, exponent)`. Finite ones are mantissa * 2**exponent; the mantissa of a
NaN is 64 bits wide, as in the 80-bit format, whatever it came from. Flags are those of MXCSR and of the status word.
"""

from __future__ import annotations

from math import isqrt

IE, DE, ZE, OE, UE, PE = 1, 2, 4, 8, 16, 32
UP = 0x200  # with the flags: rounding made the magnitude greater. C1's place in the x87 status word
ZERO, NORMAL, DENORMAL, INF, QNAN, SNAN, BAD = range(7)  # BAD: a pattern that the x87 does not support
NEAREST, DOWN, UPWARD, CHOP = range(4)  # RC

M64 = (1 << 64) - 1
QUIET = 1 << 62  # of a NaN's mantissa

Number = tuple[int, int, int, int]


class Format:
    """A binary format: `p` bits of precision, exponents of the leading bit from `low` to `high`."""

    __slots__ = (
        "bias",
        "exponent_mask",
        "high",
        "inf",
        "largest",
        "low",
        "name",
        "nan",
        "p",
        "scale",
        "sign",
        "stored",
        "width",
    )

    def __init__(self, name: str, width: int, p: int, exponent_bits: int) -> None:
        self.name, self.width, self.p = name, width, p
        self.stored = width - 1 - exponent_bits  # bits of the mantissa that are stored
        self.exponent_mask = (1 << exponent_bits) - 1
        self.bias = self.exponent_mask >> 1
        self.low, self.high = 1 - self.bias, self.bias
        self.sign = width - 1
        integer = (1 << 63) if width == 80 else 0
        self.inf = self.exponent_mask << self.stored | integer
        self.largest = (self.exponent_mask - 1) << self.stored | ((1 << self.stored) - 1)
        # The "real indefinite" NaN.
        self.nan = 1 << self.sign | self.inf | 1 << (self.stored - (2 if width == 80 else 1))
        self.scale = 3 << (exponent_bits - 2)  # what unmasked overflow and underflow move the exponent by


F32, F64, F80 = Format("single", 32, 24, 8), Format("double", 64, 53, 11), Format("extended", 80, 64, 15)


def split(f: Format, raw: int) -> Number:
    """Take a single or double apart."""
    stored = f.stored
    mantissa = raw & (1 << stored) - 1
    exponent = raw >> stored & f.exponent_mask
    sign = raw >> f.sign
    if exponent == f.exponent_mask:
        if not mantissa:
            return INF, sign, 0, 0
        mantissa = mantissa << (63 - stored) | 1 << 63
        return (QNAN if mantissa & QUIET else SNAN), sign, mantissa, 0
    if exponent:
        return NORMAL, sign, mantissa | 1 << stored, exponent - f.bias - stored
    return (DENORMAL if mantissa else ZERO), sign, mantissa, f.low - stored


def split80(raw: int) -> Number:
    """Take an 80-bit number apart. Unnormals, pseudo-infinities and pseudo-NaNs are BAD."""
    mantissa = raw & M64
    exponent = raw >> 64 & 0x7FFF
    sign = raw >> 79
    if exponent == 0x7FFF:
        if not mantissa >> 63:
            return BAD, sign, mantissa, 0
        if mantissa == 1 << 63:
            return INF, sign, 0, 0
        return (QNAN if mantissa & QUIET else SNAN), sign, mantissa, 0
    if exponent:
        return (NORMAL if mantissa >> 63 else BAD), sign, mantissa, exponent - 16446
    return (DENORMAL if mantissa else ZERO), sign, mantissa, -16445


def join(f: Format, sign: int, mantissa: int, exponent: int) -> int:
    """Put a number together: `mantissa` has p bits (fewer: denormal), `exponent` is that of the leading of p bits."""
    if f.width == 80:
        return sign << 79 | (exponent + 16383 if mantissa >> 63 else 0) << 64 | mantissa
    if mantissa >> f.stored:
        return sign << f.sign | (exponent + f.bias - 1 << f.stored) + mantissa
    return sign << f.sign | mantissa


def nan_of(f: Format, sign: int, mantissa: int) -> int:
    """Make a quiet NaN of format `f` from the 64-bit mantissa of any."""
    if f.width == 80:
        return sign << 79 | 0x7FFF << 64 | mantissa | QUIET
    return sign << f.sign | f.inf | (mantissa | QUIET) >> (63 - f.stored) & (1 << f.stored) - 1


def shift_round(sign: int, mantissa: int, drop: int, rc: int) -> tuple[int, int]:
    """Divide by 2**drop and round to an integer. Returns it with PE and UP as they are."""
    if drop <= 0:
        return mantissa << -drop, 0
    quotient = mantissa >> drop
    rest = mantissa - (quotient << drop)
    if not rest:
        return quotient, 0
    if rc == NEAREST:
        half = 1 << (drop - 1)
        up = rest > half or (rest == half and quotient & 1 == 1)
    else:
        up = rc != CHOP and (rc == DOWN) == (sign == 1)
    return (quotient + 1, PE | UP) if up else (quotient, PE)


def round_pack(
    f: Format, sign: int, mantissa: int, exponent: int, rc: int, masks: int, p: int = 0, ftz: bool = False
) -> tuple[int, int]:
    """Round mantissa * 2**exponent (not zero) to `f`; returns the bits, and the flags.

    `masks` has a bit set for each masked exception. `p` is a smaller precision (x87 precision control). An unmasked
    overflow or underflow gives the result with its exponent moved by `f.scale`, as the x87 does for registers.
    """
    full = f.p
    if not p:
        p = full
    bits = mantissa.bit_length()
    top = bits + exponent - 1
    rounded, flags = shift_round(sign, mantissa, bits - p, rc)
    if rounded >> p:
        rounded >>= 1
        top += 1
    if top > f.high:
        if masks & OE:
            return overflow(f, sign, rc, p)
        if top - f.scale > f.high:
            return overflow(f, sign, NEAREST)
        return join(f, sign, rounded << (full - p), top - f.scale), flags | OE
    if top < f.low:
        if not masks & UE:
            if top + f.scale < f.low:
                return sign << f.sign, UE | PE
            return join(f, sign, rounded << (full - p), top + f.scale), flags | UE
        if ftz:
            return sign << f.sign, UE | PE
        rounded, flags = shift_round(sign, mantissa, f.low - p + 1 - exponent, rc)
        if flags:
            flags |= UE
        top = f.low
    return join(f, sign, rounded << (full - p), top), flags


def overflow(f: Format, sign: int, rc: int, p: int = 0) -> tuple[int, int]:
    """Return what a masked overflow gives: infinity or the largest number."""
    if rc == NEAREST or (rc != CHOP and (rc == DOWN) == (sign == 1)):
        return sign << f.sign | f.inf, OE | PE | UP
    if p and p < f.p:
        return join(f, sign, (1 << f.p) - (1 << (f.p - p)), f.high), OE | PE
    return sign << f.sign | f.largest, OE | PE


def zero(f: Format, sign: int) -> tuple[int, int]:
    """Return an exact zero."""
    return sign << f.sign, 0


def add(f: Format, a: Number, b: Number, rc: int, masks: int, p: int = 0, ftz: bool = False) -> tuple[int, int]:
    """Add two numbers that are no NaNs."""
    kind_a, sign_a, mantissa_a, exponent_a = a
    kind_b, sign_b, mantissa_b, exponent_b = b
    if kind_a == INF:
        if kind_b == INF and sign_a != sign_b:
            return f.nan, IE
        return sign_a << f.sign | f.inf, 0
    if kind_b == INF:
        return sign_b << f.sign | f.inf, 0
    if not mantissa_a and not mantissa_b:
        return zero(f, sign_a if sign_a == sign_b else int(rc == DOWN))
    if not mantissa_b:
        return round_pack(f, sign_a, mantissa_a, exponent_a, rc, masks, p, ftz)
    if not mantissa_a:
        return round_pack(f, sign_b, mantissa_b, exponent_b, rc, masks, p, ftz)
    gap = exponent_a - exponent_b
    # What is too far below matters only by being there.
    if gap > 200:
        mantissa_b, exponent_b, gap = 1, exponent_a - 200, 200
    elif gap < -200:
        mantissa_a, exponent_a, gap = 1, exponent_b - 200, -200
    if gap >= 0:
        mantissa_a <<= gap
        exponent = exponent_b
    else:
        mantissa_b <<= -gap
        exponent = exponent_a
    total = (-mantissa_a if sign_a else mantissa_a) + (-mantissa_b if sign_b else mantissa_b)
    if not total:
        return zero(f, int(rc == DOWN))
    return round_pack(f, int(total < 0), abs(total), exponent, rc, masks, p, ftz)


def subtract(f: Format, a: Number, b: Number, rc: int, masks: int, p: int = 0, ftz: bool = False) -> tuple[int, int]:
    """Subtract `b` from `a`, neither a NaN."""
    return add(f, a, (b[0], b[1] ^ 1, b[2], b[3]), rc, masks, p, ftz)


def multiply(f: Format, a: Number, b: Number, rc: int, masks: int, p: int = 0, ftz: bool = False) -> tuple[int, int]:
    """Multiply two numbers that are no NaNs."""
    sign = a[1] ^ b[1]
    if a[0] == INF or b[0] == INF:
        if a[0] == ZERO or b[0] == ZERO:
            return f.nan, IE
        return sign << f.sign | f.inf, 0
    mantissa = a[2] * b[2]
    if not mantissa:
        return zero(f, sign)
    return round_pack(f, sign, mantissa, a[3] + b[3], rc, masks, p, ftz)


def divide(f: Format, a: Number, b: Number, rc: int, masks: int, p: int = 0, ftz: bool = False) -> tuple[int, int]:
    """Divide `a` by `b`, neither a NaN."""
    sign = a[1] ^ b[1]
    if a[0] == INF:
        if b[0] == INF:
            return f.nan, IE
        return sign << f.sign | f.inf, 0
    if b[0] == INF:
        return zero(f, sign)
    if b[0] == ZERO:
        if a[0] == ZERO:
            return f.nan, IE
        return sign << f.sign | f.inf, ZE
    if a[0] == ZERO:
        return zero(f, sign)
    shift = max(0, f.p + 3 + b[2].bit_length() - a[2].bit_length())
    quotient, rest = divmod(a[2] << shift, b[2])
    return round_pack(f, sign, quotient << 1 | (rest != 0), a[3] - b[3] - shift - 1, rc, masks, p, ftz)


def square_root(f: Format, a: Number, rc: int, masks: int, p: int = 0, ftz: bool = False) -> tuple[int, int]:
    """Take the square root of a number that is no NaN."""
    kind, sign, mantissa, exponent = a
    if kind == ZERO:
        return zero(f, sign)
    if sign:
        return f.nan, IE
    if kind == INF:
        return f.inf, 0
    shift = max(0, 2 * (f.p + 3) - mantissa.bit_length())
    shift += (exponent - shift) & 1
    mantissa <<= shift
    root = isqrt(mantissa)
    return round_pack(f, 0, root << 1 | (root * root != mantissa), (exponent - shift) // 2 - 1, rc, masks, p, ftz)


def compare(a: Number, b: Number) -> int:
    """Return -1, 0 or 1, as `a` is less than, equal to, or greater than `b`; neither is a NaN."""
    if a[0] == ZERO and b[0] == ZERO:
        return 0
    sign_a, sign_b = a[1], b[1]
    if a[0] == ZERO:
        return 1 if sign_b else -1
    if b[0] == ZERO or sign_a != sign_b:
        return -1 if sign_a else 1
    below = -1 if not sign_a else 1  # the answer where |a| < |b|
    if a[0] == INF or b[0] == INF:
        return 0 if a[0] == b[0] else -below if a[0] == INF else below
    top_a, top_b = a[2].bit_length() + a[3], b[2].bit_length() + b[3]
    if top_a != top_b:
        return below if top_a < top_b else -below
    gap = a[3] - b[3]
    left, right = (a[2] << gap, b[2]) if gap >= 0 else (a[2], b[2] << -gap)
    return 0 if left == right else below if left < right else -below


def to_integer(a: Number, bits: int, rc: int) -> tuple[int, int] | None:
    """Round to a signed integer of `bits` bits: it and PE/UP; None where it does not fit, or is no number."""
    kind, sign, mantissa, exponent = a
    if kind >= INF or exponent > 64:
        return None
    value, flags = shift_round(sign, mantissa, -exponent, rc)
    if value >= 1 << (bits - 1) and (not sign or value > 1 << (bits - 1)):
        return None
    return (-value if sign else value), flags


def from_integer(value: int) -> Number:
    """Take an integer as a number."""
    if value:
        return NORMAL, int(value < 0), abs(value), 0
    return ZERO, 0, 0, 0


def convert(f: Format, a: Number, rc: int, masks: int, ftz: bool = False) -> tuple[int, int]:
    """Round any number to `f`, NaNs too (IE for a signalling one)."""
    kind, sign, mantissa, exponent = a
    if kind >= QNAN:
        if kind == BAD:
            return f.nan, IE
        return nan_of(f, sign, mantissa), IE if kind == SNAN else 0
    if kind == INF:
        return sign << f.sign | f.inf, 0
    if kind == ZERO:
        return sign << f.sign, 0
    return round_pack(f, sign, mantissa, exponent, rc, masks, 0, ftz)
