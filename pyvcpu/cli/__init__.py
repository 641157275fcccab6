"""The command line: one module per subcommand. Only here is anything printed, parsed from arguments, or exited."""

from __future__ import annotations

import argparse
import os
import sys

from .. import __version__
from ..errors import ConfigError, ImageError, PyvcpuError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Sequence
    from typing import NoReturn

USAGE, NO_KVM, INTERRUPTED = 2, 4, 130


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; `argv` defaults to the program's arguments."""
    _hold_standard_fds()
    try:
        options = _parser().parse_args(argv)
        status: int = options.run(options)
        return status
    except SystemExit as end:  # of argparse: --help, or a usage error
        return end.code if isinstance(end.code, int) else USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ConfigError, ImageError) as error:
        return complain(error, USAGE)
    except PyvcpuError as error:
        return complain(error, NO_KVM)


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


def _parser() -> Parser:
    from . import boot, info

    parser = Parser(prog="pyvcpu", description="Virtual machines on Linux KVM, in pure Python.")
    parser.add_argument("--version", action="version", version=f"pyvcpu {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (boot, info):
        sub = commands.add_parser(
            command.NAME, help=command.HELP, description=command.DESCRIPTION, epilog=command.EPILOG
        )
        sub.formatter_class = argparse.RawDescriptionHelpFormatter
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser
