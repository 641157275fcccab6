"""The page walk in all its forms (SDM vol. 3A chapter 4): 32-bit, PAE, four and five levels."""

from __future__ import annotations

from struct import Struct

from .exceptions import GP, PF, Fault

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


_B, _H, _I, _Q = Struct("<B"), Struct("<H"), Struct("<I"), Struct("<Q")


UNPACK: list[Callable[[Any, int], tuple[int]]] = [_B.unpack_from] * 9


UNPACK[2], UNPACK[4], UNPACK[8] = _H.unpack_from, _I.unpack_from, _Q.unpack_from


PACK: list[Callable[[Any, int, int], None]] = [_B.pack_into] * 9


PACK[2], PACK[4], PACK[8] = _H.pack_into, _I.pack_into, _Q.pack_into


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
    """Return the physical address of a linear one, accessed and dirty bits set; raises #PF, #GP if not canonical."""
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
    if level:
        cpu.large.add(address >> 21 if level == 1 else -1)
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
        cpu.large.update((address >> 22 << 1, address >> 22 << 1 | 1))
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
