"""Linear addresses: the page walk in all its forms (SDM vol. 3A chapter 4), the software TLB, memory of devices.

A Tlb maps the number of a linear page to the 4096 bytes of guest memory that it shows. What is not plain memory for the
access (a device, a read-only slot, a page with decoded code or a watchpoint) never gets into one.
"""

from __future__ import annotations

from .exceptions import GP, SS, Fault, Missing, Slow
from .mmio import AFTER_CODE, AFTER_WATCH, mmio_read, mmio_write
from .paging import M32, M64, PACK, UNPACK, translate
from .paging import SUPERVISOR_AC as SUPERVISOR_AC

TYPE_CHECKING = False


if TYPE_CHECKING:  # mypy reads this as True
    from .blocks import PageCode
    from .cpu import Cpu

    Mixed = tuple[memoryview, int, PageCode]


MASK = [0, 0xFF, 0xFFFF, 0, M32, 0, 0, 0, M64]


class Tlb(dict[int, memoryview]):
    """Pages that may be accessed in one way by one kind of accessor. A page that is missing is looked up."""

    __slots__ = ("cpu", "user", "write")

    def __init__(self, cpu: Cpu, write: bool, user: int) -> None:
        self.cpu, self.write, self.user = cpu, write, user

    def __missing__(self, number: int) -> memoryview:
        """Serve translated code: the page, or Slow."""
        if number < 0 or number >> 52 or (number >> 20 and self.cpu.bits != 64):
            raise Slow  # sums in translated code are not always wrapped: the cold tier does that
        try:
            page = fill(self.cpu, number << 12, self.write, self.user)
        except Fault:
            raise Missing from None
        if page is None or self.get(number) is None:
            raise Slow
        return page


def fill(cpu: Cpu, address: int, write: bool, user: int) -> memoryview | None:
    """Translate, and put the page into the TLB where it is plain memory. Return its bytes, None for a device."""
    physical = translate(cpu, address, write, user)
    gfn = physical >> 12
    memory = cpu.memory
    page = memory.page(gfn)
    cpu.last_physical = physical
    if page is None:
        return None
    number = address >> 12
    if write:
        if not memory.writable(gfn):
            return None
        if number in cpu.watched:
            return page  # not cached: every write goes the slow way
        memory.mark_dirty(gfn)
        code = cpu.code.pages.get(gfn)
        if code is not None:
            cpu.mixed_tlb[user][number] = (page, gfn, code)
            return page
        cpu.tlb[3 + user][number] = page
        cpu.tlb[user][number] = page
        if gfn in cpu.code.pages:  # another vCPU has decoded code there in between
            cpu.tlb[3 + user].pop(number, None)
    elif number not in cpu.watched:
        cpu.tlb[user][number] = page
    return page


def flush(cpu: Cpu) -> None:
    """Forget all translations, those of code too."""
    for tlb in cpu.tlb:
        tlb.clear()
    for mixed in cpu.mixed_tlb:
        mixed.clear()
    cpu.large.clear()
    cpu.fetch_tlb[0].clear()
    cpu.fetch_tlb[1].clear()
    cpu.code_maps.clear()
    cpu.select_code_map()


def flush_page(cpu: Cpu, address: int) -> None:
    """Forget the translation of one address; all, where it may be in a large page or code was fetched from it."""
    number = address >> 12
    if address >> 21 in cpu.large or -1 in cpu.large or number in cpu.fetch_tlb[0] or number in cpu.fetch_tlb[1]:
        flush(cpu)
        return
    for tlb in cpu.tlb:
        tlb.pop(number, None)
    for mixed in cpu.mixed_tlb:
        mixed.pop(number, None)


# Linear accesses: within a page by the TLB, else piecewise.
def read(cpu: Cpu, address: int, size: int, user: int) -> int:
    """Read 1, 2, 4 or 8 bytes at a linear address."""
    offset = address & 0xFFF
    if offset + size <= 4096:
        page = cpu.tlb[user].get(address >> 12)
        if page is not None:
            return UNPACK[size](page, offset)[0]
    return int.from_bytes(read_bytes(cpu, address, size, user), "little")


