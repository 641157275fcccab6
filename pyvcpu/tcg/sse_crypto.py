"""AES-NI and PCLMULQDQ (SDM vol. 1 section 12.13; FIPS 197)."""

from __future__ import annotations

from .sse import M32, M64, add, load128, ready

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .cpu import Cpu
    from .decode import Insn
    from .sse import Operation


def carryless(a: int, b: int) -> int:
    """Multiply polynomials over GF(2)."""
    result = 0
    while b:
        low = b & -b
        result ^= a * low
        b ^= low
    return result


def field_times(a: int, b: int) -> int:
    """Multiply in GF(2**8) modulo x**8 + x**4 + x**3 + x + 1."""
    product = carryless(a, b)
    for n in range(14, 7, -1):
        if product >> n & 1:
            product ^= 0x11B << n - 8
    return product


def make_boxes() -> tuple[bytes, bytes]:
    """Compute the S-box and its inverse (FIPS 197 section 5.1.1)."""
    box, inverse = bytearray(256), bytearray(256)
    p = q = 1
    while True:
        p = field_times(p, 3)
        q = field_times(q, 0xF6)  # 3 * 0xF6 = 1: q is the inverse of p
        value = q
        for n in range(1, 5):
            value ^= (q << n | q >> 8 - n) & 0xFF
        box[p] = value ^ 0x63
        if p == 1:
            break
    box[0] = 0x63
    for number, value in enumerate(box):
        inverse[value] = number
    return bytes(box), bytes(inverse)


BOX, INVERSE = make_boxes()
TIMES = {k: bytes(field_times(k, n) for n in range(256)) for k in (1, 2, 3, 9, 11, 13, 14)}
ROWS = bytes(5 * n % 16 for n in range(16))  # ShiftRows: where each byte comes from
ROWS_BACK = bytes(13 * n % 16 for n in range(16))


def mix(state: bytes, factors: tuple[int, int, int, int]) -> bytes:
    """Multiply every column by a circulant matrix."""
    tables = [TIMES[k] for k in factors]
    out = bytearray(16)
    for column in range(0, 16, 4):
        for row in range(4):
            value = 0
            for k in range(4):
                value ^= tables[(k - row) % 4][state[column + k]]
            out[column + row] = value
    return bytes(out)


FORWARD, BACKWARD = (2, 3, 1, 1), (14, 11, 13, 9)


def substituted(value: int, box: bytes, rows: bytes) -> bytes:
    """Do ShiftRows and SubBytes."""
    state = value.to_bytes(16, "little")
    return bytes(box[state[n]] for n in rows)


def number(state: bytes) -> int:
    """Return a state as the number in a register."""
    return int.from_bytes(state, "little")


def two(fn: Callable[[int, int], int]) -> Operation:
    """Make an instruction xmm, xmm/m128."""

    def operation(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        b = load128(cpu, i)
        cpu.fpu.xmm[i.reg] = fn(cpu.fpu.xmm[i.reg], b)

    return operation


def key_assist(cpu: Cpu, i: Insn) -> None:
    """AESKEYGENASSIST."""
    ready(cpu)
    value = load128(cpu, i)
    result = 0
    for n, at in ((0, 32), (2, 96)):
        word = number((value >> at & M32).to_bytes(4, "little").translate(BOX))
        turned = (word >> 8 | word << 24) & M32 ^ i.imm & 0xFF
        result |= word << 32 * n | turned << 32 * (n + 1)
    cpu.fpu.xmm[i.reg] = result


def pclmulqdq(cpu: Cpu, i: Insn) -> None:
    """PCLMULQDQ."""
    ready(cpu)
    b = load128(cpu, i)
    a = cpu.fpu.xmm[i.reg]
    cpu.fpu.xmm[i.reg] = carryless(a >> 64 * (i.imm & 1) & M64, b >> 64 * (i.imm >> 4 & 1) & M64)


for _opcode, _fn in (
    (0xDB, lambda a, b: number(mix(b.to_bytes(16, "little"), BACKWARD))),
    (0xDC, lambda a, b: number(mix(substituted(a, BOX, ROWS), FORWARD)) ^ b),
    (0xDD, lambda a, b: number(substituted(a, BOX, ROWS)) ^ b),
    (0xDE, lambda a, b: number(mix(substituted(a, INVERSE, ROWS_BACK), BACKWARD)) ^ b),
    (0xDF, lambda a, b: number(substituted(a, INVERSE, ROWS_BACK)) ^ b),
):
    add(0x66, _opcode, two(_fn), False, 2)
add(0x66, 0xDF, key_assist, True, 3)
add(0x66, 0x44, pclmulqdq, True, 3)
