"""The receiver of a serial port: its FIFO, the input that waits for the guest to listen, and when more may come.

Drivers (Linux's is one) stay in their interrupt handler for as long as there is something to do, with interrupts
disabled: on a line that is never busy, until all has been received. They leave what they receive to others, who need
the processor as long again: a guest that takes a FIFO in 30 ms (an emulated one does) and finds the next at once does
nothing else any more, and its watchdogs warn. So more input comes after a pause that is as long as the guest took.
"""

from __future__ import annotations

import threading
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

FIFO_SIZE = 16
GAP = 0.001  # seconds after which more input comes for a guest that has not looked whether there is more
REST = 0.05  # seconds at most that an interrupt handler's guest has for itself: it may have been paused meanwhile

LOOPED = 0x100  # in the FIFO: the guest's own character, which came through loopback


class Receiver:
    """What the host gives and the guest has not read.

    Until the guest listens, input waits outside of the FIFO: drivers clear the FIFO as they start. After that it is in
    the FIFO, as long as there is room. A reset takes it out again, in front of what waits, so that nothing is lost but
    the guest's own characters.

    Threads: the lock of the serial port is held while a method is called, but for wait_room().
    """

    __slots__ = ("_closed", "_found_empty", "_lock", "_received", "_room", "_waiting", "enabled", "fifo", "loop", "on")

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._room = threading.Condition(lock)  # notified when the receiver has room, and by close
        self._closed = False
        self._waiting = bytearray()
        self.fifo: list[int] = []  # RBR when the FIFOs are off: then it holds one character
        self.enabled = False  # the FIFOs are
        self.loop = False  # in loopback mode the line is disconnected
        self.on = False  # the guest has listened
        self._found_empty = True  # the guest has looked, and found no more input
        self._received = 0.0  # when the last input came, on the monotonic clock

    def reset(self) -> None:
        """Return to the state after power-on, but for the host's input."""
        self._waiting[:0] = bytes(entry for entry in self.fifo if not entry & LOOPED)
        self.fifo.clear()
        self.enabled = self.loop = self.on = False
        self._found_empty = True
        self.tell_room()

    def state(self) -> tuple[bytes, int, bytes]:
        """Return the FIFO, a bit for each of its characters that came through loopback, and what waits."""
        looped = sum(1 << at for at, entry in enumerate(self.fifo) if entry & LOOPED)
        return bytes(entry & 0xFF for entry in self.fifo), looped, bytes(self._waiting)

    def restore(self, fifo: bytes, looped: int, waiting: bytes) -> None:
        """Take over what state() gave; `enabled`, `loop` and `on` are set already."""
        self.fifo = [value | (LOOPED if looped >> at & 1 else 0) for at, value in enumerate(fifo)]
        self._waiting = bytearray(waiting)
        self._found_empty = not fifo
        self.refill()

    def listen(self) -> None:
        """Note that the guest listens: what waits is in the FIFO from now on."""
        self.on = True
        self.refill()

    def refill(self) -> None:
        """Move as much of what waits into the FIFO as that has room for; wake who waits for an empty receiver."""
        if self._waiting and self.on and not self.loop:
            moved = max((FIFO_SIZE if self.enabled else 1) - len(self.fifo), 0)
            self.fifo += self._waiting[:moved]
            del self._waiting[:moved]
        self.tell_room()

    def take(self, data: bytes) -> int:
        """Take the first bytes of `data`, as many as there is room for; return how many."""
        taken = min(len(data), self._free())
        self._waiting += data[:taken]
        self._found_empty = self._found_empty and not taken
        self._received = monotonic()
        self.refill()
        return taken

    def loop_back(self, value: int) -> bool:
        """Receive what was transmitted in loopback mode, where nobody waits for room; return whether it overran."""
        if len(self.fifo) < (FIFO_SIZE if self.enabled else 1):
            self.fifo.append(value | LOOPED)
            return False
        if not self.enabled:
            self.fifo[0] = value | LOOPED  # RBR is overwritten; a full FIFO keeps what it has
        return True

    def pop(self, *, handler: bool) -> int:
        """Return the character that RBR shows next, 0 without any. A guest with a handler will look for more."""
        if not self.fifo:
            return 0
        value = self.fifo.pop(0) & 0xFF
        self.refill()
        self._found_empty = not self.fifo and not handler
        self.tell_room()
        return value

    def found_nothing(self) -> None:
        """Note that IIR has said that nothing is to be done."""
        if not self.fifo:
            self._found_empty = True
            self.tell_room()

    def clear(self) -> None:
        """Empty the FIFO, as the guest asks; what waits comes after it."""
        self.fifo.clear()

    def close(self) -> None:
        """Take no more input, and wake all who wait for room."""
        self._closed = True
        self._room.notify_all()

    def _free(self) -> int:
        """Return how many characters the receiver has room for."""
        if self._closed or self.loop:
            return 0
        return max((FIFO_SIZE if self.enabled else 1) - len(self.fifo) - len(self._waiting), 0)

    def _is_empty(self) -> bool:
        return not self.fifo and not self._waiting and self._free() > 0

    def tell_room(self) -> None:
        """Wake those who wait for an empty receiver, if it is."""
        if self._is_empty():
            self._room.notify_all()

    def wait_room(self, timeout: float | None, handler: Callable[[], object]) -> bool:
        """Wait as Serial.wait_room() does, without the lock; `handler()` tells whether the guest has one."""
        end = None if timeout is None else monotonic() + timeout
        with self._lock:
            if self._closed or (self._found_empty and self._is_empty()):
                return self._is_empty()
            self._wait(self._is_empty, timeout)
            self._wait(lambda: self._found_empty, _at_most(GAP, end))
            if handler() and self._is_empty():
                self._wait(lambda: False, _at_most(min(monotonic() - self._received, REST), end))
            return self._is_empty()

    def _wait(self, condition: Callable[[], bool], timeout: float | None) -> None:
        self._room.wait_for(lambda: self._closed or condition(), timeout)


def _at_most(seconds: float, end: float | None) -> float:
    """Return `seconds`, or what is left until `end`."""
    return seconds if end is None else max(0.0, min(seconds, end - monotonic()))
