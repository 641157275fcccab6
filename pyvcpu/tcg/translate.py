"""The hot tier: blocks that run often become a Python function (the measurements behind it: docs/tcg.md).

A function holds a region: blocks of one page that lead to each other. In it registers are locals r0 to r15, flags the
locals fw fr fa fb fc (see interp.py; fw has two more forms here, NO_RESULT and NO_OPERANDS, that spare work on flags
nobody reads), and `left` the instructions that may still run. A loop stays inside until `left` is used up.

What an access cannot do by the TLB raises: SLOW, or struct.error where it crosses a page. Every line of the function
belongs to one instruction, and writes no register before the last point where it can raise; so `recover` finds by the
line's number which instruction it was, puts the state back into the Cpu, and the cold tier runs the rest of the block.
"""

from __future__ import annotations

from struct import error as StructError

from .blocks import MOST_FUNCTIONS, NEVER, Block
from .exceptions import Exit, Fault, Missing, Slow
from .interp import flags_of
from .mmu import mixed_page
from .paging import PACK, UNPACK

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Any

    from .cpu import Cpu
    from .decode import Insn

M16, M32, M64 = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
# Forms of fw that only functions know: fr is still fa - fb to be; fa is fr and fb 0; the same, but OF is of a SHL.
NO_RESULT, NO_OPERANDS, LEFT = 1 << 16, 1 << 17, 1 << 18
MOST_BLOCKS, MOST_INSNS = 24, 260
MOST_TRIES = 6  # translations of one block
CAREFUL_AFTER = 12  # slow accesses of one instruction before it is left to the cold tier for good

# Static knowledge of the flags: (kind, width). CPU: they are still in the Cpu. DYNAMIC: in the locals, fw tells.
CPU, DYNAMIC = ("cpu", 0), ("dynamic", 0)
Flags = tuple[str, int]


def condition_of(code: int, fw: int, fr: int, fa: int, fb: int, fc: int, flags: int) -> bool:
    """Tell whether a condition holds, from the locals of a function."""
    fw, fr, fa, fb = normal(fw, fr, fa, fb)
    value = flags_of(fw, fr, fa, fb, fc, flags)
    kind = code >> 1
    if kind == 0:
        held = value & 0x800
    elif kind == 1:
        held = value & 1
    elif kind == 2:
        held = value & 0x40
    elif kind == 3:
        held = value & 0x41
    elif kind == 4:
        held = value & 0x80
    elif kind == 5:
        held = value & 4
    else:
        held = (value >> 7 ^ value >> 11) & 1
        if kind == 7:
            held |= value & 0x40
    return bool(held) != bool(code & 1)


def normal(fw: int, fr: int, fa: int, fb: int) -> tuple[int, int, int, int]:
    """Bring the flags into the form that the Cpu knows."""
    if fw >= LEFT:
        fw &= M16
        top = fr >> fw - 1
        return fw, fr, fr ^ ((top ^ top >> 1) & 1) << fw, 0
    if fw >= NO_OPERANDS:
        return fw & M16, fr, fr, 0
    if fw >= NO_RESULT:
        return fw & M16, fa - fb, fa, fb
    return fw, fr, fa, fb


def carry_of(fw: int, fr: int, fa: int, fb: int, fc: int, flags: int) -> int:
    """Return CF from the locals of a function."""
    if not fw:
        return flags & 1
    if fw >= NO_OPERANDS:
        return fr >> (fw & M16) & 1
    if fw >= NO_RESULT:
        return int(fa < fb)
    if fw < 256:
        return fr >> fw & 1
    return fc >> (fw >> 8) - 1 & 1


class Site:
    """What a line of a function belongs to: an instruction, what is known of the flags there, and how it is run."""

    __slots__ = ("block", "cold", "flags", "hits", "insn", "ran")

    def __init__(self, block: Block, insn: Insn, flags: int | None, ran: int, cold: bool) -> None:
        self.block, self.insn, self.flags, self.ran, self.cold = block, insn, flags, ran, cold
        self.hits = 0


class Region:
    """What recover() and the cold tier need to know of a function."""

    __slots__ = ("block", "code", "lines", "saved")

    def __init__(self, block: Block) -> None:
        self.block = block
        self.lines: list[Site | None] = []
        self.saved: list[int] = []  # numbers of the registers that the function changes
        self.code = ""


