"""Assemble the guest programs: each *.S of the examples and the tests into the *.bin beside it.

The first line of a source gives its format, the mode it starts in and the address it is linked at:
`# flat real 0x1000` (or `protected`, or `long`), `# bootsector 0x7c00`, or `# elf32 0x100000` (or `elf64`). A Multiboot
or PVH guest is an ELF image that has the header in it. Needs GNU as, ld and objcopy.

Any version of them gives a guest the same code at the same addresses. What an alignment fills in would differ, so a
source must say it. How an ELF file is laid out differs, too: images are compared by what a loader sees of them.

    python tools/build_guests.py            # build them all
    python tools/build_guests.py --check    # build them elsewhere, compare, write nothing
"""

from __future__ import annotations

import argparse
import contextlib
import re
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("examples/images", "tests/guests")
TOOLS = ("as", "ld", "objcopy")
PAGE_SIZE = 4096
SECTOR_SIZE = 512

# One section at one address: everything lies in the source's order, and nothing is left out in silence.
LINKER_SCRIPT = """
SECTIONS {{
    .text {address:#x} : {{ *(.text) }}
    .data : {{ *(.data) }}
    .bss : {{ *(.bss) }}
    /DISCARD/ : {{ *(.note*) }}
}}
ASSERT(SIZEOF(.data) + SIZEOF(.bss) == 0, "everything in a guest belongs in .text")
"""

# ELF images keep their notes, and may have memory that is zero.
ELF_SCRIPT = """
SECTIONS {{
    .text {address:#x} : {{ *(.text) }}
    .note ALIGN(4) : {{ *(.note*) }}
    .data : {{ *(.data) }}
    .bss : {{ *(.bss) }}
}}
ASSERT(SIZEOF(.data) == 0, "everything in a guest belongs in .text, and zeros in .bss")
"""
ALIGNMENT = re.compile(r"^\s*(?:\w+:\s*)?\.(?:align|balign|p2align)[wl]?\s+[^,#\n]*(?:#.*)?$", re.MULTILINE)
INCLUDE = re.compile(r'^\s*\.include\s+"([^"]+)"', re.MULTILINE)
PT_LOAD, PT_NOTE = 1, 4
ELF_OPTIONS = ("-n", "-s", "-z", "noexecstack", "-z", "max-page-size=16", "--no-warn-rwx-segments")


class GuestError(Exception):
    """A source that cannot be built, in words for the user."""


@dataclass(frozen=True)
class Header:
    """What the first line of a source says."""

    format: str  # "flat", "bootsector" or "elf"
    mode: str  # "real", "protected" or "long"
    address: int  # where it is linked and loaded

    @property
    def bits(self) -> int:
        """Return 64 for long mode, else 32: for as, 16-bit code is 32-bit code after `.code16`."""
        return 64 if self.mode == "long" else 32


def sources(root: Path = ROOT) -> list[Path]:
    """Return every guest source below `root`, in a fixed order."""
    return sorted(path for folder in FOLDERS for path in (root / folder).glob("*.S"))


def parse_header(line: str) -> Header:
    """Read a source's first line; raises GuestError when it is not one of the forms."""
    with contextlib.suppress(ValueError):
        match line.removeprefix("#").split():
            case ["flat", ("real" | "protected" | "long") as mode, address]:
                return Header("flat", mode, int(address, 0))
            case ["bootsector", address]:
                return Header("bootsector", "real", int(address, 0))
            case ["elf32", address]:
                return Header("elf", "protected", int(address, 0))
            case ["elf64", address]:
                return Header("elf", "long", int(address, 0))
    raise GuestError(f"the first line must read like '# flat real 0x1000', not {line!r}")


def check_alignments(source: Path) -> None:
    """Raise GuestError when an alignment of `source`, or of what it includes, leaves what fills the gap to `as`."""
    text = source.read_text(encoding="utf-8")
    if found := ALIGNMENT.search(text):
        wanted = found[0].split("#")[0].strip()
        raise GuestError(f"{source.name}: say what fills the gap, as in `{wanted}, 0`: versions of as differ in it")
    for name in INCLUDE.findall(text):
        check_alignments(source.parent / name)


