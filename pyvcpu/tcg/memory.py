"""Guest physical memory: slots, their pages, and which of these were written.

A slot shows a piece of this process's memory (userspace_addr) at a guest physical address. Pages are looked up once
and kept. Whoever has pages in a TLB must drop them when `generation` changes; Vm.settle() waits until all vCPUs have.
"""

from __future__ import annotations

import bisect
import ctypes
import errno
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .blocks import CodeCache
    from .rings import Rings

PAGE = 4096
LOG_DIRTY_PAGES, READONLY = 1, 2
SLOTS = 32764
MOST_PAGES = (1 << 31) - 1
TASK_SIZE = 0x7FFF_FFFF_F000
MAX_GFN = 1 << 40  # 52 bits of address

_mincore = ctypes.PyDLL(None, use_errno=True).mincore
_mincore.argtypes, _mincore.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p), ctypes.c_int
_seen = ctypes.create_string_buffer(1)


class Slot:
    """A memory slot: `count` pages from page `first` of the guest, at `host` in this process."""

    __slots__ = ("count", "dirty", "end", "first", "flags", "host", "id", "view")

    def __init__(self, number: int, first: int, count: int, host: int, flags: int) -> None:
        self.id, self.first, self.count, self.host, self.flags = number, first, count, host, flags
        self.end = first + count
        self.dirty: bytearray | None = None  # one bit a page, in whole 64-bit words
        self.view = memoryview((ctypes.c_char * (count * PAGE)).from_address(host)).cast("B")


