"""The header of a Multiboot 2 image: where it is, and what its tags ask for (specification 2.0, section 3.1)."""

from __future__ import annotations

import struct

from ..errors import ImageError

MAGIC = 0xE85250D6
MAGIC_BYTES = MAGIC.to_bytes(4, "little")
SEARCH, ALIGN = 32768, 8  # the header lies whole in the first 32 KiB
HEADER = struct.Struct("<4I")  # magic, architecture, header length, checksum
TAG = struct.Struct("<2HI")  # type, flags, size
I386, MIPS32 = 0, 4
OPTIONAL = 1 << 0

END, REQUEST, ADDRESS, ENTRY, CONSOLE, FRAMEBUFFER, MODULE_ALIGN, EFI_BS, EFI32, EFI64, RELOCATABLE = range(11)
BODIES = {ADDRESS: 16, ENTRY: 4, CONSOLE: 4, RELOCATABLE: 16}  # sizes, where they matter
# What is not here. A kernel that can do without sets the flag "optional".
MISSING = {
    FRAMEBUFFER: "a framebuffer",
    EFI_BS: "EFI boot services",
    EFI32: "an EFI entry (i386)",
    EFI64: "an EFI entry (amd64)",
}
CONSOLE_REQUIRED = 1 << 0
LAST_INFORMATION = 21  # the highest type of boot information that version 2.0 knows
LOWEST, HIGHEST = 1, 2


class Relocation:
    """Where a relocatable image may lie: bytes from `lowest` to `highest`, its start at a multiple of `align`."""

    __slots__ = ("align", "highest", "lowest", "prefers_high", "prefers_low")

    def __init__(self, lowest: int, highest: int, align: int, preference: int) -> None:
        self.lowest = lowest
        self.highest = highest
        self.align = align or 1
        self.prefers_low = preference == LOWEST
        self.prefers_high = preference == HIGHEST


def find(image: bytes) -> tuple[int, int, int] | None:
    """Return the offset, the architecture and the length of the header."""
    head = image[:SEARCH]
    at = head.find(MAGIC_BYTES)
    while at >= 0 and at + HEADER.size <= len(head):
        if at % ALIGN == 0:
            magic, architecture, length, checksum = HEADER.unpack_from(head, at)
            if (magic + architecture + length + checksum) & 0xFFFF_FFFF == 0:
                return at, architecture, length
        at = head.find(MAGIC_BYTES, at + 1)
    return None


class Header:
    """What the header at offset `at` asks for; None for what it does not. Raises ImageError.

    `addresses` are those of the header, of the load's start and end, and of the bss's end.
    """

    __slots__ = ("addresses", "at", "entry", "relocation")

    def __init__(self, image: bytes) -> None:
        found = find(image)
        if found is None:
            raise ImageError(
                "a Multiboot 2 image has, in its first 32 KiB and at a multiple of 8, the number 0xE85250D6, an"
                " architecture, a length, and a checksum that makes the sum of the four zero; this image has none"
            )
        self.at, architecture, length = found
        if architecture != I386:
            name = "MIPS" if architecture == MIPS32 else f"architecture {architecture}"
            raise ImageError(f"the Multiboot 2 image is for {name}, not for i386 (architecture 0)")
        end = self.at + length
        if length < HEADER.size or end > min(SEARCH, len(image)):
            raise ImageError(f"the Multiboot 2 header, of {length} bytes, does not end in the image's first 32 KiB")
        self.addresses: tuple[int, int, int, int] | None = None
        self.entry: int | None = None
        self.relocation: Relocation | None = None
        at = self.at + HEADER.size
        while at + TAG.size <= end:
            kind, flags, size = TAG.unpack_from(image, at)
            if kind == END:
                break
            if size < TAG.size + BODIES.get(kind, 0) or at + size > end:
                raise ImageError(f"the Multiboot 2 header is damaged: its tag of type {kind} has {size} bytes")
            self._take(kind, bool(flags & OPTIONAL), image[at + TAG.size : at + size])
            at += (size + ALIGN - 1) // ALIGN * ALIGN

    def _take(self, kind: int, optional: bool, body: bytes) -> None:
        if kind == ADDRESS:
            self.addresses = struct.unpack_from("<4I", body)
        elif kind == ENTRY:
            (self.entry,) = struct.unpack_from("<I", body)
        elif kind == RELOCATABLE:
            self.relocation = Relocation(*struct.unpack_from("<4I", body))
        elif kind == REQUEST and not optional:
            _check_request(body)
        elif kind == CONSOLE and not optional and body[0] & CONSOLE_REQUIRED:
            raise ImageError("the Multiboot 2 image requires a console of its own, and this machine has no display")
        elif kind in MISSING and not optional:
            raise ImageError(f"the Multiboot 2 image requires {MISSING[kind]}, which this machine does not have")
        elif kind > RELOCATABLE and not optional:
            raise ImageError(f"the Multiboot 2 image requires what version 2.0 does not have: a tag of type {kind}")


def _check_request(body: bytes) -> None:
    """Refuse what nobody knows. What is known and not there, such as EFI's tables, is left out of the information."""
    for (kind,) in struct.iter_unpack("<I", body[: len(body) // 4 * 4]):
        if not 0 < kind <= LAST_INFORMATION:
            raise ImageError(f"the Multiboot 2 image requests information that version 2.0 does not have: type {kind}")
