"""Images compressed as a whole, as kernels of some distributions are: unpacked with what the standard library has.

A small file can unpack to terabytes. No more comes out here than the guest has RAM, nor than a kernel can be expected
to have for its compressed size; and nothing is unpacked whose beginning is known for something else.
"""

from __future__ import annotations

from ..errors import ImageError
from .plan import MORE, CutShort

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import Protocol

    class Decompressor(Protocol):
        """What bz2, lzma and the class below have in common."""

        @property
        def eof(self) -> bool:
            """Whether the end was reached."""

        @property
        def needs_input(self) -> bool:
            """Whether there is nothing to come out without more to go in."""

        def decompress(self, data: bytes, max_length: int = -1) -> bytes:
            """Return up to `max_length` bytes."""


GZIP, XZ, BZIP2, LZMA = b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"BZh", b"\x5d\0\0"
MAGICS = (GZIP, XZ, BZIP2, LZMA)
HEAD = 64 << 10  # enough to see what is inside: the headers of every protocol are in the first 32 KiB
PIECE = 1 << 20
RATIO, FLOOR = 64, 64 << 20  # kernels shrink to a third or a tenth; a small file may have much to say, too
DICTIONARIES = 256 << 20  # what LZMA may take for itself; `xz -9` needs 65 MiB


def is_packed(image: bytes) -> bool:
    """Tell whether the image is compressed in a way that unpack() knows."""
    return image.startswith(MAGICS) and not (image.startswith(LZMA) and not _is_lzma(image))


def _is_lzma(image: bytes) -> bool:
    """Look closer at the header without a magic number: a dictionary of 2^n or 3 * 2^n bytes, and a size or none."""
    dictionary = int.from_bytes(image[1:5], "little")
    size = int.from_bytes(image[5:13], "little")
    return len(image) > 13 and dictionary.bit_count() in (1, 2) and (size < 1 << 40 or size == (1 << 64) - 1)


class Unpacker:
    """Unpacks `image` from its beginning on. Raises ImageError when it is damaged, or unpacks to too much."""

    def __init__(self, image: bytes, memory: int) -> None:
        self._image = image
        self._memory = memory
        self._limit = min(memory, max(FLOOR, RATIO * len(image)))
        self._done = bytearray()
        self._at = 0
        self._name, self._errors, self._decompressor = _decompressor(image)

    def head(self) -> bytes:
        """Return the first bytes of what is inside."""
        self._fill(HEAD)
        return bytes(self._done[:HEAD])

    def all(self) -> bytes:
        """Return all that is inside."""
        self._fill(self._limit + 1)
        if len(self._done) > self._limit:
            more = self._limit == self._memory
            raise ImageError(
                f"the image, compressed with {self._name}, unpacks to more than"
                + (f" the guest's RAM{MORE}" if more else f" {RATIO} times its size, as no kernel does")
            )
        if not self._decompressor.eof:
            raise CutShort(f"the image, compressed with {self._name}, is cut short")
        return bytes(self._done)

    def _fill(self, wanted: int) -> None:
        decompressor = self._decompressor
        while len(self._done) < wanted and not decompressor.eof:
            piece = b""
            if decompressor.needs_input:
                piece = self._image[self._at : self._at + PIECE]
                self._at += len(piece)
                if not piece:
                    return
            try:
                self._done += decompressor.decompress(piece, min(PIECE, wanted - len(self._done)))
            except self._errors as error:
                raise ImageError(f"the image is compressed with {self._name}, and damaged ({error})") from None


def _decompressor(image: bytes) -> tuple[str, tuple[type[Exception], ...], Decompressor]:
    if image.startswith(GZIP):
        import zlib

        return "gzip", (zlib.error,), _Gzip()
    if image.startswith(BZIP2):
        import bz2

        return "bzip2", (OSError, ValueError), bz2.BZ2Decompressor()
    import lzma

    name, form = ("xz", lzma.FORMAT_XZ) if image.startswith(XZ) else ("lzma", lzma.FORMAT_ALONE)
    return name, (lzma.LZMAError, ValueError, MemoryError), lzma.LZMADecompressor(form, memlimit=DICTIONARIES)


class _Gzip:
    """A zlib decompressor with the manners of the two others."""

    def __init__(self) -> None:
        import zlib

        self._zlib = zlib.decompressobj(zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._zlib.decompress(data or self._zlib.unconsumed_tail, max_length)