def write(cpu: Cpu, address: int, size: int, value: int, user: int) -> None:
    """Write 1, 2, 4 or 8 bytes at a linear address."""
    offset = address & 0xFFF
    if offset + size <= 4096:
        page = cpu.tlb[3 + user].get(address >> 12)
        if page is not None:
            PACK[size](page, offset, value)
            return
    write_bytes(cpu, address, value.to_bytes(size, "little"), user)


def pieces(cpu: Cpu, address: int, count: int) -> list[tuple[int, int]]:
    """Cut a range at page boundaries, wrapped at the end of the address space."""
    mask = M64 if cpu.bits == 64 or cpu.long else M32
    parts = []
    while count:
        part = min(count, 4096 - (address & 0xFFF))
        parts.append((address, part))
        address = (address + part) & mask
        count -= part
    return parts


def read_bytes(cpu: Cpu, address: int, count: int, user: int) -> bytes:
    """Read any number of bytes at a linear address, devices included."""
    found = []
    parts = pieces(cpu, address, count)
    if len(parts) > 1:
        for start, _part in parts:  # faults come before a device is touched
            translate(cpu, start, False, user)
    for start, part in parts:
        page = cpu.tlb[user].get(start >> 12)
        if page is None:
            page = fill(cpu, start, False, user)
            if page is None:
                found.append(mmio_read(cpu, cpu.last_physical, part))
                continue
        offset = start & 0xFFF
        found.append(bytes(page[offset : offset + part]))
        if start >> 12 in cpu.watched:
            watch(cpu, start, part, False)
    return found[0] if len(found) == 1 else b"".join(found)


def write_bytes(cpu: Cpu, address: int, data: bytes, user: int) -> None:
    """Write any number of bytes at a linear address, devices included; every page is probed before the first byte."""
    parts = pieces(cpu, address, len(data))
    if len(parts) > 1:
        for start, _part in parts:
            translate(cpu, start, True, user)
    done = 0
    for start, part in parts:
        piece = data[done : done + part]
        done += part
        page = cpu.tlb[3 + user].get(start >> 12)
        offset = start & 0xFFF
        if page is not None:
            page[offset : offset + part] = piece
            continue
        mixed = cpu.mixed_tlb[user].get(start >> 12)
        if mixed is not None:
            write_mixed(cpu, mixed, offset, piece)
            continue
        page = fill(cpu, start, True, user)
        if page is None:
            mmio_write(cpu, cpu.last_physical, piece)
            continue
        mixed = cpu.mixed_tlb[user].get(start >> 12)
        if mixed is not None:
            write_mixed(cpu, mixed, offset, piece)
            continue
        page[offset : offset + part] = piece
        gfn = cpu.last_physical >> 12
        cpu.memory.mark_dirty(gfn)
        if gfn in cpu.code.pages and cpu.code.written(gfn, offset, part):
            cpu.after |= AFTER_CODE
        if start >> 12 in cpu.watched:
            watch(cpu, start, part, True)


def write_mixed(cpu: Cpu, mixed: Mixed, offset: int, data: bytes) -> None:
    """Write to a page that also holds decoded code; the blocks that are hit are dropped."""
    page, gfn, code = mixed
    size = len(data)
    page[offset : offset + size] = data
    if code.used >> offset & (1 << size) - 1 and cpu.code.written(gfn, offset, size):
        cpu.after |= AFTER_CODE


def mixed_page(cpu: Cpu, address: int, size: int) -> memoryview:
    """Return the page for a store of translated code that may go to a page with code, or raise Slow."""
    number = address >> 12
    page = cpu.write_tlb.get(number)
    if page is not None:
        return page
    mixed = cpu.mixed.get(number)
    if mixed is None or mixed[2].used >> (address & 0xFFF) & (1 << size) - 1:
        raise Slow
    return mixed[0]


def watch(cpu: Cpu, address: int, size: int, write: bool) -> None:
    """Note the data breakpoints that an access hits; they are reported when the instruction is complete."""
    for number, start, length, kind in cpu.watchpoints:
        if start < address + size and address < start + length and (write or kind == 3):
            cpu.watch_hits |= 1 << number
            cpu.after |= AFTER_WATCH


