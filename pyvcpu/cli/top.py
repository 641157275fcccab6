"""`--top`: exits per second by vCPU and reason, redrawn while the machine runs."""

from __future__ import annotations

import os
import signal
import threading
from time import monotonic

from ..errors import ConfigError
from ..vcpu.observe import name_of

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from ..vcpu.observe import Stats

PERIOD = 0.5  # seconds between two pictures
STDERR = 2
ESCAPES = ("smcup", "rmcup", "clear", "home", "el", "ed")
Counts = dict[tuple[int, int], int]  # by vCPU and exit reason


class Top:
    """The picture on the terminal that is standard error: what the guest says on standard output stays apart.

    A thread draws it; start() and close() are for the main thread.
    """

    def __init__(self, stats: Stats) -> None:
        if not os.isatty(STDERR):
            raise ConfigError("--top draws on standard error, which must be a terminal")
        try:
            import curses
        except ImportError as error:
            raise ConfigError(f"--top needs Python's curses module ({error})") from None
        try:
            curses.setupterm(fd=STDERR)
        except curses.error as error:
            raise ConfigError(f"--top does not know this terminal ({error}); is TERM right?") from None
        self._escape = {name: curses.tigetstr(name) or b"" for name in ESCAPES}
        self._stats = stats
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Draw from now on."""
        self._thread = threading.Thread(target=self._run, name="top", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Put the terminal back; closing again does nothing."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        escape = self._escape
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        try:
            os.write(STDERR, escape["smcup"] + escape["clear"])
            before, since = self._counts(), monotonic()
            while not self._end.wait(PERIOD):
                counts, now = self._counts(), monotonic()
                lines = picture(before, counts, now - since)
                height, width = _size()
                shown = [line[: width - 1].encode() + escape["el"] for line in lines[: height - 1]]
                os.write(STDERR, escape["home"] + b"\r\n".join(shown) + b"\r\n" + escape["ed"])
                before, since = counts, now
            os.write(STDERR, escape["rmcup"])
        except OSError:
            return  # the terminal is gone

    def _counts(self) -> Counts:
        return {
            (index, reason): kind.times.count
            for index, kinds in enumerate(self._stats.kinds)
            for reason, kind in list(kinds.items())
        }


def picture(before: Counts, now: Counts, seconds: float) -> list[str]:
    """Return the lines: a column for each exit reason that was seen, a line for each vCPU, and their sum."""
    reasons = sorted({reason for (_, reason), count in now.items() if count})
    vcpus = sorted({index for index, _ in now})
    rates = {key: (count - before.get(key, 0)) / seconds for key, count in now.items()}
    head = "exits/s " + "".join(f"{name_of(reason):>16}" for reason in reasons) + f"{'all':>12}"

    def line(name: str, row: list[float]) -> str:
        return f"{name:<8}" + "".join(f"{rate:>16.0f}" for rate in row) + f"{sum(row):>12.0f}"

    rows = {index: [rates.get((index, reason), 0.0) for reason in reasons] for index in vcpus}
    total = [sum(row[i] for row in rows.values()) for i in range(len(reasons))]
    return [head, line("all", total), *(line(f"vCPU {index}", row) for index, row in rows.items())]


def _size() -> tuple[int, int]:
    try:
        width, height = os.get_terminal_size(STDERR)
    except OSError:
        return 24, 80
    return height or 24, width or 80
