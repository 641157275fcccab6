"""Cache leaves for processors whose host does not describe its caches in the leaf that the guest will ask.

The sizes are those of QEMU's generic processors: 32 KiB of level 1 for data and for instructions, 512 KiB of level 2,
16 MiB of level 3, lines of 64 bytes. Who shares them is the topology's business (cpuid.share_caches).
"""

from __future__ import annotations

from .cpuid import AMD_CACHES, CACHES, EAX, ECX, EDX, MAX_BASIC, MAX_EXTENDED, Leaves

LINE = 64
DATA, INSTRUCTION, UNIFIED = 1, 2, 3
SELF_INITIALIZING = 1 << 8
INCLUSIVE = 1 << 1
KIB = 1 << 10

LEAF_2_SEE_LEAF_4 = 0x00FF_FF01  # descriptor 0xFF: ask leaf 4 (SDM vol. 2A, CPUID table 3-12)
AMD_L1, AMD_L2_L3 = 0x8000_0005, 0x8000_0006
# Codes of leaf 0x80000006 for an associativity in ways (APM vol. 3, appendix E.4.5).
WAYS_CODE = {1: 1, 2: 2, 4: 4, 8: 6, 16: 8}


class Cache:
    """One cache: `kind` DATA, INSTRUCTION or UNIFIED, `level`, `size` in bytes, `ways`."""

    __slots__ = ("flags", "kind", "level", "size", "ways")

    def __init__(self, kind: int, level: int, size: int, ways: int, flags: int = 0) -> None:
        self.kind = kind
        self.level = level
        self.size = size
        self.ways = ways
        self.flags = flags

    @property
    def registers(self) -> list[int]:
        """The subleaf of leaf 4, whose form 0x8000001D has too, without who shares it."""
        sets = self.size // (LINE * self.ways)
        return [
            self.kind | self.level << 5 | SELF_INITIALIZING,
            (LINE - 1) | (self.ways - 1) << 22,
            sets - 1,
            self.flags,
        ]


GENERIC = (
    Cache(DATA, 1, 32 * KIB, 8),
    Cache(INSTRUCTION, 1, 32 * KIB, 8),
    Cache(UNIFIED, 2, 512 * KIB, 8),
    Cache(UNIFIED, 3, 16384 * KIB, 16, INCLUSIVE),
)


def describe(leaves: Leaves, leaf: int, caches: tuple[Cache, ...] = GENERIC) -> None:
    """Write `caches` into `leaf`, a subleaf each, and an empty one behind them."""
    leaves.drop(leaf)
    leaves.indexed.add(leaf)
    for number, cache in enumerate(caches):
        leaves.entries[leaf, number] = cache.registers
    leaves.entries[leaf, len(caches)] = [0, 0, 0, 0]


def set_generic_caches(leaves: Leaves) -> None:
    """Describe the generic caches in all the ways that the vendor has."""
    l1_data, _, l2, l3 = GENERIC
    if leaves.is_amd:
        describe(leaves, AMD_CACHES)
        level1 = l1_data.size // KIB << 24 | l1_data.ways << 16 | 1 << 8 | LINE
        tlb = 0xFF << 24 | 0x20 << 16 | 0xFF << 8 | 0x20
        leaves.entries[AMD_L1, 0] = [tlb, tlb, level1, level1]
        third = l3.size // (512 * KIB) << 18 | WAYS_CODE[l3.ways] << 12 | 1 << 8 | LINE
    elif leaves.read(MAX_BASIC, EAX) >= CACHES:
        leaves.entries[0x2, 0] = [LEAF_2_SEE_LEAF_4, 0, 0, 0]
        describe(leaves, CACHES)
        third = 0
    else:
        return
    if leaves.read(MAX_EXTENDED, EAX) >= AMD_L2_L3:
        second = l2.size // KIB << 16 | WAYS_CODE[l2.ways] << 12 | 1 << 8 | LINE
        leaves.entries[AMD_L2_L3, 0] = [0, 0, second, third]


def complete_amd_caches(leaves: Leaves) -> None:
    """Fill leaf 0x8000001D, where the host has none, from the older leaves 0x80000005 and 0x80000006."""
    if leaves.read(AMD_CACHES, EAX) & 0x1F:
        return
    level1, level2 = leaves.entries.get((AMD_L1, 0)), leaves.entries.get((AMD_L2_L3, 0))
    caches = []
    if level1:
        for kind, register in ((DATA, ECX), (INSTRUCTION, EDX)):
            caches.append(_cache(kind, 1, level1[register] >> 24, level1[register] >> 16 & 0xFF))
    if level2:
        ways = {code: ways for ways, code in WAYS_CODE.items()}
        caches.append(_cache(UNIFIED, 2, level2[ECX] >> 16, ways.get(level2[ECX] >> 12 & 0xF, 0)))
        caches.append(_cache(UNIFIED, 3, (level2[EDX] >> 18) * 512, ways.get(level2[EDX] >> 12 & 0xF, 0)))
    found = tuple(cache for cache in caches if cache is not None)
    describe(leaves, AMD_CACHES, found or GENERIC)


def _cache(kind: int, level: int, kib: int, ways: int) -> Cache | None:
    """Make a cache of what an old leaf says; None for one that is absent or of a form that cannot be said anew."""
    if not kib or not ways or kib * KIB % (LINE * ways):
        return None
    return Cache(kind, level, kib * KIB, ways)
