"""Integer instructions of MMX, SSE2 and SSSE3, on 64- and 128-bit numbers: whole registers at once where that goes."""

from __future__ import annotations

from struct import Struct

from .exceptions import UD, Fault
from .fpu import check_mmx
from .sse import M64, M128, add, load128, load_mmx, ready, set_mmx, use_mmx

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Iterable

    from .cpu import Cpu
    from .decode import Insn
    from .sse import Operation

    # Both operands and the width in bits (64, 128) to the result.
    Semantic = Callable[[int, int, int], int]

ONES = {w: sum(1 << n for n in range(0, 128, w)) for w in (8, 16, 32, 64)}
TOPS = {w: ONES[w] << (w - 1) for w in ONES}
LANE = {w: (1 << w) - 1 for w in ONES}
FULL = {64: M64, 128: M128}
STRUCTS = {
    (code, bits): Struct(f"<{bits // size}{code}")
    for bits in (64, 128)
    for code, size in (("b", 8), ("B", 8), ("h", 16), ("H", 16), ("i", 32), ("I", 32), ("q", 64), ("Q", 64))
}
SIGNED = {8: "b", 16: "h", 32: "i", 64: "q"}
UNSIGNED = {8: "B", 16: "H", 32: "I", 64: "Q"}


def lanes(value: int, code: str, bits: int) -> tuple[int, ...]:
    """Take a register apart."""
    return STRUCTS[code, bits].unpack(value.to_bytes(bits >> 3, "little"))


def joined(values: Iterable[int], code: str, bits: int) -> int:
    """Put a register together."""
    return int.from_bytes(STRUCTS[code, bits].pack(*values), "little")


def padd(w: int) -> Semantic:
    """Add, wrapping."""
    top = TOPS[w]
    low = ~top & M128
    return lambda a, b, bits: (a & low) + (b & low) ^ (a ^ b) & top


def subtract_lanes(a: int, b: int, top: int) -> int:
    """Subtract lane by lane, wrapping."""
    return (a | top) - (b & ~top) ^ (a ^ b ^ top) & top


def psub(w: int) -> Semantic:
    """Subtract, wrapping."""
    top = TOPS[w]
    return lambda a, b, bits: subtract_lanes(a, b, top)


def spread(tops: int, w: int) -> int:
    """Make full lanes of those whose top bit is set in `tops`."""
    return (tops >> w - 1) * LANE[w]


def pcmpeq(w: int) -> Semantic:
    """Compare for equality."""
    top = TOPS[w]
    low = ~top & M128

    def fn(a: int, b: int, bits: int) -> int:
        x = a ^ b
        return spread(~((x & low) + low | x) & top, w) & FULL[bits]

    return fn


def greater(a: int, b: int, w: int, signed: bool) -> int:
    """Return full lanes where a > b."""
    top = TOPS[w]
    if signed:
        a, b = a ^ top, b ^ top
    not_b = ~b
    return spread((not_b & a | (not_b | a) & subtract_lanes(b, a, top)) & top, w)


def pcmpgt(w: int) -> Semantic:
    """Compare signed for greater."""
    return lambda a, b, bits: greater(a, b, w, True) & FULL[bits]


def extreme(w: int, signed: bool, largest: bool) -> Semantic:
    """PMINxx, PMAXxx."""

    def fn(a: int, b: int, bits: int) -> int:
        mask = greater(a, b, w, signed)
        return (a & mask | b & ~mask if largest else b & mask | a & ~mask) & FULL[bits]

    return fn


def saturating(code: str, sign: int) -> Semantic:
    """PADDS, PADDUS, PSUBS, PSUBUS: `sign` -1 subtracts."""
    size = {"b": 8, "B": 8, "h": 16, "H": 16}[code]
    low, high = (-1 << size - 1, (1 << size - 1) - 1) if code in "bh" else (0, (1 << size) - 1)

    def fn(a: int, b: int, bits: int) -> int:
        pairs = zip(lanes(a, code, bits), lanes(b, code, bits), strict=True)
        return joined([min(max(x + sign * y, low), high) for x, y in pairs], code, bits)

    return fn


