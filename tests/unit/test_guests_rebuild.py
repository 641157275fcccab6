"""Each guest's .bin is what its .S gives, and keeps to the rules that tools/build_guests.py states."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import build_guests

SOURCES = build_guests.sources()
FLAT_REAL = build_guests.Header("flat", "real", 0x1000)
BOOT_SECTOR = build_guests.Header("bootsector", "real", 0x7C00)


@pytest.fixture(scope="session")
def binutils(tool: Callable[[str], str]) -> None:
    for name in build_guests.TOOLS:
        tool(name)


def test_every_image_has_a_source() -> None:
    images = {path for folder in build_guests.FOLDERS for path in (build_guests.ROOT / folder).glob("*.bin")}
    assert images == {source.with_suffix(".bin") for source in SOURCES}
    assert len(SOURCES) > 10


@pytest.mark.usefixtures("binutils")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_rebuild_gives_the_same_guest(source: Path) -> None:
    there = source.with_suffix(".bin").read_bytes()
    assert build_guests.loaded(build_guests.build(source)) == build_guests.loaded(there)


@pytest.mark.parametrize("wide", [True, False])
def test_what_is_loaded_of_an_elf_image(wide: bool) -> None:
    """Entry, segments and notes count; where they lie in the file, section headers and empty segments do not."""
    one = elf_image(wide, entry=0x100002, code=b"\x90\xf4", gap=0)
    machine = 62 if wide else 3
    expected = (machine, 0x100002, [(0x100000, 0x200000, 5, 7, b"\x90\xf4")], [b"note"])
    assert build_guests.loaded(one) == expected
    assert build_guests.loaded(elf_image(wide, entry=0x100002, code=b"\x90\xf4", gap=13)) == expected
    assert build_guests.loaded(elf_image(wide, entry=0x100000, code=b"\x90\xf4", gap=0)) != expected
    assert build_guests.loaded(elf_image(wide, entry=0x100002, code=b"\x90\x90", gap=0)) != expected
    for size in range(4, len(one)):
        with pytest.raises(build_guests.GuestError, match="cut short"):
            build_guests.loaded(one[:size])


def elf_image(wide: bool, entry: int, code: bytes, gap: int) -> bytes:
    """Return an image of one loaded segment, one of no size and a note, with `gap` bytes before what they hold."""
    table = 64 if wide else 52
    size = 56 if wide else 32
    data_at = table + 3 * size + gap
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    layout = "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH"
    image = ident + struct.pack(layout, 2, 62 if wide else 3, 1, entry, table, gap, 0, table, size, 3, 40, gap, 0)
    for kind, offset, length, memory in (
        (1, data_at, len(code), 5),
        (1, gap, 0, 0),
        (4, data_at + len(code), 4, 4),
    ):
        place = (offset, 0x100000, 0x200000, length, memory)
        image += struct.pack("<II6Q", kind, 7, *place, 8) if wide else struct.pack("<8I", kind, *place, 7, 8)
    return image + bytes(gap) + code + b"note"


def test_flat_images_are_loaded_whole() -> None:
    assert build_guests.loaded(b"\x90\xf4") == b"\x90\xf4"


@pytest.mark.parametrize("line", [".balign 8, 0", ".p2align 3, 0xcc # gap", "# .align 8", ".long 8"])
def test_alignment_that_says_what_fills_it(tmp_path: Path, line: str) -> None:
    (tmp_path / "guest.S").write_text(f"# flat real 0x1000\n        {line}\n")
    build_guests.check_alignments(tmp_path / "guest.S")


@pytest.mark.parametrize("line", [".align 8", "\t.balign\t16 # data, 0", "gdt: .p2align 3", ".balignl 4"])
def test_alignment_that_leaves_the_gap_to_the_assembler(tmp_path: Path, line: str) -> None:
    (tmp_path / "guest.S").write_text('# flat real 0x1000\n        .include "common.inc"\n')
    (tmp_path / "common.inc").write_text(f"# data\n{line}\nhlt\n")
    with pytest.raises(build_guests.GuestError, match=r"common.inc: say what fills the gap, as in `.*, 0`"):
        build_guests.check_alignments(tmp_path / "guest.S")


@pytest.mark.parametrize(
    ("line", "header"),
    [
        ("# flat real 0x1000", FLAT_REAL),
        ("# flat protected 4096", build_guests.Header("flat", "protected", 4096)),
        ("# flat long 0x1000", build_guests.Header("flat", "long", 0x1000)),
        ("# bootsector 0x7c00", BOOT_SECTOR),
        ("# elf32 0x100000", build_guests.Header("elf", "protected", 0x100000)),
        ("# elf64 0x100000", build_guests.Header("elf", "long", 0x100000)),
    ],
)
def test_header(line: str, header: build_guests.Header) -> None:
    assert build_guests.parse_header(line) == header


@pytest.mark.parametrize(
    "line", ["", "# flat", "# flat virtual 0", "# flat real here", "# bootsector real 0", "# elf 0x100000"]
)
def test_header_refused(line: str) -> None:
    with pytest.raises(build_guests.GuestError, match="the first line must read like"):
        build_guests.parse_header(line)


@pytest.mark.parametrize(
    ("header", "image"),
    [
        (FLAT_REAL, b""),
        (FLAT_REAL, bytes(4097)),
        (BOOT_SECTOR, bytes(512)),
        (BOOT_SECTOR, bytes(511) + b"\x55\xaa"),
    ],
)
def test_image_refused(header: build_guests.Header, image: bytes) -> None:
    with pytest.raises(build_guests.GuestError, match=r"must (be|have)"):
        build_guests.check_image(header, image)


@pytest.mark.usefixtures("binutils")
@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        (".data\n.byte 1\n", "belongs in .text"),
        (".bss\n.skip 8\n", "belongs in .text"),
        ("mov %rax, %rbx\n", "as: "),  # a 64-bit register in a real-mode guest
        ("jmp nowhere\n", "nowhere"),
    ],
)
def test_source_refused(tmp_path: Path, code: str, complaint: str) -> None:
    source = tmp_path / "guest.S"
    source.write_text(f"# flat real 0x1000\n.code16\n.globl _start\n_start: hlt\n{code}")
    with pytest.raises(build_guests.GuestError, match=complaint):
        build_guests.build(source)
