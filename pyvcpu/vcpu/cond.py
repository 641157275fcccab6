"""Cond: a condition variable that a Ctrl-C does not break."""

from __future__ import annotations

import threading
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable


class Cond:
    """Wait until something holds that is guarded by a lock.

    threading.Condition is written in Python: a KeyboardInterrupt (or what a signal handler raises) in its wait(),
    where the lock is released and not yet taken again, makes the `with` around it release a lock that another
    thread holds by then. Here nobody waits inside a `with`.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._bells: list[threading.Lock] = []  # one per waiting thread, held until it is to look again; under _lock

    def wait_for(self, predicate: Callable[[], object], timeout: float | None = None) -> bool:
        """Return True once `predicate()`, called with the lock held, is true; False after `timeout` seconds.

        Call it without the lock.
        """
        end = None if timeout is None else monotonic() + timeout
        while True:
            bell = threading.Lock()
            bell.acquire()
            with self._lock:
                if predicate():
                    return True
                self._bells.append(bell)
            if end is None:
                bell.acquire()
            elif not bell.acquire(timeout=min(max(0, end - monotonic()), threading.TIMEOUT_MAX)):
                with self._lock:
                    if bell in self._bells:
                        self._bells.remove(bell)
                    return bool(predicate())

    def notify_all(self) -> None:
        """Let all who wait look again; with the lock held."""
        bells, self._bells = self._bells, []
        for bell in bells:
            bell.release()