def lanewise(read: str, write: str, fn: Callable[[int, int], int]) -> Semantic:
    """Make an operation of one on two lanes; the result is cut to the lane's size."""
    size = {"B": 8, "H": 16, "I": 32, "Q": 64}[write]
    mask = LANE[size]

    def whole(a: int, b: int, bits: int) -> int:
        pairs = zip(lanes(a, read, bits), lanes(b, read, bits), strict=True)
        return joined([fn(x, y) & mask for x, y in pairs], write, bits)

    return whole


def pmuludq(a: int, b: int, bits: int) -> int:
    """PMULUDQ."""
    low = (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF)
    return low | (a >> 64 & 0xFFFFFFFF) * (b >> 64 & 0xFFFFFFFF) << 64


def pmaddwd(a: int, b: int, bits: int) -> int:
    """PMADDWD."""
    p = [x * y for x, y in zip(lanes(a, "h", bits), lanes(b, "h", bits), strict=True)]
    return joined([p[n] + p[n + 1] & 0xFFFFFFFF for n in range(0, len(p), 2)], "I", bits)


def psadbw(a: int, b: int, bits: int) -> int:
    """PSADBW."""
    d = [abs(x - y) for x, y in zip(lanes(a, "B", bits), lanes(b, "B", bits), strict=True)]
    return sum(d[:8]) | sum(d[8:]) << 64


def pack(read: str, write: str) -> Semantic:
    """PACKSSxx, PACKUSxx: narrow with saturation."""
    low, high = {"b": (-128, 127), "B": (0, 255), "h": (-32768, 32767), "H": (0, 65535)}[write]

    def fn(a: int, b: int, bits: int) -> int:
        values = lanes(a, read, bits) + lanes(b, read, bits)
        return joined([min(max(x, low), high) for x in values], write, bits)

    return fn


def unpack(w: int, high: bool) -> Semantic:
    """PUNPCKxxx: interleave the low or high halves."""

    def fn(a: int, b: int, bits: int) -> int:
        half = bits >> 1
        if high:
            a, b = a >> half, b >> half
        if w == 64:
            return a & M64 | (b & M64) << 64
        if w == 8:
            out = bytearray(bits >> 3)
            mask = (1 << half) - 1
            out[0::2] = (a & mask).to_bytes(half >> 3, "little")
            out[1::2] = (b & mask).to_bytes(half >> 3, "little")
            return int.from_bytes(out, "little")
        lane = LANE[w]
        result = 0
        for n in range(0, half, w):
            result |= (a >> n & lane) << 2 * n | (b >> n & lane) << 2 * n + w
        return result

    return fn


def shift(a: int, count: int, w: int, kind: str) -> int:
    """Shift every lane: "l" left, "r" right, "a" right with the sign."""
    if kind == "a":
        count = min(count, w)
        sign = (a & TOPS[w]) >> w - 1
        fill = sign * (LANE[w] >> w - count << w - count)
        return (a >> count & ONES[w] * (LANE[w] >> count)) | fill
    if count >= w:
        return 0
    if kind == "l":
        return a << count & ONES[w] * (LANE[w] << count & LANE[w])
    return a >> count & ONES[w] * (LANE[w] >> count)


def shift_by(w: int, kind: str) -> Semantic:
    """PSLLx, PSRLx, PSRAx by the low 64 bits of an operand."""
    return lambda a, b, bits: shift(a, b & M64, w, kind) & FULL[bits]


