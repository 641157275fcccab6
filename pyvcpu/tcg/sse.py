"""MMX and SSE: operands, and the instructions that move data (SDM vol. 2; opcode maps in appendix A)."""

from __future__ import annotations

from struct import Struct

from .exceptions import GP, UD, Fault
from .fpu import check_mmx, check_sse

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .cpu import Cpu
    from .decode import Insn

    Operation = Callable[[Cpu, Insn], None]
    Table = dict[tuple[int, int, int], tuple[Operation, bool]]

M32, M64, M128 = (1 << 32) - 1, (1 << 64) - 1, (1 << 128) - 1
HIGH = M64 << 64
BLOCKED, OSFXSR = 0xC, 1 << 9  # CR0.EM and TS, CR4
PAIR = Struct("<QQ")
unpack_pair, pack_pair = PAIR.unpack_from, PAIR.pack_into
MMX_TOP = 0xFFFF << 64  # sign and exponent of a register that MMX has written

SSE: Table = {}


def add(prefix: int, opcode: int, fn: Operation, imm: bool = False, table: int = 1) -> None:
    """Enter an instruction."""
    SSE[prefix, table, opcode] = fn, imm


def ready(cpu: Cpu) -> None:
    """Raise what is due before an SSE instruction."""
    if cpu.cr0 & BLOCKED or not cpu.cr4 & OSFXSR:
        check_sse(cpu)


def aligned_offset(cpu: Cpu, i: Insn, size: int = 16) -> int:
    """Return the offset of a memory operand. Raise #GP where its linear address is not aligned."""
    offset = i.ea(cpu)
    base = 0 if cpu.bits == 64 and i.seg < 4 else cpu.segs[i.seg].base
    if base + offset & size - 1:
        raise Fault(GP, 0)
    return offset


def load16(cpu: Cpu, i: Insn, aligned: bool) -> int:
    """Read a 128-bit memory operand. In 64-bit code the TLB is asked first, without a call."""
    offset = i.ea(cpu)
    seg = i.seg
    if cpu.bits == 64 and seg < 4:
        if aligned and offset & 15:
            raise Fault(GP, 0)
        page = cpu.read_tlb.get(offset >> 12)
        if page is not None and offset & 0xFFF <= 4080:
            pair: tuple[int, int] = unpack_pair(page, offset & 0xFFF)
            return pair[0] | pair[1] << 64
    elif aligned and cpu.segs[seg].base + offset & 15:
        raise Fault(GP, 0)
    return int.from_bytes(cpu.load_bytes(seg, offset, 16), "little")


def store16(cpu: Cpu, i: Insn, aligned: bool, value: int) -> None:
    """Write a 128-bit memory operand, likewise."""
    offset = i.ea(cpu)
    seg = i.seg
    if cpu.bits == 64 and seg < 4:
        if aligned and offset & 15:
            raise Fault(GP, 0)
        page = cpu.write_tlb.get(offset >> 12)
        if page is not None and offset & 0xFFF <= 4080:
            pack_pair(page, offset & 0xFFF, value & M64, value >> 64)
            return
    elif aligned and cpu.segs[seg].base + offset & 15:
        raise Fault(GP, 0)
    cpu.store_bytes(seg, offset, value.to_bytes(16, "little"))


def load128(cpu: Cpu, i: Insn) -> int:
    """Return the 128-bit operand in r/m, which must be aligned in memory."""
    if i.mod == 3:
        return cpu.fpu.xmm[i.rm]
    return load16(cpu, i, True)


def load_low(cpu: Cpu, i: Insn, size: int) -> int:
    """Return the operand of `size` bytes in r/m: memory, or the low part of an XMM register."""
    if i.mod == 3:
        return cpu.fpu.xmm[i.rm] & (1 << size * 8) - 1
    return cpu.load(i.seg, i.ea(cpu), size)


def load_mmx(cpu: Cpu, i: Insn, size: int = 8) -> int:
    """Return the operand in r/m: an MMX register or memory."""
    if i.mod == 3:
        return cpu.fpu.r[i.rm & 7] & M64
    return cpu.load(i.seg, i.ea(cpu), size)


def use_mmx(cpu: Cpu) -> None:
    """Do what every MMX instruction but EMMS does to the x87: TOP is 0, no register is empty."""
    cpu.fpu.top = 0
    cpu.fpu.valid = 0xFF


def set_mmx(cpu: Cpu, number: int, value: int) -> None:
    """Write an MMX register."""
    use_mmx(cpu)
    cpu.fpu.r[number & 7] = MMX_TOP | value


def move_load(aligned: bool) -> Operation:
    """MOVAPS, MOVDQA, MOVUPS and others: xmm from xmm/m128."""

    def fn(cpu: Cpu, i: Insn) -> None:
        if cpu.cr0 & BLOCKED or not cpu.cr4 & OSFXSR:
            check_sse(cpu)
        xmm = cpu.fpu.xmm
        if i.mod == 3:
            xmm[i.reg] = xmm[i.rm]
            return
        xmm[i.reg] = load16(cpu, i, aligned)

    return fn


