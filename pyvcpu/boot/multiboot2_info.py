"""The boot information that a Multiboot 2 image is handed (specification 2.0, section 3.6)."""

from __future__ import annotations

import struct

from ..errors import ImageError
from .elf_image import CLASSES
from .layout import MIB, c_string, memory_map
from .multiboot_load import lower_and_upper
from .plan import Free

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .plan import Segment, Span, Target

BOOT_MAGIC = 0x36D76289
GDT_SIZE = 64  # of the descriptor table that lies before the information
ALIGN = 8
LOADER = "pyvcpu"

END, COMMAND_LINE, LOADER_NAME, MODULE, BASIC_MEMORY, MEMORY_MAP = 0, 1, 2, 3, 4, 6
ELF_SECTIONS, ACPI_OLD, ACPI_NEW, LOAD_BASE = 9, 14, 15, 21
MEMORY_MAP_ENTRY = struct.Struct("<2Q2I")  # base, length, kind, reserved
OLD_RSDP_SIZE, RSDP_RSDT, RSDP_LENGTH = 20, 16, 20  # ACPI 6.4 section 5.2.5.3

# sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link, sh_info, sh_addralign, sh_entsize
SECTION_HEADERS = {32: struct.Struct("<10I"), 64: struct.Struct("<2I4Q2I2Q")}
SHT_NULL, SHT_NOBITS = 0, 8
SHF_ALLOC = 1 << 1


class Sections:
    """The section headers of an ELF image for its guest to read, and what of the image they need in memory beside.

    Without any, `count` is 0.
    """

    __slots__ = ("count", "headers", "names", "segments", "size")

    def __init__(self, headers: bytes = b"", size: int = 0, names: int = 0) -> None:
        self.headers = headers
        self.size = size
        self.count = len(headers) // size if size else 0
        self.names = names
        self.segments: list[Segment] = []


def place_sections(image: bytes, used: list[Span], target: Target) -> Sections:
    """Put what no segment loads, such as symbols and their names, into memory; add it to `used`.

    A header whose section is not in memory (there is no room, or the file is damaged) has the address 0.
    """
    bits, _, header, _ = CLASSES[image[4]]
    at, size, count, names = header.unpack_from(image)[5:6] + header.unpack_from(image)[8:]
    layout = SECTION_HEADERS[bits]
    if not at or size != layout.size or not count or at + size * count > len(image):
        return Sections()
    headers = bytearray(image[at : at + size * count])
    placed: list[Segment] = []
    budget = len(image)
    free = Free.below(1 << 32, [*used, (0, MIB)], target)
    for index in range(count):
        fields = list(layout.unpack_from(headers, index * size))
        kind, flags, address, start, length = fields[1:6]
        if kind in (SHT_NULL, SHT_NOBITS) or flags & SHF_ALLOC or address or not length:
            continue
        if start + length > len(image) or length > budget:
            continue
        try:
            fields[3] = free.take(length, 16, "a section")
        except ImageError:
            continue
        budget -= length
        used.append((fields[3], fields[3] + length))
        placed.append((fields[3], memoryview(image)[start : start + length]))
        layout.pack_into(headers, index * size, *fields)
    sections = Sections(bytes(headers), size, names)
    sections.segments = placed
    return sections


def information(target: Target, files: list[Segment], sections: Sections, rsdp: bytes, base: int | None) -> bytes:
    """Return the boot information. `rsdp`: bytes that begin with the RSDP. `base`: of a relocatable image."""
    ram = memory_map(target.ranges)
    tags = [
        _tag(COMMAND_LINE, c_string(target.named_command_line)),
        _tag(LOADER_NAME, c_string(LOADER)),
        _tag(BASIC_MEMORY, struct.pack("<2I", *lower_and_upper(ram))),
        _tag(
            MEMORY_MAP,
            struct.pack("<2I", MEMORY_MAP_ENTRY.size, 0)
            + b"".join(MEMORY_MAP_ENTRY.pack(start, end - start, kind, 0) for start, end, kind in ram),
        ),
    ]
    for (name, _), (address, data) in zip(target.initrd, files, strict=True):
        tags.append(_tag(MODULE, struct.pack("<2I", address, address + len(data)) + c_string(name)))
    if sections.count:
        counts = struct.pack("<3I", sections.count, sections.size, sections.names)
        tags.append(_tag(ELF_SECTIONS, counts + sections.headers))
    tags += _acpi(rsdp)
    if base is not None:
        tags.append(_tag(LOAD_BASE, struct.pack("<I", base)))
    tags.append(_tag(END, b""))
    body = b"".join(tags)
    return struct.pack("<2I", 8 + len(body), 0) + body


def _tag(kind: int, body: bytes) -> bytes:
    """Return a tag, padded so that the next one is aligned; its size does not count that."""
    tag = struct.pack("<2I", kind, 8 + len(body)) + body
    return tag + bytes(-len(tag) % ALIGN)


def _acpi(rsdp: bytes) -> list[bytes]:
    """Return copies of the RSDP: the first 20 bytes as version 1 has it, if there is an RSDT, and the whole of 2."""
    tags = []
    if any(rsdp[RSDP_RSDT : RSDP_RSDT + 4]):
        tags.append(_tag(ACPI_OLD, rsdp[:OLD_RSDP_SIZE]))
    if len(rsdp) > RSDP_LENGTH + 4 and rsdp[15] >= 2:
        tags.append(_tag(ACPI_NEW, rsdp[: int.from_bytes(rsdp[RSDP_LENGTH : RSDP_LENGTH + 4], "little")]))
    return tags
