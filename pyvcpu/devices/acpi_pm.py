"""The fixed hardware of ACPI: PM1 event and control registers with the power button, and the PM timer.

Source: ACPI Specification 6.4, section 4.8.3. The registers are where QEMU's are: programs without an ACPI interpreter
write 0x2000 to port 0x604 to power off.
"""

from __future__ import annotations

import threading

from .device import bits, checked, integer
from .line import Line

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Protocol

    from .device import State

    class Timer(Protocol):
        """A timer of an event loop."""

        def at(self, when: int) -> None: ...
        def cancel(self) -> None: ...


PM_BASE, PM_LENGTH = 0x600, 12
EVENT, CONTROL, TIMER = 0, 4, 8  # offsets of PM1a_EVT, PM1a_CNT, PM_TMR
SCI = 9

TIMER_STATUS, GLOBAL, POWER_BUTTON, SLEEP_BUTTON, RTC, WAKE = 1 << 0, 1 << 5, 1 << 8, 1 << 9, 1 << 10, 1 << 15
STATUS_BITS = TIMER_STATUS | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC | WAKE
ENABLE_BITS = TIMER_STATUS | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC
SCI_ENABLE, SLEEP_TYPE_SHIFT, SLEEP_ENABLE = 1 << 0, 10, 1 << 13
CONTROL_BITS = SCI_ENABLE | 1 << 1 | 7 << SLEEP_TYPE_SHIFT
SLEEP_TYPE_S5 = 0
# Section 4.8.3.7: on hardware-reduced ACPI the first byte is the sleep control register.
REDUCED_S5, REDUCED_BITS, REDUCED_SLEEP = 5, 0x3C, 0x20 | 5 << 2

FREQUENCY = 3_579_545  # Hz
WRAP = 1 << 32
HALF = WRAP >> 1
SECOND = 10**9

_STATE = {
    "status": bits(STATUS_BITS),
    "enable": bits(ENABLE_BITS),
    "control": bits(CONTROL_BITS),
    "timer": integer(0, WRAP - 1),
}


class PowerManagement:
    """PM1a_EVT, PM1a_CNT and PM_TMR. ACPI is always on: there is no SMI command to switch it on by.

    A guest whose tables say that ACPI is hardware-reduced powers off by a byte in place of PM1a_CNT.

    `power_off()` is called when the guest enters S5, on the thread of the vCPU that does. `set_irq(level)` drives the
    SCI. `clock()` returns nanoseconds; `timer(callback)` makes a timer against that clock.

    Threads: `_lock` guards the registers; no callable is called while it is held, but `clock` and the timer's.
    """

    name = "ACPI power management"
    LENGTH = PM_LENGTH

    def __init__(
        self,
        power_off: Callable[[], object],
        set_irq: Callable[[bool], object],
        clock: Callable[[], int],
        timer: Callable[[Callable[[], object]], Timer],
    ) -> None:
        self._power_off = power_off
        self._clock = clock
        self._lock = threading.Lock()
        self._line = Line(self._lock, set_irq)
        self._timer = timer(self._carried)
        self._status = self._enable = 0
        self._control = SCI_ENABLE
        self._origin = self._clock_ticks()  # ticks of the clock at which the timer was 0

    def reset(self) -> None:
        """Return to the state after power-on; the timer runs on."""
        with self._lock:
            self._status = self._enable = 0
            self._control = SCI_ENABLE
            self._origin = self._clock_ticks()
            due = self._changed()
        if due:
            self._line.drive()

    def state(self) -> State:
        """Return the registers and the timer's count as plain data."""
        with self._lock:
            return {
                "status": self._status,
                "enable": self._enable,
                "control": self._control,
                "timer": self._ticks() % WRAP,
            }

    def restore(self, data: object) -> None:
        """Take over what state() gave, and drive the SCI to its level; raise StateDataError for anything else."""
        values = checked(self.name, _STATE, data)
        with self._lock:
            self._status, self._enable, self._control = values["status"], values["enable"], values["control"]
            self._origin = self._clock_ticks() - values["timer"]
            self._changed()
            self._line.restore(bool(self._status & self._enable))
        self._line.drive()

    def press_power_button(self) -> bool:
        """Press the button; return whether the guest looks at it."""
        with self._lock:
            self._status |= POWER_BUTTON
            due, listens = self._changed(), bool(self._enable & POWER_BUTTON)
        if due:
            self._line.drive()
        return listens

    def read(self, offset: int, size: int) -> bytes:
        """Read registers, at any width."""
        with self._lock:
            registers = b"".join(
                (
                    self._status.to_bytes(2, "little"),
                    self._enable.to_bytes(2, "little"),
                    self._control.to_bytes(2, "little"),
                    b"\0\0",
                    (self._ticks() % WRAP).to_bytes(4, "little"),
                )
            )
        return registers[offset : offset + size].ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:
        """Write registers: status bits are cleared by ones; S5 powers off."""
        off = False
        with self._lock:
            for place, value in enumerate(data, offset):
                shift = 8 * (place & 1)
                keep, new = ~(0xFF << shift), value << shift
                if place in (0, 1):
                    self._status &= ~new
                elif place in (2, 3):
                    self._enable = self._enable & keep | new & ENABLE_BITS
                elif place in (4, 5):
                    self._control = self._control & keep | new & CONTROL_BITS | SCI_ENABLE
                    off |= bool(new & SLEEP_ENABLE)
            off = off and self._control >> SLEEP_TYPE_SHIFT & 7 == SLEEP_TYPE_S5
            off |= offset == CONTROL and len(data) == 1 and data[0] & REDUCED_BITS == REDUCED_SLEEP
            due = self._changed()
        if due:
            self._line.drive()
        if off:
            self._power_off()

    # With _lock held.

    def _clock_ticks(self) -> int:
        return self._clock() * FREQUENCY // SECOND

    def _ticks(self) -> int:
        return self._clock_ticks() - self._origin

    def _changed(self) -> bool:
        """Set the timer for the next carry into its top bit; return whether the SCI's level is to be driven."""
        if self._enable & ~self._status & TIMER_STATUS:
            carry = (self._ticks() // HALF + 1) * HALF + self._origin
            self._timer.at(-(-carry * SECOND // FREQUENCY))
        else:
            self._timer.cancel()
        return self._line.want(bool(self._status & self._enable))

    def _carried(self) -> None:
        with self._lock:
            if not self._enable & TIMER_STATUS:
                return
            self._status |= TIMER_STATUS
            due = self._changed()
        if due:
            self._line.drive()
