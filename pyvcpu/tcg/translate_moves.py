"""Write the Python lines of moves, the stack and branches."""

from __future__ import annotations

from .translate_conditions import MASKS, SIGNS, condition_text, number
from .translate_flow import M16, M32, M64, target_of
from .translate_insns import (
    alu,
    alu_imm,
    group3,
    imm_of,
    imul,
    inc_dec_reg,
    load_to_modify,
    reg_bits,
    shift,
    signed,
    step,
    store_modified,
    test_acc,
    test_rm_reg,
)

TYPE_CHECKING = False

if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .decode import Insn
    from .translate_ops import Writer


WRITERS: dict[int, Callable[[Writer, Insn], None]] = {}


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
