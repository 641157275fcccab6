"""`--top`: exits per second by vCPU and reason, redrawn while the machine runs."""

from __future__ import annotations

import os
import signal
import threading
from time import monotonic

from ..errors import ConfigError
from ..observe.stats import name_of

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from ..observe.stats import Stats

PERIOD = 0.5  # seconds between two pictures
STDOUT, STDERR = 1, 2
NEEDED = ("sc", "rc", "csr", "cup", "cuu", "el", "ed")  # what terminfo calls save cursor, change scroll region, ...
DOWN = b"\x1bD"  # down a line, in the same column; terminfo has \n for it, which the tty turns into a new line
Counts = dict[tuple[int, int], int]  # by vCPU and exit reason


class Top:
    """The picture, at the bottom of the terminal that is standard error; what others write there scrolls above it.

    A thread draws it; start() and close() are for the main thread.
    """

    def __init__(self, stats: Stats) -> None:
        self._screen = Screen()
        self._stats = stats
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Draw from now on."""
        self._end.clear()
        self._thread = threading.Thread(target=self._run, name="top", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Put the terminal back; closing again does nothing."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        try:
            before, since = self._counts(), monotonic()
            while not self._end.wait(PERIOD):
                counts, now = self._counts(), monotonic()
                self._screen.draw(picture(before, counts, now - since))
                before, since = counts, now
            self._screen.put_back()
        except OSError:
            return  # the terminal is gone

    def _counts(self) -> Counts:
        return {
            (index, reason): kind.count
            for index, kinds in enumerate(self._stats.kinds)
            for reason, kind in list(kinds.items())
        }


def picture(before: Counts, now: Counts, seconds: float) -> list[str]:
    """Return the lines: a column for all exits and each reason that was seen, a line for all vCPUs and each."""
    reasons = sorted({reason for (_, reason), count in now.items() if count})
    vcpus = sorted({index for index, _ in now})
    rates = {key: (count - before.get(key, 0)) / seconds for key, count in now.items()}
    head = f"{'exits/s':<10}{'all':>10}" + "".join(f"{name_of(reason):>16}" for reason in reasons)

    def line(name: str, row: list[float]) -> str:
        return f"{name:<10}{sum(row):>10.0f}" + "".join(f"{rate:>16.0f}" for rate in row)

    rows = {index: [rates.get((index, reason), 0.0) for reason in reasons] for index in vcpus}
    total = [sum(row[i] for row in rows.values()) for i in range(len(reasons))]
    return [head, line("all", total), *(line(f"vCPU {index}", row) for index, row in rows.items())]


def fitted(lines: list[str], height: int, width: int) -> list[str]:
    """Return what of the lines has room; the last one then says how many are missing."""
    if len(lines) > height > 1:
        lines = [*lines[: height - 1], f"and {len(lines) - height + 1} vCPUs more"]
    return [line[: width - 1] for line in lines[:height]]


class Screen:
    """The last lines of the terminal that is standard error, kept apart from the rest by a scroll region."""

    def __init__(self) -> None:
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
        self._strings = {name: curses.tigetstr(name) for name in NEEDED}
        if not all(self._strings.values()):
            raise ConfigError(f"--top cannot draw on a terminal of type {os.environ.get('TERM')!r}; is TERM right?")
        self._parameters: Callable[..., bytes] = curses.tparm
        self._shape = (0, 0, 0)  # lines and columns of the terminal, and lines that are ours

    def draw(self, lines: list[str]) -> None:
        """Show the lines. Raise OSError when the terminal is gone."""
        width, height = _size()
        shown = fitted(lines, height // 2 if os.isatty(STDOUT) else height - 1, width)
        top = height - len(shown)
        if self._shape != (height, width, len(shown)):
            self.put_back()
            self._write(DOWN * len(shown) + self._get("cuu", len(shown)) if shown else b"")
            self._shape = (height, width, len(shown))
        if not shown:
            return
        drawn = b"".join(self._get("cup", top + i, 0) + line.encode() + self._get("el") for i, line in enumerate(shown))
        # A guest may have reset the scroll region; setting it moves the cursor, which is why it is saved before.
        self._write(self._get("sc") + self._get("csr", 0, top - 1) + drawn + self._get("rc"))

    def put_back(self) -> None:
        """Take the lines away."""
        height, _, ours = self._shape
        if ours:
            erased = self._get("cup", height - ours, 0) + self._get("ed")
            self._write(self._get("sc") + self._get("csr", 0, _size()[1] - 1) + erased + self._get("rc"))
        self._shape = (0, 0, 0)

    def _get(self, name: str, *parameters: int) -> bytes:
        return self._parameters(self._strings[name], *parameters)

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(STDERR, data) :]


def _size() -> tuple[int, int]:
    """Return columns and lines of the terminal."""
    width, height = os.get_terminal_size(STDERR)
    return width or 80, height or 24
