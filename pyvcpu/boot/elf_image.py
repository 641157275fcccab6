"""An ELF file taken apart: what lies where in physical memory, and its notes (System V gABI, chapters 4 and 5)."""

from __future__ import annotations

import struct

from ..errors import ImageError
from .plan import CutShort

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .plan import Segment, Span

MAGIC = b"\x7fELF"
LITTLE_ENDIAN = 1
ET_EXEC, ET_DYN = 2, 3
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4
# e_ident (up to the byte order), e_type, e_machine, e_entry, e_phoff, e_shoff, e_phentsize, e_phnum, e_shentsize,
# e_shnum, e_shstrndx
CLASSES = {
    1: (32, EM_386, struct.Struct("<6s10xHH4x3I6x5H"), struct.Struct("<8I")),
    2: (64, EM_X86_64, struct.Struct("<6s10xHH4x3Q6x5H"), struct.Struct("<2I6Q")),
}
NOTE = struct.Struct("<3I")  # sizes of the owner's name and of what it holds, kind
# Segments may share bytes of the file, but a small file must not be much work: so many times over at most.
SHARED = 4


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

    `kind` is its type, `dynamic` and `interpreter` the contents of such segments, empty without; `sections` the offset
    of the section headers, the size of one, their number, and the index of that of their names. The image's bytes are
    looked at in place. Raises ImageError.
    """

    __slots__ = ("bits", "dynamic", "entry", "interpreter", "kind", "loads", "notes", "sections")

    def __init__(self, image: bytes) -> None:
        self.bits, self.kind, entry, self.sections, headers = _headers(image)
        self.loads: list[Load] = []
        self.notes: list[tuple[memoryview, int]] = []  # with their alignment
        self.dynamic = self.interpreter = memoryview(b"")
        budget = {kind: SHARED * len(image) for kind in (PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE)}
        view = memoryview(image)
        for kind, offset, virtual, address, length, size, align in headers:
            if kind not in budget:
                continue
            if offset + length > len(image):
                raise CutShort(f"the ELF image is cut short: {length} bytes at {offset:#x} are beyond its end")
            budget[kind] -= length
            if budget[kind] < 0:
                raise ImageError(f"the ELF image's segments share its bytes more than {SHARED} times; it is damaged")
            data = view[offset : offset + length]
            if kind == PT_NOTE:
                self.notes.append((data, 8 if align == 8 else 4))
            elif kind == PT_DYNAMIC:
                self.dynamic = data
            elif kind == PT_INTERP:
                self.interpreter = data
            elif size:
                self._add(address, virtual, data, size)
        if not self.loads:
            raise ImageError("the ELF image has nothing to load (no PT_LOAD segment)")
        self.entry = self._physical(entry)

    def _add(self, address: int, virtual: int, data: memoryview, size: int) -> None:
        if len(data) > size:
            raise ImageError(f"an ELF segment has more bytes in the file ({len(data)}) than in memory ({size})")
        self.loads.append(Load(address, virtual, data, size))

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

    def note(self, owner: bytes, kind: int) -> bytes | None:
        """Return what the first whole note of this owner (zero at its end) and kind holds, None without such a one."""
        for data, align in self.notes:
            at = 0
            while at + NOTE.size <= len(data):
                name_size, size, note_kind = NOTE.unpack_from(data, at)
                start = at + NOTE.size + _up(name_size, align)
                if note_kind == kind and data[at + NOTE.size : at + NOTE.size + name_size] == owner:
                    value = bytes(data[start : start + size])
                    if len(value) == size:
                        return value
                at = start + _up(size, align)
        return None

    def _physical(self, entry: int) -> int:
        """Return where the entry lies: kernels give it as a physical or as a virtual address."""
        if self.holds(entry):
            return entry
        for load in self.loads:
            if load.virtual <= entry < load.virtual + load.end - load.address:
                return entry - load.virtual + load.address
        raise ImageError(f"the ELF image's entry {entry:#x} is in none of its segments")


def _up(size: int, align: int) -> int:
    return (size + align - 1) // align * align


Sections = tuple[int, int, int, int]


def _headers(image: bytes) -> tuple[int, int, int, Sections, list[tuple[int, ...]]]:
    """Return bits, type, entry, sections and the program headers: type, offset, vaddr, paddr, filesz, memsz, align."""
    if image[:4] != MAGIC:
        raise ImageError("an ELF image starts with 0x7F 'ELF'; this one does not")
    known = CLASSES.get(image[4]) if len(image) > 4 else None
    if known is None:
        raise ImageError("the ELF image is neither of the 32-bit nor of the 64-bit class; it is damaged or cut short")
    bits, wanted, header, program_header = known
    if len(image) < header.size:
        raise CutShort(f"the ELF image is cut short: {len(image)} bytes, and its header alone has {header.size}")
    ident, kind, machine, entry, offset, shoff, entry_size, count, shentsize, shnum, shstrndx = header.unpack_from(
        image
    )
    if ident[5] != LITTLE_ENDIAN or machine != wanted or kind not in (ET_EXEC, ET_DYN):
        from .elf_names import explain

        raise ImageError(explain(image, bits, {32: EM_386, 64: EM_X86_64}))
    if count and entry_size != program_header.size:
        raise ImageError(f"the ELF image's program headers must have {program_header.size} bytes, not {entry_size}")
    end = offset + count * entry_size
    if end > len(image):
        raise CutShort(f"the ELF image is cut short: its program headers end at {end:#x}")
    table = program_header.iter_unpack(memoryview(image)[offset:end])
    found: list[tuple[int, ...]]
    if bits == 32:
        found = [(t, o, v, p, f, m, a) for t, o, v, p, f, m, _, a in table]
    else:
        found = [(t, o, v, p, f, m, a) for t, _, o, v, p, f, m, a in table]
    return bits, kind, entry, (shoff, shentsize, shnum, shstrndx), found
