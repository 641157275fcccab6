"""Shuffles, insertions and extractions, and the integer instructions that SSE4.1 and SSE4.2 add."""

from __future__ import annotations

from .exceptions import UD, Fault
from .fpu import check_mmx
from .softfloat import F32, F64, Format
from .sse import M32, M64, M128, add, load128, load_low, load_mmx, ready, set_mmx, use_mmx
from .sse_float import ADD32, ADD64, MUL32, MUL64, signal
from .sse_int import LANE, TOPS, both, extreme, joined, lanes, pack, pcmpeq, pcmpgt, spread, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .cpu import Cpu
    from .decode import Insn
    from .sse import Operation
    from .sse_float import Element
    from .sse_int import Semantic

    # Both operands and the immediate to the result.
    Immediate = Callable[[int, int, int], int]

ZF, CF = 0x40, 1


def by_fields(value: int, control: int, w: int) -> int:
    """Pick four lanes of `w` bits by the four fields of a control byte."""
    lane = LANE[w]
    result = 0
    for n in range(4):
        result |= (value >> w * (control >> 2 * n & 3) & lane) << w * n
    return result


def with_imm(fn: Immediate) -> Operation:
    """Make an instruction xmm, xmm/m128, imm8."""

    def operation(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        b = load128(cpu, i)
        xmm = cpu.fpu.xmm
        xmm[i.reg] = fn(xmm[i.reg], b, i.imm & 0xFF)

    return operation


def pshuflw(a: int, b: int, imm: int) -> int:
    """PSHUFLW."""
    return b & M64 << 64 | by_fields(b, imm, 16)


def pshufhw(a: int, b: int, imm: int) -> int:
    """PSHUFHW."""
    return b & M64 | by_fields(b >> 64, imm, 16) << 64


def shufps(a: int, b: int, imm: int) -> int:
    """SHUFPS."""
    return by_fields(a, imm, 32) & M64 | by_fields(b, imm, 32) >> 64 << 64


def shufpd(a: int, b: int, imm: int) -> int:
    """SHUFPD."""
    return (a >> 64 * (imm & 1) & M64) | (b >> 64 * (imm >> 1 & 1) & M64) << 64


def blend(w: int) -> Immediate:
    """BLENDPS, BLENDPD, PBLENDW: lanes of the second operand where the immediate has a bit."""

    def fn(a: int, b: int, imm: int) -> int:
        mask = sum(LANE[w] << n * w for n in range(128 // w) if imm >> n & 1)
        return b & mask | a & ~mask

    return fn


def insertps(cpu: Cpu, i: Insn) -> None:
    """INSERTPS."""
    ready(cpu)
    value = load_low(cpu, i, 4) if i.mod != 3 else cpu.fpu.xmm[i.rm] >> 32 * (i.imm >> 6 & 3) & M32
    place = 32 * (i.imm >> 4 & 3)
    result = cpu.fpu.xmm[i.reg] & ~(M32 << place) | value << place
    for n in range(4):
        if i.imm >> n & 1:
            result &= ~(M32 << 32 * n)
    cpu.fpu.xmm[i.reg] = result


def pshufw(cpu: Cpu, i: Insn) -> None:
    """PSHUFW."""
    check_mmx(cpu)
    set_mmx(cpu, i.reg, by_fields(load_mmx(cpu, i), i.imm, 16))


def palignr(cpu: Cpu, i: Insn) -> None:
    """PALIGNR."""
    count = 8 * (i.imm & 0xFF)
    if i.prefix == 0x66:
        ready(cpu)
        b = load128(cpu, i)
        cpu.fpu.xmm[i.reg] = (cpu.fpu.xmm[i.reg] << 128 | b) >> count & M128
    else:
        check_mmx(cpu)
        b = load_mmx(cpu, i)
        set_mmx(cpu, i.reg, ((cpu.fpu.r[i.reg & 7] & M64) << 64 | b) >> count & M64)


def insert(size: int) -> Operation:
    """PINSRB, PINSRW, PINSRD, PINSRQ."""

    def fn(cpu: Cpu, i: Insn) -> None:
        mmx = i.prefix == 0
        check_mmx(cpu) if mmx else ready(cpu)
        count = 8 if size == 4 and i.size == 8 else size
        value = cpu.regs[i.rm] & (1 << count * 8) - 1 if i.mod == 3 else cpu.load(i.seg, i.ea(cpu), count)
        bits = count * 8
        place = bits * (i.imm & ((64 if mmx else 128) // bits - 1))
        if mmx:
            set_mmx(cpu, i.reg, cpu.fpu.r[i.reg & 7] & M64 & ~(0xFFFF << place) | value << place)
        else:
            cpu.fpu.xmm[i.reg] = cpu.fpu.xmm[i.reg] & ~((1 << bits) - 1 << place) | value << place

    return fn


def pextrw(cpu: Cpu, i: Insn) -> None:
    """PEXTRW reg, mm/xmm."""
    if i.mod != 3:
        raise Fault(UD)
    if i.prefix == 0:
        check_mmx(cpu)
        use_mmx(cpu)
        cpu.regs[i.reg] = cpu.fpu.r[i.rm & 7] >> 16 * (i.imm & 3) & 0xFFFF
    else:
        ready(cpu)
        cpu.regs[i.reg] = cpu.fpu.xmm[i.rm] >> 16 * (i.imm & 7) & 0xFFFF


def extract(size: int) -> Operation:
    """PEXTRB, PEXTRW, PEXTRD, PEXTRQ, EXTRACTPS to a register (zero-extended) or memory."""

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        count = 8 if size == 4 and i.size == 8 and i.op & 0xFF == 0x16 else size
        bits = count * 8
        value = cpu.fpu.xmm[i.reg] >> bits * (i.imm & 128 // bits - 1) & (1 << bits) - 1
        if i.mod == 3:
            cpu.regs[i.rm] = value
        else:
            cpu.store(i.seg, i.ea(cpu), count, value)

    return fn


def movmsk(w: int) -> Operation:
    """MOVMSKPS, MOVMSKPD."""

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        if i.mod != 3:
            raise Fault(UD)
        value = cpu.fpu.xmm[i.rm]
        cpu.regs[i.reg] = sum((value >> n * w + w - 1 & 1) << n for n in range(128 // w))

    return fn


def blend_by_xmm0(w: int) -> Operation:
    """PBLENDVB, BLENDVPS, BLENDVPD."""

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        b = load128(cpu, i)
        xmm = cpu.fpu.xmm
        mask = spread(xmm[0] & TOPS[w], w)
        xmm[i.reg] = b & mask | xmm[i.reg] & ~mask

    return fn


def ptest(cpu: Cpu, i: Insn) -> None:
    """PTEST."""
    ready(cpu)
    b = load128(cpu, i)
    a = cpu.fpu.xmm[i.reg]
    cpu.set_status((0 if a & b else ZF) | (0 if ~a & b else CF))


def widen(read: int, write: int, signed: bool) -> Operation:
    """PMOVSXxx, PMOVZXxx."""
    count = 128 // write
    size = count * read // 8
    half = 1 << read - 1 if signed else 0

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        value = load_low(cpu, i, size)
        result = 0
        for n in range(count):
            lane = value >> n * read & LANE[read]
            result |= ((lane ^ half) - half & LANE[write]) << n * write
        cpu.fpu.xmm[i.reg] = result

    return fn


def pmuldq(a: int, b: int, bits: int) -> int:
    """PMULDQ."""
    x, y = lanes(a, "i", 128), lanes(b, "i", 128)
    return joined([x[0] * y[0], x[2] * y[2]], "q", 128)


def pmulld(a: int, b: int, bits: int) -> int:
    """PMULLD."""
    return joined([x * y & M32 for x, y in zip(lanes(a, "I", 128), lanes(b, "I", 128), strict=True)], "I", 128)


def phminposuw(a: int, b: int, bits: int) -> int:
    """PHMINPOSUW."""
    words = lanes(b, "H", 128)
    least = min(words)
    return least | words.index(least) << 16


def mpsadbw(a: int, b: int, imm: int) -> int:
    """MPSADBW."""
    x, y = a.to_bytes(16, "little"), b.to_bytes(16, "little")
    start, block = (imm >> 2 & 1) * 4, (imm & 3) * 4
    words = [sum(abs(x[start + n + k] - y[block + k]) for k in range(4)) for n in range(8)]
    return joined(words, "H", 128)


def dot_product(f: Format, multiply: Element, addition: Element) -> Operation:
    """DPPS, DPPD: products where the immediate's high half has a bit, their sum where its low half has."""
    w = f.width
    mask = (1 << w) - 1
    count = 128 // w

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        b = load128(cpu, i)
        a, mxcsr = cpu.fpu.xmm[i.reg], cpu.fpu.mxcsr
        terms = []
        flags = 0
        for n in range(count):
            product, more = multiply(a >> n * w & mask, b >> n * w & mask, mxcsr) if i.imm >> 4 + n & 1 else (0, 0)
            terms.append(product)
            flags |= more
        signal(cpu, flags)
        # The order decides only which of several NaNs comes out.
        total, flags = addition(terms[1], terms[0], mxcsr)
        totals = [total] * count
        if count == 4:
            high, more = addition(terms[3], terms[2], mxcsr)
            lower, flags_low = addition(total, high, mxcsr)
            upper, flags_high = addition(high, total, mxcsr)
            totals = [lower, lower, upper, upper]
            flags |= more | flags_low | flags_high
        signal(cpu, flags)
        cpu.fpu.xmm[i.reg] = sum(totals[n] << n * w for n in range(count) if i.imm >> n & 1)

    return fn


def add4(opcode: int, semantic: Semantic) -> None:
    """Enter an instruction of map 0F38 that only XMM registers have."""
    both(semantic, opcode, 2, mmx=False)


def fill() -> None:
    """Enter the instructions."""
    add(0, 0x14, XMM_UNPACK[32, False])
    add(0x66, 0x14, XMM_UNPACK[64, False])
    add(0, 0x15, XMM_UNPACK[32, True])
    add(0x66, 0x15, XMM_UNPACK[64, True])
    add(0, 0x50, movmsk(32))
    add(0x66, 0x50, movmsk(64))
    for prefix, opcode, fn in (
        (0, 0x70, pshufw), (0x66, 0x70, with_imm(lambda a, b, imm: by_fields(b, imm, 32))),
        (0xF2, 0x70, with_imm(pshuflw)), (0xF3, 0x70, with_imm(pshufhw)), (0, 0xC6, with_imm(shufps)),
        (0x66, 0xC6, with_imm(shufpd)), (0, 0xC4, insert(2)), (0x66, 0xC4, insert(2)), (0, 0xC5, pextrw),
        (0x66, 0xC5, pextrw),
    ):  # fmt: skip
        add(prefix, opcode, fn, True)
    for opcode, fn in (
        (0x0C, with_imm(blend(32))), (0x0D, with_imm(blend(64))), (0x0E, with_imm(blend(16))), (0x0F, palignr),
        (0x14, extract(1)), (0x15, extract(2)), (0x16, extract(4)), (0x17, extract(4)), (0x20, insert(1)),
        (0x21, insertps), (0x22, insert(4)), (0x42, with_imm(mpsadbw)),
        (0x40, dot_product(F32, MUL32, ADD32)), (0x41, dot_product(F64, MUL64, ADD64)),
    ):  # fmt: skip
        add(0x66, opcode, fn, True, 3)
    add(0, 0x0F, palignr, True, 3)
    for opcode, fn in ((0x10, blend_by_xmm0(8)), (0x14, blend_by_xmm0(32)), (0x15, blend_by_xmm0(64)), (0x17, ptest)):
        add(0x66, opcode, fn, False, 2)
    for number, (read, write) in enumerate(((8, 16), (8, 32), (8, 64), (16, 32), (16, 64), (32, 64))):
        add(0x66, 0x20 + number, widen(read, write, True), False, 2)
        add(0x66, 0x30 + number, widen(read, write, False), False, 2)
    for opcode, semantic in (
        (0x28, pmuldq), (0x29, pcmpeq(64)), (0x2B, pack("i", "H")), (0x37, pcmpgt(64)), (0x40, pmulld),
        (0x41, phminposuw),
        (0x38, extreme(8, True, False)), (0x39, extreme(32, True, False)), (0x3A, extreme(16, False, False)),
        (0x3B, extreme(32, False, False)), (0x3C, extreme(8, True, True)), (0x3D, extreme(32, True, True)),
        (0x3E, extreme(16, False, True)), (0x3F, extreme(32, False, True)),
    ):  # fmt: skip
        add4(opcode, semantic)


def xmm_unpack(w: int, high: bool) -> Operation:
    """UNPCKLPS and its like."""
    semantic = unpack(w, high)
    return with_imm(lambda a, b, imm: semantic(a, b, 128))


XMM_UNPACK = {(w, high): xmm_unpack(w, high) for w in (32, 64) for high in (False, True)}

fill()
