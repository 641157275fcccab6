"""Split virtqueues, from the device's side: chains of buffers come in the available ring and go in the used one.

Source: Virtual I/O Device (VIRTIO) version 1.2, section 2.7.
"""

from __future__ import annotations

import threading
from struct import Struct

from .device import flag, integer

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterator
    from typing import Protocol

    from .device import State

    class Memory(Protocol):
        """What a device needs of guest memory; each method raises IndexError where the range is not all RAM."""

        def read(self, address: int, length: int) -> bytes: ...
        def write(self, address: int, data: bytes) -> None: ...
        def view(self, address: int, length: int) -> memoryview: ...


DESC_F_NEXT = 1
DESC_F_WRITE = 2  # the device writes this buffer, else it reads it
DESC_F_INDIRECT = 4
AVAIL_F_NO_INTERRUPT = 1

MAX_SIZE = 256  # descriptors in a queue, and buffers in a chain, those of an indirect table included
MAX_BYTES = 16 << 20  # in a chain: what bounds the time that one request may take

_DESC = Struct("<QIHH")  # address, length, flags, next
_USED = Struct("<II")  # head, bytes written
STATE = {
    "size": integer(0, 0xFFFF_FFFF),
    "desc": integer(0, (1 << 64) - 1),
    "driver": integer(0, (1 << 64) - 1),
    "device": integer(0, (1 << 64) - 1),
    "ready": flag,
    "next_avail": integer(0, 0xFFFF),
    "next_used": integer(0, 0xFFFF),
}


class QueueError(Exception):
    """The driver broke a rule of the specification: the device needs a reset."""


class Chain:
    """One request: views of the guest memory that the driver wants read, then of what it wants written.

    `head` names it in the used ring. Drop the chain before the guest's memory is closed.
    """

    __slots__ = ("head", "readable", "writable")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []


