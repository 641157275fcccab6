"""x87 instructions: loads and stores of reals, integers and packed BCD (SDM vol. 2)."""

from __future__ import annotations

from . import softfloat as sf
from .fpu import C1, INDEFINITE, remember_operand, waiting
from .softfloat import DE, DENORMAL, F32, F64, F80, IE, OE, PE, UE, UP, split, split80
from .x87ops import INT16, INT32, INT64, X87, push_checked
from .x87quick import USUAL

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn
    from .x87ops import Operation, Source

NO_STORE = IE | DE | OE | UE  # exceptions that keep a store to memory back when not masked


def load_real(f: sf.Format, size: int) -> Operation:
    """FLD m32, m64."""
    stored, mask, sign, bias = f.stored, f.exponent_mask, f.sign, 16383 - f.bias
    fraction, up = (1 << stored) - 1, 63 - stored

    def fn(cpu: Cpu, i: Insn) -> None:
        waiting(cpu)
        offset = i.ea(cpu)
        raw = cpu.load(i.seg, offset, size)
        remember_operand(cpu, i, offset)
        fpu = cpu.fpu
        exponent = raw >> stored & mask
        if 0 < exponent < mask and not fpu.valid >> (fpu.top - 1 & 7) & 1:  # a normal number, and room for it
            fpu.sw &= ~C1
            fpu.push(raw >> sign << 79 | exponent + bias << 64 | 1 << 63 | (raw & fraction) << up)
            return
        a = split(f, raw)
        value, flags = sf.convert(F80, a, 0, fpu.cw)
        if a[0] == DENORMAL:
            flags |= DE
        if fpu.valid >> (fpu.top - 1 & 7) & 1:
            push_checked(fpu, value)
        elif not fpu.signal(flags) & IE:  # a denormal is pushed also when its exception is not masked
            fpu.push(value)

    return fn


def load_integer(size: int, source: Source) -> Operation:
    """FILD."""

    def fn(cpu: Cpu, i: Insn) -> None:
        waiting(cpu)
        offset = i.ea(cpu)
        raw = cpu.load(i.seg, offset, size)
        remember_operand(cpu, i, offset)
        cpu.fpu.sw &= ~C1
        push_checked(cpu.fpu, sf.convert(F80, source(raw), 0, 0x3F)[0])

    return fn


def load_extended(cpu: Cpu, i: Insn) -> None:
    """FLD m80: any pattern, without exceptions."""
    waiting(cpu)
    offset = i.ea(cpu)
    raw = int.from_bytes(cpu.load_bytes(i.seg, offset, 10), "little")
    remember_operand(cpu, i, offset)
    cpu.fpu.sw &= ~C1
    push_checked(cpu.fpu, raw)


def load_bcd(cpu: Cpu, i: Insn) -> None:
    """FBLD: 18 decimal digits and a sign. Digits above 9 count as what they are."""
    waiting(cpu)
    offset = i.ea(cpu)
    data = cpu.load_bytes(i.seg, offset, 10)
    remember_operand(cpu, i, offset)
    value = 0
    for byte in reversed(data[:9]):
        value = value * 100 + (byte >> 4) * 10 + (byte & 15)
    bits = sf.convert(F80, sf.from_integer(value), 0, 0x3F)[0]
    cpu.fpu.sw &= ~C1
    push_checked(cpu.fpu, bits | (data[9] & 0x80) << 72)


def finish_store(cpu: Cpu, i: Insn, offset: int, value: int, size: int, flags: int, pop: bool) -> None:
    """Store, then note the exceptions; one that is not masked keeps the store and the pop back."""
    fpu = cpu.fpu
    store = not flags & ~fpu.cw & NO_STORE
    if store:
        if size == 10:
            cpu.store_bytes(i.seg, offset, value.to_bytes(10, "little"))
        else:
            cpu.store(i.seg, offset, size, value)
    else:
        cpu.load_bytes(i.seg, offset, size)
        if flags & ~fpu.cw & (OE | UE):
            flags &= OE | UE
    remember_operand(cpu, i, offset)
    fpu.signal(flags)
    if store and pop:
        fpu.pop()


def store_empty(cpu: Cpu, i: Insn, offset: int, value: int, size: int, pop: bool) -> None:
    """Store the indefinite `value` of an empty ST(0)."""
    fpu = cpu.fpu
    if fpu.cw & IE:
        finish_store(cpu, i, offset, value, size, IE, pop)
        fpu.sw |= 0x40
    else:
        remember_operand(cpu, i, offset)
        fpu.underflow()


