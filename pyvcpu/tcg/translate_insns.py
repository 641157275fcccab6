"""Write the Python lines of one instruction: arithmetic, moves, the stack and branches."""

from __future__ import annotations

from .translate import CPU, DYNAMIC
from .translate_conditions import MASKS, SIGNS, carry_text, condition_text, number
from .translate_flow import ADC, CMP, SBB

TYPE_CHECKING = False


if TYPE_CHECKING:  # mypy reads this as True
    from .decode import Insn
    from .translate_ops import Writer


ADD, OR, AND, SUB, XOR = 0, 1, 4, 5, 6


SYMBOL = {OR: "|", AND: "&", XOR: "^"}


def write_exit_condition(w: Writer, i: Insn) -> str:
    """Return the test of Jcc or LOOP at a block's end; LOOP counts here."""
    if i.op != 0xE2:
        return condition_text(w, i.op & 15)
    w.put(f"v = {w.get(1, i.asize)} - 1 & {i.amask:#x}")
    w.set(1, i.asize, "v")
    return "v"


# Arithmetic and logic.
def compute(w: Writer, kind: int, size: int, first: str, second: str, bits: int) -> tuple[str, int]:
    """Write an operation's flags; returns the expression of its result, and how many bits it has at most.

    Operands may be locals that the flags are about to replace, so they are noted in an order that allows it.
    """
    mask = number(MASKS[size])
    width = size * 8
    if kind in SYMBOL:
        text = f"{first} {SYMBOL[kind]} {second}"
        if first == second and kind != XOR:
            text = first
        if first == second and kind == XOR:
            text, bits = "0", 1
        if not w.need:
            return text, bits
        w.put(f"fr = {text}")
        w.flags = ("logic", width)
        return "fr", bits
    if kind in (ADC, SBB):
        sign = "+" if kind == ADC else "-"
        if not w.need:
            return f"{first} {sign} {second} {sign} {carry_text(w)} & {mask}", width
        w.put(f"c = {carry_text(w)}")
        w.put(f"fa = {first}; fb = {second}; fr = fa {sign} fb {sign} c")
        w.flags = ("add", width)
        return f"fr & {mask}", width
    if kind == ADD:
        if not w.need:
            return f"{first} + {second} & {mask}", width
        w.put(f"fa = {first}; fb = {second}; fr = fa + fb")
        w.flags = ("add", width)
        return f"fr & {mask}", width
    if kind == SUB and first == second:
        if w.need:
            w.put("fr = 0")
            w.flags = ("logic", width)
        return "0", 1
    if not w.need:
        return f"{first} - {second} & {mask}", width
    w.put(f"fa = {first}; fb = {second}")
    w.flags = ("sub", width)
    return f"fa - fb & {mask}", width


def joint_bits(w: Writer, kind: int, size: int, first: int, second: int) -> int:
    """Return how many bits the result of a logical operation has at most."""
    if kind == AND:
        return min(first, second)
    return max(first, second) if kind in SYMBOL else size * 8


def reg_bits(w: Writer, reg: int, size: int) -> int:
    """Return how many bits a register operand has at most."""
    return min(size * 8, w.width(reg)) if reg < 20 else 8


def modify(w: Writer, i: Insn, kind: int, second: str, second_bits: int) -> None:
    """Write `op r/m, second`."""
    size = i.size
    if i.mod == 3:
        first = w.get(i.rm, size)
        bits = joint_bits(w, kind, size, reg_bits(w, i.rm, size), second_bits)
        text, bits = compute(w, kind, size, first, second, bits)
        if kind != CMP:
            w.set(i.rm, size, text, bits)
        return
    if kind == CMP:
        compute(w, kind, size, w.load(i, size), second, 64)
        return
    load_to_modify(w, i)
    text, _ = compute(w, kind, size, "v", second, 64)
    store_modified(w, i, text)


def load_to_modify(w: Writer, i: Insn) -> None:
    """Write the load of an operand that is going to be written: into v, its page into g, its place into o."""
    place = w.address(i, i.size, True)
    w.put(f"g = {w.page_to_write(place, i.size)}; o = {place} & 4095")
    w.put("v = g[o]" if i.size == 1 else f"v, = u{i.size}(g, o)")


def store_modified(w: Writer, i: Insn, text: str) -> None:
    """Write the store that follows load_to_modify; it cannot fail."""
    w.put(f"g[o] = {text}" if i.size == 1 else f"p{i.size}(g, o, {text})")


def imm_of(i: Insn) -> tuple[str, int]:
    """Return an immediate cut to the operand's size, and its bits."""
    value = i.imm & MASKS[i.size]
    return number(value), max(1, value.bit_length())


