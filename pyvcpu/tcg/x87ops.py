"""x87 instructions: arithmetic, comparison, moves between registers (SDM vol. 2; opcode maps in appendix A.5)."""

from __future__ import annotations

from . import softfloat as sf
from . import x87
from .fpu import C0, C1, C2, C3, INDEFINITE, Fpu, remember, remember_operand, waiting
from .softfloat import DE, F32, F64, IE, INF, QNAN, SNAN, ZE, Number, split, split80
from .x87quick import QUICK, USUAL

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .cpu import Cpu
    from .decode import Insn
    from .x87 import Binary

    Operation = Callable[[Cpu, Insn], None]
    Source = Callable[[int], Number]

BEFORE = IE | DE | ZE  # exceptions that leave the operands as they are when not masked

X87: dict[int, Operation] = {}


def single(raw: int) -> Number:
    """Take a 32-bit operand apart."""
    return split(F32, raw)


def double(raw: int) -> Number:
    """Take a 64-bit operand apart."""
    return split(F64, raw)


def integer(bits: int) -> Source:
    """Make a reader of signed integers."""
    half = 1 << bits - 1

    def read(raw: int) -> Number:
        return sf.from_integer((raw ^ half) - half)

    return read


INT16, INT32, INT64 = integer(16), integer(32), integer(64)


def arithmetic_memory(operation: Binary, size: int, source: Source) -> Operation:
    """ST(0) = ST(0) op memory."""

    def fn(cpu: Cpu, i: Insn) -> None:
        waiting(cpu)
        offset = i.ea(cpu)
        raw = cpu.load(i.seg, offset, size)
        remember_operand(cpu, i, offset)
        fpu = cpu.fpu
        if not fpu.valid >> fpu.top & 1:
            if fpu.underflow():
                fpu.put(0, INDEFINITE)
            return
        top = fpu.top
        result, flags = operation(split80(fpu.r[top]), source(raw), fpu.cw)
        if not fpu.signal(flags) & BEFORE:
            fpu.r[top] = result

    return fn


def arithmetic(operation: Binary, to_i: bool, pop: bool) -> Operation:
    """ST(0) = ST(0) op ST(i), or ST(i) = ST(i) op ST(0) with or without a pop."""
    quick = QUICK[operation]

    def fn(cpu: Cpu, i: Insn) -> None:
        waiting(cpu)
        remember(cpu, i)
        fpu = cpu.fpu
        top = fpu.top
        other = top + i.rm & 7
        target, second = (other, top) if to_i else (top, other)
        if not fpu.valid >> target & fpu.valid >> second & 1:
            if not fpu.underflow():
                return
            result = INDEFINITE
        else:
            a, b = fpu.r[target], fpu.r[second]
            found = quick(a, b) if fpu.cw == USUAL else None
            result, flags = found or operation(split80(a), split80(b), fpu.cw)
            if fpu.signal(flags) & BEFORE:
                return
        fpu.r[target] = result
        fpu.valid |= 1 << target
        if pop:
            fpu.pop()

    return fn


CONDITIONS = {-1: C0, 0: C3, 1: 0, 2: C0 | C2 | C3}
FLAGS = {-1: 1, 0: 0x40, 1: 0, 2: 0x45}


def set_conditions(fpu: Fpu, bits: int) -> None:
    """Set C0, C2, C3; C1 stays."""
    fpu.sw = fpu.sw & ~(C0 | C2 | C3) | bits


def compare_with(fpu: Fpu, b: Number | None, quiet: bool) -> tuple[int, bool]:
    """Compare ST(0) with a number, None for an empty register.

    Returns the result, and whether the stack is to be popped: not where an exception is not masked.
    """
    if b is None or not fpu.valid >> fpu.top & 1:
        return 2, fpu.underflow()
    result, flags = x87.compare(split80(fpu.r[fpu.top]), b, quiet, fpu.cw)
    return result, not fpu.signal(flags) & BEFORE


def compare_memory(size: int, source: Source, pop: bool) -> Operation:
    """FCOM, FCOMP, FICOM, FICOMP of memory."""

    def fn(cpu: Cpu, i: Insn) -> None:
        waiting(cpu)
        offset = i.ea(cpu)
        raw = cpu.load(i.seg, offset, size)
        remember_operand(cpu, i, offset)
        result, done = compare_with(cpu.fpu, source(raw), False)
        set_conditions(cpu.fpu, CONDITIONS[result])
        if pop and done:
            cpu.fpu.pop()

    return fn


def register_number(fpu: Fpu, place: int) -> Number | None:
    """Return ST(place), None when empty."""
    return None if fpu.empty(place) else split80(fpu.st(place))


def compare_register(quiet: bool, pops: int, to_flags: bool = False) -> Operation:
    """FCOM, FUCOM and theirs with ST(i): into the status word, or EFLAGS."""

    def fn(cpu: Cpu, i: Insn) -> None:
        waiting(cpu)
        remember(cpu, i)
        fpu = cpu.fpu
        before = fpu.sw & C1
        result, done = compare_with(fpu, register_number(fpu, i.rm & 7), quiet)
        if to_flags and not (fpu.empty(0) or fpu.empty(i.rm & 7)):
            fpu.sw |= before  # only a stack fault changes C1 here, whatever the manual says
        if to_flags:
            cpu.set_status(FLAGS[result])
        else:
            set_conditions(fpu, CONDITIONS[result])
        for _ in range(pops if done else 0):
            fpu.pop()

    return fn


