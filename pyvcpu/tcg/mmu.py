"""Linear addresses: the page walk in all its forms (SDM vol. 3A chapter 4), the software TLB, memory of devices.

A Tlb maps the number of a linear page to the 4096 bytes of guest memory that it shows. What is not plain memory for the
access (a device, a read-only slot, a page with decoded code or a watchpoint) never gets into one.
"""

from __future__ import annotations

from struct import Struct

from .contract import EXIT_MMIO
from .exceptions import GP, PF, SS, Exit, Fault, Slow

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Any

    from .blocks import PageCode
    from .cpu import Cpu

    Mixed = tuple[memoryview, int, PageCode]

M32, M64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
PG, WP, PSE, PAE, LA57, SMEP, SMAP = 1 << 31, 1 << 16, 1 << 4, 1 << 5, 1 << 12, 1 << 20, 1 << 21
NXE, LMA = 1 << 11, 1 << 10
ERROR_P, ERROR_W, ERROR_U, ERROR_RSVD, ERROR_I = 1, 2, 4, 8, 16
P, RW, US, A, D, PS, NX = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63
ADDRESS = 0x000F_FFFF_FFFF_F000
# Who accesses: a supervisor that SMAP keeps from user pages, one with EFLAGS.AC set, the user.
SUPERVISOR, SUPERVISOR_AC, USER = 0, 1, 2
AFTER_MMIO, AFTER_WATCH, AFTER_CODE = 1, 2, 4  # Cpu.after: what is to be done when the instruction is complete

_B, _H, _I, _Q = Struct("<B"), Struct("<H"), Struct("<I"), Struct("<Q")
UNPACK: list[Callable[[Any, int], tuple[int]]] = [_B.unpack_from] * 9
UNPACK[2], UNPACK[4], UNPACK[8] = _H.unpack_from, _I.unpack_from, _Q.unpack_from
PACK: list[Callable[[Any, int, int], None]] = [_B.pack_into] * 9
PACK[2], PACK[4], PACK[8] = _H.pack_into, _I.pack_into, _Q.pack_into
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
            raise Slow from None
        if page is None or self.get(number) is None:
            raise Slow
        return page


def canonical(cpu: Cpu, address: int) -> bool:
    """Tell whether a 64-bit address has its upper bits all alike."""
    bits = 56 if cpu.cr4 & LA57 else 47
    return address >> bits in (0, M64 >> bits)


def page_fault(cpu: Cpu, address: int, error: int, write: bool, user: int, fetch: bool) -> Fault:
    """Return the #PF for an access, CR2 set."""
    cpu.cr2 = address
    error |= (ERROR_W if write else 0) | (ERROR_U if user == USER else 0)
    if fetch and ((cpu.cr4 & PAE and cpu.efer & NXE) or cpu.cr4 & SMEP):
        error |= ERROR_I
    return Fault(PF, error)


def translate(cpu: Cpu, address: int, write: bool, user: int, fetch: bool = False) -> int:
    """Return the physical address of a linear one, accessed and dirty bits set; raises #PF (and #GP if not canonical)."""
    if not cpu.cr0 & PG:
        return address & M32
    if cpu.efer & LMA:
        if not canonical(cpu, address):
            raise Fault(GP, 0)
        levels = 5 if cpu.cr4 & LA57 else 4
        return walk_wide(cpu, address, levels, cpu.cr3 & ADDRESS, write, user, fetch)
    if cpu.cr4 & PAE:
        entry = cpu.pdptr[address >> 30 & 3]
        if not entry & P:
            raise page_fault(cpu, address, 0, write, user, fetch)
        return walk_wide(cpu, address, 2, entry & ADDRESS, write, user, fetch)
    return walk_narrow(cpu, address, write, user, fetch)


def read_entry(cpu: Cpu, address: int, size: int) -> int:
    """Read an entry of a paging structure; 0 where there is no memory."""
    page = cpu.memory.page(address >> 12)
    return 0 if page is None else UNPACK[size](page, address & 0xFFF)[0]


def mark(cpu: Cpu, address: int, size: int, entry: int, bits: int) -> None:
    """Set accessed and dirty bits in an entry."""
    if entry & bits == bits:
        return
    memory = cpu.memory
    gfn = address >> 12
    page = memory.page(gfn)
    if page is None or not memory.writable(gfn):
        return
    PACK[size](page, address & 0xFFF, entry | bits)
    memory.mark_dirty(gfn)
    if gfn in cpu.code.pages:
        cpu.code.written(gfn, address & 0xFFF, size)


def walk_wide(cpu: Cpu, address: int, levels: int, table: int, write: bool, user: int, fetch: bool) -> int:
    """Walk 8-byte entries: the two lower levels of PAE, four or five of long mode."""
    nxe = cpu.efer & NXE
    reserved = cpu.reserved if nxe else cpu.reserved | NX
    if levels == 2:
        reserved |= 0x7FF << 52  # PAE: bits 52 to 62 are reserved, not ignored
    rights, no_execute = RW | US, 0
    seen = []
    level = levels
    while True:
        level -= 1
        where = table + (address >> (12 + 9 * level) & 511) * 8
        entry = read_entry(cpu, where, 8)
        if not entry & P:
            raise page_fault(cpu, address, 0, write, user, fetch)
        large = level and entry & PS
        if entry & reserved or (
            large and (level > 2 or (level == 2 and not cpu.gigabyte_pages) or entry & low_bits(level))
        ):
            raise page_fault(cpu, address, ERROR_P | ERROR_RSVD, write, user, fetch)
        rights &= entry
        no_execute |= entry & NX
        if large or not level:
            break
        seen.append((where, entry))
        table = entry & ADDRESS
    check(cpu, address, rights, no_execute, write, user, fetch)
    for place, above in seen:
        mark(cpu, place, 8, above, A)
    mark(cpu, where, 8, entry, A | D if write else A)
    size_mask = (1 << (12 + 9 * level)) - 1
    return (entry & ADDRESS & ~size_mask) | (address & size_mask)


