"""x87 instructions: control, constants, those on ST(0) alone, remainders, transcendental ones."""

from __future__ import annotations

from . import softfloat as sf
from . import x87
from .exceptions import MF, NM, Fault
from .fpu import C0, C1, C2, C3, ES, INDEFINITE, MP, NE, TS, Fpu, present, remember, waiting
from .softfloat import F80, Number, split80
from .x87ops import BEFORE, CONDITIONS, X87, compare_with, push_checked, row, set_conditions

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .cpu import Cpu
    from .decode import Insn
    from .x87ops import Operation

    Unary = Callable[[Number, int], tuple[int, int]]
    Binary = Callable[[Number, Number, int], tuple[int, int]]


def wait(cpu: Cpu, i: Insn) -> None:
    """FWAIT."""
    if cpu.cr0 & (MP | TS) == MP | TS:
        raise Fault(NM)
    if cpu.fpu.sw & ES and cpu.cr0 & NE:
        raise Fault(MF)


def fnclex(cpu: Cpu, i: Insn) -> None:
    """FNCLEX."""
    present(cpu)
    cpu.fpu.sw &= 0x7F00


def fninit(cpu: Cpu, i: Insn) -> None:
    """FNINIT."""
    present(cpu)
    cpu.fpu.init()


def nothing(cpu: Cpu, i: Insn) -> None:
    """FNENI, FNDISI, FNSETPM: of the 8087 and 80287, without effect since the 80387."""
    present(cpu)


def fnop(cpu: Cpu, i: Insn) -> None:
    """FNOP."""
    waiting(cpu)


def fldcw(cpu: Cpu, i: Insn) -> None:
    """FLDCW."""
    waiting(cpu)
    cpu.fpu.set_control(cpu.load(i.seg, i.ea(cpu), 2))


def fnstcw(cpu: Cpu, i: Insn) -> None:
    """FNSTCW."""
    present(cpu)
    cpu.store(i.seg, i.ea(cpu), 2, cpu.fpu.cw)


def fnstsw(cpu: Cpu, i: Insn) -> None:
    """FNSTSW m16."""
    present(cpu)
    cpu.store(i.seg, i.ea(cpu), 2, cpu.fpu.status())


def fnstsw_ax(cpu: Cpu, i: Insn) -> None:
    """FNSTSW AX."""
    present(cpu)
    cpu.regs[0] = cpu.regs[0] & ~0xFFFF | cpu.fpu.status()


def ffree(pop: bool) -> Operation:
    """FFREE, FFREEP."""

    def fn(cpu: Cpu, i: Insn) -> None:
        waiting(cpu)
        remember(cpu, i)
        fpu = cpu.fpu
        fpu.sw &= ~C1
        fpu.valid &= ~(1 << (fpu.top + i.rm & 7))
        if pop:
            fpu.pop()

    return fn


def rotate(by: int) -> Operation:
    """FINCSTP, FDECSTP."""

    def fn(cpu: Cpu, i: Insn) -> None:
        waiting(cpu)
        remember(cpu, i)
        fpu = cpu.fpu
        fpu.top = fpu.top + by & 7
        fpu.sw &= ~C1

    return fn


def constant(value: int) -> Operation:
    """FLD1 and others: `value` is 2**126 times the constant, cut; rounded by RC where it is not exact, without PE."""
    exact = not value & (1 << 62) - 1
    rounded = [sf.round_pack(F80, 0, value | (not exact), -126, rc, 0x3F)[0] if value else 0 for rc in range(4)]

    def fn(cpu: Cpu, i: Insn) -> None:
        waiting(cpu)
        remember(cpu, i)
        cpu.fpu.sw &= ~C1
        push_checked(cpu.fpu, rounded[cpu.fpu.cw >> 10 & 3])

    return fn


CONSTANTS = (
    1 << 126, 0xD49A784BCD1B8AFE492BF6FF4DAFDB4C, 0x5C551D94AE0BF85DDF43FF68348E9F44,
    0xC90FDAA22168C234C4C6628B80DC1CD1, 0x134413509F79FEF311F12B35816F922F, 0x2C5C85FDF473DE6AF278ECE600FCBDAB, 0,
)  # fmt: skip


