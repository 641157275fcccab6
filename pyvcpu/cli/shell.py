"""`--shell`: Python's interactive console with the machine in it, while the guest stands still."""

from __future__ import annotations

import code
import os
import sys
import threading
from functools import partial
from time import monotonic

from ..errors import PyvcpuError
from ..exits import describe
from ..posix import signal
from . import tools
from .signals import Awake, Signalled

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from types import CodeType, TracebackType
    from typing import Any

    from ..debug.debugger import Hit
    from ..exits import ExitEvent
    from ..machine import Machine
    from ..machine.outcome import Outcome
    from ..vcpu.core import Cpu
    from .console import Input

WHO = "prompt"
HISTORY = os.path.join("~", ".pyvcpu_history")
HISTORY_LINES = 1000
BANNER = """\
{why}
Python, with machine, vcpus, cpu (vCPU {index}) and mem (its memory, by linear address). help_me() lists what else there
is. Ctrl-D or cont() lets the guest go on, machine.stop() ends it."""


class Leave(SystemExit):
    """The user has seen enough, and the guest is to go on."""


class Shell:
    """Opens the prompt when the user asks for it, at a breakpoint or at a crash. The machine is started.

    The vCPU that stops, or the thread that reads keys, begins to hold the world still and leaves a note; the main
    thread, which waits in wait(), finds it and holds the conversation. `now`: the first one is at once. A lock guards
    the note. The machine's lock may be taken with it held, and not the other way round.
    """

    def __init__(self, machine: Machine, console: Input, *, now: bool = False) -> None:
        self._machine = machine
        self._control = machine.control
        self._console = console
        self._lock = threading.Lock()
        self._why: str | None = None
        self._index = 0
        self._crash: Callable[[], None] | None = None
        self._names: dict[str, Any] = {}
        machine.debugger.clients.append(self)
        console.on_prompt = lambda: self._ask("the guest stands still", 0)
        console.start(machine.com1)
        if now:
            self._ask("the guest stands before its first instruction", 0)

    def close(self) -> None:
        """Ask nothing any more. Closing again does nothing."""
        if self in self._machine.debugger.clients:
            self._machine.debugger.clients.remove(self)
        with self._lock:
            pending, self._why = self._why, None
        if pending is not None:
            self._control.drop_hold(WHO)

    # What stops the guest, on a vCPU's thread or that which reads keys.

    def stopped(self, index: int, hit: Hit) -> bool:
        """Open the prompt because of a breakpoint."""
        return self._ask(f"vCPU {index} is at {self._machine.debugger.describe(hit.pc)}", index)

    def crashed(self, cpu: Cpu, event: ExitEvent, report: str) -> bool:
        """Open the prompt because the guest has crashed; it ends the run afterwards."""
        vcpu = cpu.vcpu

        def end() -> None:
            self._control.finish("crashed", vcpu=vcpu, exit=event, report=report)

        with self._lock:
            if self._crash is None:
                self._crash = end
        return self._ask(f"vCPU {cpu.index} crashed: {describe(event)}", cpu.index)

    def _ask(self, why: str, index: int) -> bool:
        with self._lock:
            if self._why is None:
                try:
                    self._control.begin_hold(WHO)
                except PyvcpuError:  # it is being closed
                    return False
                self._why, self._index = why, index
        with self._control.lock:
            self._control.cond.notify_all()
        return True

    # The main thread.

    def wait(self, timeout: float | None) -> Outcome | None:
        """Wait for the end of the run as Machine.wait() does, and hold the conversations that come before it."""
        end = None if timeout is None else monotonic() + timeout
        run = self._control.current()
        while True:
            left = None if end is None else max(end - monotonic(), 0)
            self._control.cond.wait_for(lambda: run.outcome is not None or self._why is not None, left)
            if self._why is None or run.outcome is not None:
                return self._control.wait(run, 0)
            self._talk()

    def _talk(self) -> None:
        """Hold one conversation, with the world still, and let the guest go on; whatever happens in between."""
        self._control.complete_hold(None)
        why, index = self._why or "", self._index
        self._console.suspend()
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with _Output(), Awake():
                _converse(self._console_for(index), BANNER.format(why=why, index=index))
        finally:
            signal.signal(signal.SIGINT, before)
            self._console.resume()
            with self._lock:
                self._why = None
                crash, self._crash = self._crash, None
            if crash is not None:
                crash()
            self._control.leave_hold(WHO)

    def _console_for(self, index: int) -> Prompt:
        self._names.update(tools.names(self._machine, index, leave))
        return Prompt(self._names)


def leave() -> None:
    """Let the guest go on; Ctrl-D does the same."""
    raise Leave


class Prompt(code.InteractiveConsole):
    """Python's console; an error of the machine's is told in a line, a signal that ends the program gets through."""

    def __init__(self, names: dict[str, Any]) -> None:
        super().__init__(names)
        self.names = names

    def runcode(self, code: CodeType) -> None:
        """Run what was typed."""
        try:
            exec(code, self.names)
        except (SystemExit, Signalled):
            raise
        except PyvcpuError as error:
            self.write(f"{error}\n")
        except BaseException:
            self.showtraceback()


def _converse(prompt: Prompt, banner: str) -> None:
    from contextlib import suppress

    with _Readline(prompt.names), suppress(SystemExit):  # cont(), exit() and quit()
        prompt.interact(banner, "")


class _Output:
    """While the prompt is open: what Python prints goes to standard error, unless standard output is a terminal.

    Standard output has the guest's bytes, and nothing else.
    """

    def __enter__(self) -> None:
        self._before = sys.stdout
        if not os.isatty(1):
            sys.stdout = sys.stderr

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        sys.stdout = self._before


class _Readline:
    """Line editing, completion and history, where this Python has them."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names
        self._readline: Any = None
        self._path = os.path.expanduser(HISTORY)
        from contextlib import suppress

        self._errors = partial(suppress, OSError)

    def __enter__(self) -> None:
        try:
            import readline
            import rlcompleter
        except ImportError:
            return
        self._readline = readline
        readline.set_completer(rlcompleter.Completer(self._names).complete)
        readline.parse_and_bind("tab: complete")
        readline.set_history_length(HISTORY_LINES)
        if not readline.get_current_history_length():
            with self._errors():  # there is none yet
                readline.read_history_file(self._path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._readline is None:
            return
        self._readline.set_completer(None)
        with self._errors():  # a home that cannot be written to
            self._readline.write_history_file(self._path)
