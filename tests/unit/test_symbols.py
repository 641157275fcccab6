"""Symbols: ELF files that are built here and by the linker, System.map, and files that are damaged."""

from __future__ import annotations

import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu import symbols as s
from pyvcpu.errors import ImageError

FUNC, OBJECT, SECTION, GLOBAL = 2, 1, 3, 1 << 4
TEXT, ABS = 1, 0xFFF1
BASE, SIZE = 0x40_0000, 0x1000


def elf(bits: int, entries: list[tuple[str, int, int, int, int]], kind: int = s.SHT_SYMTAB) -> bytes:
    """Build an ELF file of a text section at BASE, and symbols: name, value, size, info, section."""
    names, table = bytearray(b"\0"), bytearray()
    for name, value, size, info, section in entries:
        if bits == 64:
            table += struct.pack("<IBBHQQ", len(names), info, 0, section, value, size)
        else:
            table += struct.pack("<IIIBBH", len(names), value, size, info, 0, section)
        names += name.encode() + b"\0"
    header_size, entry = (64, 24) if bits == 64 else (52, 16)
    sections = [
        (0, 0, 0, 0, 0, 0),
        (1, BASE, 0, SIZE, 0, 0),
        (kind, 0, header_size, len(table), 3, entry),
        (s.SHT_STRTAB, 0, header_size + len(table), len(names), 0, 0),
    ]
    form = "<II8sQQQIIQQ" if bits == 64 else "<II4sIIIIIII"
    flags = bytes(8 if bits == 64 else 4)
    headers = b"".join(struct.pack(form, 0, t, flags, a, o, z, link, 0, 0, e) for t, a, o, z, link, e in sections)
    at = header_size + len(table) + len(names)
    head = b"\x7fELF" + bytes([bits // 32, 1]) + bytes(10)
    if bits == 64:
        head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, at, 0, 64, 0, 0, 64, len(sections), 0)
    else:
        head += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0, 0, at, 0, 52, 0, 0, 40, len(sections), 0)
    return head + bytes(table) + bytes(names) + headers


ENTRIES = [
    ("main", BASE, 0x20, FUNC | GLOBAL, TEXT),
    ("helper", BASE + 0x20, 0x10, FUNC, TEXT),
    ("label", BASE + 0x40, 0, 0, TEXT),
    ("last", BASE + 0xF00, 0, GLOBAL, TEXT),
    ("constant", 0x1234, 0, 0, ABS),
    ("elsewhere", 0, 0, GLOBAL, 0),
    (".text", BASE, 0, SECTION, TEXT),
]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("kind", [s.SHT_SYMTAB, s.SHT_DYNSYM])
def test_an_elf_file(bits: int, kind: int) -> None:
    symbols = s.read(elf(bits, ENTRIES, kind))
    assert {name: symbols[name] for name in symbols} == {
        "main": BASE,
        "helper": BASE + 0x20,
        "label": BASE + 0x40,
        "last": BASE + 0xF00,
        "constant": 0x1234,
    }
    assert len(symbols) == 5
    assert "main" in symbols
    assert "elsewhere" not in symbols


PLACES = [
    (BASE - 1, None),
    (BASE, ("main", 0)),
    (BASE + 0x1F, ("main", 0x1F)),
    (BASE + 0x20, ("helper", 0)),
    (BASE + 0x30, None),  # behind its size
    (BASE + 0x40, ("label", 0)),
    (BASE + 0xEFF, ("label", 0xEBF)),  # no size: up to the next one
    (BASE + 0xFFF, ("last", 0xFF)),
    (BASE + 0x1000, None),  # the section ends
    (0x1234, None),  # a number, and no place
    ((1 << 64) - 1, None),
]


@pytest.mark.parametrize(("address", "found"), PLACES)
def test_the_nearest_symbol(address: int, found: tuple[str, int] | None) -> None:
    symbols = s.read(elf(64, ENTRIES))
    assert symbols.nearest(address) == found
    assert symbols.describe(address) == ("" if not found else f"{found[0]}+{found[1]:#x}" if found[1] else found[0])


def test_of_several_names_the_best_is_shown() -> None:
    entries = [
        ("weak", BASE, 8, FUNC | 2 << 4, TEXT),
        ("local_label", BASE, 0, 0, TEXT),
        ("global_function", BASE, 8, FUNC | GLOBAL, TEXT),
        ("zz_label", BASE, 0, GLOBAL, TEXT),
    ]
    assert s.read(elf(64, entries)).nearest(BASE + 1) == ("global_function", 1)


def test_a_symbol_within_another() -> None:
    symbols = s.Symbols()
    symbols.add([s.Symbol("outer", 0x100, 0x200), s.Symbol("inner", 0x140, 0x150)])
    assert symbols.nearest(0x14F) == ("inner", 0xF)
    assert symbols.nearest(0x150) == ("outer", 0x50)


def test_a_global_name_comes_before_a_local_one() -> None:
    symbols = s.read(elf(64, [("x", BASE, 4, FUNC, TEXT), ("x", BASE + 16, 4, FUNC | GLOBAL, TEXT)]))
    assert symbols["x"] == BASE + 16


