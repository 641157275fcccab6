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


def check_timeout(timeout: float | None) -> None:
    """Raise TypeError or ValueError for what is no time in seconds; None is for ever."""
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"a timeout is a number of seconds or None, not {timeout!r}")
    if timeout != timeout:
        raise ValueError("a timeout must be a number, not nan")


def new_bell() -> threading.Lock:
    """Return a lock that is held: its release wakes whoever waits for it."""
    bell = threading.Lock()
    bell.acquire()
    return bell


def wait_for_bell(bell: threading.Lock, timeout: float | None) -> bool:
    """Wait until `bell` is released, at most `timeout` seconds; return whether it was."""
    end = NEVER if timeout is None else monotonic() + timeout
    while not bell.acquire(timeout=min(max(0.0, end - monotonic()), LONGEST)):
        if monotonic() >= end:
            return False
    return True


class Cond:
    """Wait until something holds that is guarded by a lock.

    threading.Condition is written in Python: a KeyboardInterrupt (or what a signal handler raises) in its wait(),
    where the lock is released and not yet taken again, makes the `with` around it release a lock that another
    thread holds by then. Here nobody waits inside a `with`.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self.on_delay: Callable[[], object] | None = None  # set before the first wait
        # What each waiting thread waits for, and a lock that it holds until that has come; under _lock.
        self._waiting: list[Waiting] = []

    def wait_for(
        self, predicate: Callable[[], object], timeout: float | None = None, trigger: Callable[[], object] | None = None
    ) -> bool:
        """Return True once `predicate()`, called with the lock held, is true; False after `timeout` seconds.

        Call it without the lock. A thread that changes something calls `predicate` itself, so that this thread sleeps
        until it holds. Otherwise each of many vCPUs that stop would wake this thread, which would take the
        interpreter's lock from the next of them.

        `trigger()` is called, with the lock held, unless the predicate holds already. It sets off what is waited for,
        such as a kick. It is the last step before this thread sleeps: a thread that it kicks needs the interpreter's
        lock at once.

        `on_delay()`, if it is set, is called with the lock held each time that LONGEST has passed in vain.
        """
        check_timeout(timeout)
        end = NEVER if timeout is None else monotonic() + timeout
        bell = new_bell()
        waiting = (predicate, bell)
        try:
            with self._lock:
                if predicate():
                    return True
                self._waiting.append(waiting)
                if trigger is not None:
                    trigger()
            while not bell.acquire(timeout=min(max(0, end - monotonic()), LONGEST)):
                if monotonic() >= end:
                    return self._give_up(waiting)
                if self.on_delay is not None:
                    with self._lock:
                        self.on_delay()
            return True
        except BaseException:  # such as KeyboardInterrupt
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
