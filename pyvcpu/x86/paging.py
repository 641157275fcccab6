"""Identity-mapped page tables for long mode (SDM vol. 3A section 4.5)."""

from __future__ import annotations

import struct

PAGE = 4096
GIB = 1 << 30
LARGE_PAGE = 2 << 20
PRESENT_WRITABLE, LARGE = 0b11, 1 << 7  # PTE.P | PTE.RW, PTE.PS
MAX_GIB = 512  # what one page-directory-pointer table maps


def table_pages(gibibytes: int) -> int:
    """Return how many pages identity_map() of so many GiB takes."""
    return 2 + gibibytes


def identity_map(base: int, gibibytes: int) -> bytes:
    """Return tables, to be put at guest physical `base`, that map the first `gibibytes` GiB to themselves.

    `base` is what CR3 gets. 2 MiB pages, because not every processor has larger ones; writable and executable.
    """
    if not 1 <= gibibytes <= MAX_GIB:
        raise ValueError(f"between 1 and {MAX_GIB} GiB can be mapped, not {gibibytes}")
    directories = base + 2 * PAGE
    top = _table([base + PAGE | PRESENT_WRITABLE])
    pointers = _table([directories + i * PAGE | PRESENT_WRITABLE for i in range(gibibytes)])
    entries = range(LARGE | PRESENT_WRITABLE, gibibytes * GIB, LARGE_PAGE)
    return top + pointers + struct.pack(f"<{gibibytes * 512}Q", *entries)


def _table(entries: list[int]) -> bytes:
    return struct.pack(f"<{len(entries)}Q", *entries).ljust(PAGE, b"\0")
