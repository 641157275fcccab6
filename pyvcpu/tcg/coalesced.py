"""Coalesced zones: writes that wait in a ring of the run mapping until something else makes an exit (api.rst 4.116)."""

from __future__ import annotations

import errno
import os
import threading
from struct import Struct, unpack

from .hostmap import Mapping
from .thing import fetch

PAGE = 4096
HEAD = Struct("<II")  # kvm_coalesced_mmio_ring: first, last
ENTRY = Struct("<QII8s")  # kvm_coalesced_mmio: phys_addr, len, pio, data
MAX = (PAGE - HEAD.size) // ENTRY.size


class Zones:
    """The zones of a VM and its one ring, a page of its own that every vCPU's mapping ends with.

    `_lock` guards the writers' side of the ring. User space moves `first` on; both numbers may hold anything, for user
    space can write them. `zones` is replaced as a whole.
    """

    __slots__ = ("_lock", "_map", "fd", "zones")

    def __init__(self) -> None:
        self.zones: list[tuple[bool, int, int]] = []  # port or memory, first address, length
        self.fd = os.memfd_create("kvm-coalesced", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, PAGE)
        self._map = Mapping(self.fd, PAGE)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Give the ring's page back."""
        self._map.close()
        os.close(self.fd)

    def register(self, address: int) -> None:
        """Serve KVM_REGISTER_COALESCED_MMIO."""
        start, size, pio = unpack("<QII", fetch(address, 16))
        if pio not in (0, 1):
            raise OSError(errno.EINVAL, "pio")
        self.zones = [*self.zones, (bool(pio), start, size)]

    def unregister(self, address: int) -> None:
        """Serve KVM_UNREGISTER_COALESCED_MMIO: all zones within the range go."""
        start, size, pio = unpack("<QII", fetch(address, 16))
        if pio not in (0, 1):
            raise OSError(errno.EINVAL, "pio")
        self.zones = [
            zone
            for zone in self.zones
            if not (zone[0] == bool(pio) and start <= zone[1] and zone[1] + zone[2] <= start + size)
        ]

    def put(self, pio: bool, address: int, data: bytes) -> bool:
        """Let a write wait; False where it lies in no zone, or the ring is full."""
        end = address + len(data)
        for kind, start, size in self.zones:
            if kind == pio and start <= address and end <= start + size:
                break
        else:
            return False
        view = self._map.view
        with self._lock:
            first, last = HEAD.unpack_from(view, 0)
            if first >= MAX or last >= MAX or (last + 1) % MAX == first:
                return False
            ENTRY.pack_into(view, HEAD.size + last * ENTRY.size, address, len(data), pio, data)
            view[4:8] = ((last + 1) % MAX).to_bytes(4, "little")
        return True
