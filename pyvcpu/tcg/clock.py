"""Time: the one place of pyvcpu.tcg that reads the host's clock, and the timers that hang on it.

A clock has `now()`, nanoseconds that never go back, and `wall()`, nanoseconds since 1970. Another one (one that counts
instructions, say) may take its place: everything else gets its time from the Clock of its VM.
"""

from __future__ import annotations

import heapq
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

NEVER = 1 << 100
SECOND = 1_000_000_000


class Clock:
    """The host's time, from the moment on that the clock was made."""

    __slots__ = ("_start",)

    def __init__(self) -> None:
        self._start = time.monotonic_ns()

    def now(self) -> int:
        """Return the nanoseconds since the clock was made."""
        return time.monotonic_ns() - self._start

    def wall(self) -> int:
        """Return the nanoseconds since 1970."""
        return time.time_ns()

    def give_way(self) -> None:
        """Let other threads have the interpreter for a moment."""
        time.sleep(0.000_01)


class Timer:
    """Something to be done at a time. `active` is False once it is done or cancelled."""

    __slots__ = ("active", "call", "deadline")

    def __init__(self, deadline: int, call: Callable[[Timer], object]) -> None:
        self.deadline, self.call, self.active = deadline, call, True

    def __lt__(self, other: Timer) -> bool:
        return self.deadline < other.deadline


class Timers:
    """What is to happen when. Any thread; `_lock` guards the heap, and no callback is called while it is held.

    `poke()` is called when the next deadline has become an earlier one. A callback gets its Timer: whoever armed it
    must see for himself, under his own lock, whether that is still the one he waits for.
    """

    __slots__ = ("_heap", "_lock", "clock", "next", "poke")

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.poke: Callable[[], object] = int
        self.next = NEVER
        self._heap: list[Timer] = []
        self._lock = threading.Lock()

    def arm(self, deadline: int, call: Callable[[Timer], object]) -> Timer:
        """Have `call` called at `deadline`, in ns of the clock."""
        timer = Timer(deadline, call)
        with self._lock:
            heapq.heappush(self._heap, timer)
            earlier = deadline < self.next
            if earlier:
                self.next = deadline
            if len(self._heap) > 64 and sum(t.active for t in self._heap) * 2 < len(self._heap):
                self._heap = [t for t in self._heap if t.active]
                heapq.heapify(self._heap)
        if earlier:
            self.poke()
        return timer

    def cancel(self, timer: Timer | None) -> None:
        """Forget a timer."""
        if timer is not None:
            timer.active = False

    def run(self) -> int:
        """Do what is due, and return the next deadline."""
        while True:
            due = []
            with self._lock:
                now = self.clock.now()
                heap = self._heap
                while heap and (not heap[0].active or heap[0].deadline <= now):
                    timer = heapq.heappop(heap)
                    if timer.active:
                        timer.active = False
                        due.append(timer)
                self.next = heap[0].deadline if heap else NEVER
                if not due:
                    return self.next
            for timer in due:
                timer.call(timer)