def move_store(aligned: bool, registers: bool = True) -> Operation:
    """MOVAPS, MOVNTDQ and others: xmm/m128 from xmm."""

    def fn(cpu: Cpu, i: Insn) -> None:
        if cpu.cr0 & BLOCKED or not cpu.cr4 & OSFXSR:
            check_sse(cpu)
        xmm = cpu.fpu.xmm
        if i.mod == 3:
            if not registers:
                raise Fault(UD)
            xmm[i.rm] = xmm[i.reg]
            return
        store16(cpu, i, aligned, xmm[i.reg])

    return fn


def scalar_load(size: int) -> Operation:
    """MOVSS, MOVSD: from memory the rest becomes zero, from a register it stays."""
    mask = (1 << size * 8) - 1

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        xmm = cpu.fpu.xmm
        if i.mod == 3:
            xmm[i.reg] = xmm[i.reg] & ~mask | xmm[i.rm] & mask
        else:
            xmm[i.reg] = cpu.load(i.seg, i.ea(cpu), size)

    return fn


def scalar_store(size: int) -> Operation:
    """MOVSS, MOVSD to memory or a register."""
    mask = (1 << size * 8) - 1

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        xmm = cpu.fpu.xmm
        if i.mod == 3:
            xmm[i.rm] = xmm[i.rm] & ~mask | xmm[i.reg] & mask
        else:
            cpu.store(i.seg, i.ea(cpu), size, xmm[i.reg] & mask)

    return fn


def half_load(high: bool, from_register: int | None) -> Operation:
    """MOVLPS, MOVHPS, MOVLPD, MOVHPD; with registers MOVHLPS, MOVLHPS: `from_register` is the shift of the source."""

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        xmm = cpu.fpu.xmm
        if i.mod != 3:
            value = cpu.load(i.seg, i.ea(cpu), 8)
        elif from_register is None:
            raise Fault(UD)
        else:
            value = xmm[i.rm] >> from_register & M64
        xmm[i.reg] = xmm[i.reg] & M64 | value << 64 if high else xmm[i.reg] & HIGH | value

    return fn


def half_store(shift: int) -> Operation:
    """MOVLPS, MOVHPS and others to memory."""

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        if i.mod == 3:
            raise Fault(UD)
        cpu.store(i.seg, i.ea(cpu), 8, cpu.fpu.xmm[i.reg] >> shift & M64)

    return fn


def general(cpu: Cpu, i: Insn) -> int:
    """Return r/m32, or r/m64 with REX.W."""
    size = 8 if i.size == 8 else 4
    if i.mod == 3:
        return cpu.regs[i.rm] & (M64 if size == 8 else M32)
    return cpu.load(i.seg, i.ea(cpu), size)


def set_general(cpu: Cpu, i: Insn, value: int) -> None:
    """Write r/m32 or r/m64."""
    size = 8 if i.size == 8 else 4
    value &= M64 if size == 8 else M32
    if i.mod == 3:
        cpu.regs[i.rm] = value
    else:
        cpu.store(i.seg, i.ea(cpu), size, value)


def movd_load(cpu: Cpu, i: Insn) -> None:
    """MOVD, MOVQ xmm, r/m."""
    ready(cpu)
    cpu.fpu.xmm[i.reg] = general(cpu, i)


def movd_store(cpu: Cpu, i: Insn) -> None:
    """MOVD, MOVQ r/m, xmm."""
    ready(cpu)
    set_general(cpu, i, cpu.fpu.xmm[i.reg])


def movd_load_mmx(cpu: Cpu, i: Insn) -> None:
    """MOVD, MOVQ mm, r/m."""
    check_mmx(cpu)
    set_mmx(cpu, i.reg, general(cpu, i))


def movd_store_mmx(cpu: Cpu, i: Insn) -> None:
    """MOVD, MOVQ r/m, mm."""
    check_mmx(cpu)
    set_general(cpu, i, cpu.fpu.r[i.reg & 7] & M64)
    use_mmx(cpu)


def movq_load(cpu: Cpu, i: Insn) -> None:
    """MOVQ xmm, xmm/m64."""
    ready(cpu)
    cpu.fpu.xmm[i.reg] = load_low(cpu, i, 8)


def movq_store(cpu: Cpu, i: Insn) -> None:
    """MOVQ xmm/m64, xmm."""
    ready(cpu)
    value = cpu.fpu.xmm[i.reg] & M64
    if i.mod == 3:
        cpu.fpu.xmm[i.rm] = value
    else:
        cpu.store(i.seg, i.ea(cpu), 8, value)


def movq_load_mmx(cpu: Cpu, i: Insn) -> None:
    """MOVQ mm, mm/m64."""
    check_mmx(cpu)
    set_mmx(cpu, i.reg, load_mmx(cpu, i))


def movq_store_mmx(cpu: Cpu, i: Insn) -> None:
    """MOVQ mm/m64, mm."""
    check_mmx(cpu)
    value = cpu.fpu.r[i.reg & 7] & M64
    if i.mod == 3:
        set_mmx(cpu, i.rm, value)
    else:
        cpu.store(i.seg, i.ea(cpu), 8, value)
        use_mmx(cpu)