def sign_bit(change: Callable[[int], int]) -> Operation:
    """FCHS, FABS: any pattern, no exceptions but that of an empty register."""

    def fn(cpu: Cpu, i: Insn) -> None:
        waiting(cpu)
        remember(cpu, i)
        fpu = cpu.fpu
        fpu.sw &= ~C1
        if fpu.empty(0):
            if fpu.underflow():
                fpu.put(0, INDEFINITE)
            return
        fpu.put(0, change(fpu.st(0)))

    return fn


def ftst(cpu: Cpu, i: Insn) -> None:
    """FTST: compare with 0.0."""
    waiting(cpu)
    remember(cpu, i)
    result, _ = compare_with(cpu.fpu, (sf.ZERO, 0, 0, 0), False)
    set_conditions(cpu.fpu, CONDITIONS[result])


def unary(operation: Unary, angle: bool = False) -> Operation:
    """ST(0) = op ST(0). An `angle` of 2**63 or more sets C2 and stays."""

    def fn(cpu: Cpu, i: Insn) -> None:
        waiting(cpu)
        remember(cpu, i)
        fpu = cpu.fpu
        if angle:
            fpu.sw &= ~C2
        if fpu.empty(0):
            if fpu.underflow():
                fpu.put(0, INDEFINITE)
            return
        a = split80(fpu.st(0))
        if angle and too_far(fpu, a):
            return
        result, flags = operation(a, fpu.cw)
        if not fpu.signal(flags) & BEFORE:
            fpu.put(0, result)

    return fn


def too_far(fpu: Fpu, a: Number) -> bool:
    """Set C2 for an angle that is out of range."""
    from .x87trans import out_of_range

    if out_of_range(a):
        fpu.sw = fpu.sw & ~C1 | C2
        return True
    return False


def popping(operation: Binary) -> Operation:
    """ST(1) = ST(0) op ST(1), then a pop: FYL2X, FYL2XP1, FPATAN."""

    def fn(cpu: Cpu, i: Insn) -> None:
        waiting(cpu)
        remember(cpu, i)
        fpu = cpu.fpu
        if fpu.empty(0) or fpu.empty(1):
            if not fpu.underflow():
                return
            result = INDEFINITE
        else:
            result, flags = operation(split80(fpu.st(0)), split80(fpu.st(1)), fpu.cw)
            if fpu.signal(flags) & BEFORE:
                return
        fpu.put(1, result)
        fpu.pop()

    return fn


def fscale(cpu: Cpu, i: Insn) -> None:
    """FSCALE."""
    waiting(cpu)
    remember(cpu, i)
    fpu = cpu.fpu
    if fpu.empty(0) or fpu.empty(1):
        if fpu.underflow():
            fpu.put(0, INDEFINITE)
        return
    result, flags = x87.fscale(split80(fpu.st(0)), split80(fpu.st(1)), fpu.cw)
    if not fpu.signal(flags) & BEFORE:
        fpu.put(0, result)


def fprem(nearest: bool) -> Operation:
    """FPREM, FPREM1."""

    def fn(cpu: Cpu, i: Insn) -> None:
        waiting(cpu)
        remember(cpu, i)
        fpu = cpu.fpu
        fpu.sw &= ~C2
        if fpu.empty(0) or fpu.empty(1):
            if fpu.underflow():
                fpu.put(0, INDEFINITE)
            return
        result, flags, quotient = x87.remainder(split80(fpu.st(0)), split80(fpu.st(1)), nearest, fpu.cw)
        if fpu.signal(flags) & BEFORE:
            return
        fpu.put(0, result)
        if flags & sf.IE or result >> 64 & 0x7FFF == 0x7FFF:
            return
        set_conditions(fpu, C2)
        if quotient >= 0:
            bits = (C0 if quotient & 4 else 0) | (C3 if quotient & 2 else 0)
            set_conditions(fpu, bits)
            fpu.sw |= C1 if quotient & 1 else 0

    return fn


