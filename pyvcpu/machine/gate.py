"""Gate: what threads of the host do to a guest waits there while the world is held still."""

from __future__ import annotations

import threading

from ..vcpu.cond import Cond


class Gate:
    """`with gate:` around what feeds the guest: input for a port, a line that is driven.

    hold() waits until nobody is inside, and keeps others out until release(); holds are counted. A thread that holds it
    may go through all the same: it changes on purpose what stands still. `_lock` guards it all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cond = Cond(self._lock)
        self._inside = 0
        self._holders: list[int] = []

    def __enter__(self) -> None:
        me = threading.get_ident()
        while True:
            with self._lock:
                if self._is_open(me):
                    self._inside += 1
                    return
            self._cond.wait_for(lambda: self._is_open(me))

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._inside -= 1
            self._cond.notify_all()

    def _is_open(self, thread: int) -> bool:
        return not self._holders or thread in self._holders

    def hold(self, timeout: float | None = None) -> bool:
        """Keep everybody out, once nobody is inside; False, and nothing changed, after `timeout` seconds."""
        me = threading.get_ident()
        with self._lock:
            self._holders.append(me)
        still = False
        try:
            still = self._cond.wait_for(lambda: not self._inside, timeout)
        finally:
            if not still:
                self.release()
        return still

    def release(self) -> None:
        """Take back one hold() of the calling thread, or of another where this one has none."""
        me = threading.get_ident()
        with self._lock:
            if me in self._holders:
                self._holders.remove(me)
            elif self._holders:
                self._holders.pop()
            self._cond.notify_all()
