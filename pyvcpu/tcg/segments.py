"""Segment registers and descriptors (SDM vol. 3A chapters 3 and 5): what may be loaded, and then accessed."""

from __future__ import annotations

from .contract import Segment
from .exceptions import GP, NP, SS, Fault
from .mmu import read, write
from .paging import M32, M64, SUPERVISOR

NEW = Segment.__new__
TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu

ES_, CS_, SS_, DS_, FS_, GS_, LDTR_, TR_ = range(8)
# Types of system descriptors.
TSS16, LDT, BUSY16, CALL16, TASK_GATE, INTERRUPT16, TRAP16 = 1, 2, 3, 4, 5, 6, 7
TSS32, BUSY32, CALL32, INTERRUPT32, TRAP32 = 9, 11, 12, 14, 15


class Descriptor:
    """An entry of the GDT or LDT, taken apart. For a gate: `selector`, `offset` and `count` are what it holds."""

    __slots__ = ("address", "count", "offset", "segment", "selector")

    def __init__(self, segment: Segment, address: int, low: int) -> None:
        self.segment, self.address = segment, address
        self.selector = low >> 16 & 0xFFFF
        self.offset = (low & 0xFFFF) | (low >> 48 & 0xFFFF) << 16
        self.count = low >> 32 & 31


def decode(segment: Segment, low: int) -> None:
    """Fill a segment's hidden part from the 8 bytes of a descriptor."""
    limit = (low & 0xFFFF) | (low >> 32 & 0xF0000)
    segment.g = low >> 55 & 1
    segment.limit = limit << 12 | 0xFFF if segment.g else limit
    segment.base = (low >> 16 & 0xFFFFFF) | (low >> 32 & 0xFF000000)
    segment.type = low >> 40 & 15
    segment.s = low >> 44 & 1
    segment.dpl = low >> 45 & 3
    segment.present = low >> 47 & 1
    segment.avl = low >> 52 & 1
    segment.l = low >> 53 & 1
    segment.db = low >> 54 & 1
    segment.unusable = 0


def ranges(cpu: Cpu, segment: Segment) -> None:
    """Work out which offsets may be read and written."""
    segment.read_low = segment.write_low = 0
    segment.read_high = segment.write_high = -1
    if not cpu.protected:
        segment.read_high = segment.write_high = segment.limit
        return
    kind = segment.type
    if segment.unusable or not segment.s or not segment.present:
        return
    code = kind & 8
    if not code and kind & 4:
        low, high = segment.limit + 1, M32 if segment.db else 0xFFFF
    else:
        low, high = 0, segment.limit
    if not code or kind & 2:
        segment.read_low, segment.read_high = low, high
    if not code and kind & 2:
        segment.write_low, segment.write_high = low, high


def table_entry(cpu: Cpu, selector: int) -> int | None:
    """Return the linear address of a selector's descriptor, None outside the table's limit."""
    index = selector & 0xFFF8
    if selector & 4:
        ldt = cpu.segs[LDTR_]
        if ldt.unusable or not ldt.present or index + 7 > ldt.limit:
            return None
        base = ldt.base
    else:
        if index + 7 > cpu.gdt_limit:
            return None
        base = cpu.gdt_base
    return (base + index) & (M64 if cpu.long else M32)


def fetch(cpu: Cpu, selector: int) -> Descriptor | None:
    """Read the descriptor of a selector, None where there is none (null selectors are the caller's business)."""
    address = table_entry(cpu, selector)
    if address is None:
        return None
    low = read(cpu, address, 8, SUPERVISOR)
    segment = NEW(Segment)  # decode() and ranges() give it all that __init__ would
    decode(segment, low)
    segment.selector = selector
    return Descriptor(segment, address, low)


def fetch_or(cpu: Cpu, selector: int, vector: int, external: int = 0) -> Descriptor:
    """Read the descriptor of a selector; a null selector or one outside its table is the fault `vector`."""
    if not selector & 0xFFFC:
        raise Fault(vector, external)
    found = fetch(cpu, selector)
    if found is None:
        raise Fault(vector, (selector & 0xFFFC) | external)
    return found


def upper_half(cpu: Cpu, descriptor: Descriptor, vector: int = GP) -> int:
    """Return bits 32 to 63 of a 16-byte system descriptor's base or offset (long mode)."""
    selector = descriptor.segment.selector
    if not selector & 4 and (selector & 0xFFF8) + 15 > cpu.gdt_limit:
        raise Fault(vector, selector & 0xFFFC)
    high = read(cpu, (descriptor.address + 8) & M64, 8, SUPERVISOR)
    if high >> 40 & 31:
        raise Fault(vector, selector & 0xFFFC)
    return high & M32


