"""PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (SDM vol. 1 section 12.10.3, vol. 2B section 4.1)."""

from __future__ import annotations

from .sse import add, load16, ready
from .sse_int import LANE, lanes

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn
    from .sse import Operation

CF, ZF, SF, OF = 1, 0x40, 0x80, 0x800
CODES = ("B", "H", "b", "h")


def implicit_length(values: tuple[int, ...]) -> int:
    """Return the number of elements before the first zero."""
    return values.index(0) if 0 in values else len(values)


def explicit_length(value: int, bits: int, count: int) -> int:
    """Return the magnitude of a signed register, at most `count`."""
    value &= (1 << bits) - 1
    if value >> bits - 1:
        value = (1 << bits) - value
    return min(value, count)


def aggregate(kind: int, a: tuple[int, ...], b: tuple[int, ...], length_a: int, length_b: int) -> int:
    """Compare all elements; returns a bit for each of `b` (IntRes1)."""
    count = len(b)
    result = 0
    if kind == 0:  # equal any
        members = set(a[:length_a])
        for j in range(length_b):
            result |= (b[j] in members) << j
    elif kind == 1:  # ranges
        for j in range(length_b):
            result |= any(a[n] <= b[j] <= a[n + 1] for n in range(0, length_a - 1, 2)) << j
    elif kind == 2:  # equal each
        for j in range(count):
            inside = j < length_a, j < length_b
            result |= ((a[j] == b[j]) if all(inside) else not any(inside)) << j
    else:  # equal ordered: `a` as a part of `b`
        for j in range(count):
            reach = min(length_a, count - j)
            result |= all(j + n < length_b and a[n] == b[j + n] for n in range(reach)) << j
    return result


def string_compare(explicit: bool, to_index: bool) -> Operation:
    """Make one of the four."""

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        xmm = cpu.fpu.xmm
        # A memory operand need not be aligned.
        second = xmm[i.rm] if i.mod == 3 else load16(cpu, i, False)
        imm = i.imm & 0xFF
        code = CODES[imm & 3]
        a, b = lanes(xmm[i.reg], code, 128), lanes(second, code, 128)
        count = len(a)
        if explicit:
            bits = 64 if i.size == 8 else 32
            length_a, length_b = explicit_length(cpu.regs[0], bits, count), explicit_length(cpu.regs[2], bits, count)
        else:
            length_a, length_b = implicit_length(a), implicit_length(b)
        result = aggregate(imm >> 2 & 3, a, b, length_a, length_b)
        if imm & 0x10:
            result ^= (1 << (length_b if imm & 0x20 else count)) - 1
        if to_index:
            if not result:
                index = count
            else:
                index = result.bit_length() - 1 if imm & 0x40 else (result & -result).bit_length() - 1
            cpu.regs[1] = index
        elif imm & 0x40:
            width = 128 // count
            xmm[0] = sum(LANE[width] << n * width for n in range(count) if result >> n & 1)
        else:
            xmm[0] = result
        flags = (CF if result else 0) | (ZF if length_b < count else 0) | (SF if length_a < count else 0)
        cpu.set_status(flags | (OF if result & 1 else 0))

    return fn


for _number, _explicit, _to_index in (
    (0x60, True, False),
    (0x61, True, True),
    (0x62, False, False),
    (0x63, False, True),
):
    add(0x66, _number, string_compare(_explicit, _to_index), True, 3)
