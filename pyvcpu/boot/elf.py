"""ELF images: the program headers say what lies where in physical memory (System V gABI, chapters 4 and 5)."""

from __future__ import annotations

import struct

from ..errors import ImageError
from .flat import MODES
from .layout import BIOS_AREA, check_spans, place_firmware
from .plan import Plan, Target

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from ..x86.start import StartState
    from .plan import Segment, Span

MAGIC = b"\x7fELF"
LITTLE_ENDIAN = 1
ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_NOTE = 1, 4
# e_ident (up to the byte order), e_type, e_machine, e_entry, e_phoff, e_phentsize, e_phnum
CLASSES = {
    1: (32, EM_386, struct.Struct("<6s10xHH4xII10xHH6x"), struct.Struct("<8I")),
    2: (64, EM_X86_64, struct.Struct("<6s10xHH4xQQ14xHH6x"), struct.Struct("<2I6Q")),
}


class Load:
    """One PT_LOAD: `data` at physical `address`, whose bytes up to `end` are zero; linked to run at `virtual`."""

    __slots__ = ("address", "data", "end", "virtual")

    def __init__(self, address: int, virtual: int, data: memoryview, size: int) -> None:
        self.address = address
        self.virtual = virtual
        self.data = data
        self.end = address + size


class Elf:
    """What an ELF file says: `bits` (32 or 64), physical `entry`, what to load, and the contents of its notes.

    The image's bytes are looked at in place. Raises ImageError.
    """

    __slots__ = ("bits", "entry", "loads", "notes")

    def __init__(self, image: bytes) -> None:
        self.bits, entry, headers = _headers(image)
        self.loads: list[Load] = []
        self.notes: list[tuple[memoryview, int]] = []  # with their alignment
        # No byte is loaded twice, nor read twice for notes: a small file with many headers must not be much work.
        budget = {PT_LOAD: len(image), PT_NOTE: len(image)}
        view = memoryview(image)
        for kind, offset, virtual, address, length, size, align in headers:
            if kind not in budget:
                continue
            if offset + length > len(image):
                raise ImageError(f"the ELF image is cut short: {length} bytes at {offset:#x} are beyond its end")
            budget[kind] -= length
            if budget[kind] < 0:
                raise ImageError("the ELF image's program headers overlap in the file; it is damaged")
            data = view[offset : offset + length]
            if kind == PT_NOTE:
                self.notes.append((data, 8 if align == 8 else 4))
            elif size:
                if length > size:
                    raise ImageError(f"an ELF segment has more bytes in the file ({length}) than in memory ({size})")
                self.loads.append(Load(address, virtual, data, size))
        if not self.loads:
            raise ImageError("the ELF image has nothing to load (no PT_LOAD segment)")
        self.entry = self._physical(entry)

    @property
    def spans(self) -> list[Span]:
        """What the image takes in memory, as (start, end) pairs."""
        return [(load.address, load.end) for load in self.loads]

    @property
    def segments(self) -> list[Segment]:
        """What is to be put into memory."""
        return [(load.address, load.data) for load in self.loads if load.data]

    def holds(self, address: int) -> bool:
        """Tell whether physical `address` lies in the image."""
        return any(load.address <= address < load.end for load in self.loads)

    def _physical(self, entry: int) -> int:
        """Return where the entry lies: kernels give it as a physical or as a virtual address."""
        if self.holds(entry):
            return entry
        for load in self.loads:
            if load.virtual <= entry < load.virtual + load.end - load.address:
                return entry - load.virtual + load.address
        raise ImageError(f"the ELF image's entry {entry:#x} is in none of its segments")


def _headers(image: bytes) -> tuple[int, int, list[tuple[int, ...]]]:
    """Return the bits, the entry and the program headers: type, offset, vaddr, paddr, filesz, memsz, align."""
    if image[:4] != MAGIC:
        raise ImageError("an ELF image starts with 0x7F 'ELF'; this one does not")
    known = CLASSES.get(image[4]) if len(image) > 4 else None
    if known is None:
        raise ImageError("the ELF image is neither of the 32-bit nor of the 64-bit class; it is damaged or cut short")
    bits, wanted, header, program_header = known
    if len(image) < header.size:
        raise ImageError(f"the ELF image is cut short: {len(image)} bytes, and its header alone has {header.size}")
    ident, kind, machine, entry, offset, entry_size, count = header.unpack_from(image)
    if ident[5] != LITTLE_ENDIAN or machine != wanted:
        raise ImageError(
            f"a {bits}-bit ELF image must be little-endian and for machine {wanted} (x86); this one is for {machine}"
        )
    if kind not in (ET_EXEC, ET_DYN):
        hint = "; link it first" if kind == ET_REL else ""
        raise ImageError(f"the ELF image must be an executable (type 2 or 3), not type {kind}{hint}")
    if count and entry_size != program_header.size:
        raise ImageError(f"the ELF image's program headers must have {program_header.size} bytes, not {entry_size}")
    end = offset + count * entry_size
    if end > len(image):
        raise ImageError(f"the ELF image is cut short: its program headers end at {end:#x}")
    table = program_header.iter_unpack(memoryview(image)[offset:end])
    if bits == 32:
        return bits, entry, [(t, o, v, p, f, m, a) for t, o, v, p, f, m, _, a in table]
    return bits, entry, [(t, o, v, p, f, m, a) for t, _, o, v, p, f, m, a in table]


def plan(image: bytes, target: Target) -> Plan:
    """Plan an ELF image: by its PVH note when it has one; else at its entry, with a stack of 16 KiB.

    The first vCPU starts (all with start="all"): ELF32 in protected mode with paging off, ELF64 in long mode with RAM
    and the first 4 GiB mapped to themselves; (R)DI its index, (R)SI the number of vCPUs.
    """
    from . import pvh

    elf = Elf(image)
    entry = pvh.find_entry(elf)
    if entry is not None:
        return pvh.boot(elf, entry, target)
    check_spans(elf.spans, target)
    firmware, _ = place_firmware(target, elf.spans)
    count = target.vcpus if target.start == "all" else 1
    mode = "long" if elf.bits == 64 else "protected"
    segments, starts = MODES[mode](elf.entry, [*elf.spans, BIOS_AREA], Target(target.ranges, count))
    for start in filter(None, starts):
        start.registers["rsi"] = target.vcpus
    waiting: list[StartState | None] = [None] * (target.vcpus - count)
    return Plan("elf", [*elf.segments, *firmware, *segments], starts + waiting, "kernel")
