"""PCI configuration space by mechanism 1, and the one device in it: a host bridge.

Source: PCI Local Bus Specification 3.0, section 3.2.2.3.2 (mechanism 1) and chapter 6 (configuration space).
"""

from __future__ import annotations

import struct
import threading

from .device import bits, checked

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from ..bus import Bus, Region
    from .device import State

ADDRESS_PORT, DATA_PORT, DATA_LENGTH = 0xCF8, 0xCFC, 4
ENABLE = 1 << 31
ADDRESS_BITS = 0x80FF_FFFC
COMMAND, COMMAND_BITS = 4, 0x0507  # I/O, memory, bus master, SERR, no INTx: what can be switched

# A host bridge without registers of its own: no driver looks for others behind it.
VENDOR, DEVICE, REVISION = 0x1B36, 0x0008, 0
HOST_BRIDGE = 0x060000

_STATE = {"address": bits(ADDRESS_BITS), "command": bits(COMMAND_BITS)}


class PciHost:
    """The registers at 0xCF8 and 0xCFC, and the host bridge 00:00.0. All else in configuration space is not there.

    Threads: `_lock` guards the registers. A guest on several processors takes turns, as on a PC.
    """

    name = "PCI host bridge"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Return to the state after power-on."""
        with self._lock:
            self._address = self._command = 0

    def state(self) -> State:
        """Return the registers as plain data."""
        with self._lock:
            return {"address": self._address, "command": self._command}

    def restore(self, data: object) -> None:
        """Take over what state() gave; raise StateDataError for anything else."""
        values = checked(self.name, _STATE, data)
        with self._lock:
            self._address, self._command = values["address"], values["command"]

    def attach_to(self, bus: Bus) -> tuple[Region, Region]:
        """Claim the ports; 0xCF9, between them, is another device's."""
        return (
            bus.claim(ADDRESS_PORT, 1, read=self._read_address, write=self._write_address, name=self.name),
            bus.claim(DATA_PORT, DATA_LENGTH, read=self._read_data, write=self._write_data, name=self.name),
        )

    def _read_address(self, initiator: object, offset: int, size: int) -> bytes:
        if size < 4:
            return b"\xff" * size
        with self._lock:
            return self._address.to_bytes(4, "little")

    def _write_address(self, initiator: object, offset: int, data: bytes) -> None:
        if len(data) == 4:  # narrower ones are no configuration accesses
            with self._lock:
                self._address = int.from_bytes(data, "little") & ADDRESS_BITS

    def _register(self, offset: int) -> int | None:
        """Return the register of the bridge that an access to the data port means, None for one of nobody; locked."""
        if self._address & ~0xFF != ENABLE:
            return None
        return (self._address & 0xFC) + offset

    def _read_data(self, initiator: object, offset: int, size: int) -> bytes:
        with self._lock:
            register = self._register(offset)
            if register is None:
                return b"\xff" * size
            space = struct.pack("<4HI", VENDOR, DEVICE, self._command, 0, HOST_BRIDGE << 8 | REVISION)
        return space.ljust(256 + 4, b"\0")[register : register + size]

    def _write_data(self, initiator: object, offset: int, data: bytes) -> None:
        with self._lock:
            register = self._register(offset)
            if register is None:
                return
            for place, value in enumerate(data, register - COMMAND):
                if place in (0, 1):
                    shift = 8 * place
                    self._command = self._command & ~(0xFF << shift) | (value << shift & COMMAND_BITS)
