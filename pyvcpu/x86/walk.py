"""The page walk: from a linear address to a physical one, as the processor does it. Pure functions.

SDM vol. 3A chapter 4: 32-bit paging (4.3), PAE (4.4), 4-level and 5-level (4.5). Memory is read through a callable
`read_physical(address, size) -> bytes`, which gives fewer bytes, or raises LookupError or PyvcpuError, where there is
none. Tables are a guest's, so anything may be in them; a walk reads at most five entries.
"""

from __future__ import annotations

from ..errors import PyvcpuError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Iterator, Mapping

    ReadPhysical = Callable[[int, int], bytes]

# Bits of CR0, CR4 and EFER that choose the mode, as in flags.py, which is slow to import.
CR0_PG, CR4_PSE, CR4_PAE, CR4_LA57, EFER_LMA, EFER_NXE = 1 << 31, 1 << 4, 1 << 5, 1 << 12, 1 << 10, 1 << 11
PRESENT, WRITABLE, USER, LARGE, NO_EXECUTE = 1 << 0, 1 << 1, 1 << 2, 1 << 7, 1 << 63
LOW_4G, PAGE_SHIFT, MAX_PHYS_BITS = 0xFFFF_FFFF, 12, 52
OFF, BITS32, PAE, LEVELS4, LEVELS5 = "paging off", "32-bit", "PAE", "4-level", "5-level"
# Tables from the top down: their name, and the lowest bit of the linear address that indexes them.
TABLES = {
    BITS32: (("PD", 22), ("PT", 12)),
    PAE: (("PDPT", 30), ("PD", 21), ("PT", 12)),
    LEVELS4: (("PML4", 39), ("PDPT", 30), ("PD", 21), ("PT", 12)),
    LEVELS5: (("PML5", 48), ("PML4", 39), ("PDPT", 30), ("PD", 21), ("PT", 12)),
}
WIDTH = {LEVELS4: 48, LEVELS5: 57}  # of a linear address
PAE_POINTER_RIGHTS = WRITABLE | USER  # an entry of PAE's PDPT has none of its own, so it takes none away


class Paging:
    """What of a vCPU's registers a walk depends on, and how many bits its physical addresses have."""

    __slots__ = ("cr3", "mode", "nxe", "phys_bits", "pse")

    def __init__(self, cr0: int, cr3: int, cr4: int, efer: int, phys_bits: int = MAX_PHYS_BITS) -> None:
        self.mode = mode(cr0, cr4, efer)
        self.cr3 = cr3
        self.pse = bool(cr4 & CR4_PSE)
        self.nxe = bool(efer & EFER_NXE)
        self.phys_bits = min(max(phys_bits, 32), MAX_PHYS_BITS)

    @classmethod
    def of(cls, registers: Mapping[str, int], phys_bits: int = MAX_PHYS_BITS) -> Paging:
        """Take cr0, cr3, cr4 and efer from a dict."""
        cr0, cr3, cr4, efer = (registers.get(name, 0) for name in ("cr0", "cr3", "cr4", "efer"))
        return cls(cr0, cr3, cr4, efer, phys_bits)


class Entry:
    """One entry on the way: the `table` by its name, the physical `address` of the entry, its index and its value."""

    __slots__ = ("address", "index", "table", "value")

    def __init__(self, table: str, address: int, index: int, value: int) -> None:
        self.table = table
        self.address = address
        self.index = index
        self.value = value


class Walk:
    """Where a linear `address` leads.

    `physical`: the address, None where nothing is mapped; `fault` then says why, and `failed` names the table ("" for
    an address that no table decides). `size`: of the page; of a hole, how much surely leads nowhere by the same entry.
    `writable`, `user`, `executable`: what all entries together allow.
    """

    __slots__ = ("address", "entries", "executable", "failed", "fault", "mode", "physical", "size", "user", "writable")

    def __init__(self, address: int, mode: str) -> None:
        self.address = address
        self.mode = mode
        self.entries: list[Entry] = []
        self.physical: int | None = None
        self.fault = self.failed = ""
        self.size = 1 << PAGE_SHIFT
        self.writable = self.user = self.executable = True

    @property
    def rights(self) -> str:
        """The rights as in "rwx user" or "r-- supervisor"."""
        letters = "r" + "-w"[self.writable] + "-x"[self.executable]
        return f"{letters} {'user' if self.user else 'supervisor'}"

    def __str__(self) -> str:
        lines = [f"{self.address:#x}: {self.mode}"]
        lines += [f"  {e.table:<4} [{e.index:3}] at {e.address:#014x}: {e.value:#018x}" for e in self.entries]
        if self.physical is None:
            return "\n".join([*lines, f"  {self.fault}"])
        return "\n".join([*lines, f"  physical {self.physical:#x}, page of {self.size:#x}, {self.rights}"])


def mode(cr0: int, cr4: int, efer: int) -> str:
    """Return which paging a vCPU uses: OFF, BITS32, PAE, LEVELS4 or LEVELS5 (SDM vol. 3A section 4.1.1)."""
    if not cr0 & CR0_PG:
        return OFF
    if efer & EFER_LMA:
        return LEVELS5 if cr4 & CR4_LA57 else LEVELS4
    return PAE if cr4 & CR4_PAE else BITS32


