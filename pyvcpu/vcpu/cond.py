"""Cond: a condition variable that a Ctrl-C does not break."""

from __future__ import annotations

import threading
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    Waiting = tuple[Callable[[], object], threading.Lock]

NEVER = float("inf")
# Seconds: Python sees a signal that comes just before a thread goes to sleep only when that wakes up.
LONGEST = 0.25


class Cond:
    """Wait until something holds that is guarded by a lock.

    threading.Condition is written in Python: a KeyboardInterrupt (or what a signal handler raises) in its wait(),
    where the lock is released and not yet taken again, makes the `with` around it release a lock that another
    thread holds by then. Here nobody waits inside a `with`.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        # What each waiting thread waits for, and a lock that it holds until that has come; under _lock.
        self._waiting: list[Waiting] = []

    def wait_for(self, predicate: Callable[[], object], timeout: float | None = None) -> bool:
        """Return True once `predicate()`, called with the lock held, is true; False after `timeout` seconds.

        Call it without the lock. Any thread may call `predicate`, so that this one sleeps until it holds: of many
        vCPUs that stop, each would wake it otherwise, and it would take the interpreter's lock from the next.
        """
        with self._lock:
            if predicate():
                return True
            waiting = self.enrol(predicate)
        return self.sleep(waiting, timeout)

    def enrol(self, predicate: Callable[[], object]) -> Waiting:
        """Do the first half of wait_for(), with the lock held: what makes `predicate()` true is yet to come.

        Whoever kicks a thread that is to bring it about goes to sleep the sooner after the kick, and that thread needs
        the interpreter's lock at once.
        """
        waiting = (predicate, threading.Lock())
        waiting[1].acquire()
        self._waiting.append(waiting)
        return waiting

    def sleep(self, waiting: Waiting, timeout: float | None = None) -> bool:
        """Do the second half of wait_for(), without the lock."""
        end = NEVER if timeout is None else monotonic() + timeout
        try:
            while not waiting[1].acquire(timeout=min(max(0, end - monotonic()), LONGEST)):
                if monotonic() >= end:
                    return self._give_up(waiting)
            return True
        except BaseException:
            self._give_up(waiting)
            raise

    def _give_up(self, waiting: Waiting) -> bool:
        with self._lock:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            return bool(waiting[0]())

    def notify_all(self) -> None:
        """Wake those whose predicate holds now; with the lock held, and what the predicates look at complete."""
        still = []
        for waiting in self._waiting:
            predicate, bell = waiting
            if not predicate():
                still.append(waiting)
            elif bell.locked():  # it is not, where a Ctrl-C cut this short before
                bell.release()
        self._waiting = still