def test_a_name_that_is_not_there() -> None:
    symbols = s.read(elf(64, ENTRIES))
    with pytest.raises(KeyError, match=r"^no symbol 'mian'; did you mean 'main'\?$"):
        symbols["mian"]
    with pytest.raises(s.SymbolError, match=r"^no symbol 'qqqqqqqq'$"):
        s.Symbols()["qqqqqqqq"]


MAP = b"""\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000000 t local_start
ffffffff81000040 t local_function
ffffffff81000100 W weak_function
ffffffff81000200 D _end
                 U undefined
nonsense
ffffffffc0000000 t in_module\t[module]
"""


def test_a_system_map() -> None:
    symbols = s.read(MAP)
    assert symbols["local_function"] == 0xFFFF_FFFF_8100_0040
    assert symbols.describe(0xFFFF_FFFF_8100_0001) == "_stext+0x1"
    assert symbols.describe(0xFFFF_FFFF_8100_00FF) == "local_function+0xbf"
    assert symbols.describe(0xFFFF_FFFF_C000_0FFF) == "in_module+0xfff"
    assert symbols.describe(0xFFFF_FFFF_C000_1000) == ""
    assert symbols["fixed_percpu_data"] == 0
    assert symbols.nearest(0) is None
    assert "undefined" not in symbols


@pytest.mark.parametrize("data", [b"", b"hello\n", b"\x7fELF", b"\x7fELF\x02\x01", b"\x7fELF\x03\x01" + bytes(60)])
def test_what_has_no_symbols(data: bytes) -> None:
    with pytest.raises(ImageError, match="symbols are read from"):
        s.read(data)


def test_section_headers_of_another_size() -> None:
    damaged = bytearray(elf(64, ENTRIES))
    damaged[58] = 63
    with pytest.raises(ImageError, match="section headers must have 64 bytes, not 63"):
        s.read(bytes(damaged))


def test_a_stripped_file_has_none() -> None:
    stripped = bytearray(elf(64, ENTRIES))
    stripped[40:48] = bytes(8)
    assert len(s.read(bytes(stripped))) == 0


@given(
    st.sampled_from([32, 64]), st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=8))), st.data()
)
def test_damaged_files_are_survived(bits: int, damage: list[tuple[int, bytes]], data: st.DataObject) -> None:
    image = bytearray(elf(bits, ENTRIES))
    for at, noise in damage:
        image[at % len(image) :][: len(noise)] = noise
        image[at % len(image) : at % len(image) + len(noise)] = noise
    cut = data.draw(st.integers(0, len(image)))
    try:
        symbols = s.read(bytes(image[:cut]))
    except ImageError:
        return
    for name in symbols:
        symbols.describe(symbols[name])
    assert len(symbols) <= len(ENTRIES) + len(image) // 16


@given(st.binary(max_size=400))
def test_noise_is_survived(noise: bytes) -> None:
    for head in (b"", s.MAGIC + b"\x01\x01", s.MAGIC + b"\x02\x01", b"0 T "):
        try:
            symbols = s.read(head + noise)
        except ImageError:
            continue
        assert all(len(name) <= s.LONGEST_NAME for name in symbols)


def test_one_long_name_a_million_times_takes_no_memory() -> None:
    """Names that overlap: without a bound 100,000 symbols of a file of 3 MB would take 100 MB."""
    entries = [("n" * 2000, BASE, 0, FUNC, TEXT)] + [("", BASE + n, 0, FUNC, TEXT) for n in range(50_000)]
    image = bytearray(elf(64, entries))
    for n in range(len(entries)):
        struct.pack_into("<I", image, 64 + 24 * n, 1 + n % 1000)
    began = time.monotonic()
    found = s.from_elf(bytes(image))
    assert sum(len(symbol.name) for symbol in found) <= 4 * len(image)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(("bits", "emulation"), [(32, "elf_i386"), (64, "elf_x86_64")])
def test_what_the_linker_makes(tmp_path: Path, bits: int, emulation: str, tool: Callable[[str], str]) -> None:
    tool("ld")
    source = tmp_path / "x.S"
    source.write_text(
        ".globl _start, counter\n.type _start, @function\n_start: nop\ninner: jmp inner\n.size _start, . - _start\n"
        ".data\ncounter: .long 0\n.set limit, 77\n",
        encoding="utf-8",
    )
    subprocess.run(["as", f"--{bits}", source, "-o", tmp_path / "x.o"], check=True)
    subprocess.run(
        ["ld", "-m", emulation, "-Ttext=0x1000", "-Tdata=0x3000", tmp_path / "x.o", "-o", tmp_path / "x"], check=True
    )
    symbols = s.read((tmp_path / "x").read_bytes())
    assert {name: symbols[name] for name in ("_start", "inner", "counter", "limit")} == {
        "_start": 0x1000,
        "inner": 0x1001,
        "counter": 0x3000,
        "limit": 77,
    }
    assert symbols.describe(0x1000) == "_start"
    assert symbols.describe(0x3003) == "counter+0x3"