def alu(w: Writer, i: Insn) -> None:
    """00 to 3D: the eight basic operations."""
    kind, form, size = i.op >> 3, i.op & 7, i.size
    if form < 2:
        modify(w, i, kind, w.get(i.reg, size), reg_bits(w, i.reg, size))
    elif form < 4:
        second, second_bits = w.operand(i, size)
        first = w.get(i.reg, size)
        bits = joint_bits(w, kind, size, reg_bits(w, i.reg, size), second_bits)
        text, bits = compute(w, kind, size, first, second, bits)
        if kind != CMP:
            w.set(i.reg, size, text, bits)
    else:
        second, second_bits = imm_of(i)
        first = w.get(0, size)
        bits = joint_bits(w, kind, size, reg_bits(w, 0, size), second_bits)
        text, bits = compute(w, kind, size, first, second, bits)
        if kind != CMP:
            w.set(0, size, text, bits)


def alu_imm(w: Writer, i: Insn) -> None:
    """80 to 83."""
    modify(w, i, i.modrm >> 3 & 7, *imm_of(i))


def test(w: Writer, first: str, second: str, size: int) -> None:
    """Write TEST."""
    if w.need:
        w.put(f"fr = {first}" if first == second else f"fr = {first} & {second}")
        w.flags = ("logic", size * 8)


def test_rm_reg(w: Writer, i: Insn) -> None:
    """84 85."""
    first, _ = w.operand(i, i.size)
    test(w, first, w.get(i.reg, i.size), i.size)


def test_acc(w: Writer, i: Insn) -> None:
    """A8 A9."""
    test(w, w.get(0, i.size), imm_of(i)[0], i.size)


def keep_carry(w: Writer) -> None:
    """Write what keeps CF for INC and DEC."""
    kind, width = w.flags
    if kind in ("inc", "dec"):
        return
    if w.flags == DYNAMIC:
        w.put("if 255 < fw < 65536: cw = fw & 65280")
        w.put("else: fc = carry_of(fw, fr, fa, fb, fc, cpu.flags); cw = 256")
        w.cw = None
    elif w.flags == CPU or kind in ("sub", "logic"):
        w.put(f"fc = {carry_text(w)}")
        w.cw = 1
    else:
        w.put("fc = fr")
        w.cw = width + 1


def step(w: Writer, size: int, first: str, up: bool) -> str:
    """Write the flags of INC or DEC; returns the expression of the result."""
    sign = "+" if up else "-"
    if not w.need:
        return f"{first} {sign} 1 & {number(MASKS[size])}"
    keep_carry(w)
    w.put(f"fa = {first}; fb = 1; fr = fa {sign} 1")
    w.flags = ("inc" if up else "dec", size * 8)
    return f"fr & {number(MASKS[size])}"


def inc_dec_reg(w: Writer, i: Insn) -> None:
    """40 to 4F."""
    w.set(i.reg, i.size, step(w, i.size, w.get(i.reg, i.size), i.op < 0x48))


def group3(w: Writer, i: Insn) -> None:
    """F6 F7: TEST NOT NEG MUL IMUL DIV IDIV."""
    reg = i.modrm >> 3 & 7
    size = i.size
    if reg < 2:
        test(w, w.operand(i, size)[0], imm_of(i)[0], size)
    elif reg == 2:
        mask = number(MASKS[size])
        if i.mod == 3:
            w.set(i.rm, size, f"{w.get(i.rm, size)} ^ {mask}")
        else:
            load_to_modify(w, i)
            store_modified(w, i, f"v ^ {mask}")
    elif reg == 3:
        if i.mod == 3:
            text, bits = compute(w, SUB, size, "0", w.get(i.rm, size), 64)
            w.set(i.rm, size, text, bits)
        else:
            load_to_modify(w, i)
            store_modified(w, i, compute(w, SUB, size, "0", "v", 64)[0])
    elif reg < 6:
        multiply(w, i, reg == 5)
    else:
        divide(w, i, reg == 7)


def signed(text: str, size: int) -> str:
    """Return the expression that reads a number as two's complement."""
    sign = number(SIGNS[size])
    return f"(({text} ^ {sign}) - {sign})"


def product_flags(w: Writer, size: int, result: str, over: str) -> None:
    """Write the flags of a multiplication: CF and OF are `over`, AF 0, the rest by the result."""
    if w.need:
        width = size * 8
        w.put(f"c = {over}; fr = {result} | c << {width}; fa = fr ^ c << {width}; fb = 0")
        w.flags = ("add", width)


