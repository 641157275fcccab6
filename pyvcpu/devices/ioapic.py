"""An IOAPIC: 24 interrupt lines in, messages to the local APICs out.

Source: Intel 82093AA data sheet (May 1996), section 3; of version 0x20, which has an EOI register (ICH10 data sheet,
section 13.5). The messages are those of Intel's SDM, volume 3, section "Message Signalled Interrupts".
"""

from __future__ import annotations

import threading

from .device import StateDataError, bits, checked, flag, integer, sequence

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Sequence

    from .device import State

    Route = tuple[int, int, int]  # pin, address, data

BASE = 0xFEC0_0000
PINS = 24

# What is mapped, as offsets from BASE
IOREGSEL, IOWIN, EOI = 0x00, 0x10, 0x40

# What IOREGSEL selects
IOAPICID, IOAPICVER, IOAPICARB, IOREDTBL = 0x00, 0x01, 0x02, 0x10
ID_MASK = 0x0F00_0000
VERSION = (PINS - 1) << 16 | 0x20

# A redirection entry
VECTOR = 0xFF
DELIVERY_SHIFT, DELIVERY_MASK = 8, 7
LOWEST_PRIORITY = 1  # fixed is 0; the modes above know no EOI, so that their trigger mode does not count
LOGICAL = 1 << 11
DELIVERY_STATUS = 1 << 12
REMOTE_IRR = 1 << 14
LEVEL = 1 << 15
MASKED = 1 << 16
DESTINATION_SHIFT = 56
WRITABLE = 0xFF << DESTINATION_SHIFT | 0x1FFFF & ~(DELIVERY_STATUS | REMOTE_IRR)

# A message
MSI_ADDRESS, MSI_DESTINATION_SHIFT, MSI_LOGICAL = 0xFEE0_0000, 12, 1 << 2
MSI_ASSERT, MSI_LEVEL = 1 << 14, 1 << 15

_STATE = {
    "select": integer(0, 0xFF),
    "id": bits(ID_MASK),
    "entries": sequence(bits(WRITABLE | REMOTE_IRR), PINS, PINS),
    "active": sequence(flag, PINS, PINS),
}


