"""Dirty rings: the pages that each vCPU has written, in a ring that user space maps (api.rst 8.29).

A ring lies in a vCPU's memory file from page 64 on. Its entries are kvm_dirty_gfn: flags, slot, offset. The vCPU's
thread fills it, user space marks what it has seen, and KVM_RESET_DIRTY_RINGS takes those back.
"""

from __future__ import annotations

import errno
import threading
from struct import Struct

from .hostmap import Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

PAGE = 4096
OFFSET = 64 * PAGE  # KVM_DIRTY_LOG_PAGE_OFFSET
ENTRY = Struct("<IIQ")
DIRTY, RESET = 1, 2
MOST = 65536 * ENTRY.size
RESERVED = 64  # entries that are kept free, so that no KVM_RUN has to end in the middle of an instruction


class Ring:
    """The ring of one vCPU. `leave()` is called when user space should make room; what comes until then waits."""

    __slots__ = ("_leave", "_map", "_waiting", "entries", "first", "next")

    def __init__(self, fd: int, size: int, leave: Callable[[], object]) -> None:
        self._leave = leave
        self._waiting: list[tuple[int, int]] = []
        self._map = Mapping(fd, size, OFFSET)
        self.entries = size // ENTRY.size
        self.first = self.next = 0  # the oldest entry that is not taken back, and the next to be filled

    def full(self) -> bool:
        """Tell whether user space should make room first."""
        return self.next - self.first >= self.entries - RESERVED

    def push(self, slot: int, offset: int) -> None:
        """Note a page."""
        if self.next - self.first >= self.entries:
            self._waiting.append((slot, offset))
            return
        ENTRY.pack_into(self._map.view, self.next % self.entries * ENTRY.size, DIRTY, slot, offset)
        self.next += 1
        if self.full():
            self._leave()

    def reset(self) -> list[tuple[int, int]]:
        """Take back what user space has seen."""
        seen = []
        while self.first < self.next:
            at = self.first % self.entries * ENTRY.size
            flags, slot, offset = ENTRY.unpack_from(self._map.view, at)
            if not flags & RESET:
                break
            ENTRY.pack_into(self._map.view, at, 0, slot, offset)
            seen.append((slot, offset))
            self.first += 1
        waiting, self._waiting = self._waiting, []
        for page in waiting:
            self.push(*page)
        return seen

    def close(self) -> None:
        """Unmap it."""
        self._map.close()


class Rings:
    """The dirty rings of a VM. `_lock` guards all of them."""

    __slots__ = ("_known", "_lock", "by_thread", "size")

    def __init__(self, size: int) -> None:
        """Make rings of `size` bytes. Raise OSError as KVM does."""
        if size & (size - 1) or size < PAGE:
            raise OSError(errno.EINVAL, "size")
        if size > MOST:
            raise OSError(errno.E2BIG, "size")
        self.size = size
        self.by_thread: dict[int, Ring] = {}  # of the vCPUs that are in KVM_RUN
        self._known: set[tuple[int, int]] = set()  # pages that are in some ring
        self._lock = threading.Lock()

    def push(self, slot: int, offset: int) -> None:
        """Note that the calling vCPU has written a page."""
        ring = self.by_thread.get(threading.get_ident())
        if ring is None:
            return
        with self._lock:
            if (slot, offset) not in self._known:
                self._known.add((slot, offset))
                ring.push(slot, offset)

    def reset(self, rings: list[Ring]) -> int:
        """Serve KVM_RESET_DIRTY_RINGS; returns how many pages are watched again."""
        with self._lock:
            seen = [page for ring in rings for page in ring.reset()]
            self._known.difference_update(seen)
        return len(seen)
