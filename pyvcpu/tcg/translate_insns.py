"""Write the Python lines of one instruction: arithmetic, moves, the stack and branches."""

from __future__ import annotations

from .translate import CPU, DYNAMIC
from .translate_flow import ADC, CMP, M16, M32, M64, SBB, target_of

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .decode import Insn
    from .translate_ops import Writer

ADD, OR, AND, SUB, XOR = 0, 1, 4, 5, 6
MASKS = {1: 0xFF, 2: M16, 4: M32, 8: M64}
SIGNS = {1: 0x80, 2: 0x8000, 4: 0x80000000, 8: 1 << 63}
SYMBOL = {OR: "|", AND: "&", XOR: "^"}
WRITERS: dict[int, Callable[[Writer, Insn], None]] = {}


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
    operands = {"logic": "fr, 0, 0, 0", "shifted": "fr, 0, 0, 0", "left": "fr, 0, 0, 0", "sub": "0, fa, fb, 0"}
    return f"condition_of({code}, {w.flag_code()}, {operands.get(kind, 'fr, fa, fb, fc' if kind in ('inc', 'dec') else 'fr, fa, fb, 0')}, 0)"


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


def inc_dec(w: Writer, i: Insn) -> None:
    """FE FF /0 /1; also CALL, JMP and PUSH r/m."""
    reg = i.modrm >> 3 & 7
    if reg >= 2:
        (call_rm, call_rm, jmp_rm, jmp_rm, push_rm)[reg - 2](w, i)
        return
    if i.mod == 3:
        w.set(i.rm, i.size, step(w, i.size, w.get(i.rm, i.size), reg == 0))
        return
    load_to_modify(w, i)
    store_modified(w, i, step(w, i.size, "v", reg == 0))


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


# Moves.
def mov_rm_reg(w: Writer, i: Insn) -> None:
    """88 89."""
    value = w.get(i.reg, i.size)
    if i.mod == 3:
        w.set(i.rm, i.size, value, reg_bits(w, i.reg, i.size))
    else:
        w.store_at(w.address(i, i.size, True), i.size, value)


def mov_reg_rm(w: Writer, i: Insn) -> None:
    """8A 8B."""
    if i.mod != 3 and i.size >= 4:
        w.load_at(w.address(i, i.size, False), i.size, f"r{i.reg}")
        w.used.add(i.reg)
        w.saved.add(i.reg)
        w.written_bits[i.reg] = max(w.written_bits.get(i.reg, 0), 8 * i.size)
        w.known[i.reg] = 8 * i.size
        return
    value, bits = w.operand(i, i.size)
    w.set(i.reg, i.size, value, bits)


def mov_rm_imm(w: Writer, i: Insn) -> None:
    """C6 C7."""
    value, bits = imm_of(i)
    if i.mod == 3:
        w.set(i.rm, i.size, value, bits)
    else:
        w.store_at(w.address(i, i.size, True), i.size, value)


def mov_reg_imm(w: Writer, i: Insn) -> None:
    """B0 to BF."""
    value, bits = imm_of(i)
    w.set(i.reg, i.size, value, bits)


def mov_moffs(w: Writer, i: Insn) -> None:
    """A0 to A3."""
    write = i.op >= 0xA2
    place = w.linear(number(i.disp), True, False, i.seg, i.size, write, i.amask)
    if write:
        w.store_at(place, i.size, w.get(0, i.size))
    else:
        w.load_at(place, i.size, "v")
        w.set(0, i.size, "v")


def lea(w: Writer, i: Insn) -> None:
    """8D."""
    text, wrapped = w.effective(i)
    mask = min(i.amask, MASKS[i.size])
    if not wrapped or mask < i.amask:
        text = f"{text} & {mask:#x}"
    w.set(i.reg, i.size, text, mask.bit_length())