def pshufb(a: int, b: int, bits: int) -> int:
    """PSHUFB."""
    size = bits >> 3
    table = a.to_bytes(size, "little") * (128 // size) + bytes(128)
    return int.from_bytes(b.to_bytes(size, "little").translate(table), "little")


def horizontal(code: str, fn: Callable[[int, int], int]) -> Semantic:
    """PHADDx, PHSUBx: neighbours of the first operand, then of the second."""
    mask = 0xFFFF if code == "h" else 0xFFFFFFFF

    def whole(a: int, b: int, bits: int) -> int:
        v = lanes(a, code, bits) + lanes(b, code, bits)
        return joined([fn(v[n], v[n + 1]) & mask for n in range(0, len(v), 2)], code.upper(), bits)

    return whole


def clamp16(value: int) -> int:
    """Saturate to a signed word."""
    return min(max(value, -32768), 32767)


def pmaddubsw(a: int, b: int, bits: int) -> int:
    """PMADDUBSW."""
    p = [x * y for x, y in zip(lanes(a, "B", bits), lanes(b, "b", bits), strict=True)]
    return joined([clamp16(p[n] + p[n + 1]) for n in range(0, len(p), 2)], "h", bits)


def by_sign(x: int, y: int) -> int:
    """PSIGNx: x with the sign of y."""
    return x if y > 0 else -x if y < 0 else 0


def absolute(w: int) -> Semantic:
    """PABSx: of the second operand."""

    def fn(a: int, b: int, bits: int) -> int:
        sign = spread(b & TOPS[w], w)
        return subtract_lanes(b ^ sign, sign, TOPS[w])

    return fn


def both(semantic: Semantic, opcode: int, table: int = 1, low: bool = False, mmx: bool = True) -> None:
    """Enter an instruction for MMX and XMM registers. `low`: the MMX form reads four bytes of memory."""

    def on_xmm(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        b = load128(cpu, i)
        xmm = cpu.fpu.xmm
        xmm[i.reg] = semantic(xmm[i.reg], b, 128)

    def on_mmx(cpu: Cpu, i: Insn) -> None:
        check_mmx(cpu)
        b = load_mmx(cpu, i, 4 if low else 8)
        set_mmx(cpu, i.reg, semantic(cpu.fpu.r[i.reg & 7] & M64, b, 64))

    add(0x66, opcode, on_xmm, False, table)
    if mmx:
        add(0, opcode, on_mmx, False, table)


def logic(prefixes: tuple[int, ...], opcode: int, fn: Callable[[int, int], int]) -> None:
    """Enter PAND, ANDPS and their like for XMM registers."""

    def on_xmm(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        b = load128(cpu, i)
        xmm = cpu.fpu.xmm
        xmm[i.reg] = fn(xmm[i.reg], b)

    for prefix in prefixes:
        add(prefix, opcode, on_xmm)


def shift_group(w: int) -> Operation:
    """0F 71, 72, 73: shifts by an immediate, in both kinds of registers."""
    kinds = {2: "r", 4: "a", 6: "l"} if w < 64 else {2: "r", 6: "l", 3: "R", 7: "L"}

    def fn(cpu: Cpu, i: Insn) -> None:
        wide = i.prefix == 0x66
        kind = kinds.get(i.reg & 7)
        if i.mod != 3 or kind is None or (kind in "RL" and not wide):
            raise Fault(UD)
        if wide:
            ready(cpu)
            value = cpu.fpu.xmm[i.rm]
        else:
            check_mmx(cpu)
            value = cpu.fpu.r[i.rm & 7] & M64
        count = i.imm & 0xFF
        if kind == "R":
            value >>= 8 * count
        elif kind == "L":
            value = value << 8 * min(count, 16) & M128
        else:
            value = shift(value, count, w, kind)
        if wide:
            cpu.fpu.xmm[i.rm] = value
        else:
            set_mmx(cpu, i.rm, value & M64)

    return fn


def pmovmskb(cpu: Cpu, i: Insn) -> None:
    """PMOVMSKB."""
    if i.mod != 3:
        raise Fault(UD)
    if i.prefix == 0x66:
        ready(cpu)
        value = cpu.fpu.xmm[i.rm]
    else:
        check_mmx(cpu)
        use_mmx(cpu)
        value = cpu.fpu.r[i.rm & 7] & M64
    mask = 0
    for n in range(16):
        mask |= (value >> 8 * n + 7 & 1) << n
    cpu.regs[i.reg] = mask


def fill() -> None:
    """Enter the integer instructions."""
    for number, w in enumerate((8, 16, 32)):
        both(pcmpeq(w), 0x74 + number)
        both(pcmpgt(w), 0x64 + number)
        both(padd(w), 0xFC + number)
        both(psub(w), 0xF8 + number)
        both(unpack(w, False), 0x60 + number, low=True)
        both(unpack(w, True), 0x68 + number)
        both(absolute(w), 0x1C + number, 2)
    both(padd(64), 0xD4)
    both(psub(64), 0xFB)
    both(unpack(64, False), 0x6C, mmx=False)
    both(unpack(64, True), 0x6D, mmx=False)
    for number, w in enumerate((16, 32, 64)):
        both(shift_by(w, "r"), 0xD1 + number)
        both(shift_by(w, "l"), 0xF1 + number)
        group = shift_group(w)
        add(0, 0x71 + number, group, True)
        add(0x66, 0x71 + number, group, True)
    both(shift_by(16, "a"), 0xE1)
    both(shift_by(32, "a"), 0xE2)
    for opcode, code, sign in (
        (0xD8, "B", -1), (0xD9, "H", -1), (0xDC, "B", 1), (0xDD, "H", 1),
        (0xE8, "b", -1), (0xE9, "h", -1), (0xEC, "b", 1), (0xED, "h", 1),
    ):  # fmt: skip
        both(saturating(code, sign), opcode)
    average = [lanewise(code, code, lambda x, y: x + y + 1 >> 1) for code in "BH"]
    for opcode, semantic in (
        (0x63, pack("h", "b")), (0x67, pack("h", "B")), (0x6B, pack("i", "h")), (0xDA, extreme(8, False, False)),
        (0xDE, extreme(8, False, True)), (0xEA, extreme(16, True, False)), (0xEE, extreme(16, True, True)),
        (0xE0, average[0]), (0xE3, average[1]), (0xD5, lanewise("h", "H", lambda x, y: x * y)),
        (0xE4, lanewise("H", "H", lambda x, y: x * y >> 16)), (0xE5, lanewise("h", "H", lambda x, y: x * y >> 16)),
        (0xF4, pmuludq), (0xF5, pmaddwd), (0xF6, psadbw),
        (0xDB, lambda a, b, bits: a & b), (0xDF, lambda a, b, bits: ~a & b),
        (0xEB, lambda a, b, bits: a | b), (0xEF, lambda a, b, bits: a ^ b),
    ):  # fmt: skip
        both(semantic, opcode)
    for opcode, whole in LOGIC.items():
        logic((0, 0x66), opcode, whole)
    logic((0x66,), 0xEF, LOGIC[0x57])
    add(0, 0xD7, pmovmskb)
    add(0x66, 0xD7, pmovmskb)
    for opcode, semantic in (
        (0, pshufb), (1, horizontal("h", lambda x, y: x + y)), (2, horizontal("i", lambda x, y: x + y)),
        (3, horizontal("h", lambda x, y: clamp16(x + y))), (4, pmaddubsw), (5, horizontal("h", lambda x, y: x - y)),
        (6, horizontal("i", lambda x, y: x - y)), (7, horizontal("h", lambda x, y: clamp16(x - y))),
        (8, lanewise("b", "B", by_sign)), (9, lanewise("h", "H", by_sign)), (0xA, lanewise("i", "I", by_sign)),
        (0xB, lanewise("h", "H", lambda x, y: (x * y >> 14) + 1 >> 1)),
    ):  # fmt: skip
        both(semantic, opcode, 2)


LOGIC: dict[int, Callable[[int, int], int]] = {
    0x54: lambda a, b: a & b, 0x55: lambda a, b: ~a & b, 0x56: lambda a, b: a | b, 0x57: lambda a, b: a ^ b,
}  # fmt: skip

fill()
