"""`vcpu.memory`: guest memory as a vCPU's code addresses it, through the page tables of the guest."""

from __future__ import annotations

from ..errors import PyvcpuError
from ..memory import GuestMemoryError
from ..x86.walk import Paging, spans, walk

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from ..memory import GuestMemory
    from ..x86.walk import Walk


class UnmappedError(PyvcpuError, LookupError):
    """A linear address that leads to no RAM; the message shows where the page walk ends."""

    def __str__(self) -> str:
        return str(self.args[0])  # a LookupError of several arguments would show them all


class VirtualMemory:
    """Reads and writes by linear address: after segmentation, before paging; rights in page tables do not matter.

    The walk is our own, in every paging mode, with the tables that CR3 of `paging()` points to at the time of each
    call. Only RAM can be read and written. Any thread; the vCPU should stand still, or be the caller's own.

    >>> from pyvcpu import Machine
    >>> with Machine() as machine:
    ...     machine.load(b"\\xf4", mode="long")
    ...     outcome = machine.run()
    ...     machine.vcpus[0].memory.read(0x1000, 1)
    b'\\xf4'
    """

    __slots__ = ("_memory", "_paging")

    def __init__(self, memory: GuestMemory, paging: Callable[[], Paging]) -> None:
        self._memory = memory
        self._paging = paging

    def walk(self, address: int) -> Walk:
        """Return the way through the page tables for `address`; print it, or look at its entries."""
        return walk(self._memory.read, self._paging(), address)

    def translate(self, address: int) -> int | None:
        """Return the physical address behind `address`, None where nothing is mapped."""
        return self.walk(address).physical

    def read(self, address: int, length: int) -> bytes:
        """Return `length` bytes; raise UnmappedError unless all of them are there."""
        data = self.read_some(address, length)
        if len(data) < length:
            raise self._unmapped(address + len(data))
        return data

    def read_some(self, address: int, length: int) -> bytes:
        """Return up to `length` bytes, fewer where what follows cannot be read."""
        data = bytearray()
        for physical, size in spans(self._memory.read, self._paging(), address, length):
            part = self._read_ram(physical, size)
            data += part
            if len(part) < size:
                break
        return bytes(data)

    def _read_ram(self, physical: int, size: int) -> bytes:
        try:
            return self._memory.read(physical, size)
        except GuestMemoryError:  # the page is large, and RAM ends within it
            for start, end, _ in self._memory.ranges:
                if start <= physical < end:
                    return self._memory.read(physical, end - physical)
            return b""

    def write(self, address: int, data: bytes) -> None:
        """Write `data`; raise UnmappedError, with nothing written, unless there is RAM behind all of it."""
        parts, at = [], 0
        for physical, size in spans(self._memory.read, self._paging(), address, len(data)):
            if len(self._read_ram(physical, size)) < size:
                break
            parts.append((physical, data[at : at + size]))
            at += size
        if at < len(data):
            raise self._unmapped(address + at)
        for physical, part in parts:
            self._memory.write(physical, part)

    def read_int(self, address: int, size: int = 8) -> int:
        """Return the little-endian number of `size` bytes at `address`."""
        return int.from_bytes(self.read(address, size), "little")

    def write_int(self, address: int, value: int, size: int = 8) -> None:
        """Store `value` as a little-endian number of `size` bytes; raise OverflowError when it does not fit."""
        self.write(address, value.to_bytes(size, "little"))

    def _unmapped(self, address: int) -> UnmappedError:
        found = self.walk(address)
        if found.physical is None:
            return UnmappedError(f"{address:#x} is not mapped: {found.fault}")
        return UnmappedError(f"{address:#x} is at physical {found.physical:#x}, which is not RAM")
