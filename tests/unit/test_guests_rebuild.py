"""Each guest's .bin is what its .S gives, and keeps to the rules that tools/build_guests.py states."""

from __future__ import annotations

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
def test_rebuild_gives_the_same_bytes(source: Path) -> None:
    assert build_guests.build(source).hex(" ") == source.with_suffix(".bin").read_bytes().hex(" ")


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
