"""An address space (I/O ports, or MMIO) whose ranges are claimed by handlers."""

from __future__ import annotations

import threading
from bisect import bisect_right

from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Any, Protocol

    # The first argument is the initiator: the vCPU that made the access, or None.
    ReadHandler = Callable[[Any, int, int], bytes | int]
    WriteHandler = Callable[[Any, int, bytes], object]
    Writer = Callable[[Any, bytes], object]  # a WriteHandler that knows its offset
    # An access in one call, as a run loop wants it: made from a region and the offset in it.
    Shortcut = Callable[[Any, bytes], object]

    class Device(Protocol):
        """What Bus.attach takes: a device that does not ask who the initiator is."""

        @property
        def name(self) -> str: ...
        def read(self, offset: int, size: int) -> bytes: ...
        def write(self, offset: int, data: bytes) -> object: ...


PORTS_SIZE = 0x10000
MMIO_SIZE = 1 << 52  # the most physical address bits that x86-64 allows (AMD APM vol. 2, section 5.1)

_SMALL = 64  # regions of up to this many addresses are found through a dict, by address


class Region:
    """A claimed range of a bus, with its handlers; made by Bus.claim, never changed."""

    __slots__ = ("direct", "length", "name", "read", "start", "stop", "write")

    def __init__(
        self,
        start: int,
        length: int,
        read: ReadHandler | None,
        write: WriteHandler | None,
        name: str,
        direct: Writer | None = None,
    ) -> None:
        self.start = start
        self.length = length
        self.stop = start + length
        self.read = read
        self.write = write
        self.direct = direct
        self.name = name

    def writer(self, offset: int) -> Writer | None:
        """Return the write handler with `offset` bound to it; None when the region takes no writes."""
        write = self.write
        if write is None:
            return None
        if self.direct is not None and not offset:
            return self.direct
        return lambda initiator, data: write(initiator, offset, data)

    def answer(self, initiator: object, offset: int, size: int) -> bytes:
        """Read `size` bytes, all ones when the region gives none; raise TypeError or ValueError at other results."""
        if self.read is None:
            return b"\xff" * size
        value = self.read(initiator, offset, size)
        if isinstance(value, bytes) and len(value) == size:
            return value
        return _little_endian(self, value, size)

    def __repr__(self) -> str:
        return f"{self.start:#x}-{self.stop - 1:#x} ({self.name})"


