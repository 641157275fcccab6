"""Which pages of this process there are, as /proc/self/pagemap tells (Linux, Documentation/admin-guide/mm/pagemap)."""

from __future__ import annotations

import os
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterator

PAGE = 4096
BLOCK = 512  # entries that are compared at once
AT_ONCE = 64 * BLOCK  # entries that are read at once
PRESENT_OR_SWAPPED, OF_FILE = 3 << 62, 1 << 61
# What the entries of pages look like that were never touched; the bit is "soft-dirty", set in a new mapping.
ABSENT = tuple(array("Q", [value] * BLOCK).tobytes() for value in (0, 1 << 55))


def touched(address: int, pages: int) -> Iterator[int]:
    """Yield the numbers of those of `pages` pages from `address` on that were ever touched; all where nobody tells."""
    return _pages(address, pages, PRESENT_OR_SWAPPED)


def private(address: int, pages: int) -> Iterator[int]:
    """Yield those of a private mapping of a file that are the file's no more; all where nobody tells."""
    return _pages(address, pages, PRESENT_OR_SWAPPED | OF_FILE)


def _pages(address: int, pages: int, look_at: int) -> Iterator[int]:
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield from range(pages)
        return
    try:
        for first in range(0, pages, AT_ONCE):
            count = min(AT_ONCE, pages - first)
            try:
                data = os.pread(fd, 8 * count, (address // PAGE + first) * 8)
            except OSError:
                data = b""
            if len(data) < 8 * count:
                yield from range(first, first + count)
            else:
                yield from _look(data, first, look_at)
    finally:
        os.close(fd)


def _look(data: bytes, first: int, look_at: int) -> Iterator[int]:
    for at in range(0, len(data), 8 * BLOCK):
        block = data[at : at + 8 * BLOCK]
        if block in ABSENT:
            continue
        for number, entry in enumerate(array("Q", block), first + at // 8):
            if entry & PRESENT_OR_SWAPPED and not entry & look_at & OF_FILE:
                yield number