# Accesses through a segment.
def segment_fault(seg: int) -> Fault:
    """Return what an access outside a segment raises."""
    return Fault(SS if seg == 2 else GP, 0)


def linear(cpu: Cpu, seg: int, offset: int, size: int, write: bool) -> int:
    """Return the linear address of an access through a segment, or raise #GP or #SS."""
    if cpu.bits == 64:
        address = offset if seg < 4 else (offset + cpu.segs[seg].base) & M64
        bits = cpu.canonical_bits
        if address >> bits not in (0, M64 >> bits):
            raise segment_fault(seg)
        if size > 1 and (address + size - 1) >> bits not in (0, M64 >> bits) and address + size - 1 <= M64:
            raise segment_fault(seg)
        return address
    segment = cpu.segs[seg]
    if write:
        if not segment.write_low <= offset <= segment.write_high - size + 1:
            raise segment_fault(seg)
    elif not segment.read_low <= offset <= segment.read_high - size + 1:
        raise segment_fault(seg)
    return (segment.base + offset) & M32


def load(cpu: Cpu, seg: int, offset: int, size: int) -> int:
    """Read 1, 2, 4 or 8 bytes through a segment; returns the little-endian number."""
    address = linear(cpu, seg, offset, size, False)
    at = address & 0xFFF
    if at + size <= 4096:
        page = cpu.read_tlb.get(address >> 12)
        if page is not None:
            return UNPACK[size](page, at)[0]
    if cpu.align_check and address & (size - 1):
        raise Fault(17, 0)
    return int.from_bytes(read_bytes(cpu, address, size, cpu.accessor), "little")


def store(cpu: Cpu, seg: int, offset: int, size: int, value: int) -> None:
    """Write 1, 2, 4 or 8 bytes through a segment."""
    address = linear(cpu, seg, offset, size, True)
    at = address & 0xFFF
    if at + size <= 4096:
        page = cpu.write_tlb.get(address >> 12)
        if page is not None:
            PACK[size](page, at, value)
            return
    if cpu.align_check and address & (size - 1):
        raise Fault(17, 0)
    write_bytes(cpu, address, value.to_bytes(size, "little"), cpu.accessor)


def load_for_store(cpu: Cpu, seg: int, offset: int, size: int) -> int:
    """Read what the same instruction is going to write: faults are those of the write."""
    address = linear(cpu, seg, offset, size, True)
    at = address & 0xFFF
    if at + size <= 4096:
        page = cpu.write_tlb.get(address >> 12)
        if page is not None:
            return UNPACK[size](page, at)[0]
    probe_store(cpu, seg, offset, size)
    return load(cpu, seg, offset, size)


def probe_store(cpu: Cpu, seg: int, offset: int, size: int) -> None:
    """Raise what a store would raise, and change nothing but accessed and dirty bits."""
    address = linear(cpu, seg, offset, size, True)
    for start, _part in pieces(cpu, address, size):
        if start >> 12 not in cpu.write_tlb:
            fill(cpu, start, True, cpu.accessor)


def load_bytes(cpu: Cpu, seg: int, offset: int, count: int) -> bytes:
    """Read any number of bytes through a segment; one access as far as faults go."""
    address = linear(cpu, seg, offset, count, False)
    at = address & 0xFFF
    if at + count <= 4096:
        page = cpu.read_tlb.get(address >> 12)
        if page is not None:
            return bytes(page[at : at + count])
    return read_bytes(cpu, address, count, cpu.accessor)


def store_bytes(cpu: Cpu, seg: int, offset: int, data: bytes) -> None:
    """Write any number of bytes through a segment; both pages are probed before the first byte is written."""
    address = linear(cpu, seg, offset, len(data), True)
    at = address & 0xFFF
    if at + len(data) <= 4096:
        page = cpu.write_tlb.get(address >> 12)
        if page is not None:
            page[at : at + len(data)] = data
            return
    write_bytes(cpu, address, data, cpu.accessor)
