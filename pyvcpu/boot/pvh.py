"""PVH: an ELF image whose note names a 32-bit entry, which is handed a description of the machine.

Sources: Xen, docs/misc/pvh.pandoc and xen/include/public/arch-x86/hvm/start_info.h, elfnote.h.
"""

from __future__ import annotations

import struct

from ..errors import ImageError
from ..x86.start import StartState, gdt
from .elf_image import Elf
from .layout import c_string, check_spans, memory_map, place_files, place_firmware, place_info, started
from .plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .plan import Segment, Target

NOTE_OWNER, PHYS32_ENTRY = b"Xen\0", 18
START_MAGIC, START_VERSION = 0x336EC578, 1
START_INFO = struct.Struct("<4I4Q2I")  # hvm_start_info
MODULE = struct.Struct("<4Q")  # hvm_modlist_entry
MEMORY_MAP_ENTRY = struct.Struct("<2Q2I")  # hvm_memmap_table_entry
GDT_SIZE = 64
LOW = 1 << 32


def find_entry(elf: Elf) -> int | None:
    """Return the physical address in XEN_ELFNOTE_PHYS32_ENTRY, None without that note."""
    value = elf.note(NOTE_OWNER, PHYS32_ENTRY)
    if value is None:
        return None
    if len(value) not in (4, 8):
        raise ImageError(f"the PVH note must hold an address of 4 or 8 bytes, not {len(value)}")
    return int.from_bytes(value, "little")


def plan(image: bytes, target: Target) -> Plan:
    """Plan an ELF image that has a PVH note, see boot()."""
    elf = Elf(image)
    entry = find_entry(elf)
    if entry is None:
        raise ImageError("a PVH image is an ELF image with the note XEN_ELFNOTE_PHYS32_ENTRY; this one has none")
    return boot(elf, entry, target)


def boot(elf: Elf, entry: int, target: Target) -> Plan:
    """Plan the boot of `elf` at `entry`: 32-bit protected mode, paging off, EBX pointing to hvm_start_info."""
    if not elf.holds(entry) or entry >= LOW:
        raise ImageError(f"the PVH entry {entry:#x} must be in one of the image's segments and below 4 GiB")
    check_spans(elf.spans, target)
    used = elf.spans
    firmware, rsdp = place_firmware(target, used)
    used += [(address, address + len(data)) for address, data in firmware]
    files = place_files(target, used)
    address, info = place_info(lambda base: _start_info(base, target, files, rsdp), used, target)
    start = StartState("protected", entry, gdt=address, registers={"rbx": address + GDT_SIZE})
    return Plan("pvh", [*elf.segments, *firmware, *files, (address, info)], started(start, target), "kernel")


def _start_info(base: int, target: Target, files: list[Segment], rsdp: int) -> bytes:
    """Return, to be put at `base`: descriptor table, hvm_start_info, memory map, module list, command lines."""
    ram = memory_map(target.ranges)
    map_at = base + GDT_SIZE + START_INFO.size
    modules_at = map_at + len(ram) * MEMORY_MAP_ENTRY.size
    strings_at = modules_at + len(files) * MODULE.size
    strings, modules = c_string(target.append), b""
    for (name, _), (address, data) in zip(target.initrd, files, strict=True):
        modules += MODULE.pack(address, len(data), strings_at + len(strings), 0)
        strings += c_string(name)
    head = START_INFO.pack(
        START_MAGIC,
        START_VERSION,
        0,  # flags
        len(files),
        modules_at if files else 0,
        strings_at,
        rsdp,
        map_at,
        len(ram),
        0,
    )
    entries = b"".join(MEMORY_MAP_ENTRY.pack(start, end - start, kind, 0) for start, end, kind in ram)
    return gdt().ljust(GDT_SIZE, b"\0") + head + entries + modules + strings
