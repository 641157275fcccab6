"""The full reading of a command line, by argparse: help, abbreviations, and what is wrong with it."""

from __future__ import annotations

import argparse

from .. import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import NoReturn

USAGE = 2  # the status of a mistake, as argparse has it


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parse(
    arguments: Sequence[str], commands: Sequence[str], load: Callable[[str], ModuleType]
) -> tuple[str, argparse.Namespace]:
    """Return the name of the command and the values of its options; exit after --help, --version or a mistake.

    `load(name)` returns the module of a command.
    """
    options = _parser(commands, load).parse_args(arguments)
    return options.command, options


def _parser(names: Sequence[str], load: Callable[[str], ModuleType]) -> Parser:
    parser = Parser(prog="pyvcpu", description="Virtual machines on Linux KVM, in pure Python.")
    parser.add_argument("--version", action="version", version=f"pyvcpu {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    for name in names:
        command = load(name)
        sub = commands.add_parser(
            name,
            help=command.HELP,
            description=command.DESCRIPTION,
            epilog=command.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for option in command.OPTIONS:
            option.add_to(sub)
    return parser
