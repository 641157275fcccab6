"""`--stats`, `--trace`, `--explain` and `--top`: what one wants to see of a run, put around it."""

from __future__ import annotations

import threading
from queue import SimpleQueue

from ..errors import ConfigError
from ..vcpu.observe import Stats
from . import say

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from types import SimpleNamespace
    from typing import TextIO

    from ..machine import Machine
    from ..trace import Event, Timeline
    from .top import Top


class Watch:
    """What the options ask to see of one machine. For the main thread: begin(), then end(), then close()."""

    def __init__(self, options: SimpleNamespace) -> None:
        self._stats = bool(options.stats)
        self._timeline: Timeline | None = None
        self._file: TextIO | None = None
        self._teller: Teller | None = None
        self._top: Top | None = None
        listeners: list[Callable[[Event], object]] = []
        if options.trace is not None:
            from ..trace import Timeline

            self._timeline = Timeline()
            listeners.append(self._timeline)
            try:
                self._file = open(options.trace, "w", encoding="utf-8")  # noqa: SIM115  # closed in close()
            except OSError as error:
                raise ConfigError(f"--trace {options.trace}: {error.strerror}") from None
        if options.explain:
            from ..trace import Explain

            self._teller = Teller()
            listeners.append(Explain(self._teller.tell))
        self._observer = Stats()
        if listeners:
            from ..trace import Trace

            self._observer = Trace(*listeners)
        if options.top:
            from .top import Top

            self._top = Top(self._observer)

    def begin(self, machine: Machine) -> None:
        """See what `machine` does from now on; before its start."""
        machine.observe(self._observer)
        if self._top is not None:
            self._top.start()

    def end(self, machine: Machine) -> None:
        """Print the statistics, while there are still vCPUs to ask."""
        if self._top is not None:
            self._top.close()
        if self._stats:
            from .stats import of_kvm, table

            for lines in (table(self._observer), of_kvm(machine)):
                for line in lines:
                    say(line)

    def close(self) -> None:
        """Write the timeline and tell the rest; the machine is closed."""
        if self._top is not None:
            self._top.close()
        if self._teller is not None:
            self._teller.close()
        if self._file is None or self._timeline is None:
            return
        try:
            with self._file as file:
                file.writelines(f"{line}\n" for line in self._timeline.lines())
        except OSError as error:
            raise ConfigError(f"--trace {self._file.name}: {error.strerror}") from None
        if self._timeline.dropped:
            say(f"the timeline is full: {self._timeline.dropped} later events are not in it")


class Teller:
    """Says lines on a thread of its own: those who tell must not wait for whoever reads standard error."""

    def __init__(self) -> None:
        self._lines: SimpleQueue[str] = SimpleQueue()  # an empty one is the end
        self.tell = self._lines.put
        self._thread = threading.Thread(target=self._say, name="explain", daemon=True)
        self._thread.start()

    def _say(self) -> None:
        import signal

        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        while line := self._lines.get():
            say(line)

    def close(self) -> None:
        """Say what is left."""
        self.tell("")
        self._thread.join()