class Bus:
    """Route accesses by address to the handlers that claimed it.

    `name` is for messages ("port", "MMIO"); addresses run from 0 to `size` - 1. An access goes to the region
    of its first byte, whatever its width. Where nothing answers, reads give all ones and writes are dropped,
    as on a PC.

    `shortcuts` is for run loops: what learn() made of accesses that they have met, by a key of theirs. It is emptied
    whenever a range is claimed or released, and lives as long as the bus: run loops keep its `get`.

    Threads: lookups and accesses may run in any thread and take no lock. They read tables that are replaced
    whole and never changed in place, but for `shortcuts`. `_lock` is held by those who change them (claim, attach,
    release, learn).
    """

    __slots__ = ("_lock", "_regions", "_small", "_sorted", "name", "shortcuts", "size")

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._lock = threading.Lock()
        self._regions: tuple[Region, ...] = ()  # all, by address; under _lock
        self._small: dict[int, Region] = {}  # each address of the small regions
        self.shortcuts: dict[int, Shortcut] = {}
        self._sorted: tuple[tuple[int, ...], tuple[Region, ...]] = ((), ())  # the others: starts, regions

    def claim(
        self,
        start: int,
        length: int,
        *,
        read: ReadHandler | None = None,
        write: WriteHandler | None = None,
        direct: Writer | None = None,
        name: str,
    ) -> Region:
        """Give `length` addresses from `start` on to handlers, under a name for messages.

        `read(initiator, offset, size)` returns `size` bytes, or an int, whose low `size` bytes count;
        `write(initiator, offset, data)` takes bytes. Offsets count from `start`. `direct(initiator, data)`, if
        given, does what `write` does at offset 0, in one call less. Raise ConfigError when the range is empty,
        leaves the address space, or overlaps another.
        """
        for what, value in (("start", start), ("length", length)):
            if not isinstance(value, int):
                raise TypeError(f"the {what} of a {self.name} range is a whole number, not {value!r}")
        for handler in (read, write):
            if handler is not None and not callable(handler):
                raise TypeError(f"a handler of {name} must be callable, not {handler!r}")
        region = Region(start, length, read, write, name, direct)
        if length < 1:
            raise ConfigError(f"a {self.name} range must hold at least 1 address; {name} asks for {length}")
        if start < 0 or region.stop > self.size:
            raise ConfigError(f"{self.name} range {region} must lie within 0x0-{self.size - 1:#x}")
        with self._lock:
            at = bisect_right(self._regions, start, key=_start)
            for other in self._regions[max(at - 1, 0) : at + 1]:
                if start < other.stop and other.start < region.stop:
                    raise ConfigError(f"{self.name} range {region} overlaps {other}; release that one first")
            self._publish((*self._regions[:at], region, *self._regions[at:]))
        return region

    def attach(self, start: int, length: int, device: Device) -> Region:
        """Claim a range for a device. Raise ConfigError as claim does."""
        device_read, device_write = device.read, device.write
        return self.claim(
            start,
            length,
            read=lambda initiator, offset, size: device_read(offset, size),
            write=lambda initiator, offset, data: device_write(offset, data),
            name=device.name,
        )

    def release(self, region: Region) -> None:
        """Give a range back. An access under way in another thread may still reach its handler."""
        with self._lock:
            remaining = tuple(other for other in self._regions if other is not region)
            if len(remaining) == len(self._regions):
                raise ConfigError(f"{self.name} range {region} is not claimed; was it released before?")
            self._publish(remaining)

    def learn(self, key: int, address: int, make: Callable[[Region, int], Shortcut | None]) -> None:
        """Put into `shortcuts`, under `key`, what `make(region, offset)` returns for `address`, unless that is None.

        Only for small regions: what a guest can make us remember is bounded.
        """
        with self._lock:
            region = self._small.get(address)
            shortcut = None if region is None else make(region, address - region.start)
            if shortcut is not None:
                self.shortcuts[key] = shortcut

    @property
    def regions(self) -> tuple[Region, ...]:
        """All claimed ranges, by address. Any thread."""
        return self._regions

    def lookup(self, address: int) -> Region | None:
        """Return the region that holds `address`, if any."""
        region = self._small.get(address)
        if region is not None:
            return region
        starts, regions = self._sorted
        at = bisect_right(starts, address) - 1
        if at >= 0 and address < regions[at].stop:
            return regions[at]
        return None

    def read(self, initiator: object, address: int, size: int) -> bytes:
        """Read `size` bytes for `initiator`; raise TypeError or ValueError when a handler gives others."""
        region = self.lookup(address)
        return b"\xff" * size if region is None else region.answer(initiator, address - region.start, size)

    def write(self, initiator: object, address: int, data: bytes) -> None:
        """Write `data` for `initiator`."""
        region = self.lookup(address)
        if region is not None and region.write is not None:
            region.write(initiator, address - region.start, data)

    def _publish(self, regions: tuple[Region, ...]) -> None:
        """Replace the tables; _lock held. Each region is in one lookup table, so their order is free."""
        large = tuple(region for region in regions if region.length > _SMALL)
        self._regions = regions
        self._sorted = (tuple(map(_start, large)), large)
        self._small = {
            address: region
            for region in regions
            if region.length <= _SMALL
            for address in range(region.start, region.stop)
        }
        self.shortcuts.clear()


def _start(region: Region) -> int:
    return region.start


def _little_endian(region: Region, value: object, size: int) -> bytes:
    """Convert what a read handler returned to `size` bytes, or say what is wrong with it."""
    if isinstance(value, int):
        return (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    wanted = f"the read handler of {region} must return {size} bytes or an int"
    if isinstance(value, bytes):
        raise ValueError(f"{wanted}, not {len(value)} bytes")
    hint = "; did it forget to return?" if value is None else ""
    raise TypeError(f"{wanted}, not {type(value).__name__}{hint}")
