"""Write conditions on the flags as Python expressions."""

from __future__ import annotations

from .translate import CPU, DYNAMIC
from .translate_flow import M16, M32, M64

TYPE_CHECKING = False

if TYPE_CHECKING:  # mypy reads this as True
    from .translate_ops import Writer


MASKS = {1: 0xFF, 2: M16, 4: M32, 8: M64}


SIGNS = {1: 0x80, 2: 0x8000, 4: 0x80000000, 8: 1 << 63}


# Conditions.
def carry_text(w: Writer) -> str:
    """Return the expression for CF, as 0 or 1 (or a bool)."""
    kind, width = w.flags
    if w.flags == CPU:
        return "carry(cpu)"
    if w.flags == DYNAMIC:
        return "carry_of(fw, fr, fa, fb, fc, cpu.flags)"
    if kind == "sub":
        return "(fa < fb)"
    if kind == "logic":
        return "0"
    if kind in ("inc", "dec"):
        if w.cw is None:
            return f"carry_of({width} | cw, fr, fa, fb, fc, cpu.flags)"
        return f"(fc >> {w.cw - 1} & 1)"
    return f"(fr >> {width} & 1)"


def general(w: Writer, code: int) -> str:
    """Return the expression for a condition by the general function."""
    kind, width = w.flags
    if w.flags == CPU:
        return f"condition(cpu, {code})"
    if w.flags == DYNAMIC:
        return f"condition_of({code}, fw, fr, fa, fb, fc, cpu.flags)"
    if kind in ("inc", "dec") and w.cw is None:
        return f"condition_of({code}, {width} | cw, fr, fa, fb, fc, cpu.flags)"
    operands = "fr, fa, fb, 0"
    if kind in ("inc", "dec"):
        operands = "fr, fa, fb, fc"
    elif kind == "sub":
        operands = "0, fa, fb, 0"
    elif kind in ("logic", "shifted", "left"):
        operands = "fr, 0, 0, 0"
    return f"condition_of({code}, {w.flag_code()}, {operands}, 0)"


def condition_text(w: Writer, code: int) -> str:
    """Return the expression for a condition code."""
    kind, width = w.flags
    negate = code & 1
    which = code >> 1
    if w.flags in (CPU, DYNAMIC):
        return general(w, code)
    mask = number((1 << width) - 1)
    sign = number(1 << width - 1)
    if kind == "sub":
        if which == 1:
            return "fa >= fb" if negate else "fa < fb"
        if which == 2:
            return "fa != fb" if negate else "fa == fb"
        if which == 3:
            return "fa > fb" if negate else "fa <= fb"
        if which == 4:
            return f"{'not ' if negate else ''}fa - fb & {sign}"
        if which in (6, 7):
            relation = ("<", ">=", "<=", ">")[code - 12]
            return f"fa ^ {sign} {relation} fb ^ {sign}"
        return general(w, code)
    if which == 1:
        text = carry_text(w)
        return f"not {text}" if negate else text
    if which == 2:
        masked = "fr" if kind in ("logic", "dec") else f"fr & {mask}"
        return masked if negate else f"not {masked}"
    if which == 4 or (kind == "logic" and which == 6):
        if kind == "logic":
            return f"fr < {sign}" if negate else f"fr >= {sign}"
        return f"not fr & {sign}" if negate else f"fr & {sign}"
    if kind == "logic":
        if which == 0:
            return "True" if negate else "False"
        if which == 3:
            return "fr" if negate else "not fr"
        if which == 7:
            return f"0 < fr < {sign}" if negate else f"not 0 < fr < {sign}"
    return general(w, code)


def number(value: int) -> str:
    """Write a constant."""
    return str(value) if -1 < value < 1024 else hex(value)
