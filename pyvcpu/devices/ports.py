"""Single ports of a PC that guests poll: 0x61, 0x80, 0x92, and pvpanic's 0x505.

Sources: IBM PS/2 Technical Reference (0x61, 0x92); QEMU, docs/specs/pvpanic.rst.
"""

from __future__ import annotations

import threading
from time import monotonic_ns

from .device import Stateless, bits, checked, integer

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .device import State

SYSTEM_PORT, POST_PORT, FAST_PORT, PANIC_PORT = 0x61, 0x80, 0x92, 0x505

GATE_BITS = 0x0F  # timer 2's gate, the speaker, two checks
REFRESH, TIMER_OUT = 0x10, 0x20
REFRESH_NS = 15_085  # between two changes of the refresh bit


class SystemControl:
    """Port 0x61 of a machine without a timer: the refresh bit changes, and counter 2 has always run out.

    Where KVM has the timer, it answers itself. `clock` returns nanoseconds.
    """

    name = "system control"
    LENGTH = 1

    def __init__(self, clock: Callable[[], int] = monotonic_ns) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._value = 0

    def reset(self) -> None:
        """Return to the state after power-on."""
        with self._lock:
            self._value = 0

    def state(self) -> State:
        """Return the register as plain data."""
        with self._lock:
            return {"value": self._value}

    def restore(self, data: object) -> None:
        """Take over what state() gave; raise StateDataError for anything else."""
        value = checked(self.name, {"value": bits(GATE_BITS)}, data)["value"]
        with self._lock:
            self._value = value

    def read(self, offset: int, size: int) -> bytes:
        """Return what was written, and the two bits that change by themselves elsewhere."""
        refresh = REFRESH if self._clock() // REFRESH_NS & 1 else 0
        with self._lock:
            return bytes((self._value | refresh | TIMER_OUT,)).ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:
        """Store gate and speaker bits."""
        with self._lock:
            self._value = data[0] & GATE_BITS


class PostCode:
    """Port 0x80: what was written last can be read. Guests write to it to let time pass."""

    name = "POST code"
    LENGTH = 1

    def __init__(self) -> None:
        self._value = 0

    def reset(self) -> None:
        """Return to the state after power-on."""
        self._value = 0

    def state(self) -> State:
        """Return the register as plain data."""
        return {"value": self._value}

    def restore(self, data: object) -> None:
        """Take over what state() gave; raise StateDataError for anything else."""
        self._value = checked(self.name, {"value": integer(0, 0xFF)}, data)["value"]

    def read(self, offset: int, size: int) -> bytes:
        """Return the last code."""
        return bytes((self._value,)).ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:
        """Store a code; a wider access ends in ports where nobody is."""
        self._value = data[0]


FAST_RESET, FAST_A20 = 0x01, 0x02
FAST_BITS = 0xFF


class FastControl:
    """Port 92h: a rising bit 0 resets the machine; bit 1, the address line 20, can be read back and is always on.

    `reset` is called in the thread of the vCPU that writes.
    """

    name = "port 92h"
    LENGTH = 1

    def __init__(self, reset: Callable[[], object]) -> None:
        self._reset = reset
        self._lock = threading.Lock()
        self._value = FAST_A20

    def reset(self) -> None:
        """Return to the state in which firmware leaves it: the line is on."""
        with self._lock:
            self._value = FAST_A20

    def state(self) -> State:
        """Return the register as plain data."""
        with self._lock:
            return {"value": self._value}

    def restore(self, data: object) -> None:
        """Take over what state() gave; raise StateDataError for anything else."""
        value = checked(self.name, {"value": integer(0, FAST_BITS)}, data)["value"]
        with self._lock:
            self._value = value

    def read(self, offset: int, size: int) -> bytes:
        """Return what was written last."""
        with self._lock:
            return bytes((self._value,)).ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:
        """Store the register; reset when bit 0 rises."""
        with self._lock:
            rising = data[0] & ~self._value & FAST_RESET
            self._value = data[0]
        if rising:
            self._reset()


PANICKED, CRASH_LOADED = 0x01, 0x02


class PvPanic(Stateless):
    """The port through which a guest's kernel says that it has panicked; `panicked` is called in that vCPU's thread.

    A guest that has a crash kernel loaded says so, and goes on.
    """

    __slots__ = ("_panicked",)
    name = "pvpanic"
    LENGTH = 1

    def __init__(self, panicked: Callable[[], object]) -> None:
        self._panicked = panicked

    def read(self, offset: int, size: int) -> bytes:
        """Return the events that can be told."""
        return bytes((PANICKED | CRASH_LOADED,)).ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """Take an event."""
        if data[0] & PANICKED:
            self._panicked()
