"""The page walk: tables that hypothesis builds are walked, and what they were built for is found."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pyvcpu.x86 import walk as w
from pyvcpu.x86.paging import identity_map

PG, PSE, CR4_PAE, LA57, LMA, NXE = 1 << 31, 1 << 4, 1 << 5, 1 << 12, 1 << 10, 1 << 11
CR0 = PG | 1
REGISTERS = {
    w.BITS32: (PSE, 0),
    w.PAE: (CR4_PAE, NXE),
    w.LEVELS4: (CR4_PAE, LMA | NXE),
    w.LEVELS5: (CR4_PAE | LA57, LMA | NXE),
}
LARGE_TABLES = {w.BITS32: {"PD"}, w.PAE: {"PD"}, w.LEVELS4: {"PD", "PDPT"}, w.LEVELS5: {"PD", "PDPT"}}
ROOT = 0x5000


class Memory:
    """Physical memory with nothing but table entries; other addresses do not exist."""

    def __init__(self) -> None:
        self.entries: dict[int, bytes] = {}

    def put(self, address: int, value: int, size: int) -> None:
        self.entries[address] = value.to_bytes(size, "little")

    def read(self, address: int, size: int) -> bytes:
        return self.entries[address]  # KeyError is a LookupError


def paging(mode: str, phys_bits: int = 52) -> w.Paging:
    cr4, efer = REGISTERS[mode]
    return w.Paging(CR0, ROOT, cr4, efer, phys_bits)


def canonical(mode: str, low: int) -> int:
    width = w.WIDTH.get(mode, 32)
    low &= (1 << width) - 1
    return low | ((1 << 64) - (1 << width) if mode in w.WIDTH and low >> (width - 1) else 0)


@st.composite
def mappings(draw: st.DrawFn) -> tuple[str, Memory, int, int, int, tuple[bool, bool, bool]]:
    """Build the tables for one linear address: mode, memory, the address, what it maps to, page size, (w, u, x)."""
    mode = draw(st.sampled_from(sorted(REGISTERS)))
    address = canonical(mode, draw(st.integers(0, (1 << 57) - 1)))
    memory, size = Memory(), 4 if mode == w.BITS32 else 8
    table, rights = ROOT, [True, True, True]
    for name, shift in w.TABLES[mode]:
        last = shift == 12 or (name in LARGE_TABLES[mode] and draw(st.booleans()))
        bits = (32 if not (last and shift == 22) else 40) if mode == w.BITS32 else 52
        target = draw(st.integers(0, (1 << bits) - 1)) >> (shift if last else 12) << (shift if last else 12)
        value = target | 1 | (1 << 7 if last and shift > 12 else 0)
        if mode == w.BITS32 and last and shift == 22:
            value = value & 0xFFFF_FFFF | (target >> 32) << 13
        if not (mode == w.PAE and name == "PDPT"):
            writable, user = draw(st.booleans()), draw(st.booleans())
            value |= writable << 1 | user << 2
            rights[0] &= writable
            rights[1] &= user
            if mode != w.BITS32 and draw(st.booleans()):
                value |= 1 << 63
                rights[2] = False
        count = 4 if mode == w.PAE and name == "PDPT" else 4096 // size
        place = table + (address >> shift) % count * size
        assume(place not in memory.entries)  # a table that is its own has one entry do for two
        memory.put(place, value, size)
        if last:
            offset = address % (1 << shift)
            return mode, memory, address, target + offset, 1 << shift, (rights[0], rights[1], rights[2])
        table = target
    raise AssertionError("the last table ends it")


@given(mappings())
def test_what_was_built_is_found(built: tuple[str, Memory, int, int, int, tuple[bool, bool, bool]]) -> None:
    mode, memory, address, physical, size, rights = built
    found = w.walk(memory.read, paging(mode), address)
    assert (found.physical, found.size, found.fault, found.mode) == (physical, size, "", mode)
    assert (found.writable, found.user, found.executable) == rights
    assert [entry.address for entry in found.entries] == list(memory.entries)


@given(mappings(), st.data())
def test_a_missing_entry_is_named(
    built: tuple[str, Memory, int, int, int, tuple[bool, bool, bool]], data: st.DataObject
) -> None:
    mode, memory, address, _, _, _ = built
    places = list(memory.entries)
    depth = data.draw(st.integers(0, len(places) - 1))
    size = len(memory.entries[places[depth]])
    value = int.from_bytes(memory.entries[places[depth]], "little")
    memory.put(places[depth], value & ~1, size)
    found = w.walk(memory.read, paging(mode), address)
    name, shift = w.TABLES[mode][depth]
    assert (found.physical, found.failed, found.size) == (None, name, 1 << shift)
    assert found.fault == f"not present in the {name}"


@given(st.sampled_from(sorted(REGISTERS)), st.binary(max_size=64), st.integers(0, (1 << 64) - 1))
def test_no_table_makes_it_raise(mode: str, noise: bytes, address: int) -> None:
    def read(where: int, size: int) -> bytes:
        start = where % (len(noise) + 1)
        return noise[start : start + size]

    found = w.walk(read, paging(mode), address)
    assert (found.physical is None) == bool(found.fault)
    assert len(found.entries) <= 5
    assert str(found).startswith("0x")


@given(st.integers(0, (1 << 30) - 1))
def test_the_tables_of_our_own_loader(address: int) -> None:
    tables = identity_map(ROOT, 1)

    def read(where: int, size: int) -> bytes:
        return tables[where - ROOT :][:size]

    found = w.walk(read, paging(w.LEVELS4), address)
    assert (found.physical, found.size, found.rights) == (address, 2 << 20, "rwx supervisor")
    assert [entry.table for entry in found.entries] == ["PML4", "PDPT", "PD"]


def test_paging_off_is_the_address_itself_below_4_gib() -> None:
    found = w.walk(Memory().read, w.Paging(1, 0, 0, 0), 0x1_2345_6789)
    assert (found.physical, found.mode, found.entries) == (0x2345_6789, w.OFF, [])


@pytest.mark.parametrize(("mode", "bad"), [(w.LEVELS4, 1 << 47), (w.LEVELS5, 1 << 56)])
def test_an_address_that_is_not_canonical(mode: str, bad: int) -> None:
    found = w.walk(Memory().read, paging(mode), bad)
    assert (found.physical, found.failed, found.fault) == (None, "", f"not a canonical address of {w.WIDTH[mode]} bits")
    assert w.walk(Memory().read, paging(mode), bad - 1).fault.endswith("is not in memory")


RESERVED = [
    (w.BITS32, 0, 1 << 7 | 1 << 21, 52, "PD"),
    (w.BITS32, 0, 1 << 7 | 1 << 17, 36, "PD"),
    (w.PAE, 0, 1 << 1, 52, "PDPT"),
    (w.PAE, 0, 1 << 63, 52, "PDPT"),
    (w.PAE, 1, 1 << 7 | 1 << 13, 52, "PD"),
    (w.PAE, 1, 1 << 52, 52, "PD"),
    (w.LEVELS4, 0, 1 << 7, 52, "PML4"),
    (w.LEVELS4, 1, 1 << 7 | 1 << 29, 52, "PDPT"),
    (w.LEVELS4, 2, 1 << 7 | 1 << 20, 52, "PD"),
    (w.LEVELS4, 3, 1 << 40, 40, "PT"),
    (w.LEVELS5, 0, 1 << 7, 52, "PML5"),
]


@pytest.mark.parametrize(("mode", "depth", "bits", "phys_bits", "table"), RESERVED)
def test_reserved_bits_are_refused(mode: str, depth: int, bits: int, phys_bits: int, table: str) -> None:
    memory, size = Memory(), 4 if mode == w.BITS32 else 8
    for level in range(depth + 1):
        memory.put(ROOT + level * 4096, ROOT + (level + 1) * 4096 | 1 | (bits if level == depth else 0), size)
    found = w.walk(memory.read, w.Paging(CR0, ROOT, *REGISTERS[mode], phys_bits), 0)
    assert (found.physical, found.failed, found.fault) == (None, table, f"reserved bits are set in the {table}")


def test_no_execute_is_reserved_without_nxe() -> None:
    memory = Memory()
    memory.put(ROOT, ROOT | 1 | 1 << 63, 8)
    assert w.walk(memory.read, w.Paging(CR0, ROOT, CR4_PAE, LMA), 0).fault == "reserved bits are set in the PML4"


def test_bit_7_means_nothing_without_pse() -> None:
    memory = Memory()
    memory.put(ROOT, 0x6000 | 1 << 7 | 1, 4)
    memory.put(0x6000, 0x9000 | 1, 4)
    assert w.walk(memory.read, w.Paging(CR0, ROOT, 0, 0), 0x123).physical == 0x9123


def test_the_low_bits_of_cr3_are_no_address() -> None:
    memory = Memory()
    memory.put(ROOT, 0, 8)
    assert w.walk(memory.read, w.Paging(CR0, ROOT | 0x801, CR4_PAE, LMA), 0).entries[0].address == ROOT
    memory.put(0x5020, 0, 8)
    assert w.walk(memory.read, w.Paging(CR0, 0x503F, CR4_PAE, 0), 0).entries[0].address == 0x5020


def test_the_text_of_a_walk() -> None:
    memory = Memory()
    memory.put(ROOT, 0x6007, 4)
    memory.put(0x6004, 0x9001, 4)
    assert str(w.walk(memory.read, w.Paging(CR0, ROOT, 0, 0), 0x1234)).splitlines() == [
        "0x1234: 32-bit",
        "  PD   [  0] at 0x000000005000: 0x0000000000006007",
        "  PT   [  1] at 0x000000006004: 0x0000000000009001",
        "  physical 0x9234, page of 0x1000, r-x supervisor",
    ]
    assert str(w.walk(memory.read, w.Paging(CR0, ROOT, 0, 0), 0x80_0000)).splitlines()[-1] == (
        "  the PD at 0x5000 is not in memory"
    )


def test_spans_follow_the_pages_up_to_a_hole() -> None:
    memory = Memory()
    memory.put(ROOT, 0x6001, 4)
    for index, value in enumerate((0x9001, 0x3001, 0)):
        memory.put(0x6000 + 4 * index, value, 4)
    off = w.Paging(CR0, ROOT, 0, 0)
    assert list(w.spans(memory.read, off, 0xFFE, 0x3000)) == [(0x9FFE, 2), (0x3000, 0x1000)]
    assert list(w.spans(memory.read, off, 0x2000, 1)) == []
    assert list(w.spans(memory.read, w.Paging(1, 0, 0, 0), 0xFFFF_FFFF, 2)) == [(0xFFFF_FFFF, 1), (0, 1)]