def movx(w: Writer, i: Insn) -> None:
    """MOVZX, MOVSX and MOVSXD."""
    size = 1 if i.op in (0x1B6, 0x1BE) else 2 if i.op in (0x1B7, 0x1BF) else 4
    size = min(size, i.size)
    value, bits = w.operand(i, size)
    if i.op in (0x1B6, 0x1B7):
        w.set(i.reg, i.size, value, bits)
    elif size == i.size:
        w.set(i.reg, i.size, value)
    elif bits < size * 8:
        w.set(i.reg, i.size, value, bits)
    else:
        w.set(i.reg, i.size, f"{signed(value, size)} & {number(MASKS[i.size])}")


def nothing(w: Writer, i: Insn) -> None:
    """NOP."""


def xchg(w: Writer, i: Insn) -> None:
    """86 87 (registers), 90 to 97."""
    other = 0 if 0x90 <= i.op < 0x98 else i.rm
    size = i.size
    w.put(f"v = {w.get(i.reg, size)}; c = {w.get(other, size)}")
    w.set(i.reg, size, "c")
    w.set(other, size, "v")


def widen(w: Writer, i: Insn) -> None:
    """98 99: CBW CWDE CDQE, CWD CDQ CQO."""
    size = i.size
    if i.op == 0x98:
        w.set(0, size, f"{signed(w.get(0, size // 2), size // 2)} & {number(MASKS[size])}")
    else:
        w.set(2, size, f"{number(MASKS[size])} if {w.get(0, size)} & {number(SIGNS[size])} else 0")


def setcc(w: Writer, i: Insn) -> None:
    """190 to 19F."""
    value = f"(1 if {condition_text(w, i.op & 15)} else 0)"
    if i.mod == 3:
        w.set(i.rm, 1, value, 1)
    else:
        w.store_at(w.address(i, 1, True), 1, value)


def cmov(w: Writer, i: Insn) -> None:
    """140 to 14F."""
    value, _ = w.operand(i, i.size)
    old = w.get(i.reg, i.size)
    w.set(i.reg, i.size, f"{value} if {condition_text(w, i.op & 15)} else {old}")


# The stack.
def push_value(w: Writer, value: str, size: int) -> None:
    """Write a push; `value` must not depend on `a` or `o`."""
    w.used.add(4)
    if w.stack_mask == M64 or (w.stack_mask == M32 and w.flat & 4):
        w.put(f"a = r4 - {size}")
        w.store_at("a", size, value)
        w.set(4, 8 if w.bits == 64 else 4, "a")
        return
    top = f"(r4 & {w.stack_mask:#x})" if w.width(4) > w.stack_mask.bit_length() else "r4"
    w.put(f"t = {top} - {size} & {w.stack_mask:#x}")
    place = w.linear("t", True, False, 2, size, True, w.stack_mask)
    w.store_at(place, size, value)
    w.set(4, 2 if w.stack_mask == M16 else 4, "t", 16 if w.stack_mask == M16 else 32)


def pop_value(w: Writer, size: int, target: str) -> None:
    """Write the load of a pop; the stack pointer is moved by move_stack()."""
    w.used.add(4)
    if w.stack_mask == M64 or (w.stack_mask == M32 and w.flat & 4):
        w.load_at("r4", size, target)
        return
    top = f"r4 & {w.stack_mask:#x}" if w.width(4) > w.stack_mask.bit_length() else "r4"
    w.put(f"t = {top}")
    w.load_at(w.linear("t", True, False, 2, size, False, w.stack_mask), size, target)


def move_stack(w: Writer, by: int) -> None:
    """Write `rSP += by`."""
    if w.stack_mask == M64:
        w.set(4, 8, f"r4 + {by} & {M64:#x}")
    elif w.stack_mask == M32:
        w.set(4, 4, f"r4 + {by} & {M32:#x}")
    else:
        w.set(4, 2, f"(r4 + {by} & 65535)", 16)


def push_reg(w: Writer, i: Insn) -> None:
    """50 to 57."""
    push_value(w, w.get(i.reg, i.size), i.size)


def push_imm(w: Writer, i: Insn) -> None:
    """68 6A."""
    push_value(w, imm_of(i)[0], i.size)


def push_rm(w: Writer, i: Insn) -> None:
    """FF /6."""
    push_value(w, w.operand(i, i.size)[0], i.size)