class Queue:
    """A virtqueue of at most MAX_SIZE descriptors, from a reset of its device to the next.

    The driver sets `size` and the guest physical addresses of the three areas while `ready` is false. The device pops
    chains, and adds each to the used ring once it is done with it: in any order, later, from any thread. What it does
    not pop stays in the available ring. After close() there is nothing to pop, and what is added is dropped: the
    guest's memory is not the device's any more.

    Threads: any may call any method; `_lock` guards the indices, and is held while the rings are read and written.
    """

    __slots__ = (
        "_closed",
        "_lock",
        "_memory",
        "_next_avail",
        "_next_used",
        "desc",
        "device",
        "driver",
        "ready",
        "size",
    )

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._closed = False
        self.size = MAX_SIZE
        self.desc = self.driver = self.device = 0
        self.ready = False
        self._next_avail = 0  # free-running, 16 bits, as the indices in the rings
        self._next_used = 0

    def state(self) -> State:
        """Return size, areas and indices as plain data."""
        with self._lock:
            return {
                "size": self.size,
                "desc": self.desc,
                "driver": self.driver,
                "device": self.device,
                "ready": self.ready,
                "next_avail": self._next_avail,
                "next_used": self._next_used,
            }

    def restore(self, values: State) -> None:
        """Take over what state() gave, for a new queue; `values` fit STATE. Raise QueueError for what cannot be."""
        self.size, self.desc, self.driver, self.device = (values[key] for key in ("size", "desc", "driver", "device"))
        self._next_avail, self._next_used = values["next_avail"], values["next_used"]
        if (self._next_avail - self._next_used) % 65536 > self.size:
            raise QueueError(f"more chains are under way than a queue of {self.size} has")
        if values["ready"]:
            self.enable()

    def enable(self) -> None:
        """Begin to use the areas; raise QueueError when they or the size cannot be."""
        if not 0 < self.size <= MAX_SIZE or self.size & (self.size - 1):
            raise QueueError(f"a queue size must be a power of two up to {MAX_SIZE}, not {self.size}")
        areas = (
            (self.desc, 16, 16 * self.size),
            (self.driver, 2, 6 + 2 * self.size),
            (self.device, 4, 6 + 8 * self.size),
        )
        for address, alignment, length in areas:
            if address % alignment:
                raise QueueError(f"a queue area at {address:#x} must be aligned to {alignment} bytes")
            _ram(self._memory, address, length).release()
        self.ready = True

    def disable(self) -> None:
        """Stop to use the areas."""
        with self._lock:
            self.ready = False

    def close(self) -> None:
        """Leave the guest's memory alone from now on, whoever comes late; _lock is free when this returns."""
        with self._lock:
            self._closed = True

    def peek(self) -> Chain | None:
        """Return the next chain that is available, and leave it where it is; None without any.

        Raise QueueError when something is forged.
        """
        with self._lock:
            return self._next()

    def pop(self) -> Chain | None:
        """Take the next chain that is available; None without any. Raise QueueError when something is forged."""
        with self._lock:
            chain = self._next()
            if chain is not None:
                self._next_avail = (self._next_avail + 1) % 65536
            return chain

    def is_empty(self) -> bool:
        """Return whether pop() would return None."""
        with self._lock:
            return not self._available()

    def chain(self, head: int) -> Chain:
        """Return a chain that was popped before the state was saved. Raise QueueError when it is forged."""
        with self._lock:
            return self._chain(head)

    def fill(self, chain: Chain, data: bytes) -> int:
        """Copy `data` into the chain's writable buffers, as much as fits; return how many bytes.

        For devices that complete later, perhaps after a reset: then nothing is written.
        """
        done = 0
        with self._lock:
            if not self._closed:
                for view in chain.writable:
                    part = data[done : done + len(view)]
                    view[: len(part)] = part
                    done += len(part)
        return done

    def add_used(self, head: int, written: int) -> bool:
        """Put a chain into the used ring, with how many bytes of its writable buffers were written.

        Return False, and do nothing, when the queue is not in use any more.
        """
        with self._lock:
            if self._closed or not self.ready:
                return False
            self._memory.write(self.device + 4 + self._next_used % self.size * 8, _USED.pack(head, written))
            self._next_used = (self._next_used + 1) % 65536
            # After the entry: x86 keeps the order.
            self._memory.write(self.device + 2, self._next_used.to_bytes(2, "little"))
            return True

    def wants_interrupt(self) -> bool:
        """Return whether the driver wants to hear of what was added to the used ring."""
        with self._lock:  # its atomic instruction keeps this load behind add_used's store, which a CPU may delay
            return not self._closed and self.ready and not self._load(self.driver) & AVAIL_F_NO_INTERRUPT

    # Everything below is called with _lock held.

    def _available(self) -> int:
        """Return how many chains are available, 0 when the queue is not in use."""
        if self._closed or not self.ready:
            return 0
        end = self._load(self.driver + 2)
        if (end - self._next_used) % 65536 > self.size:
            raise QueueError(
                f"available index {end} is more than the queue's size past the used one, {self._next_used}"
            )
        return (end - self._next_avail) % 65536

    def _next(self) -> Chain | None:
        if not self._available():
            return None
        return self._chain(self._load(self.driver + 4 + self._next_avail % self.size * 2))

    def _load(self, address: int) -> int:
        return int.from_bytes(self._memory.read(address, 2), "little")

    def _chain(self, head: int) -> Chain:
        chain, total = Chain(head), 0
        for count, (address, length, flags) in enumerate(self._buffers(head), 1):
            total += length
            if count > MAX_SIZE:
                raise QueueError(f"a chain must have at most {MAX_SIZE} buffers; does it loop?")
            if total > MAX_BYTES:
                raise QueueError(f"a chain must hold at most {MAX_BYTES} bytes")
            view = _ram(self._memory, address, length)
            if flags & DESC_F_WRITE:
                chain.writable.append(view)
            elif chain.writable:
                raise QueueError("buffers to read must come before buffers to write")
            else:
                chain.readable.append(view)
        return chain

    def _buffers(self, head: int) -> Iterator[tuple[int, int, int]]:
        """Yield address, length and flags of each buffer of a chain, through an indirect table if it has one."""
        table, size, index, indirect = self.desc, self.size, head, False
        while True:
            if index >= size:
                raise QueueError(f"descriptor {index} does not exist: the table has {size}")
            address, length, flags, following = _DESC.unpack(self._memory.read(table + 16 * index, 16))
            if flags & DESC_F_INDIRECT:
                if indirect or flags & DESC_F_NEXT or length % 16 or not 0 < length <= 16 * MAX_SIZE:
                    raise QueueError(f"an indirect table of {length} bytes with flags {flags} cannot be used")
                _ram(self._memory, address, length).release()
                table, size, index, indirect = address, length // 16, 0, True
                continue
            yield address, length, flags
            if not flags & DESC_F_NEXT:
                return
            index = following


def _ram(memory: Memory, address: int, length: int) -> memoryview:
    try:
        return memory.view(address, length)
    except IndexError as error:
        raise QueueError(str(error)) from None