def multiply(w: Writer, i: Insn, is_signed: bool) -> None:
    """MUL and IMUL into rDX:rAX."""
    size = i.size
    mask, width = number(MASKS[size]), size * 8
    second, _ = w.operand(i, size)
    first = w.get(0, size)
    if is_signed:
        w.put(f"d = {signed(first, size)} * {signed(second, size)}")
    else:
        w.put(f"d = {first} * {second}")
    w.put(f"v = d & {mask}")
    w.set(0, size, "v")
    w.set(2, size, f"d >> {width} & {mask}")
    product_flags(w, size, "v", f"{signed('v', size)} != d" if is_signed else "d != v")


def imul(w: Writer, i: Insn) -> None:
    """IMUL r, r/m and IMUL r, r/m, imm."""
    size = i.size
    mask = number(MASKS[size])
    first, _ = w.operand(i, size)
    second = w.get(i.reg, size) if i.op == 0x1AF else imm_of(i)[0]
    if not w.need:
        w.set(i.reg, size, f"{first} * {second} & {mask}")
        return
    other = signed(second, size) if i.op == 0x1AF else number(i.imm) if i.imm >= 0 else f"({i.imm})"
    w.put(f"d = {signed(first, size)} * {other}")
    w.put(f"v = d & {mask}")
    w.set(i.reg, size, "v")
    product_flags(w, size, "v", f"{signed('v', size)} != d")


def divide(w: Writer, i: Insn, is_signed: bool) -> None:
    """DIV and IDIV; what is #DE is left to the cold tier."""
    size = i.size
    width, mask = size * 8, number(MASKS[size])
    second, _ = w.operand(i, size)
    high, low = w.get(2, size), w.get(0, size)
    if size == 2 or size == 1:
        w.put("raise SLOW")
        return
    if not is_signed:
        w.put(f"v = {second}")
        w.put(f"if v <= {high}: raise SLOW")
        w.put(f"d = {high} << {width} | {low}; c = d // v; d -= c * v")
    else:
        sign = number(SIGNS[size])
        w.put(f"v = {signed(second, size)}")
        w.put("if not v: raise SLOW")
        w.put(f"d = (({high} << {width} | {low}) ^ {1 << 2 * width - 1:#x}) - {1 << 2 * width - 1:#x}")
        w.put("c = abs(d) // abs(v) if (d < 0) == (v < 0) else -(abs(d) // abs(v))")
        w.put(f"if not -{sign} <= c < {sign}: raise SLOW")
        w.put(f"d = d - c * v & {mask}; c &= {mask}")
    w.set(0, size, "c")
    w.set(2, size, "d")


# Shifts.
def shift(w: Writer, i: Insn) -> None:
    """C0 C1 D0 D1 D3 on registers: SHL SHR SAR, and rotates whose flags nobody needs."""
    kind, size = i.modrm >> 3 & 7, i.size
    width, mask = size * 8, number(MASKS[size])
    value = w.get(i.rm, size)
    if i.op == 0xD3:
        w.used.add(1)
        count = f"(r1 & {63 if size == 8 else 31})"
        if kind == 5:
            text = f"{value} >> {count}"
        elif kind == 7:
            text = f"{signed(value, size)} >> {count} & {mask}"
        else:
            text = f"{value} << {count} & {mask}"
        w.set(i.rm, size, text)
        return
    count_of = (i.imm if i.op < 0xD0 else 1) & (63 if size == 8 else 31)
    if kind < 2:
        count_of %= width
        left = count_of if kind == 0 else width - count_of
        w.set(i.rm, size, f"({value} << {left} | {value} >> {width - left}) & {mask}")
    elif kind == 5:
        bits = max(1, reg_bits(w, i.rm, size) - count_of)
        if not w.need:
            w.set(i.rm, size, f"{value} >> {count_of}", bits)
            return
        w.put(f"v = {value}; fr = v >> {count_of} | (v >> {count_of - 1} & 1) << {width}")
        if count_of == 1:
            w.put(f"fa = fr ^ (v >> {width - 1}) << {width}; fb = 0")
        w.set(i.rm, size, f"v >> {count_of}", bits)
        w.flags = ("add" if count_of == 1 else "shifted", width)
    elif kind == 7:
        if not w.need:
            w.set(i.rm, size, f"{signed(value, size)} >> {count_of} & {mask}")
            return
        w.put(f"v = {signed(value, size)}; c = v >> {count_of} & {mask}")
        w.put(f"fr = c | (v >> {count_of - 1} & 1) << {width}")
        w.set(i.rm, size, "c")
        w.flags = ("shifted", width)
    elif not w.need:
        w.set(i.rm, size, f"{value} << {count_of} & {mask}")
    else:
        w.put(f"fr = {value} << {count_of}")
        w.set(i.rm, size, f"fr & {mask}")
        w.flags = ("left", width)