def low_bits(level: int) -> int:
    """Return the reserved bits of a large page's address (bit 12 is its PAT)."""
    return ((1 << (12 + 9 * level)) - 1) & ~0x1FFF


def walk_narrow(cpu: Cpu, address: int, write: bool, user: int, fetch: bool) -> int:
    """Walk 4-byte entries: 32-bit paging, with pages of 4 MB where CR4.PSE is set."""
    where = (cpu.cr3 & 0xFFFFF000) + (address >> 22) * 4
    entry = read_entry(cpu, where, 4)
    if not entry & P:
        raise page_fault(cpu, address, 0, write, user, fetch)
    if entry & PS and cpu.cr4 & PSE:
        if entry & (1 << 21) or entry >> 13 & 0xFF & ~((1 << max(0, min(cpu.phys_bits, 40) - 32)) - 1):
            raise page_fault(cpu, address, ERROR_P | ERROR_RSVD, write, user, fetch)
        check(cpu, address, entry, 0, write, user, fetch)
        mark(cpu, where, 4, entry, A | D if write else A)
        return (entry & 0xFFC00000) | (entry >> 13 & 0xFF) << 32 | (address & 0x3FFFFF)
    below = (entry & 0xFFFFF000) + (address >> 12 & 1023) * 4
    leaf = read_entry(cpu, below, 4)
    if not leaf & P:
        raise page_fault(cpu, address, 0, write, user, fetch)
    check(cpu, address, entry & leaf, 0, write, user, fetch)
    mark(cpu, where, 4, entry, A)
    mark(cpu, below, 4, leaf, A | D if write else A)
    return (leaf & 0xFFFFF000) | (address & 0xFFF)


def check(cpu: Cpu, address: int, rights: int, no_execute: int, write: bool, user: int, fetch: bool) -> None:
    """Raise #PF where the rights of all levels together do not allow the access (SDM vol. 3A section 4.6)."""
    if user == USER:
        fine = rights & US and (rights & RW or not write)
    else:
        fine = not write or rights & RW or not cpu.cr0 & WP
        if rights & US and ((fetch and cpu.cr4 & SMEP) or (not fetch and user == SUPERVISOR and cpu.cr4 & SMAP)):
            fine = False
    if not fine or (fetch and no_execute):
        raise page_fault(cpu, address, ERROR_P, write, user, fetch)


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
    elif number not in cpu.watched:
        cpu.tlb[user][number] = page
    return page


def flush(cpu: Cpu) -> None:
    """Forget all translations, those of code too."""
    for tlb in cpu.tlb:
        tlb.clear()
    for mixed in cpu.mixed_tlb:
        mixed.clear()
    cpu.fetch_tlb[0].clear()
    cpu.fetch_tlb[1].clear()
    cpu.code_maps.clear()
    cpu.select_code_map()


def flush_page(cpu: Cpu, address: int) -> None:
    """Forget the translation of one address. Large pages are held as small ones, so this forgets all."""
    flush(cpu)


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
        for start, part in parts:  # faults come before a device is touched
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


# Devices. The accesses of one instruction are kept in a list until it is complete: an instruction that user space must
# answer is run again from its start, and then takes from the list what was already answered.
def mmio_read(cpu: Cpu, physical: int, size: int) -> bytes:
    """Read a device: by the list, the platform, or an exit to user space (8 bytes at a time)."""
    if size > 8:
        return b"".join(mmio_read(cpu, physical + at, min(8, size - at)) for at in range(0, size, 8))
    at = cpu.mmio_at
    cpu.mmio_at = at + 1
    cpu.after |= AFTER_MMIO
    replay = cpu.mmio_replay
    if at < len(replay):
        answer = replay[at]
        if answer is not None and len(answer) == size:
            return answer
    data = cpu.platform.mmio_read(physical, size)
    if data is None:
        cpu.exit_address, cpu.exit_size, cpu.exit_write, cpu.exit_data = physical, size, False, b""
        raise Exit(EXIT_MMIO)
    replay[at:] = [data]
    return data


def mmio_write(cpu: Cpu, physical: int, data: bytes) -> None:
    """Write a device: done already by the list, by the platform, or an exit to user space."""
    if len(data) > 8:
        for at in range(0, len(data), 8):
            mmio_write(cpu, physical + at, data[at : at + 8])
        return
    at = cpu.mmio_at
    cpu.mmio_at = at + 1
    cpu.after |= AFTER_MMIO
    if at < len(cpu.mmio_replay):
        return
    if not cpu.platform.mmio_write(physical, data):
        cpu.exit_address, cpu.exit_size, cpu.exit_write, cpu.exit_data = physical, len(data), True, data
        raise Exit(EXIT_MMIO)
    cpu.mmio_replay.append(None)


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
        if size > 1 and (address + size - 1) >> bits not in (0, M64 >> bits):
            if address + size - 1 <= M64:
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
    return read_bytes(cpu, linear(cpu, seg, offset, count, False), count, cpu.accessor)


def store_bytes(cpu: Cpu, seg: int, offset: int, data: bytes) -> None:
    """Write any number of bytes through a segment; both pages are probed before the first byte is written."""
    write_bytes(cpu, linear(cpu, seg, offset, len(data), True), data, cpu.accessor)