def mark_accessed(cpu: Cpu, descriptor: Descriptor) -> None:
    """Set the accessed bit of a code or data descriptor, in memory too."""
    segment = descriptor.segment
    if not segment.type & 1:
        segment.type |= 1
        place = (descriptor.address + 5) & (M64 if cpu.long else M32)
        write(cpu, place, 1, read(cpu, place, 1, SUPERVISOR) | 1, SUPERVISOR)


def set_busy(cpu: Cpu, descriptor: Descriptor, busy: bool) -> None:
    """Set or clear the busy bit of a TSS descriptor in memory."""
    place = (descriptor.address + 5) & (M64 if cpu.long else M32)
    byte = read(cpu, place, 1, SUPERVISOR)
    write(cpu, place, 1, byte | 2 if busy else byte & ~2, SUPERVISOR)


def install(cpu: Cpu, number: int, segment: Segment) -> None:
    """Put a segment into its register and work out what follows from it."""
    ranges(cpu, segment)
    cpu.segs[number] = segment
    cpu.select_code_map()


def set_real(cpu: Cpu, number: int, selector: int) -> None:
    """Load a segment register as real mode does: base only, limits and rights stay (virtual-8086 mode: all of it)."""
    segment = cpu.segs[number]
    segment.selector = selector
    segment.base = selector << 4
    if cpu.v86:
        set_v86(segment)
    elif number == CS_:
        segment.dpl = 0
    segment.unusable, segment.present = 0, 1
    ranges(cpu, segment)


def set_v86(segment: Segment) -> None:
    """Give a segment the fixed rights of virtual-8086 mode."""
    segment.limit, segment.type, segment.s, segment.dpl, segment.present = 0xFFFF, 3, 1, 3, 1
    segment.avl = segment.l = segment.db = segment.g = segment.unusable = 0
    segment.base = segment.selector << 4


def set_null(cpu: Cpu, number: int, selector: int) -> None:
    """Load a null selector: the register cannot be used until it is loaded again (long mode ignores that)."""
    segment = type(cpu.segs[0])()
    old = cpu.segs[number]
    segment.selector = selector
    segment.base = old.base if number in (FS_, GS_) and cpu.long and cpu.bits == 64 and cpu.keep_null_base else 0
    segment.limit, segment.type, segment.present, segment.s = 0, 0, 0, 0
    segment.unusable = 1
    if number == SS_:
        segment.dpl = cpu.cpl
        segment.type, segment.s = 3, 1
    install(cpu, number, segment)


def load_segment(cpu: Cpu, number: int, selector: int) -> None:
    """Load ES, SS, DS, FS or GS as MOV, POP and LDS do."""
    if not cpu.protected:
        set_real(cpu, number, selector)
        cpu.select_code_map()
        return
    rpl = selector & 3
    if number == SS_:
        if not selector & 0xFFFC:
            if cpu.bits == 64 and cpu.cpl != 3 and rpl == cpu.cpl:
                set_null(cpu, number, selector)
                return
            raise Fault(GP, 0)
        found = fetch_or(cpu, selector, GP)
        segment = found.segment
        if rpl != cpu.cpl or not segment.s or segment.type & 10 != 2 or segment.dpl != cpu.cpl:
            raise Fault(GP, selector & 0xFFFC)
        if not segment.present:
            raise Fault(SS, selector & 0xFFFC)
    else:
        if not selector & 0xFFFC:
            set_null(cpu, number, selector)
            return
        found = fetch_or(cpu, selector, GP)
        segment = found.segment
        if not segment.s or segment.type & 10 == 8:
            raise Fault(GP, selector & 0xFFFC)
        if segment.type & 12 != 12 and (rpl > segment.dpl or cpu.cpl > segment.dpl):
            raise Fault(GP, selector & 0xFFFC)
        if not segment.present:
            raise Fault(NP, selector & 0xFFFC)
    mark_accessed(cpu, found)
    install(cpu, number, segment)


def drop_outer(cpu: Cpu) -> None:
    """On return to an outer ring: make data segments unusable that the new privilege level may not use."""
    for number in (ES_, DS_, FS_, GS_):
        segment = cpu.segs[number]
        if (segment.unusable or not segment.s or segment.type & 12 != 12) and segment.dpl < cpu.cpl:
            set_null(cpu, number, 0)


def set_code(cpu: Cpu, segment: Segment, cpl: int) -> None:
    """Load CS, with a descriptor that was checked; the privilege level becomes `cpl`."""
    segment.selector = (segment.selector & 0xFFFC) | cpl
    cpu.segs[CS_] = segment
    cpu.cpl = cpl
    cpu.update_mode()