def movntq(cpu: Cpu, i: Insn) -> None:
    """MOVNTQ."""
    check_mmx(cpu)
    if i.mod == 3:
        raise Fault(UD)
    cpu.store(i.seg, i.ea(cpu), 8, cpu.fpu.r[i.reg & 7] & M64)
    use_mmx(cpu)


def movdq2q(cpu: Cpu, i: Insn) -> None:
    """MOVDQ2Q mm, xmm."""
    ready(cpu)
    check_mmx(cpu)
    if i.mod != 3:
        raise Fault(UD)
    set_mmx(cpu, i.reg, cpu.fpu.xmm[i.rm] & M64)


def movq2dq(cpu: Cpu, i: Insn) -> None:
    """MOVQ2DQ xmm, mm."""
    ready(cpu)
    check_mmx(cpu)
    if i.mod != 3:
        raise Fault(UD)
    cpu.fpu.xmm[i.reg] = cpu.fpu.r[i.rm & 7] & M64
    use_mmx(cpu)


def mask_store(cpu: Cpu, i: Insn, value: int, mask: int, count: int) -> None:
    """Store the bytes whose mask byte has its top bit set at DS:rDI (or the segment that a prefix names)."""
    offset = cpu.regs[7] & i.amask
    for number in range(count):
        if mask >> number * 8 + 7 & 1:
            cpu.store(i.seg, offset + number & i.amask, 1, value >> number * 8 & 0xFF)


def maskmovdqu(cpu: Cpu, i: Insn) -> None:
    """MASKMOVDQU."""
    ready(cpu)
    if i.mod != 3:
        raise Fault(UD)
    mask_store(cpu, i, cpu.fpu.xmm[i.reg], cpu.fpu.xmm[i.rm], 16)


def maskmovq(cpu: Cpu, i: Insn) -> None:
    """MASKMOVQ."""
    check_mmx(cpu)
    if i.mod != 3:
        raise Fault(UD)
    mask_store(cpu, i, cpu.fpu.r[i.reg & 7], cpu.fpu.r[i.rm & 7], 8)
    use_mmx(cpu)


def duplicate(kind: str) -> Operation:
    """MOVDDUP, MOVSLDUP, MOVSHDUP."""

    def fn(cpu: Cpu, i: Insn) -> None:
        ready(cpu)
        if kind == "d":
            value = load_low(cpu, i, 8)
            cpu.fpu.xmm[i.reg] = value | value << 64
            return
        value = load128(cpu, i)
        if kind == "h":
            value >>= 32
        value &= M32 << 64 | M32
        cpu.fpu.xmm[i.reg] = value | value << 32

    return fn


def movntdqa(cpu: Cpu, i: Insn) -> None:
    """MOVNTDQA."""
    ready(cpu)
    if i.mod == 3:
        raise Fault(UD)
    cpu.fpu.xmm[i.reg] = load128(cpu, i)


def fill() -> None:
    """Enter the moves."""
    for prefix in (0, 0x66):
        add(prefix, 0x10, move_load(False))
        add(prefix, 0x11, move_store(False))
        add(prefix, 0x28, move_load(True))
        add(prefix, 0x29, move_store(True))
        add(prefix, 0x2B, move_store(True, False))
        add(prefix, 0x12, half_load(False, None if prefix else 64))
        add(prefix, 0x13, half_store(0))
        add(prefix, 0x16, half_load(True, None if prefix else 0))
        add(prefix, 0x17, half_store(64))
    for prefix, size in ((0xF3, 4), (0xF2, 8)):
        add(prefix, 0x10, scalar_load(size))
        add(prefix, 0x11, scalar_store(size))
    for prefix, opcode, fn in (
        (0x66, 0x6F, move_load(True)), (0xF3, 0x6F, move_load(False)), (0x66, 0x7F, move_store(True)),
        (0xF3, 0x7F, move_store(False)), (0x66, 0xE7, move_store(True, False)), (0xF2, 0xF0, lddqu),
        (0x66, 0x6E, movd_load), (0x66, 0x7E, movd_store), (0, 0x6E, movd_load_mmx), (0, 0x7E, movd_store_mmx),
        (0xF3, 0x7E, movq_load), (0x66, 0xD6, movq_store), (0, 0x6F, movq_load_mmx), (0, 0x7F, movq_store_mmx),
        (0, 0xE7, movntq), (0xF2, 0xD6, movdq2q), (0xF3, 0xD6, movq2dq), (0x66, 0xF7, maskmovdqu), (0, 0xF7, maskmovq),
        (0xF2, 0x12, duplicate("d")), (0xF3, 0x12, duplicate("l")), (0xF3, 0x16, duplicate("h")),
    ):  # fmt: skip
        add(prefix, opcode, fn)
    add(0x66, 0x2A, movntdqa, False, 2)


def lddqu(cpu: Cpu, i: Insn) -> None:
    """LDDQU."""
    if i.mod == 3:
        raise Fault(UD)
    LOAD_UNALIGNED(cpu, i)


LOAD_UNALIGNED = move_load(False)

fill()
