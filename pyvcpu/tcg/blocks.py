"""Decoded code: blocks of instructions by physical address, shared by the vCPUs of a VM, and when they are dropped.

A page with decoded code is in no write TLB. The cold tier's writes to it end in `CodeCache.written`, which drops the
blocks whose bytes are hit. The host's writes go around that: `Cpu.recheck` starts a new epoch, and a block of an older
one is compared with memory before it is used.
"""

from __future__ import annotations

from . import opcodes
from .contract import EXIT_FAIL
from .decode import NO_OPCODE, Insn, decode
from .exceptions import GP, Exit, Fault
from .paging import M32, M64, SUPERVISOR, USER, translate

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .cpu import Cpu

    Key = tuple[object, ...]
    Hot = Callable[[Cpu, int], int]

assert opcodes.FEATURES  # loading that module has filled the tables of the decoder
LONGEST = 48  # instructions in a block
NEVER = -1 << 60  # the count of a block that is not to be translated
MOST_INSNS, MOST_FUNCTIONS = 200_000, 3_000  # decoded and translated; then all is dropped: 100 MB each


class Block:
    """Instructions that run one after the other, from one page (one that crosses a page's end stands alone)."""

    __slots__ = (
        "assume", "careful", "count", "epoch", "extents", "hot", "insns", "key", "place", "rip", "source", "tries",
    )  # fmt: skip

    def __init__(self, rip: int, place: Key, key: Key, insns: list[Insn], source: bytes) -> None:
        self.rip, self.place, self.key, self.insns, self.source = rip, place, key, insns, source
        self.count = 0  # executions in the cold tier
        self.hot: Hot | None = None
        self.epoch = 0
        # Where its bytes lie, with those that its translation includes: (gfn, first, end).
        self.extents: list[tuple[int, int, int]] = []
        self.tries = 0  # how often its translation was given up for a more careful one
        self.assume = True  # the translation may assume what holds at its entry most of the time
        # Instructions whose accesses are mostly not plain memory: by the address, 1: pages with code, 2: worse.
        self.careful: dict[int, int] = {}


class PageCode:
    """What is decoded from one page: the blocks, and a bit for each byte that they use."""

    __slots__ = ("blocks", "restless", "used")

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.used = 0
        self.restless = 0  # how often writes have hit code here

    def longest(self) -> int:
        """Return how many instructions a block may have: few where code keeps changing, for decoding costs."""
        return LONGEST if self.restless < 32 else 8 if self.restless < 128 else 1


class CodeCache:
    """All decoded code of a VM."""

    __slots__ = ("blocks", "cpus", "epoch", "functions", "insns", "pages")

    def __init__(self) -> None:
        self.blocks: dict[Key, Block] = {}
        self.pages: dict[int, PageCode] = {}
        self.cpus: list[Cpu] = []
        self.epoch = 0
        self.insns = self.functions = 0  # since all was dropped

    def add(self, block: Block) -> None:
        """Keep a block, and see to it that writes to its bytes are noticed."""
        if self.insns >= MOST_INSNS:
            self.clear()
        old = self.blocks.get(block.place)
        if old is not None:
            self.drop(old)
        self.insns += len(block.insns)
        self.blocks[block.place] = block
        for extent in block.extents:
            self.claim(block, *extent)

    def claim(self, block: Block, gfn: int, first: int, end: int) -> None:
        """Note that a block depends on some bytes of a page."""
        page = self.pages.get(gfn)
        if page is None:
            page = self.pages[gfn] = PageCode()
            for cpu in self.cpus:  # from now on writes to the page must go the slow way
                cpu.forget_writable()
        page.blocks.append(block)
        page.used |= (1 << end - first) - 1 << first

    def claim_again(self, block: Block, gfn: int, first: int, end: int) -> None:
        """Note that the translation of a block includes more bytes of its page."""
        page = self.pages.get(gfn)
        if page is not None:
            page.used |= (1 << end - first) - 1 << first

    def written(self, gfn: int, first: int, size: int) -> bool:
        """Drop the blocks that some written bytes belong to; tells whether there were any."""
        page = self.pages.get(gfn)
        if page is None or not page.used >> first & (1 << size) - 1:
            return False
        end = first + size
        hit = [
            block
            for block in page.blocks
            if any(number == gfn and start < end and first < stop for number, start, stop in block.extents)
        ]
        for block in hit:
            self.drop(block)
        page.restless += bool(hit)
        return bool(hit)

    def drop(self, block: Block) -> None:
        """Forget a block."""
        if self.blocks.pop(block.place, None) is not None:
            self.insns -= len(block.insns)
        block.hot = None
        block.count = 0
        for gfn in {extent[0] for extent in block.extents}:
            page = self.pages.get(gfn)
            if page is None:
                continue
            page.blocks = [other for other in page.blocks if other is not block]
            page.used = 0
            for other in page.blocks:
                for number, start, stop in other.extents:
                    if number == gfn:
                        page.used |= (1 << stop - start) - 1 << start
        for cpu in self.cpus:
            code_map = cpu.code_maps.get(block.key)
            if code_map is not None and code_map.get(block.rip) is block:
                code_map.pop(block.rip, None)

    def clear(self) -> None:
        """Forget everything."""
        self.insns = self.functions = 0
        self.blocks.clear()
        self.pages.clear()
        for cpu in self.cpus:
            for code_map in list(cpu.code_maps.values()):
                code_map.clear()


