"""What the translator must know of an instruction before it writes: where it leads, which flags it reads and sets."""

from __future__ import annotations

from .decode import undefined

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .blocks import Block
    from .decode import Insn

M16, M32, M64 = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
ADC, SBB, CMP = 2, 3, 7
# What an instruction does to the flags.
SETS, READS, PARTLY, FAULTS, COLD = 1, 2, 4, 8, 16


def target_of(i: Insn, bits: int) -> int:
    """Return where a relative branch leads."""
    mask = M64 if bits == 64 else M16 if i.size == 2 else M32
    return i.next + i.imm & mask


def bits_of(block: Block) -> int:
    """Return the code size of a block."""
    return block.key[0]  # type: ignore[return-value]


def is_jcc(op: int) -> bool:
    """Tell whether an opcode is a conditional branch on flags."""
    return 0x70 <= op < 0x80 or 0x180 <= op < 0x190


def successors(block: Block) -> list[int]:
    """Return where a block may lead, as far as that is fixed: the way straight on comes first."""
    last = block.insns[-1]
    op = last.op
    if last.fn is undefined:
        return []
    bits = bits_of(block)
    if is_jcc(op) or 0xE0 <= op <= 0xE3:
        return [last.next, target_of(last, bits)]
    if op == 0xE8:
        return [target_of(last, bits), last.next]
    if op in (0xE9, 0xEB):
        return [target_of(last, bits)]
    if op == 0xFF and last.modrm >> 3 & 7 == 2:
        return [last.next]
    if op in (0xA4, 0xA5, 0xAA, 0xAB):
        return [last.next]
    return [] if last.ends else [last.next]


def effects(i: Insn) -> int:
    """Tell what an instruction does to the flags, and whether the translator leaves it to the cold tier."""
    op = i.op
    if i.lock or i.fn is undefined:
        return COLD
    memory = FAULTS if i.mod != 3 else 0
    reg = i.modrm >> 3 & 7
    if op < 0x40:
        if op & 7 >= 6:
            return COLD
        kind = op >> 3
        return SETS | (memory if op & 7 < 4 else 0) | (READS if kind in (ADC, SBB) else 0)
    if 0x80 <= op <= 0x83:
        return SETS | memory | (READS if reg in (ADC, SBB) else 0)
    if op in (0x84, 0x85, 0xA8, 0xA9):
        return SETS | memory if op < 0x86 else SETS
    if 0x40 <= op < 0x50:
        return PARTLY
    if 0x50 <= op < 0x60 or op in (0x68, 0x6A, 0xC9, 0xE8, 0xC2, 0xC3):
        return FAULTS
    if is_jcc(op):
        return READS
    if op in (0x88, 0x89, 0x8A, 0x8B, 0xC6, 0xC7, 0x1B6, 0x1B7, 0x1BE, 0x1BF) or (op == 0x63 and i.size >= 4):
        return memory if op != 0x63 or "movsx" in i.fn.__qualname__ else COLD
    if op == 0x8D or 0xB0 <= op < 0xC0 or op in (0xE9, 0xEB):
        return 0
    if 0xA0 <= op <= 0xA3:
        return FAULTS
    if op in (0xFE, 0xFF):
        return (PARTLY | memory, PARTLY | memory, FAULTS, COLD, FAULTS, COLD, FAULTS, COLD)[reg]
    if op in (0x69, 0x6B, 0x1AF):
        return SETS | memory
    if op in (0xF6, 0xF7):
        if op == 0xF6 and reg >= 4:
            return COLD
        return (SETS, SETS, 0, SETS, SETS, SETS, FAULTS, FAULTS if i.size == 4 else COLD)[reg] | memory
    if op in (0xC0, 0xC1, 0xD0, 0xD1) and i.mod == 3 and reg >= 4:
        count = (i.imm if op < 0xD0 else 1) & (63 if i.size == 8 else 31)
        return SETS if 0 < count < i.size * 8 else COLD
    if op == 0xD3 and i.mod == 3 and reg >= 4 and i.size >= 4:
        return PARTLY  # the count may be 0; not written where its flags are needed
    if op in (0xC1, 0xD1) and i.mod == 3 and reg < 2 and i.size >= 4:
        return PARTLY
    if (op == 0x90 and not i.rex & 1 and not i.rep) or 0x118 <= op <= 0x11F:
        return 0
    if 0x90 <= op < 0x98 and op != 0x90:
        return 0
    if op in (0x98, 0x99):
        return 0
    if 0x140 <= op < 0x150:
        return READS | memory
    if 0x190 <= op < 0x1A0:
        return READS | memory
    if op == 0xE2:
        return 0
    return COLD


def plan(block: Block, careful: dict[int, int]) -> list[tuple[int, bool]]:
    """Return for each instruction its effects, and whether the flags that it sets are needed."""
    found: list[tuple[int, bool]] = []
    need = True
    for insn in reversed(block.insns):
        what = COLD if careful.get(insn.rip, 0) > 1 else effects(insn)
        shift = insn.op in (0xC1, 0xD1, 0xD3)
        if what & PARTLY and shift and need:
            what = COLD
        found.append((what, need))
        if what & COLD:
            need = True
            continue
        if what & SETS:
            need = False
        if what & (READS | FAULTS):
            need = True
    found.reverse()
    return found
