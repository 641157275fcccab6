"""An interrupt line, from the device's side: its levels go out in order, and without a lock."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import threading
    from collections.abc import Callable


class Line:
    """Pass the levels of a line on to `set_irq(level)`. The line starts low.

    The device sets the level under its own lock, with want(), and then lets go of the lock and calls drive(). So
    `set_irq` may block, call back in, or wait for another thread that uses the device. It is called by one thread at a
    time: levels alternate, and the last one is the line's. A thread that changes the level calls it, unless another is
    in it: that one passes the change on. An exception of `set_irq` goes to the caller of drive().
    """

    __slots__ = ("_dip", "_driving", "_lock", "_passed", "_set_irq", "_wanted")

    def __init__(self, lock: threading.Lock, set_irq: Callable[[bool], object]) -> None:
        self._lock = lock
        self._set_irq = set_irq
        self._wanted = False
        self._passed = False  # the level that set_irq got last
        self._dip = False  # the line must fall, or have fallen, before it is high again
        self._driving = False  # a thread is in set_irq

    def want(self, level: bool, dip: bool = False) -> bool:
        """Set the level, with the lock held; return whether drive() must be called.

        `dip`: an edge is due, so that the line is to fall first if it is high. A fall is noted at once: it makes an
        edge even when the level is high again before `set_irq` was called.
        """
        self._wanted = level
        self._dip |= dip or (self._passed and not level)
        return self._dip or level != self._passed

    def restore(self, level: bool) -> None:
        """Set the level, with the lock held, so that the next drive() calls `set_irq` once with it in any case."""
        self._wanted = level
        self._passed = not level
        self._dip = False

    def drive(self) -> None:
        """Pass the line's changes on, without the lock, unless another thread is at it."""
        with self._lock:
            if self._driving:
                return
            self._driving = True
        try:
            while (level := self._next()) is not None:
                self._set_irq(level)
        except BaseException:
            with self._lock:
                self._driving = False
            raise

    def _next(self) -> bool | None:
        """Return the next level for set_irq; None, and the end of driving, when it has had the latest."""
        with self._lock:
            level = self._wanted and not (self._dip and self._passed)
            self._dip = False
            if level == self._passed:
                self._driving = False
                return None
            self._passed = level
            return level
