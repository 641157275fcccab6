"""The rings that KVM fills while guests run: coalesced writes, dirty pages. They are read without an ioctl."""

from __future__ import annotations

from _thread import allocate_lock

from .abi.layout import DIRTY_ENTRY, PAGE, RING_ENTRIES, RING_ENTRY, RING_FIRST, RING_HEAD, RING_INDICES
from .abi.memory import KVM_DIRTY_GFN_F_DIRTY, KVM_DIRTY_GFN_F_MASK, KVM_DIRTY_GFN_F_RESET

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import mmap
    from typing import Self


class CoalescedWrite:
    """A write that waited in the ring: `data` to `address`, a port if `pio`."""

    __slots__ = __match_args__ = ("address", "data", "pio")

    def __init__(self, address: int, data: bytes, pio: bool) -> None:
        self.address = address
        self.data = data
        self.pio = pio

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CoalescedWrite):
            return False
        return (self.address, self.data, self.pio) == (other.address, other.data, other.pio)

    def __hash__(self) -> int:
        return hash((self.address, self.data, self.pio))

    def __repr__(self) -> str:
        return f"CoalescedWrite({self.address:#x}, {self.data!r}, pio={self.pio})"


class CoalescedRing:
    """Writes to coalesced zones, in their order; one ring for all vCPUs of a VM. `lock` is held while draining.

    It lies in a vCPU's mapping: drain() raises ValueError once that is closed.
    """

    __slots__ = ("_at", "_run", "lock")

    def __init__(self, run: mmap.mmap, at: int) -> None:
        if len(run) < at + PAGE:
            raise ValueError(f"the ring is at {at:#x} in the mapping of a vCPU, longer than {len(run):#x}")
        self._run = run
        self._at = at
        self.lock = allocate_lock()

    def drain(self) -> list[CoalescedWrite]:
        """Take all writes out of the ring. Do it before serving any exit that they might come before."""
        writes = []
        with self.lock:
            first, last = RING_INDICES.unpack_from(self._run, self._at)
            while first != last and first < RING_ENTRIES:
                place = self._at + RING_HEAD + first * RING_ENTRY.size
                address, length, pio, data = RING_ENTRY.unpack_from(self._run, place)
                writes.append(CoalescedWrite(address, data[:length], bool(pio)))
                first = (first + 1) % RING_ENTRIES
                RING_FIRST.pack_into(self._run, self._at, first)
        return writes


class DirtyRing:
    """The pages that one vCPU wrote, as (slot, page within the slot). `lock` is held while harvesting.

    KVM_RUN ends with KVM_EXIT_DIRTY_RING_FULL when it is nearly full: harvest(), then VmFd.reset_dirty_rings(). api.rst
    8.29 has the protocol: the kernel sets DIRTY in an entry, we RESET, and the ioctl frees it.
    """

    __slots__ = ("_map", "_next", "entries", "lock")

    def __init__(self, mapping: mmap.mmap) -> None:
        self._map = mapping
        self._next = 0
        self.entries = len(mapping) // DIRTY_ENTRY.size
        self.lock = allocate_lock()

    def harvest(self) -> list[tuple[int, int]]:
        """Take all new entries, in their order. VmFd.reset_dirty_rings() then frees their places for others."""
        found = []
        with self.lock:
            for _ in range(self.entries):
                place = self._next * DIRTY_ENTRY.size
                if self._map[place] & KVM_DIRTY_GFN_F_MASK != KVM_DIRTY_GFN_F_DIRTY:
                    break
                _, slot, offset = DIRTY_ENTRY.unpack_from(self._map, place)
                self._map[place] = KVM_DIRTY_GFN_F_RESET
                found.append((slot, offset))
                self._next = (self._next + 1) % self.entries
        return found

    def close(self) -> None:
        """Unmap the ring; doing so again does nothing. A harvest() that has more to read then raises ValueError.

        Takes no lock: after a fork another thread of the parent may seem to hold it for ever.
        """
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