def store_real(f: sf.Format, size: int, pop: bool) -> Operation:
    """FST, FSTP to m32, m64."""
    drop, half, bias, high = 63 - f.stored, 1 << 62 - f.stored, 16383 - f.bias, f.exponent_mask - 1

    def fn(cpu: Cpu, i: Insn) -> None:
        waiting(cpu)
        offset = i.ea(cpu)
        fpu = cpu.fpu
        if not fpu.valid >> fpu.top & 1:
            store_empty(cpu, i, offset, f.nan, size, pop)
            return
        raw = fpu.r[fpu.top]
        exponent = (raw >> 64 & 0x7FFF) - bias
        if fpu.cw == USUAL and 0 < exponent < high and raw & 1 << 63:  # a normal number, and one after rounding
            value = (raw & (1 << 63) - 1) >> drop
            rest = raw & 2 * half - 1
            flags = PE if rest else 0
            if rest > half or (rest == half and value & 1):
                value += 1  # a carry goes into the exponent
                flags = PE | UP
            value += raw >> 79 << f.sign | exponent << f.stored
        else:
            value, flags = sf.convert(f, split80(raw), fpu.cw >> 10 & 3, fpu.cw)
        finish_store(cpu, i, offset, value, size, flags, pop)

    return fn


def store_integer(size: int, pop: bool, chop: bool = False) -> Operation:
    """FIST, FISTP, FISTTP."""
    bits = size * 8

    def fn(cpu: Cpu, i: Insn) -> None:
        waiting(cpu)
        offset = i.ea(cpu)
        fpu = cpu.fpu
        if not fpu.valid >> fpu.top & 1:
            store_empty(cpu, i, offset, 1 << bits - 1, size, pop)
            return
        found = sf.to_integer(split80(fpu.r[fpu.top]), bits, sf.CHOP if chop else fpu.cw >> 10 & 3)
        value, flags = found if found is not None else (1 << bits - 1, IE)
        finish_store(cpu, i, offset, value & (1 << bits) - 1, size, flags, pop)

    return fn


def store_extended(cpu: Cpu, i: Insn) -> None:
    """FSTP m80: any pattern as it is."""
    waiting(cpu)
    offset = i.ea(cpu)
    fpu = cpu.fpu
    if not fpu.valid >> fpu.top & 1:
        store_empty(cpu, i, offset, INDEFINITE, 10, True)
    else:
        finish_store(cpu, i, offset, fpu.r[fpu.top], 10, 0, True)


BCD_INDEFINITE = 0xFFFFC << 60


def store_bcd(cpu: Cpu, i: Insn) -> None:
    """FBSTP."""
    waiting(cpu)
    offset = i.ea(cpu)
    fpu = cpu.fpu
    if not fpu.valid >> fpu.top & 1:
        store_empty(cpu, i, offset, BCD_INDEFINITE, 10, True)
        return
    a = split80(fpu.r[fpu.top])
    found = sf.to_integer(a, 64, fpu.cw >> 10 & 3)
    value, flags = BCD_INDEFINITE, IE
    if found is not None and abs(found[0]) < 10**18:
        value, flags = int(str(abs(found[0])), 16) | a[1] << 79, found[1]
    finish_store(cpu, i, offset, value, 10, flags, True)


def fill() -> None:
    """Fill in the table of x87ops further."""
    for low, size, f in ((1, 4, F32), (5, 8, F64)):
        X87[low << 8] = load_real(f, size)
        X87[low << 8 | 2] = store_real(f, size, False)
        X87[low << 8 | 3] = store_real(f, size, True)
    for low, size, source in ((3, 4, INT32), (7, 2, INT16)):
        X87[low << 8] = load_integer(size, source)
        X87[low << 8 | 1] = store_integer(size, True, True)
        X87[low << 8 | 2] = store_integer(size, False)
        X87[low << 8 | 3] = store_integer(size, True)
    X87.update({
        0x501: store_integer(8, True, True), 0x705: load_integer(8, INT64), 0x707: store_integer(8, True),
        0x305: load_extended, 0x307: store_extended, 0x704: load_bcd, 0x706: store_bcd,
    })  # fmt: skip


fill()