class Memory:
    """What a VM has as memory. Slots change under `lock`; page() is for any thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.generation = 0
        self.code: CodeCache | None = None
        self.slots: dict[int, Slot] = {}
        self.initially_set = False
        self._sorted: list[Slot] = []
        self._pages: dict[int, memoryview] = {}
        self.rings: Rings | None = None
        self._logging = False

    # What a Cpu asks.

    def page(self, gfn: int) -> memoryview | None:
        """Return the bytes of a page, None where no slot is. Raise OSError EFAULT where the host has no memory."""
        page = self._pages.get(gfn)
        return self._find(gfn) if page is None else page

    def writable(self, gfn: int) -> bool:
        """Tell whether a page lies in a slot that is not read-only."""
        slot = self.slot_of(gfn)
        return slot is not None and not slot.flags & READONLY

    def mark_dirty(self, gfn: int) -> None:
        """Note that a page is written."""
        if self._logging:
            slot = self.slot_of(gfn)
            if slot is not None and slot.dirty is not None:
                at = gfn - slot.first
                if self.rings is not None:
                    self.rings.push(slot.id, at)
                    return
                with self.lock:
                    slot.dirty[at >> 3] |= 1 << (at & 7)

    # What the VM does.

    def slot_of(self, gfn: int) -> Slot | None:
        """Return the slot that a page lies in."""
        table = self._sorted  # replaced as a whole
        at = bisect.bisect_right(table, gfn, key=_first) - 1
        return table[at] if at >= 0 and gfn < table[at].end else None

    def read(self, address: int, size: int) -> bytes | None:
        """Read guest memory, None where some of it is missing."""
        parts = []
        while size:
            page = self.page(address >> 12)
            if page is None:
                return None
            at = address & 0xFFF
            part = min(size, PAGE - at)
            parts.append(bytes(page[at : at + part]))
            address, size = address + part, size - part
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> bool:
        """Write guest memory as the kernel itself does; False where some of it is missing or read-only."""
        gfns = range(address >> 12, (address + len(data) - 1 >> 12) + 1)
        if not all(self.writable(gfn) for gfn in gfns):
            return False
        done = 0
        while done < len(data):
            at = address + done & 0xFFF
            part = data[done : done + PAGE - at]
            gfn = address + done >> 12
            page = self.page(gfn)
            if page is None:
                return False
            page[at : at + len(part)] = part
            self.mark_dirty(gfn)
            done += len(part)
        return True

    def set_region(self, number: int, flags: int, address: int, size: int, host: int) -> bool:
        """Create, move, change or delete a slot; tells whether pages may have gone. Raise OSError as KVM does.

        KVM_SET_USER_MEMORY_REGION, api.rst 4.35; the order of the checks is that of virt/kvm/kvm_main.c.
        """
        if flags & ~(LOG_DIRTY_PAGES | READONLY):
            raise OSError(errno.EINVAL, "flags")
        if (size | address | host) & (PAGE - 1) or host + size > TASK_SIZE or number >= SLOTS:
            raise OSError(errno.EINVAL, "address")
        if address + size > 1 << 64 or size >> 12 > MOST_PAGES:
            raise OSError(errno.EINVAL, "size")
        with self.lock:
            old = self.slots.get(number)
            if not size:
                if old is None:
                    raise OSError(errno.EINVAL, "no such slot")
                self._replace(old, None)
                return True
            new = Slot(number, address >> 12, size >> 12, host, flags)
            if new.end > MAX_GFN:
                raise OSError(errno.EINVAL, "address")
            if old is not None:
                if (old.host, old.count) != (host, new.count) or (old.flags ^ flags) & READONLY:
                    raise OSError(errno.EINVAL, "a slot cannot become another one")
                if (old.first, old.flags) == (new.first, flags):
                    return False
            for other in self._sorted:
                if other is not old and other.first < new.end and new.first < other.end:
                    raise OSError(errno.EEXIST, "overlap")
            if flags & LOG_DIRTY_PAGES:
                new.dirty = _bitmap(new.count, self.initially_set)
                if old is not None and old.dirty is not None:
                    new.dirty = old.dirty
            moved = old is not None and old.first != new.first
            self._replace(old, new)
            return moved

    def _replace(self, old: Slot | None, new: Slot | None) -> None:
        """Put a slot in another's place."""
        table = [slot for slot in self._sorted if slot is not old]
        if old is not None:
            del self.slots[old.id]
        if new is not None:
            table.append(new)
            self.slots[new.id] = new
        table.sort(key=_first)
        self._sorted = table
        self._logging = any(slot.dirty is not None for slot in table)
        if old is not None:
            same = new is not None and new.first == old.first
            if not same:
                self._pages = {gfn: page for gfn, page in self._pages.items() if not old.first <= gfn < old.end}
        self.generation += 1

    def _find(self, gfn: int) -> memoryview | None:
        with self.lock:
            slot = self.slot_of(gfn)
            if slot is None:
                return None
            address = slot.host + (gfn - slot.first << 12)
            if _mincore(address, PAGE, _seen):
                raise OSError(errno.EFAULT, "the host has no memory here")
            at = gfn - slot.first << 12
            page = slot.view[at : at + PAGE]
            self._pages[gfn] = page
            return page

    def logged(self, number: int) -> tuple[Slot, bytearray]:
        """Return a slot whose writes are logged. Raise OSError."""
        if self.rings is not None:
            raise OSError(errno.ENXIO, "there are dirty rings")
        if number >> 16 or number & 0xFFFF >= SLOTS:
            raise OSError(errno.EINVAL, "slot")
        slot = self.slots.get(number)
        if slot is None or slot.dirty is None:
            raise OSError(errno.ENOENT, "not logged")
        return slot, slot.dirty

    def take_log(self, number: int, keep: bool) -> bytes:
        """Return a slot's bitmap; unless `keep`, begin anew."""
        with self.lock:
            _, dirty = self.logged(number)
            found = bytes(dirty)
            if not keep and any(found):
                dirty[:] = bytes(len(dirty))
                self.generation += 1
            return found

    def clear_log(self, number: int, first: int, count: int, bits: int) -> None:
        """Forget that some pages are written: those whose bits are set, counted from page `first` on."""
        with self.lock:
            _, dirty = self.logged(number)
            size = (count + 63) // 64 * 8
            at = first // 8
            now = int.from_bytes(dirty[at : at + size], "little")
            dirty[at : at + size] = (now & ~bits).to_bytes(len(dirty[at : at + size]), "little")
            self.generation += 1


def _first(slot: Slot) -> int:
    return slot.first


def _bitmap(pages: int, full: bool) -> bytearray:
    """Return one bit for each page, in whole 64-bit words."""
    size = (pages + 63) // 64 * 8
    return bytearray(((1 << pages) - 1).to_bytes(size, "little")) if full else bytearray(size)