def two_results(fpu: Fpu, first: int, second: int) -> None:
    """Replace ST(0), then push."""
    fpu.put(0, first)
    fpu.push(second)


def ready_for_two(fpu: Fpu) -> bool:
    """Check the stack for an instruction that replaces ST(0) and pushes."""
    if fpu.empty(0):
        masked = fpu.underflow()
    elif fpu.valid >> (fpu.top - 1 & 7) & 1:
        masked = fpu.overflow()
    else:
        return True
    if masked:
        two_results(fpu, INDEFINITE, INDEFINITE)
    return False


def fxtract(cpu: Cpu, i: Insn) -> None:
    """FXTRACT."""
    waiting(cpu)
    remember(cpu, i)
    fpu = cpu.fpu
    if ready_for_two(fpu):
        exponent, significand, flags = x87.fxtract(split80(fpu.st(0)), fpu.cw)
        if not fpu.signal(flags) & BEFORE:
            two_results(fpu, exponent, significand)


def lazily(name: str) -> Callable[..., tuple[int, int]]:
    """Make an operation of x87trans, which is loaded when it is first used."""

    def fn(*operands: object) -> tuple[int, int]:
        from . import x87trans

        result: tuple[int, int] = getattr(x87trans, name)(*operands)
        return result

    return fn


fsin, fcos, tangent = lazily("fsin"), lazily("fcos"), lazily("fptan")


def fsincos(cpu: Cpu, i: Insn) -> None:
    """FSINCOS."""
    waiting(cpu)
    remember(cpu, i)
    fpu = cpu.fpu
    fpu.sw &= ~C2
    if not ready_for_two(fpu):
        return
    a = split80(fpu.st(0))
    if too_far(fpu, a):
        return
    sine, flags = fsin(a, fpu.cw)
    cosine, more = fcos(a, fpu.cw)
    if not fpu.signal(flags & ~sf.UP | more) & BEFORE:
        two_results(fpu, sine, cosine)


def fptan(cpu: Cpu, i: Insn) -> None:
    """FPTAN: the tangent, and 1.0 on top of it."""
    waiting(cpu)
    remember(cpu, i)
    fpu = cpu.fpu
    fpu.sw &= ~C2
    if not ready_for_two(fpu):
        return
    a = split80(fpu.st(0))
    if too_far(fpu, a):
        return
    result, flags = tangent(a, fpu.cw)
    if not fpu.signal(flags) & BEFORE:
        two_results(fpu, result, result if a[0] >= sf.INF else x87.ONE)


def fill() -> None:
    """Fill in the table of x87ops further."""
    X87.update({
        0x105: fldcw, 0x107: fnstcw, 0x507: fnstsw,
        0x1D0: fnop, 0x3E0: nothing, 0x3E1: nothing, 0x3E2: fnclex, 0x3E3: fninit, 0x3E4: nothing, 0x7E0: fnstsw_ax,
        0x1E0: sign_bit(lambda value: value ^ 1 << 79), 0x1E1: sign_bit(lambda value: value & (1 << 79) - 1),
        0x1E4: ftst, 0x1F6: rotate(-1), 0x1F7: rotate(1),
        0x1F0: unary(lazily("f2xm1")), 0x1F1: popping(lazily("fyl2x")), 0x1F2: fptan, 0x1F3: popping(lazily("fpatan")),
        0x1F4: fxtract, 0x1F5: fprem(True), 0x1F8: fprem(False), 0x1F9: popping(lazily("fyl2xp1")),
        0x1FA: unary(x87.fsqrt), 0x1FB: fsincos, 0x1FC: unary(x87.frndint), 0x1FD: fscale,
        0x1FE: unary(fsin, True), 0x1FF: unary(fcos, True),
    })  # fmt: skip
    for number, value in enumerate(CONSTANTS):
        X87[0x1E8 + number] = constant(value)
    row(5, 0xC0, ffree(False))
    row(7, 0xC0, ffree(True))


fill()
