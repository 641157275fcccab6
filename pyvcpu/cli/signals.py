"""Signals that end the program, delivered only where it waits: what it does in between is never left half done."""

from __future__ import annotations

import os

from ..posix import signal

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from types import FrameType
    from typing import NoReturn

IMPATIENT = 3
INSIST = 0.1  # seconds
CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signalled(BaseException):
    """One of CAUGHT came; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """From creation on a signal is kept, and raised as Signalled by the next (or present) `with` on this object.

    Those that come after it find the program on its way out, and are ignored; but the third is raised wherever it
    comes, for people who see that nothing happens. Signals that the parent had us ignore stay ignored. For the main
    thread.
    """

    def __init__(self) -> None:
        self._open = False
        self._kept: int | None = None
        self._done = False
        self._count = 0
        for number in CAUGHT:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._caught)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self._kept = self._kept or number
        self._count += 1
        if self._count == IMPATIENT:
            raise Signalled(self._kept)
        if self._open:
            self._raise(self._kept)

    def _raise(self, number: int) -> None:
        if not self._done:
            self._done = True
            raise Signalled(number)

    def __enter__(self) -> None:
        self._open = True
        if self._kept is not None:
            self._raise(self._kept)

    def __exit__(self, *exc: object) -> None:
        self._open = False


class Awake:
    """Inside, a signal that ends the program ends a wait for keys, too. For the main thread.

    input() waits in C. A signal that comes between Python's last look at signals and that wait does not end it, and
    would be seen at the next key. So it is sent once more, where it has not ended the `with` by then.
    """

    def __enter__(self) -> None:
        import threading

        self._over = threading.Event()
        self._main = threading.get_ident()
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="prompt signals", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        while (number := os.read(self._read, 1)[0]) != 0:
            if number in (signal.SIGTERM, signal.SIGHUP):
                if not self._over.wait(INSIST):
                    signal.pthread_kill(self._main, number)
                return

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        signal.set_wakeup_fd(self._before)
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)


def die_of(number: int) -> NoReturn:
    """End as a program does that has no handler for the signal, so that the parent sees why."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # not reached, unless the signal is blocked
