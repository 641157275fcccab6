"""The command line: one module per subcommand. Only here is anything printed, parsed from arguments, or exited."""

from __future__ import annotations

import os
import sys

from ..errors import ConfigError, ImageError, PyvcpuError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Sequence
    from types import ModuleType

COMMANDS = ("boot", "cpuid", "info", "resume", "snapshot")
USAGE, NO_KVM, INTERRUPTED = 2, 4, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; `argv` defaults to the program's arguments."""
    _hold_standard_fds()
    arguments = sys.argv[1:] if argv is None else argv
    try:
        return _run(arguments)
    except SystemExit as end:  # of argparse: --help, or a usage error
        return end.code if isinstance(end.code, int) else USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # who read our output has gone
        return 0
    except (ConfigError, ImageError) as error:
        return complain(error, USAGE)
    except PyvcpuError as error:
        return complain(error, NO_KVM)


def _run(arguments: Sequence[str]) -> int:
    from .options import quick_parse

    if arguments and arguments[0] in COMMANDS:
        command = load(arguments[0])
        options = quick_parse(command.OPTIONS, arguments[1:])
        if options is not None:
            return int(command.run(options))
    from .parser import parse

    name, namespace = parse(arguments, COMMANDS, load)
    return int(load(name).run(namespace))


def load(command: str) -> ModuleType:
    """Import the module of a command; the others are not loaded."""
    from importlib import import_module

    return import_module(f"{__name__}.{command}")


def _hold_standard_fds() -> None:
    """Open /dev/null where a standard fd is closed, so that no file of ours gets its number and its traffic."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def complain(error: object, status: int) -> int:
    """Say what is wrong on standard error, in one line, and return `status`."""
    say(" ".join(str(error).split("\n")))
    return status


def say(line: str) -> None:
    """Write a message of our own to standard error, also when that is closed."""
    try:
        sys.stderr.write(f"pyvcpu: {line}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass
