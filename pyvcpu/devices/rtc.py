"""The real-time clock of a PC, and the CMOS RAM that its battery keeps.

Source: Motorola MC146818 data sheet (1984); the century byte at 0x32 is where ACPI's FADT says that it is.
"""

from __future__ import annotations

import threading
import time

from .device import StateDataError, bits, checked, integer, octets, optional, sequence
from .line import Line

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Mapping
    from typing import Protocol

    from .device import State

    class Timer(Protocol):
        """A timer of an event loop."""

        def at(self, when: int) -> None: ...
        def cancel(self) -> None: ...

    # Nanoseconds of the clock that timers go by; how to make one.
    Timers = tuple[Callable[[], int], Callable[[Callable[[], object]], Timer]]

RTC_PORT = 0x70
RTC_IRQ = 8

# Registers
SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
WEEKDAY, DAY, MONTH, YEAR = range(6, 10)
REG_A, REG_B, REG_C, REG_D = range(10, 14)
CENTURY = 0x32
SIZE = 128

A_UIP = 0x80  # an update is in progress, or comes within UPDATE_WARNING
A_DIVIDER_RESET = 0x60  # both bits: the divider is held in reset
A_RATE = 0x0F  # of the periodic flag: 32768 Hz >> (rate - 1)
A_AT_RESET = 0x26  # 32.768 kHz crystal, 1024 Hz

B_SET = 0x80  # the time stands still and can be set
B_INTERRUPTS = 0x70  # PIE, AIE, UIE: enables of the flags in register C
B_BINARY = 0x04  # else BCD
B_24_HOURS = 0x02

C_IRQ = 0x80
C_PERIODIC = 0x40
C_ALARM = 0x20
C_UPDATE = 0x10

D_VALID = 0x80  # the battery is good

HOURS_PM = 0x80  # in 12-hour mode
SECOND = 10**9  # in nanoseconds, in which all times here are
ALARM_ANY = 0xC0  # an alarm register with both bits set matches whatever the time's shows
DAY_SECONDS = 86400
UPDATE_WARNING = 244_000  # from the rise of A_UIP to the update
NEVER = 1 << 80
_TIME = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)

_FARTHEST = SECOND << 40  # no guest can set a time that is farther from the host's: its years end before 40,000
_STATE = {
    "index": integer(0, SIZE - 1),
    "offset": integer(-_FARTHEST, _FARTHEST),
    "flags": bits(C_PERIODIC | C_ALARM | C_UPDATE),
    "polled": integer(-2 * _FARTHEST, 2 * _FARTHEST),
    "standing": optional(sequence(integer(0, 0xFF), len(_TIME), len(_TIME))),
    "ram": octets(SIZE, SIZE),
}


