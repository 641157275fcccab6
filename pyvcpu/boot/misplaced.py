"""Multiboot headers that no loader would find: whole, but at a wrong place. Loaded only when the numbers are there."""

from __future__ import annotations

import struct

from ..errors import ImageError

SEARCH = 64 << 10  # as far as elf looks, too
# version: words that add up to zero, multiple of what, within how many bytes
KINDS = {
    "Multiboot": (b"\x02\xb0\xad\x1b", struct.Struct("<3I"), 4, 8192),
    "Multiboot 2": (b"\xd6\x50\x52\xe8", struct.Struct("<4I"), 8, 32768),
}


def check(image: bytes) -> None:
    """Raise ImageError for a header where it may not be, in an image that has none where it may."""
    head = image[:SEARCH]
    for name, (magic, words, align, within) in KINDS.items():
        at = head.find(magic)
        while at >= 0 and at + words.size <= len(head):
            if sum(words.unpack_from(head, at)) & 0xFFFF_FFFF == 0:
                raise ImageError(
                    f"this ELF image has a {name} header at offset {at:#x} of the file; it must be at a multiple of"
                    f" {align}, in the first {within >> 10} KiB: give it a section of its own, with .balign {align},"
                    " linked first"
                )
            at = head.find(magic, at + 1)