def loaded(image: bytes) -> object:
    """Return what a loader sees of `image`: of ELF the entry, the segments and the notes, else every byte.

    Raises GuestError when an ELF image is cut short.
    """
    if image[:4] != b"\x7fELF":
        return image
    wide = image[4:5] == b"\x02"
    # e_machine, e_entry, e_phoff, e_phnum (elf(5))
    header = struct.Struct("<18xH4xQQ16xH" if wide else "<18xH4xII12xH")
    # p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz; the narrow form has p_flags behind p_memsz
    entry = struct.Struct("<IIQQQQQQ" if wide else "<IIIIIIII")
    try:
        machine, start, table, count = header.unpack_from(image)
        rows = [entry.unpack_from(image, table + number * entry.size) for number in range(count)]
    except struct.error:
        raise GuestError("an ELF image is cut short") from None
    segments, notes = [], []
    for row in rows:
        kind, flags, offset, virtual, physical, size, memory, _ = row if wide else (row[0], row[6], *row[1:6], row[7])
        data = image[offset : offset + size]
        if len(data) != size:
            raise GuestError("an ELF image is cut short")
        if kind == PT_LOAD and memory:
            segments.append((virtual, physical, memory, flags, data))
        elif kind == PT_NOTE:
            notes.append(data)
    return machine, start, sorted(segments), sorted(notes)


def check_image(header: Header, image: bytes) -> None:
    """Raise GuestError when `image` does not fit its format."""
    if header.format == "bootsector" and (len(image) != SECTOR_SIZE or image[-2:] != b"\x55\xaa"):
        found = f"{len(image)} and {image[-2:].hex(' ')}"
        raise GuestError(f"a boot sector must be 512 bytes and end with 55 aa, not {found}")
    if not 0 < len(image) <= PAGE_SIZE:
        raise GuestError(f"a guest must have 1 to {PAGE_SIZE} bytes, not {len(image)}")


def run(*command: str) -> None:
    """Run one tool; raises GuestError with what it said when it fails or warns."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or done.stderr:
        raise GuestError(f"{command[0]}: {done.stderr.strip() or f'status {done.returncode}'}")


def build(source: Path) -> bytes:
    """Return the image of one source. What is `loaded` of it is the same on every machine."""
    with source.open(encoding="utf-8") as file:
        header = parse_header(file.readline().rstrip("\n"))
    check_alignments(source)
    with tempfile.TemporaryDirectory() as folder:
        script, assembled, linked, flat = (f"{folder}/guest.{end}" for end in ("ld", "o", "elf", "bin"))
        text, options = (ELF_SCRIPT, ELF_OPTIONS) if header.format == "elf" else (LINKER_SCRIPT, ())
        Path(script).write_text(text.format(address=header.address), encoding="utf-8")
        include = f"-I{source.parent}"
        run("as", f"--{header.bits}", "--fatal-warnings", include, "-o", assembled, str(source))
        machine = "elf_x86_64" if header.bits == 64 else "elf_i386"
        run("ld", "-m", machine, "-e", "_start", "--build-id=none", *options, "-T", script, "-o", linked, assembled)
        if header.format == "elf":
            flat = linked
        else:
            run("objcopy", "-O", "binary", linked, flat)
        image = Path(flat).read_bytes()
    check_image(header, image)
    return image


def main(arguments: list[str] | None = None) -> int:
    """Build or check every guest; returns 1 when one fails or differs."""
    parser = argparse.ArgumentParser(description="Assemble the guest programs.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a .bin differs")
    check = parser.parse_args(arguments).check
    status = 0
    for source in sources():
        target, name = source.with_suffix(".bin"), source.relative_to(ROOT)
        try:
            image = build(source)
        except (GuestError, FileNotFoundError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 1
            continue
        if target.exists() and loaded(target.read_bytes()) == loaded(image):
            continue
        if check:
            print(f"{name}: {target.name} is not what the source gives; run `make guests`", file=sys.stderr)
            status = 1
        else:
            target.write_bytes(image)
            print(f"{name}: {len(image)} bytes")
    return status


if __name__ == "__main__":
    sys.exit(main())