class Rtc:
    """An MC146818 at ports 0x70 (index) and 0x71 (data), showing the host's clock in UTC.

    A guest that sets the time shifts it against the host's clock, for this device only. `clock` returns seconds since
    1970. `cmos`: what the battery keeps beside the time, by register. `set_irq(level)` drives IRQ 8; with `timers`, the
    enabled ones of the periodic, alarm and update flags of register C interrupt, and without, they are right when they
    are polled. After a restore the guest sees the host's time then, shifted as before.

    Threads: any may call read and write; `_lock` guards all state, and is not held during `set_irq`.
    """

    __slots__ = (
        "_clock",
        "_cmos",
        "_flags",
        "_index",
        "_line",
        "_lock",
        "_offset",
        "_polled",
        "_ram",
        "_standing",
        "_ticks",
        "_timer",
    )
    name = "RTC"
    LENGTH = 2

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        *,
        cmos: Mapping[int, int] | None = None,
        set_irq: Callable[[bool], object] = bool,
        timers: Timers | None = None,
    ) -> None:
        self._clock = clock
        self._cmos = cmos or {}
        self._lock = threading.Lock()
        self._line = Line(self._lock, set_irq)
        self._ticks: Callable[[], int] | None = None if timers is None else timers[0]
        self._timer: Timer | None = None if timers is None else timers[1](self._due)
        self.reset()

    def reset(self) -> None:
        """Return to the state after power-on, with a new battery: the time is the host's."""
        with self._lock:
            self._index = 0
            self._offset = 0  # the guest's time minus the host's
            self._polled = self._now()  # up to when `_flags` are known, in the guest's time
            self._flags = 0  # of register C, since it was read last
            self._standing: dict[int, int] | None = None  # the time while it stands still: numbers, not BCD
            self._ram = bytearray(SIZE)
            for register, value in self._cmos.items():
                self._ram[register] = value
            self._ram[REG_A] = A_AT_RESET
            self._ram[REG_B] = B_24_HOURS
            due = self._changed()
        if due:
            self._line.drive()

    def state(self) -> State:
        """Return registers and CMOS RAM as plain data."""
        with self._lock:
            if self._timer is not None and self._ram[REG_B] & B_INTERRUPTS:
                self._collect()  # as whoever takes the state over does, to know the next interrupt
            standing = self._standing
            return {
                "index": self._index,
                "offset": self._offset,
                "flags": self._flags,
                "polled": self._polled,
                "standing": None if standing is None else [standing[register] for register in _TIME],
                "ram": bytes(self._ram),
            }

    def restore(self, data: object) -> None:
        """Take over what state() gave; raise StateDataError for anything else."""
        values = checked(self.name, _STATE, data)
        ram, standing = values["ram"], values["standing"]
        stands = ram[REG_B] & B_SET or ram[REG_A] & A_DIVIDER_RESET == A_DIVIDER_RESET
        if ram[REG_A] & A_UIP or bool(stands) != (standing is not None):
            raise StateDataError(f"{self.name}: the time must stand still if, and only if, registers A and B say so")
        with self._lock:
            self._index, self._offset, self._polled = values["index"], values["offset"], values["polled"]
            self._standing = None if standing is None else dict(zip(_TIME, standing, strict=True))
            self._ram, self._flags = bytearray(ram), values["flags"]
            self._changed()
            self._line.restore(self._interrupts())
        self._line.drive()

    def read(self, offset: int, size: int) -> bytes:
        """Read the indexed register at offset 1; the index itself cannot be read."""
        data = bytearray(b"\xff" * size)
        if offset <= 1 < offset + size:
            with self._lock:
                data[1 - offset] = self._read_register(self._index)
                due = self._changed() if self._index == REG_C else False
            if due:
                self._line.drive()
        return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        """Write the index, whose bit 7 would mask NMI, or the indexed register; a wider access does both."""
        with self._lock:
            for port, value in enumerate(data, offset):
                if port == 0:
                    self._index = value % SIZE
                elif port == 1:
                    self._write_register(self._index, value)
            due = self._changed()
        if due:
            self._line.drive()

    def _due(self) -> None:
        """Interrupt, if it is time: called by the timer."""
        with self._lock:
            due = self._changed()
        if due:
            self._line.drive()

    # Everything below is called with _lock held.

    def _read_register(self, register: int) -> int:
        if register in _TIME:
            return self._encode(register, self._time()[register])
        if register == REG_A:
            return self._ram[REG_A] | (A_UIP if self._update_is_near() else 0)
        if register == REG_C:
            return self._read_flags()
        if register == REG_D:
            return D_VALID
        return self._ram[register]

    def _write_register(self, register: int, value: int) -> None:
        if register in _TIME:
            fields = self._time()
            fields[register] = self._decode(register, value)
            self._set_time(fields)
        elif register in (REG_A, REG_B):
            self._write_control(register, value)
        elif register not in (REG_C, REG_D):
            self._collect()
            self._ram[register] = value

    def _write_control(self, register: int, value: int) -> None:
        self._collect()
        fields, held = self._time(), self._divider_held()
        self._ram[register] = value & ~A_UIP if register == REG_A else value
        if self._ram[REG_B] & B_SET or self._divider_held():
            self._standing = fields
        elif self._standing is not None:
            self._standing = None
            # The first update comes half a second after the divider's start.
            self._set_time(fields, SECOND // 2 if held else 0)

    def _divider_held(self) -> bool:
        return self._ram[REG_A] & A_DIVIDER_RESET == A_DIVIDER_RESET

    def _host(self) -> int:
        return round(self._clock() * SECOND)

    def _now(self) -> int:
        return self._host() + self._offset

    def _update_is_near(self) -> bool:
        return self._standing is None and self._now() % SECOND >= SECOND - UPDATE_WARNING

    def _time(self) -> dict[int, int]:
        """Return the time by register, as numbers."""
        if self._standing is not None:
            return self._standing
        now = time.gmtime(self._now() // SECOND)
        weekday = (now.tm_wday + 1) % 7 + 1  # Sunday is 1
        century, year = divmod(now.tm_year, 100)
        return dict(
            zip(
                _TIME,
                (now.tm_sec, now.tm_min, now.tm_hour, weekday, now.tm_mday, now.tm_mon, year, century % 100),
                strict=True,
            )
        )

    def _set_time(self, fields: dict[int, int], fraction: int = 0) -> None:
        """Make `fields` the time, whatever they hold: 32 January is 1 February. The weekday follows the date."""
        if self._standing is not None:
            self._standing = fields
            return
        self._collect()
        days = days_since_1970(fields[CENTURY] * 100 + fields[YEAR], fields[MONTH], fields[DAY])
        seconds = days * 86400 + fields[HOURS] * 3600 + fields[MINUTES] * 60 + fields[SECONDS]
        self._offset = seconds * SECOND + fraction - self._host()
        self._polled = self._now()

    def _read_flags(self) -> int:
        """Return register C, and clear it: what has happened since it was read last."""
        self._collect()
        flags, self._flags = self._flags, 0
        return flags | (C_IRQ if flags & self._ram[REG_B] & B_INTERRUPTS else 0)

    def _collect(self) -> None:
        """Set the flags of what has happened since they were looked at last."""
        before, now = self._polled, self._now()
        self._polled = now
        if self._standing is None and now // SECOND != before // SECOND:
            self._flags |= C_UPDATE
            if now > before and self._next_alarm(before) <= now:
                self._flags |= C_ALARM
        frequency = self._frequency()
        if frequency and now * frequency // SECOND != before * frequency // SECOND:
            self._flags |= C_PERIODIC

    def _frequency(self) -> int:
        """Return how often in a second the periodic flag is set."""
        rate = self._ram[REG_A] & A_RATE
        if not rate or self._divider_held():
            return 0
        return 32768 >> (rate - 1 if rate > 2 else rate + 6)  # 1 and 2 are the rates of 8 and 9

    def _next_alarm(self, after: int) -> int:
        """Return the first whole second after `after` at which the alarm's time of day is shown."""
        day, second = divmod(after // SECOND + 1, DAY_SECONDS)
        start = second
        wanted = [self._alarm(register) for register in (HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM)]
        for _ in range(2):
            found = _next_of_day(start, *wanted)
            if found is not None:
                return (day * DAY_SECONDS + found) * SECOND
            day, start = day + 1, 0
        return NEVER

    def _alarm(self, register: int) -> int | None:
        """Return the number in an alarm register, None for any."""
        value = self._ram[register]
        return None if value & ALARM_ANY == ALARM_ANY else self._decode(register - 1, value)

    def _interrupts(self) -> bool:
        return bool(self._flags & self._ram[REG_B] & B_INTERRUPTS)

    def _changed(self) -> bool:
        """Set the timer for the next interrupt; return whether the line is to be driven."""
        enabled = self._ram[REG_B] & B_INTERRUPTS
        if self._timer is None or self._ticks is None:
            return False
        if enabled:
            self._collect()
        missing = enabled & ~self._flags
        when = min(self._times(missing), default=NEVER) if missing else NEVER
        if when < NEVER and not self._interrupts():
            self._timer.at(self._ticks() + max(when - self._now(), 0))
        else:
            self._timer.cancel()
        return self._line.want(self._interrupts())

    def _times(self, flags: int) -> list[int]:
        """Return when each of `flags` will be set, in the guest's time."""
        now, times = self._now(), []
        frequency = self._frequency()
        if flags & C_PERIODIC and frequency:
            times.append(-(-(now * frequency // SECOND + 1) * SECOND // frequency))
        if self._standing is None:
            if flags & C_UPDATE:
                times.append((now // SECOND + 1) * SECOND)
            if flags & C_ALARM:
                times.append(self._next_alarm(now))
        return times

    def _encode(self, register: int, number: int) -> int:
        pm = 0
        if register == HOURS and not self._ram[REG_B] & B_24_HOURS:
            pm = HOURS_PM if number >= 12 else 0
            number = number % 12 or 12
        if not self._ram[REG_B] & B_BINARY:
            number = number // 10 << 4 | number % 10
        return (number | pm) & 0xFF

    def _decode(self, register: int, value: int) -> int:
        twelve = register == HOURS and not self._ram[REG_B] & B_24_HOURS
        pm = twelve and value & HOURS_PM
        if twelve:
            value &= ~HOURS_PM
        number = value if self._ram[REG_B] & B_BINARY else (value >> 4) * 10 + (value & 0x0F)
        if twelve:
            number = number % 12 + (12 if pm else 0)
        return number


def _next_of_day(start: int, hour: int | None, minute: int | None, second: int | None) -> int | None:
    """Return the first second of a day, from `start` on, with this hour, minute and second; None where none is left."""
    for hours in range(24) if hour is None else (hour,):
        for minutes in range(60) if minute is None else (minute,):
            seconds = second
            at = (hours * 60 + minutes) * 60
            if at + 59 < start or hours > 23 or minutes > 59:
                continue
            if seconds is None:
                return max(at, start)
            if seconds < 60 and at + seconds >= start:
                return at + seconds
    return None


def register_access(rtc: Rtc) -> tuple[Callable[[int], int], Callable[[int, int], object]]:
    """Return how to read a register by its index, and how to write one, as a guest does by the two ports."""

    def read(register: int) -> int:
        rtc.write(0, bytes((register,)))
        return rtc.read(1, 1)[0]

    return read, lambda register, value: rtc.write(0, bytes((register, value)))


def days_since_1970(year: int, month: int, day: int) -> int:
    """Return the days from 1970-01-01 to a date of the Gregorian calendar; a month or day too large carries over.

    >>> days_since_1970(1970, 1, 1), days_since_1970(2000, 3, 1), days_since_1970(2000, 2, 30)
    (0, 11017, 11017)
    """
    carried, month = divmod(month - 3, 12)  # count years from March: the leap day is then their last
    year += carried
    return year * 365 + year // 4 - year // 100 + year // 400 + (month * 153 + 2) // 5 + day - 719469
