"""Multiboot 2 images (Multiboot2 Specification version 2.0, chapter 3)."""

from __future__ import annotations

from ..errors import ImageError
from ..x86.start import StartState, gdt
from .elf_image import MAGIC as ELF_MAGIC
from .layout import check_spans, place_files, place_firmware, place_info, started
from .multiboot2_header import Header, find
from .multiboot2_info import BOOT_MAGIC, GDT_SIZE, Sections, information, place_sections
from .multiboot_load import by_addresses, check_entry, from_elf
from .plan import MORE, Free, Plan, reachable

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .multiboot2_header import Relocation
    from .multiboot_load import Loaded
    from .plan import Target

MIB = 1 << 20
LOW = 1 << 32


def matches(image: bytes) -> bool:
    """Tell whether there is a Multiboot 2 header."""
    return find(image) is not None


def plan(image: bytes, target: Target) -> Plan:
    """Plan a Multiboot 2 image: 32-bit protected mode, EAX the magic number, EBX pointing to the boot information.

    The modules are the target's initrd.
    """
    header = Header(image)
    segments, used, entry = load(image, header)
    base = None
    if header.relocation:
        base, moved = _move(used, header.relocation, target)
        segments = [(address + moved, data) for address, data in segments]
        used = [(start + moved, end + moved) for start, end in used]
        entry += moved
    if entry >= LOW:
        raise ImageError(f"a Multiboot image's entry must be below 4 GiB, not {entry:#x}")
    check_spans(used, target)
    firmware, rsdp = place_firmware(target, used)
    used += [(address, address + len(data)) for address, data in firmware]
    pointer = next((bytes(data) for address, data in firmware if rsdp and address == rsdp), b"")
    files = place_files(target, used)
    sections = place_sections(image, used, target) if image.startswith(ELF_MAGIC) else Sections()
    handed = gdt().ljust(GDT_SIZE, b"\0") + information(target, files, sections, pointer, base)
    address, info = place_info(lambda _: handed, used, target)
    registers = {"rax": BOOT_MAGIC, "rbx": address + GDT_SIZE}
    start = StartState("protected", entry, gdt=address, registers=registers)
    placed = [*segments, *firmware, *files, *sections.segments, (address, info)]
    return Plan("multiboot2", placed, started(start, target), "kernel")


def load(image: bytes, header: Header) -> Loaded:
    """Load as the address tag says, or else as the ELF headers do; the entry tag counts in both cases."""
    if header.addresses is None:
        segments, used, entry = from_elf(image)
    elif header.entry is None:
        raise ImageError("the Multiboot 2 header has an address tag, and so must have an entry address tag")
    else:
        at, (in_memory, load, load_end, bss_end) = header.at, header.addresses
        if load == LOW - 1:  # from the beginning of the file
            load = in_memory - at
        segment, span = by_addresses(image, at, in_memory, load, load_end, bss_end)
        segments, used, entry = [segment], [span], header.entry
    if header.entry is not None:
        entry = header.entry
        check_entry(entry, used)
    return segments, used, entry


def _move(used: list[tuple[int, int]], wish: Relocation, target: Target) -> tuple[int, int]:
    """Return where a relocatable image begins, and how far that is from where it is linked.

    It stays there when it may, unless it wishes to be as low or as high as possible.
    """
    linked, end = min(start for start, _ in used), max(end for _, end in used)
    size, limit = end - linked, wish.highest + 1
    if wish.prefers_high:
        base = Free.below(limit, [], target).take(size, wish.align, "the relocatable image")
    elif not wish.prefers_low and wish.lowest <= linked and end <= limit and linked % wish.align == 0:
        base = linked
    else:  # above the BIOS area where that is allowed
        base = max(wish.lowest, MIB if MIB + size <= limit else 0x1000)
        base = -(-base // wish.align) * wish.align
    if base < wish.lowest or base + size > limit or not target.holds(base, size):
        hint = MORE if base + size <= limit and reachable(base, base + size) else ""
        raise ImageError(
            f"no room for the relocatable image ({size} bytes) between {wish.lowest:#x} and {wish.highest:#x}{hint}"
        )
    return base, base - linked
