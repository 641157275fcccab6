"""Gate: what threads of the host do to a guest waits there while the world is held still."""

from __future__ import annotations

import threading
from time import monotonic

TYPE_CHECKING = False


class Gate:
    """`with gate:` around what feeds the guest: input for a port, a line that is driven.

    hold() waits until nobody is inside, and keeps others out until release(); holds are counted. A thread that holds it
    may go through all the same: it changes on purpose what stands still. `_changed` guards it all.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._holders: list[int] = []

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            while self._holders and me not in self._holders:
                self._changed.wait()
            self._inside += 1

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def hold(self, timeout: float | None = None) -> bool:
        """Keep everybody out, once nobody is inside; False, and nothing changed, after `timeout` seconds."""
        end = None if timeout is None else monotonic() + timeout
        me = threading.get_ident()
        with self._changed:
            self._holders.append(me)
            try:
                while self._inside:
                    left = None if end is None else end - monotonic()
                    if left is not None and left <= 0:
                        self._drop(me)
                        return False
                    self._changed.wait(left)
            except BaseException:
                self._drop(me)
                raise
        return True

    def release(self) -> None:
        """Take back one hold() of the calling thread, or of another where this one has none."""
        with self._changed:
            self._drop(threading.get_ident())

    def _drop(self, thread: int) -> None:
        if thread in self._holders:
            self._holders.remove(thread)
        elif self._holders:
            self._holders.pop()
        self._changed.notify_all()
