"""What firmware leaves in CMOS RAM: memory sizes, drives, the number of processors. A pure function.

Sources: Ralf Brown's CMOS memory map; what SeaBIOS reads on QEMU (0x34, 0x35, 0x5B to 0x5D, 0x5F).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable, Sequence

FLOPPY_TYPES, EQUIPMENT, BASE_KIB, EXTENDED_KIB, CHECKSUM, EXTENDED_KIB_AGAIN = 0x10, 0x14, 0x15, 0x17, 0x2E, 0x30
ABOVE_16M, ABOVE_4G, PROCESSORS = 0x34, 0x5B, 0x5F
SUMMED = range(0x10, 0x2E)
KIB, MIB, FOUR_GIB, UNIT = 1 << 10, 1 << 20, 1 << 32, 1 << 16
# Sizes of floppies in KiB, and the type that the setup would have been told.
KINDS = {160: 1, 180: 1, 320: 1, 360: 1, 1200: 2, 720: 3, 1440: 4, 2880: 5}


def contents(ranges: Sequence[tuple[int, int, int]], drives: Iterable[int], processors: int) -> dict[int, int]:
    """Return register: value, for memory of these (start, end, ...), drives of these sizes, so many processors.

    >>> {hex(register): value for register, value in contents([(0, 64 << 20, 0)], [], 1).items() if value}
    {'0x14': 34, '0x15': 128, '0x16': 2, '0x18': 252, '0x31': 252, '0x35': 3, '0x2e': 1, '0x2f': 160}
    """
    low = ranges[0][1]
    high = sum(end - start for start, end, _ in ranges if start >= FOUR_GIB)
    kinds = [KINDS[size >> 10] for size in drives if size % KIB == 0 and size >> 10 in KINDS][:2]
    first, second = [*kinds, 0, 0][:2]
    extended = min(max(low - MIB, 0) // KIB, 0xFFFF)
    found = {
        FLOPPY_TYPES: first << 4 | second,
        EQUIPMENT: (1 | (len(kinds) - 1) << 6 if kinds else 0) | 1 << 1 | 2 << 4,
        PROCESSORS: min(processors - 1, 0xFF),
    }
    for register, value, size in (
        (BASE_KIB, min(low // KIB, 640), 2),
        (EXTENDED_KIB, extended, 2),
        (EXTENDED_KIB_AGAIN, extended, 2),
        (ABOVE_16M, min(max(low - 16 * MIB, 0) // UNIT, 0xFFFF), 2),
        (ABOVE_4G, min(high // UNIT, 0xFF_FFFF), 3),
    ):
        found |= {register + at: value >> 8 * at & 0xFF for at in range(size)}
    checksum = sum(found.get(register, 0) for register in SUMMED)
    return found | {CHECKSUM: checksum >> 8, CHECKSUM + 1: checksum & 0xFF}