class Ioapic:
    """The IOAPIC. `send_msi(address, data)` delivers a message.

    `set_routes(routes)` gets the messages of all level-triggered pins, whenever they change: those whose EOI is to
    come back through eoi(). It is called before the first message of a route.

    A level is True where the line is active, whatever the entry's polarity, which is only stored: the device and the
    board agree on what is active on a line.

    Threads: every method may be called in any thread. `_lock` guards all state. Both callables are called while it is
    held, so that messages leave in the order of what caused them: neither may call back in, nor wait for a thread that
    does. The board's are one ioctl each.
    """

    name = "IOAPIC"
    LENGTH = 0x100
    _select: int
    _id: int
    _entries: list[int]
    _active: list[bool]

    def __init__(
        self,
        send_msi: Callable[[int, int], object],
        set_routes: Callable[[Sequence[Route]], object] = len,
    ) -> None:
        self._send_msi = send_msi
        self._set_routes = set_routes
        self._lock = threading.Lock()
        self._routes: list[Route] = []
        self._clear()

    # The machine's side

    def reset(self) -> None:
        """Return to the state after power-on, in which all pins are masked and all lines inactive."""
        with self._lock:
            self._clear()
            self._update_routes()

    def state(self) -> State:
        """Return registers and lines as plain data."""
        with self._lock:
            return {
                "select": self._select,
                "id": self._id,
                "entries": self._entries.copy(),
                "active": self._active.copy(),
            }

    def restore(self, data: object) -> None:
        """Take over what state() gave, and pass its routes on. No message is sent: it was, before.

        The devices behind the lines are to be restored afterwards: they drive their lines to the same levels. Raise
        StateDataError for what no IOAPIC could have given.
        """
        values = checked(self.name, _STATE, data)
        for pin, entry in enumerate(values["entries"]):
            if entry & REMOTE_IRR and not _is_level(entry):
                raise StateDataError(f"{self.name}: pin {pin} must be level-triggered to wait for an EOI")
        with self._lock:
            self._select, self._id = values["select"], values["id"]
            self._entries, self._active = values["entries"], values["active"]
            self._update_routes()

    # The board's side

    def set_line(self, pin: int, level: bool) -> None:
        """Set the level of a pin's line. Raise ValueError when there is no such pin."""
        if not 0 <= pin < PINS:
            raise ValueError(f"an interrupt line must be 0 to {PINS - 1}, not {pin}")
        with self._lock:
            rises = level and not self._active[pin]
            self._active[pin] = bool(level)
            if rises and not _is_level(self._entries[pin]):
                self._send_unless_masked(pin)
            else:
                self._send_level(pin)

    def eoi(self, vector: int) -> None:
        """Note that a local APIC has ended a level-triggered interrupt: it comes again while its line is active."""
        with self._lock:
            for pin, entry in enumerate(self._entries):
                if entry & REMOTE_IRR and entry & VECTOR == vector:
                    self._entries[pin] = entry & ~REMOTE_IRR
                    self._send_level(pin)

    # The guest's side

    def read(self, offset: int, size: int) -> bytes:
        """Read a register, all of whose 32 bits are at its first address."""
        with self._lock:
            value = 0
            if offset == IOREGSEL:
                value = self._select
            elif offset == IOWIN:
                value = self._read_selected()
        return value.to_bytes(max(size, 4), "little")[:size]

    def write(self, offset: int, data: bytes) -> None:
        """Write a register; of a narrow access, the bits that are not there are 0."""
        value = int.from_bytes(data[:4], "little")
        if offset == IOREGSEL:
            with self._lock:
                self._select = value & 0xFF
        elif offset == IOWIN:
            with self._lock:
                self._write_selected(value)
        elif offset == EOI:
            self.eoi(value & VECTOR)

    # Everything below is called with _lock held.

    def _clear(self) -> None:
        self._select = 0
        self._id = 0
        self._entries = [MASKED] * PINS
        self._active = [False] * PINS

    def _read_selected(self) -> int:
        select = self._select
        if select in (IOAPICID, IOAPICARB):
            return self._id
        if select == IOAPICVER:
            return VERSION
        pin, high = divmod(select - IOREDTBL, 2)
        entry: int = self._entries[pin] if 0 <= pin < PINS else 0
        return entry >> 32 * high & 0xFFFF_FFFF

    def _write_selected(self, value: int) -> None:
        if self._select == IOAPICID:
            self._id = value & ID_MASK
        pin, high = divmod(self._select - IOREDTBL, 2)
        if not 0 <= pin < PINS:
            return
        old = self._entries[pin]
        kept = 0xFFFF_FFFF << 32 * (not high)
        entry = old & kept | (value << 32 * high) & WRITABLE | old & (DELIVERY_STATUS | REMOTE_IRR)
        if not _is_level(entry):
            entry &= ~REMOTE_IRR  # Linux clears a stuck interrupt by making its pin edge-triggered for a moment
        self._entries[pin] = entry
        self._update_routes()
        self._send_level(pin)

    def _update_routes(self) -> None:
        """Pass the routes on if they changed. Masked pins keep theirs: an interrupt may be on its way from before."""
        routes = [(pin, *_message(entry)) for pin, entry in enumerate(self._entries) if _is_level(entry)]
        if routes != self._routes:
            self._routes = routes
            self._set_routes(routes)

    def _send_level(self, pin: int) -> None:
        """Send the interrupt of a level-triggered pin if its line is active and none is being served."""
        entry = self._entries[pin]
        if self._active[pin] and _is_level(entry) and not entry & (REMOTE_IRR | MASKED):
            self._entries[pin] = entry | REMOTE_IRR
            self._send_unless_masked(pin)

    def _send_unless_masked(self, pin: int) -> None:
        """Send a pin's message. What comes while it is masked is lost, as the data sheet says."""
        entry = self._entries[pin]
        if not entry & MASKED:
            self._send_msi(*_message(entry))


def _is_level(entry: int) -> bool:
    return bool(entry & LEVEL) and (entry >> DELIVERY_SHIFT & DELIVERY_MASK) <= LOWEST_PRIORITY


def _message(entry: int) -> tuple[int, int]:
    """Return address and data of an entry's message."""
    address = MSI_ADDRESS | (entry >> DESTINATION_SHIFT) << MSI_DESTINATION_SHIFT
    data = entry & (VECTOR | DELIVERY_MASK << DELIVERY_SHIFT)
    if entry & LOGICAL:
        address |= MSI_LOGICAL
    if _is_level(entry):
        data |= MSI_ASSERT | MSI_LEVEL
    return address, data
