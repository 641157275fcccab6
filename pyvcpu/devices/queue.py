"""Split virtqueues, from the device's side: take chains of buffers that the driver offers, and give them back.

Source: Virtual I/O Device (VIRTIO) version 1.2, section 2.7.
"""

from __future__ import annotations

import threading
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterator
    from typing import Protocol

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


class QueueError(Exception):
    """The driver broke a rule of the specification: the device needs a reset."""


class Chain:
    """One request: views of the guest memory that the driver wants read, then of what it wants written.

    `head` names it when it is given back. Drop the chain before the guest's memory is closed.
    """

    __slots__ = ("head", "readable", "writable")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []


class Queue:
    """A virtqueue of at most MAX_SIZE descriptors.

    The driver sets `size` and the guest physical addresses of the three areas while `ready` is false.
    Threads: none of its own; the lock of the device that owns it is held by whoever calls a method.
    """

    __slots__ = ("_fence", "_memory", "_next_avail", "_next_used", "desc", "device", "driver", "ready", "size")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._fence = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Return to the state after power-on."""
        self.size = MAX_SIZE
        self.desc = self.driver = self.device = 0
        self.ready = False
        self._next_avail = 0  # free-running, 16 bits, as the indices in the rings
        self._next_used = 0

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

    def chains(self) -> Iterator[Chain]:
        """Yield what is available now; what the driver adds meanwhile comes with a notification of its own.

        So one call yields `size` chains at most. Raise QueueError when something is forged.
        """
        end = self._load(self.driver + 2)
        if (end - self._next_avail) % 65536 > self.size:
            raise QueueError(f"available index {end} is more than the queue's size past {self._next_avail}")
        while self._next_avail != end:
            head = self._load(self.driver + 4 + self._next_avail % self.size * 2)
            self._next_avail = (self._next_avail + 1) % 65536
            yield self._chain(head)

    def give_back(self, head: int, written: int) -> None:
        """Put a chain into the used ring, with how many bytes of its writable buffers were written."""
        self._memory.write(self.device + 4 + self._next_used % self.size * 8, _USED.pack(head, written))
        self._next_used = (self._next_used + 1) % 65536
        self._memory.write(
            self.device + 2, self._next_used.to_bytes(2, "little")
        )  # after the entry: x86 keeps the order

    def wants_interrupt(self) -> bool:
        """Return whether the driver wants to hear of what was given back."""
        with self._fence:  # its atomic instruction keeps this load behind give_back's store, which a CPU may delay
            pass
        return not self._load(self.driver) & AVAIL_F_NO_INTERRUPT

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
