"""Threads in tests: callers that keep what comes of their call, and points at which another thread is held up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

DEADLINE = 30.0  # seconds for what should take no time, on a machine that others use, too


def until(condition: Callable[[], object], what: str = "it did not happen") -> None:
    """Wait for what other threads or processes bring about; fail with `what` when they do not."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.001)


class Caller(threading.Thread):
    """Calls a function in a thread of its own, and keeps its result or error."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.function = function
        self.result: object = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:
            self.error = error

    def done(self, timeout: float = DEADLINE) -> bool:
        """Wait for the function's end; False when `timeout` seconds passed first."""
        self.join(timeout)
        return not self.is_alive()


class Hold:
    """A port handler, a hook, or work for run_on_cpu, that stays in until it is released."""

    def __init__(self) -> None:
        self._entered, self._released = threading.Event(), threading.Event()

    def __call__(self, *arguments: object) -> None:
        self._entered.set()
        assert self._released.wait(DEADLINE)

    def wait(self) -> None:
        """Wait until a thread is in it."""
        assert self._entered.wait(DEADLINE)

    def release(self) -> None:
        """Let it go, now and ever after."""
        self._released.set()
