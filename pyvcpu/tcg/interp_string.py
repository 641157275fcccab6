"""String instructions. A REP runs page by page, in slices where memory allows it, and can be interrupted in between."""

from __future__ import annotations

from .interp import DF, M32, MASK, get_reg, set_lazy, set_reg
from .mmu import load, store
from .paging import M64

TYPE_CHECKING = False


if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .cpu import Cpu
    from .decode import Insn, Operation

    Tlb = dict[int, memoryview]


SHORT = 3  # below so many elements a slice does not pay


BATCH = 4096  # elements after which a REP lets interrupts in


def step_of(cpu: Cpu, i: Insn) -> int:
    """Return what an index register moves by."""
    return -i.size if cpu.flags & DF else i.size


def move_index(cpu: Cpu, number: int, i: Insn, by: int) -> None:
    """Advance rSI or rDI, as wide as addresses are."""
    set_reg(cpu, number, i.asize, cpu.regs[number] + by & i.amask)


def again(cpu: Cpu, i: Insn) -> None:
    """Let a REP go on: the same instruction is next. What it has done counts as that many instructions."""
    cpu.rip = i.rip
    cpu.extra += BATCH
    cpu.wake = 1


def repeated(one: Callable[[Cpu, Insn, int], None], bulk: Callable[[Cpu, Insn, int], int]) -> Operation:
    """Make a string instruction without a condition: a single step, and a bulk step that returns how many it did."""

    def operation(cpu: Cpu, i: Insn) -> None:
        if not i.rep:
            one(cpu, i, step_of(cpu, i))
            return
        budget = BATCH
        regs = cpu.regs
        while True:
            count = get_reg(cpu, 1, i.asize)
            if not count:
                if i.asize == 4 and cpu.bits == 64:
                    regs[1] &= M32
                return
            done = bulk(cpu, i, min(count, budget * 64)) if count > SHORT and not cpu.single else 0
            if not done:
                one(cpu, i, step_of(cpu, i))
                done = 1
                if cpu.mmio_at:
                    cpu.mmio_done()
            set_reg(cpu, 1, i.asize, count - done)
            if count == done:
                return
            budget -= 1
            if budget <= 0 or cpu.attention or cpu.single or cpu.after:
                again(cpu, i)
                return

    return operation