def push_checked(fpu: Fpu, value: int) -> None:
    """Push; a stack overflow pushes the indefinite, or nothing when it is not masked."""
    if fpu.valid >> (fpu.top - 1 & 7) & 1:
        if fpu.overflow():
            fpu.push(INDEFINITE)
        return
    fpu.push(value)


def load_register(cpu: Cpu, i: Insn) -> None:
    """FLD ST(i)."""
    waiting(cpu)
    remember(cpu, i)
    fpu = cpu.fpu
    place = i.rm & 7
    fpu.sw &= ~C1
    if fpu.empty(place):
        if fpu.underflow():
            fpu.push(INDEFINITE)
    else:
        push_checked(fpu, fpu.st(place))


def store_register(pop: bool, checked: bool = True) -> Operation:
    """FST, FSTP ST(i). The alias at D9 D8 is not `checked`: it only pops when ST(0) is empty."""

    def fn(cpu: Cpu, i: Insn) -> None:
        waiting(cpu)
        remember(cpu, i)
        fpu = cpu.fpu
        fpu.sw &= ~C1
        value = fpu.r[fpu.top]
        if not fpu.valid >> fpu.top & 1:
            if not checked:
                fpu.pop()
                return
            if not fpu.underflow():
                return
            value = INDEFINITE
        fpu.put(i.rm & 7, value)
        if pop:
            fpu.pop()

    return fn


def exchange(cpu: Cpu, i: Insn) -> None:
    """FXCH."""
    waiting(cpu)
    remember(cpu, i)
    fpu = cpu.fpu
    fpu.sw &= ~C1
    place = i.rm & 7
    if fpu.empty(0) or fpu.empty(place):
        if not fpu.underflow():
            return
        for one in (0, place):
            if fpu.empty(one):
                fpu.put(one, INDEFINITE)
    first, second = fpu.st(0), fpu.st(place)
    fpu.put(0, second)
    fpu.put(place, first)


def conditional_move(mask: int, when: bool) -> Operation:
    """FCMOVcc: `mask` of EFLAGS, whether any of it must be set or none."""

    def fn(cpu: Cpu, i: Insn) -> None:
        waiting(cpu)
        remember(cpu, i)
        fpu = cpu.fpu
        place = i.rm & 7
        if fpu.empty(0) or fpu.empty(place):
            if fpu.underflow():
                fpu.put(0, INDEFINITE)
        elif bool(cpu.get_rflags() & mask) == when:
            fpu.put(0, fpu.st(place))

    return fn


def examine(cpu: Cpu, i: Insn) -> None:
    """FXAM."""
    waiting(cpu)
    remember(cpu, i)
    fpu = cpu.fpu
    raw = fpu.r[fpu.top]
    kind = split80(raw)[0]
    if fpu.empty(0):
        bits = C3 | C0
    elif kind == sf.BAD:
        bits = 0
    elif kind in (QNAN, SNAN):
        bits = C0
    elif kind == INF:
        bits = C2 | C0
    else:
        bits = (C3, C2, C3 | C2)[kind]
    fpu.sw = fpu.sw & ~(C0 | C1 | C2 | C3) | bits | (C1 if raw >> 79 else 0)


def fill() -> None:
    """Fill in the table: key (opcode & 7) << 8 | ModRM of a register form, or | reg of a memory form."""
    kinds = (x87.fadd, x87.fmul, None, None, x87.fsub, x87.fsubr, x87.fdiv, x87.fdivr)
    sources = ((0, 4, single), (2, 4, INT32), (4, 8, double), (6, 2, INT16))
    for reg, operation in enumerate(kinds):
        for low, size, source in sources:
            if operation is None:
                X87[low << 8 | reg] = compare_memory(size, source, reg == 3)
            else:
                X87[low << 8 | reg] = arithmetic_memory(operation, size, source)
        if operation is None:
            continue
        # To ST(i), the reversed forms have the other's place.
        other = reg ^ 1 if reg >= 4 else reg
        row(0, 0xC0 + reg * 8, arithmetic(operation, False, False))
        row(4, 0xC0 + other * 8, arithmetic(operation, True, False))
        row(6, 0xC0 + other * 8, arithmetic(operation, True, True))
    for low, modrm, quiet, pops, to_flags in (
        (0, 0xD0, False, 0, False), (0, 0xD8, False, 1, False), (4, 0xD0, False, 0, False), (4, 0xD8, False, 1, False),
        (6, 0xD0, False, 1, False), (5, 0xE0, True, 0, False), (5, 0xE8, True, 1, False), (3, 0xE8, True, 0, True),
        (3, 0xF0, False, 0, True), (7, 0xE8, True, 1, True), (7, 0xF0, False, 1, True),
    ):  # fmt: skip
        row(low, modrm, compare_register(quiet, pops, to_flags))
    X87[0x2E9] = compare_register(True, 2)
    X87[0x6D9] = compare_register(False, 2)
    X87[0x1E5] = examine
    row(1, 0xC0, load_register)
    for low in (1, 5, 7):
        row(low, 0xC8, exchange)
    for low, modrm, pop in ((5, 0xD0, False), (5, 0xD8, True), (7, 0xD0, True), (7, 0xD8, True)):
        row(low, modrm, store_register(pop))
    row(1, 0xD8, store_register(True, False))
    for number, mask in enumerate((1, 0x40, 0x41, 4)):
        row(2, 0xC0 + number * 8, conditional_move(mask, True))
        row(3, 0xC0 + number * 8, conditional_move(mask, False))


def row(low: int, modrm: int, fn: Operation) -> None:
    """Enter a register form for all eight ST(i)."""
    for place in range(8):
        X87[low << 8 | modrm + place] = fn


fill()
