"""The file of a snapshot: a header, the metadata, and the pages of memory. docs/snapshots.md describes it.

0             the header, 4096 bytes, of which 56 are used
4096          the metadata: a dict as codec.py writes it
a multiple    the pages, for mapping; a page of zeros is a hole in the file
of 4096
"""

from __future__ import annotations

from binascii import crc32
from struct import Struct

from .plain import SnapshotError

MAGIC = b"\x89pyvcpu snapshot"
VERSION = 1
PAGE = HEADER_SIZE = 4096
CHUNK = 1 << 20  # bytes of memory that a checksum is for
# magic, version, flags (0), length and checksum of the metadata, where the memory is, its bytes; the checksum of these
_FIELDS = Struct("<16sIIQIIQQ")
_SUM = Struct("<I")
MOST_METADATA = 1 << 30


class Layout:
    """Where the parts lie, in bytes from the start of the file."""

    __slots__ = ("end", "memory")

    def __init__(self, memory: int, end: int) -> None:
        self.memory = memory
        self.end = end


def layout(metadata: int, memory: int) -> Layout:
    """Return where memory is behind so many bytes of metadata, and where the file ends."""
    start = HEADER_SIZE + -(-metadata // PAGE) * PAGE
    return Layout(start, start + memory)


class Header:
    """What the first bytes say."""

    __slots__ = ("layout", "metadata", "metadata_sum")

    def __init__(self, layout: Layout, metadata: int, metadata_sum: int) -> None:
        self.layout = layout
        self.metadata = metadata
        self.metadata_sum = metadata_sum

    def pack(self) -> bytes:
        """Return the header's page."""
        place = self.layout
        fields = _FIELDS.pack(
            MAGIC, VERSION, 0, self.metadata, self.metadata_sum, 0, place.memory, place.end - place.memory
        )
        return (fields + _SUM.pack(crc32(fields))).ljust(HEADER_SIZE, b"\0")

    @classmethod
    def unpack(cls, data: bytes, size: int) -> Header:
        """Read it, from a file of `size` bytes. Raise SnapshotError, which says what is wrong."""
        if data[: len(MAGIC)] != MAGIC:
            raise SnapshotError("it is no snapshot" if data else "it is empty")
        if len(data) < HEADER_SIZE:
            raise SnapshotError("it is cut short: not even the header is whole")
        _, version, flags, metadata, metadata_sum, reserved, memory, length = _FIELDS.unpack_from(data)
        if version != VERSION:
            newer = "; a newer version of this program wrote it" if version > VERSION else ""
            raise SnapshotError(f"its format is version {version}, and this program knows {VERSION}{newer}")
        (wanted,) = _SUM.unpack_from(data, _FIELDS.size)
        if crc32(data[: _FIELDS.size]) != wanted or any(data[_FIELDS.size + _SUM.size :]):
            raise SnapshotError("it is damaged: the header does not have its checksum")
        if flags or reserved or metadata > MOST_METADATA or memory != layout(metadata, 0).memory or length % PAGE:
            raise SnapshotError("its header contradicts itself")
        if size != memory + length:
            what = "is cut short" if size < memory + length else "has something behind its end"
            raise SnapshotError(f"it {what}: it must have {memory + length} bytes, and has {size}")
        return cls(Layout(memory, size), metadata, metadata_sum)