def recover(cpu: Cpu, problem: Exception, state: dict[str, Any], region: Region) -> int:
    """Put the state before the failed instruction back into the Cpu; the cold tier runs the rest of its block."""
    trace = problem.__traceback__
    assert trace is not None
    site = region.lines[trace.tb_lineno]
    assert site is not None, region.code
    ran: int = state.get("start", state["left"]) - state["left"] + site.ran
    if site.cold:
        # The Cpu has the state. Only the cold tier may raise these here.
        if (isinstance(problem, Fault) and not problem.trap) or (isinstance(problem, Exit) and not problem.done):
            cpu.rip = site.insn.rip
        raise problem
    if not isinstance(problem, (Slow, StructError, Fault)):
        raise problem
    for number in region.saved:
        cpu.regs[number] = state[f"r{number}"]
    if site.flags is not None:
        fw = site.flags if site.flags >= 0 else state["fw"]
        if site.flags >= 0 and fw & 0xFF00 == 0xFF00:  # the place of CF is in a local
            fw = fw & ~0xFF00 | state["cw"]
        cpu.fw, cpu.fr, cpu.fa, cpu.fb = normal(fw, state.get("fr", 0), state.get("fa", 0), state.get("fb", 0))
        cpu.fc = state.get("fc", cpu.fc)
    cpu.rip = site.insn.rip
    insns = site.block.insns
    cpu.resume = insns[insns.index(site.insn) :]
    # What crosses a page or faults is seldom; a device, a page with code or an offset that wraps comes back each time.
    if isinstance(problem, Slow) and not isinstance(problem, Missing):
        site.hits += 1
        if site.hits >= CAREFUL_AFTER:
            rethink(cpu, region)
    return ran


def rethink(cpu: Cpu, region: Region) -> None:
    """Have a region translated again, with care where it was slow; leave it to the cold tier if that does not help."""
    block = region.block
    for site in {site for site in region.lines if site is not None}:
        if site.hits >= CAREFUL_AFTER // 4:
            block.careful[site.insn.rip] = block.careful.get(site.insn.rip, 0) + 1
            site.hits = 0
    block.hot = None
    block.tries += 1
    block.count = cpu.hot_after - 1 if block.tries <= MOST_TRIES else NEVER


def unlucky(cpu: Cpu, block: Block) -> int:
    """Take back a function whose assumption on the width of registers does not hold."""
    block.hot = None
    block.count = cpu.hot_after - 1
    block.assume = False
    return 0


def select(cpu: Cpu, entry: Block) -> list[Block]:
    """Choose the blocks of a region: those that have run, are reached from the entry, and lie in its page."""
    from .translate_flow import successors

    page = entry.rip >> 12
    gfn = entry.extents[0][0]
    chosen: list[Block] = []
    waiting = [entry]
    total = 0
    enough = max(1, cpu.hot_after // 4)
    while waiting and len(chosen) < MOST_BLOCKS and total < MOST_INSNS:
        block = waiting.pop()
        if block in chosen:
            continue
        chosen.append(block)
        total += len(block.insns)
        if cpu.break_rips:
            break
        for rip in reversed(successors(block)):
            other = cpu.code_map.get(rip)
            if (
                other is not None and rip >> 12 == page and len(other.extents) >= 1 and other.extents[0][0] == gfn
                and other.count >= enough and other not in chosen and other.epoch == entry.epoch
            ):  # fmt: skip
                waiting.append(other)
    return chosen


def translate(cpu: Cpu, block: Block) -> None:
    """Translate the region that begins at a block, and give the block its function."""
    from .translate_ops import Writer

    blocks = select(cpu, block)
    own = block.extents[:1]
    writer = Writer(cpu, block, blocks, {})
    writer.write()
    if writer.loops or cpu.bits == 16:
        widths = writer.widths() if block.assume else {}
        if widths:
            writer = Writer(cpu, block, blocks, widths)
            writer.write()
    source = writer.source()
    region = writer.region
    names: dict[str, Any] = {
        "recover": recover, "region": region, "SLOW": Slow, "condition_of": condition_of, "carry_of": carry_of,
        "u2": UNPACK[2], "u4": UNPACK[4], "u8": UNPACK[8], "p2": PACK[2], "p4": PACK[4], "p8": PACK[8],
        "unlucky": unlucky, "mixed_page": mixed_page, "block": block, "normal": normal, **writer.names,
    }  # fmt: skip
    exec(compile(source, "<guest>", "exec"), names)
    function: Callable[[Cpu, int], int] = names["run"]
    region.code = source
    extents, code = list(own), block.source[: own[0][2] - own[0][1]]
    for other in blocks[1:]:
        first = other.extents[0]
        extents.append(first)
        code += other.source[: first[2] - first[1]]
    if cpu.code.functions >= MOST_FUNCTIONS:
        cpu.code.clear()
        return
    cpu.code.functions += 1
    block.extents, block.source = extents, code
    for extent in extents[1:]:
        cpu.code.claim_again(block, *extent)
    block.hot = function
