"""Who in here answers port and memory accesses: devices of the VM, ioeventfds, coalesced zones."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import Protocol

    from .coalesced import Zones
    from .eventfds import Ioevents

    class PortDevice(Protocol):
        """A device with ports."""

        def port_read(self, port: int, size: int) -> int:
            """Read a port."""

        def port_write(self, port: int, size: int, value: int) -> None:
            """Write a port."""


class Io:
    """The buses of a VM, for accesses of its vCPUs. `ports` is filled when devices are created."""

    __slots__ = ("busy", "events", "ports", "zones")

    def __init__(self, events: Ioevents, zones: Zones) -> None:
        self.ports: dict[int, PortDevice] = {}
        self.events, self.zones = events, zones
        self.busy = False

    def update(self) -> None:
        """Note whether there is anyone at all, after a change."""
        self.busy = bool(self.ports or self.events.table or self.zones.zones)

    def add(self, device: PortDevice, ports: range | tuple[int, ...]) -> None:
        """Let a device answer some ports."""
        self.ports.update(dict.fromkeys(ports, device))
        self.update()

    def port_write(self, port: int, size: int, value: int) -> bool:
        """Write a port; False where nobody takes it."""
        device = self.ports.get(port)
        if device is not None:
            device.port_write(port, size, value)
            return True
        if self.events.table and self.events.signal(True, port, size, value):
            return True
        zones = self.zones
        return bool(zones.zones) and zones.put(True, port, value.to_bytes(size, "little"))

    def mmio_write(self, address: int, data: bytes) -> bool:
        """Write device memory; False where nobody takes it."""
        if self.events.table and self.events.signal(False, address, len(data), int.from_bytes(data, "little")):
            return True
        zones = self.zones
        return bool(zones.zones) and zones.put(False, address, data)
