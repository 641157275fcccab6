"""The options of `pyvcpu boot` that debug the guest: --gdb, -s, --gdb-wait, --shell."""

from __future__ import annotations

import os

from ..debug.target import MachineTarget
from ..errors import ConfigError
from ..gdb import endpoint
from ..gdb.server import Server
from . import say

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from types import SimpleNamespace

    from ..machine import Machine
    from ..machine.outcome import Outcome
    from .console import Input
    from .shell import Shell


class Debugging:
    """What debugs one machine for the command, from before its first instruction to close(). For the main thread."""

    def __init__(self, machine: Machine, options: SimpleNamespace, console: Input) -> None:
        self._machine = machine
        self._target: MachineTarget | None = None
        self._server: Server | None = None
        self._shell: Shell | None = None
        where = where_to_listen(options)
        if where is None and options.gdb_wait and not options.shell:
            raise ConfigError("--gdb-wait waits for a debugger: give --gdb HOST:PORT, --gdb unix:PATH or -s, too")
        if options.shell and not os.isatty(0):
            raise ConfigError("--shell opens its prompt on the terminal, and standard input is none")
        machine.keep_exits()
        try:
            if where is not None:
                self._target = MachineTarget(machine, wait=options.gdb_wait, reboots=options.reboot)
                self._server = Server(self._target, where, notice=say)
                waits = "; the guest waits for it" if options.gdb_wait else ""
                say(f"a debugger can connect to {self._server.address}{waits}")
            if options.shell:
                from .shell import Shell

                machine.start()
                self._shell = Shell(machine, console, now=options.gdb_wait and where is None)
        except BaseException:
            self.close()
            raise

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """Do what Machine.wait() does, with prompts in between."""
        return self._machine.wait(timeout) if self._shell is None else self._shell.wait(timeout)

    def close(self, outcome: Outcome | None = None) -> None:
        """Let go of the machine; a debugger that is connected is told of its end."""
        if self._shell is not None:
            self._shell.close()
        if self._target is not None:
            self._target.close(outcome)
        if self._server is not None:
            self._server.close()


def where_to_listen(options: SimpleNamespace) -> endpoint.Endpoint | None:
    """Return where debuggers may connect, None where none is wanted; raise ConfigError for what is no such place."""
    if options.gdb is not None and options.s:
        raise ConfigError("-s is --gdb localhost:1234; give one of the two")
    if options.gdb is not None:
        return endpoint.parse(options.gdb)
    return endpoint.Endpoint() if options.s else None
