"""Symbols of a guest: names to addresses, and addresses to the nearest name. From an ELF file or a System.map.

System V gABI chapter 4 (Sections, Symbol Table); System.map is nm's output: address, type, name. Files may be damaged
or hostile: what is not well formed is left out, and reading takes time and memory in proportion to the file's size.
"""

from __future__ import annotations

import struct
from bisect import bisect_right

from .errors import ImageError, PyvcpuError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable, Iterator

LONGEST_NAME = 1024  # what is longer is cut
MOST_SYMBOLS = 4_000_000
NAMES_SHARED = 4  # characters of names for each byte of the file
NESTED = 8  # symbols to look back for one that an address is in
LAST_SIZE = 4096  # how far the last symbol of a section of unknown size reaches

MAGIC = b"\x7fELF"
SHT_SYMTAB, SHT_STRTAB, SHT_DYNSYM = 2, 3, 11
SHN_UNDEF, SHN_ABS = 0, 0xFFF1
NOTYPE, OBJECT, FUNC = 0, 1, 2
WEAK, LOCAL = 2, 0
# By class: e_shoff, e_shentsize, e_shnum; sh_type, sh_addr, sh_offset, sh_size, sh_link, sh_entsize; then a symbol.
HEADERS = {1: struct.Struct("<32xI10xHH2x"), 2: struct.Struct("<40xQ10xHH2x")}
SECTIONS = {1: struct.Struct("<4xI4xIIII8xI"), 2: struct.Struct("<4xI8xQQQI12xQ")}
SYMBOLS = {1: struct.Struct("<IIIBBH"), 2: struct.Struct("<IBBHQQ")}