def fetch_page(cpu: Cpu, linear: int) -> tuple[int, memoryview]:
    """Translate an address for a fetch: its physical address and the bytes of its page."""
    user = cpu.cpl == 3
    tlb = cpu.fetch_tlb[user]
    gfn = tlb.get(linear >> 12)
    if gfn is None:
        gfn = translate(cpu, linear, False, USER if user else SUPERVISOR, True) >> 12
        tlb[linear >> 12] = gfn
    page = cpu.memory.page(gfn)
    if page is None:
        raise Exit(EXIT_FAIL)
    return gfn << 12 | linear & 0xFFF, page


def find(cpu: Cpu) -> Block:
    """Return the block at cs:rip, decoded now where it has to be; raises what the fetch raises."""
    rip = cpu.rip
    cs = cpu.segs[1]
    if cpu.bits == 64:
        linear = rip
    else:
        if rip > cs.limit:
            raise Fault(GP, 0)
        linear = cs.base + rip & M32
    physical, page = fetch_page(cpu, linear)
    place = (physical, rip, cpu.code_key)
    cache = cpu.code
    block = cache.blocks.get(place)
    if block is not None and block.epoch != cache.epoch:
        if fresh(block, page):
            block.epoch = cache.epoch
        else:
            cache.drop(block)
            block = None
    if block is None:
        block = decode_block(cpu, rip, linear, physical, page, place)
    if linear not in cpu.break_rips:
        cpu.code_map[rip] = block
    return block


def fresh(block: Block, page: memoryview) -> bool:
    """Tell whether memory still holds a block's bytes, those of its translation too; all lie in one page."""
    source = block.source
    at = 0
    for _gfn, first, end in block.extents:
        if bytes(page[first:end]) != source[at : at + end - first]:
            return False
        at += end - first
    return bool(source)


def decode_block(cpu: Cpu, rip: int, linear: int, physical: int, page: memoryview, place: Key) -> Block:
    """Decode from an address on, to the end of the block or the page."""
    start = physical & 0xFFF
    code = bytes(page[start : start + LONGEST * 15])
    bits, limit = cpu.bits, cpu.segs[1].limit
    insns: list[Insn] = []
    at = 0
    here_before = cpu.code.pages.get(physical >> 12)
    longest = LONGEST if here_before is None else here_before.longest()
    while len(insns) < longest:
        here = rip + at & (M64 if bits == 64 else M32)
        if insns and (here < rip or (cpu.break_rips and linear + at in cpu.break_rips)):
            break
        try:
            insn = decode(code, at, bits, here)
        except IndexError:
            if not insns:
                return crossing(cpu, rip, linear, physical, code, place)
            break
        if bits != 64 and here + insn.length - 1 > limit:
            insn.fn, insn.ends, insn.op = outside, True, NO_OPCODE
        insns.append(insn)
        at += insn.length
        if insn.ends:
            break
    end = min(start + at, 4096)
    block = Block(rip, place, cpu.code_key, insns, code[: end - start])
    block.extents.append((physical >> 12, start, end))
    block.epoch = cpu.code.epoch
    if longest == 1:
        block.count = NEVER
    cpu.code.add(block)
    return block


def outside(cpu: Cpu, i: Insn) -> None:
    """Raise the #GP of an instruction that goes beyond the code segment's limit."""
    raise Fault(GP, 0)


def crossing(cpu: Cpu, rip: int, linear: int, physical: int, code: bytes, place: Key) -> Block:
    """Decode one instruction that goes on in the next page. It is kept only until the TLB is flushed."""
    bits = cpu.bits
    if bits != 64 and rip + len(code) > cpu.segs[1].limit:
        raise Fault(GP, 0)
    second, page = fetch_page(cpu, (linear | 0xFFF) + 1 & (M64 if bits == 64 else M32))
    whole = code + bytes(page[:15])
    insn = decode(whole, 0, bits, rip)
    if bits != 64 and rip + insn.length - 1 > cpu.segs[1].limit:
        raise Fault(GP, 0)
    insn.ends = True
    block = Block(rip, (*place, second), cpu.code_key, [insn], b"")
    block.extents += [(physical >> 12, physical & 0xFFF, 4096), (second >> 12, 0, insn.length - len(code))]
    block.count = NEVER
    cpu.code.add(block)
    return block