def run_length(cpu: Cpu, i: Insn, offset: int, count: int) -> int:
    """Return how many elements from `offset` on lie in one page and do not wrap."""
    size = i.size
    base_low = offset & 0xFFF
    if cpu.flags & DF:
        if base_low + size > 4096:
            return 0
        return min(count, base_low // size + 1)
    return min(count, (4096 - base_low) // size)


def window(cpu: Cpu, i: Insn, seg: int, offset: int, count: int, write: bool) -> tuple[memoryview, int, int] | None:
    """Find plain memory for a run of elements: the page, the place of the lowest byte, how many elements; or None."""
    size = i.size
    segment = cpu.segs[seg]
    backward = cpu.flags & DF
    if cpu.bits == 64:
        address = offset + (segment.base if seg >= 4 else 0) & M64
    else:
        low, high = (segment.write_low, segment.write_high) if write else (segment.read_low, segment.read_high)
        if not low <= offset or offset + size - 1 > high:
            return None
        if backward:
            count = min(count, (offset - low) // size + 1)
        else:
            count = min(count, (min(high, i.amask) - offset + 1) // size)
        address = segment.base + offset & M32
    count = min(count, offset // size + 1 if backward else (i.amask - offset + 1) // size)
    count = run_length(cpu, i, address, count)
    if count < 1:
        return None
    tlb: Tlb = cpu.write_tlb if write else cpu.read_tlb
    page = tlb.get(address >> 12)
    if page is None:
        return None
    place = address & 0xFFF
    return page, place - (count - 1) * size if backward else place, count


def movs_one(cpu: Cpu, i: Insn, step: int) -> None:
    """MOVS, once."""
    value = load(cpu, i.seg, cpu.regs[6] & i.amask, i.size)
    store(cpu, 0, cpu.regs[7] & i.amask, i.size, value)
    move_index(cpu, 6, i, step)
    move_index(cpu, 7, i, step)


def movs_bulk(cpu: Cpu, i: Insn, count: int) -> int:
    """MOVS of what both pages hold. Overlapping runs that feed themselves are left to single steps."""
    size = i.size
    target = window(cpu, i, 0, cpu.regs[7] & i.amask, count, True)
    if target is None:
        return 0
    source = window(cpu, i, i.seg, cpu.regs[6] & i.amask, target[2], False)
    if source is None:
        return 0
    count = source[2]
    length = count * size
    to, at = target[0], target[1]
    backward = cpu.flags & DF
    if backward:
        at += (target[2] - count) * size
    here, start = source[0], source[1]
    if to is here and abs(at - start) < length and at != start and (at > start) != bool(backward):
        return overlapped(cpu, i, to, at, start, count, bool(backward))
    to[at : at + length] = here[start : start + length]
    step = -length if backward else length
    move_index(cpu, 6, i, step)
    move_index(cpu, 7, i, step)
    return count


def overlapped(cpu: Cpu, i: Insn, page: memoryview, at: int, start: int, count: int, backward: bool) -> int:
    """Repeat a pattern through overlapping memory, as a forward MOVS to a higher address does."""
    size = i.size
    length = count * size
    gap = abs(at - start)
    if gap < size or gap % size:
        return 0
    if backward:
        pattern = bytes(page[start + length - gap : start + length])
        page[at : at + length] = (pattern * (length // gap + 1))[-length:]
    else:
        pattern = bytes(page[start : start + gap])
        page[at : at + length] = (pattern * (length // gap + 1))[:length]
    step = -length if backward else length
    move_index(cpu, 6, i, step)
    move_index(cpu, 7, i, step)
    return count


def stos_one(cpu: Cpu, i: Insn, step: int) -> None:
    """STOS, once."""
    store(cpu, 0, cpu.regs[7] & i.amask, i.size, cpu.regs[0] & MASK[i.size])
    move_index(cpu, 7, i, step)


def stos_bulk(cpu: Cpu, i: Insn, count: int) -> int:
    """STOS of what the page holds."""
    size = i.size
    target = window(cpu, i, 0, cpu.regs[7] & i.amask, count, True)
    if target is None:
        return 0
    page, at, count = target
    page[at : at + count * size] = (cpu.regs[0] & MASK[size]).to_bytes(size, "little") * count
    move_index(cpu, 7, i, -count * size if cpu.flags & DF else count * size)
    return count


def lods_one(cpu: Cpu, i: Insn, step: int) -> None:
    """LODS, once."""
    value = load(cpu, i.seg, cpu.regs[6] & i.amask, i.size)
    set_reg(cpu, 0, i.size, value)
    move_index(cpu, 6, i, step)


def lods_bulk(cpu: Cpu, i: Insn, count: int) -> int:
    """LODS of what the page holds: only the last element stays."""
    source = window(cpu, i, i.seg, cpu.regs[6] & i.amask, count, False)
    if source is None:
        return 0
    page, at, count = source
    size = i.size
    backward = cpu.flags & DF
    last = at if backward else at + (count - 1) * size
    set_reg(cpu, 0, size, int.from_bytes(page[last : last + size], "little"))
    move_index(cpu, 6, i, -count * size if backward else count * size)
    return count


def compared(one: Callable[[Cpu, Insn, int], bool], bulk: Callable[[Cpu, Insn, int], int]) -> Operation:
    """Make CMPS and SCAS. `bulk` skips elements of which it knows that they do not end the repetition."""

    def operation(cpu: Cpu, i: Insn) -> None:
        if not i.rep:
            one(cpu, i, step_of(cpu, i))
            return
        budget = BATCH
        wanted = i.rep == 0xF3
        while True:
            count = get_reg(cpu, 1, i.asize)
            if not count:
                if i.asize == 4 and cpu.bits == 64:
                    cpu.regs[1] &= M32
                return
            if count > SHORT and not cpu.single:
                skipped = bulk(cpu, i, count - 1)
                count -= skipped
                if skipped:
                    set_reg(cpu, 1, i.asize, count)
            equal = one(cpu, i, step_of(cpu, i))
            if cpu.mmio_at:
                cpu.mmio_done()
            set_reg(cpu, 1, i.asize, count - 1)
            if count == 1 or equal != wanted:
                return
            budget -= 1
            if budget <= 0 or cpu.attention or cpu.single or cpu.after:
                again(cpu, i)
                return

    return operation


def cmps_one(cpu: Cpu, i: Insn, step: int) -> bool:
    """CMPS, once; tells whether the elements are equal."""
    first = load(cpu, i.seg, cpu.regs[6] & i.amask, i.size)
    second = load(cpu, 0, cpu.regs[7] & i.amask, i.size)
    move_index(cpu, 6, i, step)
    move_index(cpu, 7, i, step)
    set_lazy(cpu, i.size * 8, first - second, first, second)
    return first == second


def cmps_bulk(cpu: Cpu, i: Insn, count: int) -> int:
    """Skip equal elements (REPE, forward): as many as are equal for sure."""
    if cpu.flags & DF or i.rep != 0xF3:
        return 0
    first = window(cpu, i, i.seg, cpu.regs[6] & i.amask, count, False)
    if first is None:
        return 0
    second = window(cpu, i, 0, cpu.regs[7] & i.amask, first[2], False)
    if second is None:
        return 0
    count, size = second[2], i.size
    one = bytes(first[0][first[1] : first[1] + count * size])
    two = bytes(second[0][second[1] : second[1] + count * size])
    if one != two:
        difference = int.from_bytes(one, "little") ^ int.from_bytes(two, "little")
        count = ((difference & -difference).bit_length() - 1) // (8 * size)
    move_index(cpu, 6, i, count * size)
    move_index(cpu, 7, i, count * size)
    return count


def scas_one(cpu: Cpu, i: Insn, step: int) -> bool:
    """SCAS, once; tells whether the element is equal."""
    first = cpu.regs[0] & MASK[i.size]
    second = load(cpu, 0, cpu.regs[7] & i.amask, i.size)
    move_index(cpu, 7, i, step)
    set_lazy(cpu, i.size * 8, first - second, first, second)
    return first == second


def scas_bulk(cpu: Cpu, i: Insn, count: int) -> int:
    """Skip elements that do not end the scan: other than the accumulator (REPNE), or equal to it (REPE); forward."""
    if cpu.flags & DF:
        return 0
    found = window(cpu, i, 0, cpu.regs[7] & i.amask, count, False)
    if found is None:
        return 0
    page, at, count = found
    size = i.size
    data = bytes(page[at : at + count * size])
    needle = (cpu.regs[0] & MASK[size]).to_bytes(size, "little")
    if i.rep == 0xF3:
        difference = int.from_bytes(data, "little") ^ int.from_bytes(needle * count, "little")
        if difference:
            count = ((difference & -difference).bit_length() - 1) // (8 * size)
    else:
        where = data.find(needle)
        while where >= 0 and where % size:
            where = data.find(needle, where + 1)
        if where >= 0:
            count = where // size
    move_index(cpu, 7, i, count * size)
    return count


MOVS, STOS, LODS = repeated(movs_one, movs_bulk), repeated(stos_one, stos_bulk), repeated(lods_one, lods_bulk)


CMPS, SCAS = compared(cmps_one, cmps_bulk), compared(scas_one, scas_bulk)