class SymbolError(PyvcpuError, KeyError):
    """There is no symbol of this name."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would put it in quotes


class Symbol:
    """One symbol: its `name` and `address`, the address behind it (`end`), and how well it serves to name a place."""

    __slots__ = ("address", "end", "name", "rank")

    def __init__(self, name: str, address: int, end: int, rank: int = 0) -> None:
        self.name = name
        self.address = address
        self.end = end
        self.rank = rank


class Symbols:
    """The symbols of one or more files, by name and by address.

    >>> symbols = Symbols()
    >>> symbols.add([Symbol("main", 0x1000, 0x1010), Symbol("helper", 0x1010, 0x1018)])
    >>> hex(symbols["main"]), symbols.nearest(0x1012), symbols.describe(0x1012), symbols.nearest(0x1018)
    ('0x1000', ('helper', 2), 'helper+0x2', None)
    """

    __slots__ = ("_by_name", "_places", "_starts")

    def __init__(self) -> None:
        self._by_name: dict[str, int] = {}
        self._places: list[Symbol] = []  # by address
        self._starts: list[int] = []

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> int:
        """Return the address of a symbol; SymbolError, with what may have been meant, when there is none."""
        try:
            return self._by_name[name]
        except KeyError:
            raise SymbolError(f"no symbol {name!r}{self._meant(name)}") from None

    def _meant(self, name: str) -> str:
        if len(self._by_name) > 10_000:
            return ""  # it would take seconds
        from difflib import get_close_matches

        close = get_close_matches(name, self._by_name, 1)
        return f"; did you mean {close[0]!r}?" if close else ""

    def add(self, symbols: Iterable[Symbol]) -> None:
        """Add symbols; a name that is there already keeps its address, unless its rank is lower."""
        for symbol in sorted(symbols, key=lambda symbol: -symbol.rank):
            self._by_name.setdefault(symbol.name, symbol.address)
            if symbol.rank >= 0:
                self._places.append(symbol)
        self._places.sort(key=lambda symbol: (symbol.address, symbol.rank))
        self._starts = [symbol.address for symbol in self._places]

    def nearest(self, address: int) -> tuple[str, int] | None:
        """Return the symbol that `address` is in, and how far; None when it is in none."""
        at = bisect_right(self._starts, address)
        for symbol in reversed(self._places[max(0, at - NESTED) : at]):
            if address < symbol.end:
                return symbol.name, address - symbol.address
        return None

    def describe(self, address: int) -> str:
        """Return "name", "name+0x12", or "" for an address that is in no symbol."""
        found = self.nearest(address)
        if found is None:
            return ""
        name, offset = found
        return f"{name}+{offset:#x}" if offset else name


def read(data: bytes) -> Symbols:
    """Read the symbols of an ELF file or of a System.map; raise ImageError for what is neither."""
    symbols = Symbols()
    symbols.add(from_elf(data) if data[:4] == MAGIC else from_map(data))
    return symbols


# ELF.


def from_elf(data: bytes) -> list[Symbol]:
    """Return the symbols of an ELF file; none when it is stripped. Raises ImageError when its headers are damaged."""
    kind = data[4] if len(data) > 5 else 0
    if data[:4] != MAGIC or kind not in HEADERS or data[5] != 1 or len(data) < HEADERS[kind].size:
        raise ImageError("symbols are read from little-endian ELF files; this is none, or damaged")
    sections = _sections(data, kind)
    found: list[Symbol] = []
    for wanted in (SHT_SYMTAB, SHT_DYNSYM):
        table = next((section for section in sections if section[0] == wanted), None)  # there is at most one of each
        if table is not None and not found:  # dynamic symbols are among the others
            found = list(_symbols(data, kind, table, sections))
    _set_ends(found)
    return found


def _sections(data: bytes, kind: int) -> list[tuple[int, ...]]:
    """Return (type, address, offset, size, link, entry size) of each section."""
    offset, entry_size, count = HEADERS[kind].unpack_from(data)
    form = SECTIONS[kind]
    if not offset or offset + form.size > len(data):
        return []
    if entry_size != form.size:
        raise ImageError(f"the ELF file's section headers must have {form.size} bytes, not {entry_size}")
    if not count:  # more than fit the field: the first section's size tells
        count = form.unpack_from(data, offset)[3]
    count = min(count, (len(data) - offset) // form.size)
    return list(form.iter_unpack(memoryview(data)[offset : offset + count * form.size]))


def _contents(data: bytes, section: tuple[int, ...]) -> memoryview:
    _, _, offset, size, _, _ = section
    return memoryview(data)[offset : offset + size]


def _symbols(data: bytes, kind: int, table: tuple[int, ...], sections: list[tuple[int, ...]]) -> Iterator[Symbol]:
    form, link = SYMBOLS[kind], table[4]
    if table[5] != form.size or link >= len(sections) or sections[link][0] != SHT_STRTAB:
        return
    contents, names = _contents(data, table), bytes(_contents(data, sections[link]))
    budget = NAMES_SHARED * len(data)  # names may be ends of others; hostile ones are one long name, a million times
    count = min(len(contents) // form.size, MOST_SYMBOLS)
    for fields in form.iter_unpack(contents[: count * form.size]):
        if kind == 1:
            name_at, value, size, info, _, index = fields
        else:
            name_at, info, _, index, value, size = fields
        if index == SHN_UNDEF or info & 0xF not in (NOTYPE, OBJECT, FUNC):
            continue
        name = _name(names, name_at)
        budget -= len(name)
        if budget < 0:
            return
        if name:
            yield _symbol(name, value, size, info, index, sections)


def _name(names: bytes, at: int) -> str:
    end = names.find(b"\0", at, at + LONGEST_NAME)
    return names[at : end if end >= 0 else at + LONGEST_NAME].decode("utf-8", "replace")


def _symbol(name: str, value: int, size: int, info: int, index: int, sections: list[tuple[int, ...]]) -> Symbol:
    """Make a symbol. Its rank: absolute ones name no place, and globals and those of a type or size do it best."""
    if index == SHN_ABS:
        return Symbol(name, value, value, -1)
    rank = 4 * (info & 0xF != NOTYPE) + 2 * (size > 0) + (info >> 4 not in (LOCAL, WEAK))
    end = value + size
    if not size and index < len(sections):
        section = sections[index]
        end = section[1] + section[3]
    return Symbol(name, value, end, rank)


def _set_ends(symbols: list[Symbol]) -> None:
    """Let symbols without a size reach to the next one, and none beyond its section."""
    starts = sorted({symbol.address for symbol in symbols if symbol.rank >= 0})
    for symbol in symbols:
        if symbol.rank >= 0 and not symbol.rank & 2:
            after = bisect_right(starts, symbol.address)
            following = starts[after] if after < len(starts) else symbol.address + LAST_SIZE
            symbol.end = min(following, symbol.end) if symbol.end > symbol.address else following


# System.map.


def from_map(data: bytes) -> list[Symbol]:
    """Return the symbols of a System.map or of /proc/kallsyms; raise ImageError when no line of it is a symbol."""
    found: list[Symbol] = []
    for line in _lines(data):
        fields = line.split(None, 3)
        if len(fields) < 3 or len(fields[1]) != 1 or not 1 <= len(fields[0]) <= 16:
            continue
        try:
            address = int(fields[0], 16)
        except ValueError:
            continue
        kind = fields[1]
        if kind in b"uU" or address < 0:
            continue
        name = fields[2][:LONGEST_NAME].decode("utf-8", "replace")
        rank = -1 if kind in b"aA" else 4 + (kind.isupper() and kind not in b"WV")
        found.append(Symbol(name, address, address, rank))
        if len(found) >= MOST_SYMBOLS:
            break
    if not found:
        raise ImageError("symbols are read from an ELF file, or from a System.map with lines of address, type and name")
    _set_ends(found)
    return found


def _lines(data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = end if end >= 0 else len(data)
        yield data[start : min(end, start + 2 * LONGEST_NAME)]
        start = end + 1
