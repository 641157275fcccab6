"""Transcendental instructions of the x87 by fixed-point integers: right to well over 64 bits, then rounded once.

Each function takes numbers apart as softfloat has them, finite and not zero unless it says otherwise, and returns
`(sign, mantissa, exponent)`, the mantissa with a sticky lowest bit: the value is between that and the next.
"""

from __future__ import annotations

from math import isqrt

from .softfloat import Number

Wide = tuple[int, int, int]

BITS = 256  # of fraction
UNIT = 1 << BITS
MORE = 96  # further bits that pi needs for the reduction of arguments below 2**63
TINY = -70  # numbers below 2**TINY: the second term of the series is below what rounding sees


def arctan_inverse(n: int, unit: int) -> int:
    """Return unit * arctan(1/n)."""
    term = unit // n
    total, k, sign = term, 3, -1
    while term:
        term //= n * n
        total += sign * (term // k)
        k, sign = k + 2, -sign
    return total


def artanh(t: int) -> int:
    """Return artanh(t), |t| < 1, in fixed point."""
    square = t * t >> BITS
    total = power = t
    k = 3
    while True:
        power = power * square >> BITS
        term = power // k
        if term in (0, -1):
            return total
        total += term
        k += 2


PI_WIDE = 4 * (4 * arctan_inverse(5, 1 << BITS + MORE + 16) - arctan_inverse(239, 1 << BITS + MORE + 16)) >> 16
PI = PI_WIDE >> MORE
LN2 = 2 * artanh(UNIT // 3)
LOG2E = UNIT * UNIT // LN2


def fixed(mantissa: int, exponent: int) -> int:
    """Return mantissa * 2**exponent in fixed point, cut."""
    shift = exponent + BITS
    return mantissa << shift if shift >= 0 else mantissa >> -shift


def wide(value: int) -> Wide:
    """Return a fixed-point number as sign, mantissa with sticky bit, exponent."""
    return int(value < 0), abs(value) << 1 | 1, -BITS - 1


def nearly(sign: int, mantissa: int, exponent: int, below: bool) -> Wide:
    """Return what is a little less (`below`) or more in magnitude than mantissa * 2**exponent."""
    return sign, (mantissa << 90) + (-1 if below else 1), exponent - 90


def is_tiny(a: Number) -> bool:
    """Tell whether a number is so small that the first term of a series and a sticky bit are all."""
    return a[2].bit_length() + a[3] < TINY


def sine_series(r: int) -> int:
    """Return sin(r), |r| <= pi/4, in fixed point."""
    square = r * r >> BITS
    total = term = r
    k = 2
    while term not in (0, -1):
        term = -(term * square >> BITS) // (k * (k + 1))
        total += term
        k += 2
    return total


def cosine_series(r: int) -> int:
    """Return cos(r), |r| <= pi/4, in fixed point."""
    square = r * r >> BITS
    total = term = UNIT
    k = 1
    while term not in (0, -1):
        term = -(term * square >> BITS) // (k * (k + 1))
        total += term
        k += 2
    return total


def reduce(a: Number) -> tuple[int, int]:
    """Return the quadrant (0 to 3) and the rest, |rest| <= pi/4, of |a| < 2**63, in fixed point."""
    bits = BITS + MORE
    shift = a[3] + bits
    value = a[2] << shift if shift >= 0 else a[2] >> -shift
    quadrant = (2 * value + (PI_WIDE >> 1)) // PI_WIDE
    rest = value - (quadrant * PI_WIDE >> 1)
    return quadrant & 3, rest >> MORE


def sine(a: Number) -> Wide:
    """FSIN."""
    if is_tiny(a):
        return nearly(a[1], a[2], a[3], True)
    quadrant, rest = reduce(a)
    value = cosine_series(rest) if quadrant & 1 else sine_series(rest)
    return wide(-value if (quadrant >> 1) ^ a[1] else value)


def cosine(a: Number) -> Wide:
    """FCOS."""
    if is_tiny(a):
        return nearly(0, 1, 0, True)
    quadrant, rest = reduce(a)
    value = sine_series(rest) if quadrant & 1 else cosine_series(rest)
    return wide(-value if quadrant in (1, 2) else value)


def tangent(a: Number) -> Wide:
    """FPTAN."""
    if is_tiny(a):
        return nearly(a[1], a[2], a[3], False)
    quadrant, rest = reduce(a)
    top, bottom = sine_series(rest), cosine_series(rest)
    if quadrant & 1:
        top, bottom = -bottom, top
    value = abs(top) * (UNIT << 80) // abs(bottom)
    return int((top < 0) ^ (bottom < 0)) ^ a[1], value << 1 | 1, -BITS - 81


def arctan_fixed(t: int) -> int:
    """Return arctan(t), 0 <= t <= 1, in fixed point: halve the angle three times, then the series."""
    for _ in range(3):
        t = t * UNIT // (UNIT + isqrt(UNIT * UNIT + t * t))
    square = t * t >> BITS
    total = power = t
    k, sign = 3, -1
    while power:
        power = power * square >> BITS
        total += sign * (power // k)
        k, sign = k + 2, -sign
    return total << 3


def arctan(y: Number, x: Number) -> Wide:
    """FPATAN: the angle of the point (x, y), between -pi and pi."""
    top_y, top_x = y[2].bit_length() + y[3], x[2].bit_length() + x[3]
    distance = top_y - top_x
    if distance < TINY and not x[1]:
        shift = 140 + x[2].bit_length()
        quotient, rest = divmod(y[2] << shift, x[2])
        if rest:
            return y[1], quotient << 1 | 1, y[3] - x[3] - shift - 1
        return nearly(y[1], quotient, y[3] - x[3] - shift, True)
    steep = distance > 0 or (distance == 0 and y[2] << 64 - y[2].bit_length() > x[2] << 64 - x[2].bit_length())
    above, below = (x, y) if steep else (y, x)
    shift = above[3] - below[3] + BITS
    ratio = (above[2] << shift) // below[2] if shift >= 0 else (above[2] >> min(-shift, 600)) // below[2]
    angle = arctan_fixed(ratio)
    if steep:
        angle = (PI >> 1) - angle
    if x[1]:
        angle = PI - angle
    return y[1], angle << 1 | 1, -BITS - 1


def pi_times(sign: int, numerator: int, shift: int) -> Wide:
    """Return numerator * pi / 2**shift."""
    return sign, PI * numerator << 1 | 1, -BITS - 1 - shift


def power_less_one(a: Number) -> Wide:
    """F2XM1: 2**a - 1, |a| <= 1."""
    if is_tiny(a):
        return a[1], a[2] * LN2 << 1 | 1, a[3] - BITS - 1
    z = fixed(a[2], a[3]) * LN2 >> BITS
    if a[1]:
        z = -z
    total = term = z
    k = 2
    while term not in (0, -1):
        term = (term * z >> BITS) // k
        total += term
        k += 1
    return wide(total)


def times(sign: int, logarithm: int, y: Number) -> Wide:
    """Return y * logarithm (fixed point)."""
    return int(logarithm < 0) ^ y[1] ^ sign, abs(logarithm) * y[2] << 1 | 1, y[3] - BITS - 1


def log_product(x: Number, y: Number) -> Wide:
    """FYL2X: y * log2(x), x > 0. The sticky bit is clear where the result is exact; the mantissa is 0 for x = 1."""
    mantissa, exponent = x[2], x[3]
    bits = mantissa.bit_length()
    power = bits - 1 + exponent
    if mantissa == 1 << bits - 1:
        return int(power < 0) ^ y[1], abs(power) * y[2], y[3]
    m = mantissa << BITS - bits + 1  # 1 <= m < 2
    if m * m > UNIT * UNIT * 2:
        m >>= 1
        power += 1
    logarithm = 2 * artanh((m - UNIT) * UNIT // (m + UNIT)) * LOG2E >> BITS
    return times(0, logarithm + (power << BITS), y)


def log_plus_one(x: Number, y: Number) -> Wide:
    """FYL2XP1: y * log2(x + 1), x > -1."""
    if x[2].bit_length() + x[3] > -1:  # half or more: outside of what the instruction promises
        unit = 1 << -x[3] if x[3] < 0 else 0
        total = unit - x[2] if x[1] else unit + x[2]
        return log_product((x[0], 0, total, x[3]), y)
    if is_tiny(x):
        return x[1] ^ y[1], x[2] * LOG2E * y[2] << 1 | 1, x[3] + y[3] - BITS - 1
    value = fixed(x[2], x[3])
    if x[1]:
        value = -value
    logarithm = 2 * artanh(value * UNIT // (2 * UNIT + value)) * LOG2E >> BITS
    return times(0, logarithm, y)
