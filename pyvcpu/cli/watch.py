"""`--stats`, `--trace`, `--explain` and `--top`: what one wants to see of a run, put around it."""

from __future__ import annotations

import threading
from queue import SimpleQueue

from ..errors import ConfigError
from ..observe.stats import Stats
from . import complain, say

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from types import SimpleNamespace
    from typing import TextIO

    from ..kvm import Kvm
    from ..machine import Machine
    from ..observe.timeline import Timeline
    from ..observe.trace import Trace
    from .top import Top

GRACE = 1.0  # seconds that vCPUs have to stop before they are counted


class Watch:
    """What the options ask to see. For the main thread.

    For each machine open_kvm(), begin(), end(), and report() when it is closed; close() after the last.
    """

    def __init__(self, options: SimpleNamespace) -> None:
        self._stats = bool(options.stats)
        self._timeline: Timeline | None = None
        self._file: TextIO | None = None
        self._teller: Teller | None = None
        self._trace: Trace | None = None
        self._top: Top | None = None
        self._kvm: Kvm | None = None
        self._lines: list[str] = []
        if options.trace is not None or options.explain:
            self._trace = self._new_trace(options)
        self._observer = self._trace or Stats()
        if options.top:
            from .top import Top

            self._top = Top(self._observer)

    def _new_trace(self, options: SimpleNamespace) -> Trace:
        from ..observe.timeline import Timeline
        from ..observe.trace import Trace

        explain = None
        if options.trace is not None:
            self._timeline = Timeline()
            try:
                self._file = open(options.trace, "w", encoding="utf-8")  # noqa: SIM115  # closed in close()
            except OSError as error:
                raise ConfigError(f"--trace {options.trace}: {error.strerror}") from None
        if options.explain:
            from ..observe.explain import Explain

            self._teller = Teller()
            explain = Explain(self._teller.tell)
        return Trace(self._timeline, explain)

    def open_kvm(self, accel: str | None, path: str | None) -> Kvm:
        """Open what the machine runs on; where ioctls are traced, one that shows them from the first on."""
        from ..machine.accel import open_machine

        self._kvm = open_machine(accel, path, say, None if self._trace is None else self._trace.see)
        return self._kvm

    def begin(self, machine: Machine) -> None:
        """See what `machine` does from now on; before its start."""
        machine.observe(self._observer)
        if self._top is not None:
            self._top.start()

    def end(self, machine: Machine) -> None:
        """Take the statistics, while there are still vCPUs to ask."""
        if self._top is not None:
            self._top.close()
        if self._stats:
            from .stats import of_kvm, table

            machine.pause(GRACE)  # after a Ctrl-C they still run
            self._lines = [*table(self._observer), *of_kvm(machine)]

    def report(self) -> None:
        """Print the statistics, below what is said of the machine's end."""
        if self._kvm is not None:
            self._kvm.close()
        if self._teller is not None:
            self._teller.flush()
        for line in self._lines:
            say(line)
        self._lines = []

    def close(self) -> bool:
        """Write the timeline; False when that is not possible, which is said."""
        if self._top is not None:
            self._top.close()
        if self._teller is not None:
            self._teller.close()
        if self._file is None or self._timeline is None:
            return True
        try:
            with self._file as file:
                file.writelines(f"{line}\n" for line in self._timeline.lines())
        except OSError as error:
            complain(f"--trace {self._file.name}: {error.strerror}", 0)
            return False
        if self._timeline.dropped:
            kept = f"the timeline has the first and the last {self._timeline.half} events"
            say(f"{kept}; {self._timeline.dropped} between them are left out")
        return True


class Teller:
    """Says lines on a thread of its own: a vCPU that has a line must not wait for whoever reads standard error."""

    def __init__(self) -> None:
        self._lines: SimpleQueue[str | threading.Event] = SimpleQueue()  # an empty one is the end
        self.tell = self._lines.put
        self._thread = threading.Thread(target=self._say, name="explain", daemon=True)
        self._thread.start()

    def _say(self) -> None:
        import signal

        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        while line := self._lines.get():
            if isinstance(line, threading.Event):
                line.set()
            else:
                say(line)

    def flush(self) -> None:
        """Wait until all lines are out."""
        said = threading.Event()
        self._lines.put(said)
        said.wait()

    def close(self) -> None:
        """Say what is left."""
        self.tell("")
        self._thread.join()