def walk(read_physical: ReadPhysical, paging: Paging, address: int) -> Walk:
    """Follow the page tables for linear `address`; never raises for what a guest's tables hold."""
    address &= (1 << 64) - 1 if paging.mode in WIDTH else LOW_4G
    found = Walk(address, paging.mode)
    if paging.mode == OFF:
        found.physical = address
        return found
    width = WIDTH.get(paging.mode, 32)
    if paging.mode in WIDTH and address >> (width - 1) not in (0, (1 << (65 - width)) - 1):
        found.fault = f"not a canonical address of {width} bits"
        return found
    _descend(read_physical, paging, found)
    return found


def _descend(read_physical: ReadPhysical, paging: Paging, found: Walk) -> None:
    size = 4 if paging.mode == BITS32 else 8
    table = paging.cr3 & _root_mask(paging)
    for name, shift in TABLES[paging.mode]:
        bits = 10 if size == 4 else 2 if paging.mode == PAE and name == "PDPT" else 9
        index = found.address >> shift & ((1 << bits) - 1)
        found.size = 1 << shift
        value = _read(read_physical, table + index * size, size)
        if value is None:
            found.failed, found.fault = name, f"the {name} at {table:#x} is not in memory"
            return
        found.entries.append(Entry(name, table + index * size, index, value))
        large = bool(value & LARGE) and _may_be_large(paging, name)
        fault = _fault(paging, name, value, large)
        if fault:
            found.failed, found.fault = name, f"{fault} in the {name}"
            return
        _restrict(paging, found, name, value)
        if large or shift == PAGE_SHIFT:
            found.physical = _frame(paging, value, shift) | found.address & (found.size - 1)
            return
        table = value & _address_mask(paging, PAGE_SHIFT)


def _root_mask(paging: Paging) -> int:
    if paging.mode == PAE:
        return 0xFFFF_FFE0  # SDM vol. 3A table 4-7
    return 0xFFFF_F000 if paging.mode == BITS32 else _address_mask(paging, PAGE_SHIFT)


def _address_mask(paging: Paging, shift: int) -> int:
    bits = 32 if paging.mode == BITS32 else paging.phys_bits
    return (1 << bits) - (1 << shift)


def _read(read_physical: ReadPhysical, address: int, size: int) -> int | None:
    try:
        data = read_physical(address, size)
    except (LookupError, PyvcpuError):
        return None
    return int.from_bytes(data, "little") if len(data) == size else None


def _may_be_large(paging: Paging, table: str) -> bool:
    """Tell whether bit 7 of an entry in `table` says that it maps a page."""
    if paging.mode == BITS32:
        return table == "PD" and paging.pse
    return table == "PD" or (table == "PDPT" and paging.mode in WIDTH)


def _fault(paging: Paging, table: str, value: int, large: bool) -> str:
    """Return why the processor would not follow an entry: not present, or reserved bits that are set; else ""."""
    if not value & PRESENT:
        return "not present"
    if value & _reserved(paging, table, large):
        return "reserved bits are set"
    return ""


def _reserved(paging: Paging, table: str, large: bool) -> int:
    if paging.mode == BITS32:  # SDM vol. 3A table 4-4: with 4 MiB pages, bits 20:13 are address bits 39:32
        allowed = min(paging.phys_bits, 40) - 32
        return (1 << 22) - (1 << (13 + allowed)) if large else 0
    reserved = (1 << MAX_PHYS_BITS) - (1 << paging.phys_bits)
    if paging.mode == PAE:
        reserved |= (1 << 63) - (1 << MAX_PHYS_BITS)  # tables 4-8 to 4-11: bits 62:52
        if table == "PDPT":
            return reserved | NO_EXECUTE | 0b1_1110_0110
    elif table in ("PML5", "PML4"):
        reserved |= LARGE
    if not paging.nxe:
        reserved |= NO_EXECUTE
    if large:  # bit 12 is PAT, those above it up to the page's size must be 0
        reserved |= (1 << dict(TABLES[LEVELS5])[table]) - (1 << 13)
    return reserved


def _restrict(paging: Paging, found: Walk, table: str, value: int) -> None:
    """Take from the rights what an entry does not give."""
    rights = value | PAE_POINTER_RIGHTS if paging.mode == PAE and table == "PDPT" else value
    found.writable &= bool(rights & WRITABLE)
    found.user &= bool(rights & USER)
    found.executable &= not (paging.mode != BITS32 and paging.nxe and value & NO_EXECUTE)


def _frame(paging: Paging, value: int, shift: int) -> int:
    """Return the physical address of the page of 1 << `shift` bytes that an entry maps."""
    if paging.mode == BITS32 and shift > PAGE_SHIFT:  # PSE-36
        return value & 0xFFC0_0000 | (value >> 13 & 0xFF) << 32
    return value & _address_mask(paging, shift)


def spans(read_physical: ReadPhysical, paging: Paging, address: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield (physical address, size) of what `length` bytes at linear `address` are made of, up to the first hole.

    Wraps at the end of the address space, as a processor does.
    """
    while length > 0:
        found = walk(read_physical, paging, address)
        if found.physical is None:
            return
        size = min(length, found.size - (found.address & (found.size - 1)))
        yield found.physical, size
        address = found.address + size
        length -= size