def pop_reg(w: Writer, i: Insn) -> None:
    """58 to 5F."""
    pop_value(w, i.size, "v")
    move_stack(w, i.size)
    w.set(i.reg, i.size, "v")


def leave(w: Writer, i: Insn) -> None:
    """C9."""
    size = i.size
    w.used.add(5)
    if w.stack_mask == M16 or (w.stack_mask == M32 and not w.flat & 4):
        mask = w.stack_mask
        w.put(f"t = r5 & {mask:#x}")
        w.load_at(w.linear("t", True, False, 2, size, False, mask), size, "v")
        w.set(4, 2 if mask == M16 else 4, f"(t + {size} & {mask:#x})", mask.bit_length())
    else:
        w.load_at("r5", size, "v")
        w.set(4, 8 if w.bits == 64 else 4, f"r5 + {size} & {w.stack_mask:#x}")
    w.set(5, size, "v")


# Branches.
def call_rel(w: Writer, i: Insn) -> None:
    """E8."""
    target = target_of(i, w.bits)
    if w.bits != 64 and target > w.limit:
        w.put("raise SLOW")
        return
    push_value(w, number(i.next & MASKS[i.size]), i.size)
    w.done += 1
    w.at_end()
    w.go(target)


def call_rm(w: Writer, i: Insn) -> None:
    """FF /2."""
    value, _ = w.operand(i, i.size)
    w.put(f"d = {value}")
    w.checked_target("d")
    push_value(w, number(i.next & MASKS[i.size]), i.size)
    w.done += 1
    w.at_end()
    w.go_dynamic("d", False)


def jmp_rm(w: Writer, i: Insn) -> None:
    """FF /4."""
    value, _ = w.operand(i, i.size)
    w.put(f"d = {value}")
    w.checked_target("d")
    w.done += 1
    w.at_end()
    w.go_dynamic("d", False)


def ret(w: Writer, i: Insn) -> None:
    """C2 C3."""
    pop_value(w, i.size, "d")
    w.checked_target("d")
    move_stack(w, i.size + i.imm)
    w.done += 1
    w.at_end()
    w.go_dynamic("d", True)


def fill() -> None:
    """Fill the table of writers."""
    for kind in range(8):
        for form in range(6):
            WRITERS[kind * 8 + form] = alu
    for at in range(8):
        WRITERS[0x40 + at] = WRITERS[0x48 + at] = inc_dec_reg
        WRITERS[0x50 + at], WRITERS[0x58 + at] = push_reg, pop_reg
        WRITERS[0x90 + at] = xchg
        WRITERS[0xB0 + at] = WRITERS[0xB8 + at] = mov_reg_imm
        WRITERS[0x118 + at] = nothing
    for code in range(16):
        WRITERS[0x140 + code], WRITERS[0x190 + code] = cmov, setcc
    table: dict[Callable[[Writer, Insn], None], tuple[int, ...]] = {
        alu_imm: (0x80, 0x81, 0x82, 0x83), test_rm_reg: (0x84, 0x85), test_acc: (0xA8, 0xA9), inc_dec: (0xFE, 0xFF),
        group3: (0xF6, 0xF7), imul: (0x69, 0x6B, 0x1AF), shift: (0xC0, 0xC1, 0xD0, 0xD1, 0xD3),
        mov_rm_reg: (0x88, 0x89), mov_reg_rm: (0x8A, 0x8B), mov_rm_imm: (0xC6, 0xC7),
        mov_moffs: (0xA0, 0xA1, 0xA2, 0xA3), lea: (0x8D,), movx: (0x63, 0x1B6, 0x1B7, 0x1BE, 0x1BF),
        nothing: (0x90,), xchg: (0x86, 0x87, *range(0x91, 0x98)), widen: (0x98, 0x99), push_imm: (0x68, 0x6A),
        leave: (0xC9,), call_rel: (0xE8,), ret: (0xC2, 0xC3),
    }  # fmt: skip
    for writer, ops in table.items():
        for op in ops:
            WRITERS[op] = writer


fill()
