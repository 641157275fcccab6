"""The IOAPIC: 24 lines in, messages to the local APICs out (Intel 82093AA data sheet), of version 0x11 as KVM's.

All state is guarded by the lock of Irqs.
"""

from __future__ import annotations

from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .routes import Irqs

PINS = 24
BASE, LENGTH = 0xFEC0_0000, 0x100
SELECT, WINDOW = 0x00, 0x10
IDENTITY, VERSION, ARBITRATION, TABLE = 0, 1, 2, 0x10
VERSION_ID = (PINS - 1) << 16 | 0x11
STATE = Struct("<QIIII24Q")  # kvm_ioapic_state
MASKED, LEVEL, REMOTE_IRR, STATUS, LOGICAL = 1 << 16, 1 << 15, 1 << 14, 1 << 12, 1 << 11
READ_ONLY = REMOTE_IRR | STATUS
LOWEST = 1
M32, M64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF


class Ioapic:
    """The IOAPIC."""

    def __init__(self, irqs: Irqs) -> None:
        self._irqs = irqs
        self.base = BASE
        self.select = self.id = self.irr = 0
        self.table = [MASKED] * PINS

    def set_line(self, pin: int, level: bool) -> int:
        """Set a line's level. Returns how many vCPUs get an interrupt, 0 where one waits, -1 where it is masked."""
        bit = 1 << pin
        before = self.irr
        if not level:
            self.irr &= ~bit
            return 1
        self.irr |= bit
        if not self.table[pin] & LEVEL and before & bit:
            return 0
        return self.service(pin)

    def service(self, pin: int) -> int:
        """Send a pin's message, unless it is masked or being served."""
        entry = self.table[pin]
        if entry & MASKED or (entry & LEVEL and entry & REMOTE_IRR):
            return -1
        found = self._irqs.send(
            None, entry >> 8 & 7, entry & 0xFF, bool(entry & LEVEL), True, bool(entry & LOGICAL), entry >> 56, 0
        )
        if found > 0 and entry & LEVEL:
            self.table[pin] |= REMOTE_IRR
        return found

    def ended(self, vector: int, level: bool) -> None:
        """Follow the end of an interrupt at a local APIC."""
        for pin, entry in enumerate(self.table):
            if entry & 0xFF != vector:
                continue
            self._irqs.acknowledged(2, pin)
            entry = self.table[pin]
            if level and entry & LEVEL:
                self.table[pin] = entry & ~REMOTE_IRR
                if not entry & MASKED and self.irr & 1 << pin:
                    self.service(pin)

    def handles(self, vector: int) -> bool:
        """Tell whether some entry has a vector."""
        return any(entry & 0xFF == vector for entry in self.table)

    def read(self, offset: int) -> int:
        """Read what is mapped at an offset."""
        if offset == SELECT:
            return self.select
        if offset != WINDOW:
            return 0
        select = self.select
        if select == VERSION:
            return VERSION_ID
        if select in (IDENTITY, ARBITRATION):
            return (self.id & 15) << 24
        pin, high = divmod(select - TABLE, 2)
        return self.table[pin] >> 32 * high & M32 if 0 <= pin < PINS else 0

    def write(self, offset: int, value: int) -> None:
        """Write what is mapped at an offset."""
        if offset == SELECT:
            self.select = value & 0xFF
        elif offset == WINDOW:
            if self.select == IDENTITY:
                self.id = value >> 24 & 15
            pin, high = divmod(self.select - TABLE, 2)
            if 0 <= pin < PINS:
                self._write_entry(pin, high, value)

    def _write_entry(self, pin: int, high: int, value: int) -> None:
        old = self.table[pin]
        low = value & ~READ_ONLY & 0x1FFFF | old & READ_ONLY
        entry = old & M32 | value << 32 if high else old & ~M32 | low
        if not entry & LEVEL:
            entry &= ~REMOTE_IRR  # Linux clears a stuck interrupt by making its pin edge-triggered for a moment
        self.table[pin] = entry
        if old & MASKED and not entry & MASKED:
            self._irqs.unmasked()
        if entry & LEVEL and self.irr & 1 << pin and not entry & (MASKED | REMOTE_IRR):
            self.service(pin)

    def get(self) -> bytes:
        """Return kvm_ioapic_state."""
        return STATE.pack(self.base, self.select, self.id, self.irr, 0, *self.table)

    def set(self, data: bytes) -> None:
        """Take kvm_ioapic_state; lines that are active count as rising."""
        self.base, self.select, self.id, irr, _, *table = STATE.unpack(data[: STATE.size])
        self.select &= 0xFF
        self.table = list(table)
        self.irr = 0
        for pin in range(PINS):
            if irr & 1 << pin:
                self.set_line(pin, True)
