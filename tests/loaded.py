"""Guest memory as a plan would fill it, for reading back what a loader hands to its guest."""

from __future__ import annotations

import itertools

from pyvcpu.boot import Plan


class Loaded:
    """The segments of a plan, which must not overlap."""

    def __init__(self, made: Plan) -> None:
        self.segments = sorted((address, bytes(data)) for address, data in made.segments if len(data))
        for (address, data), (after, _) in itertools.pairwise(self.segments):
            assert address + len(data) <= after, f"{address:#x}+{len(data):#x} overlaps {after:#x}"

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes, which must lie in one segment."""
        for start, data in self.segments:
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} are in no segment")

    def u32(self, address: int) -> int:
        """Return the little-endian number of 4 bytes at `address`."""
        return int.from_bytes(self.read(address, 4), "little")

    def u64(self, address: int) -> int:
        """Return the little-endian number of 8 bytes at `address`."""
        return int.from_bytes(self.read(address, 8), "little")

    def string(self, address: int) -> bytes:
        """Return the bytes from `address` to the next zero."""
        for start, data in self.segments:
            if start <= address < start + len(data):
                return data[address - start : data.index(b"\0", address - start)]
        raise AssertionError(f"{address:#x} is in no segment")
