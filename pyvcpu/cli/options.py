"""The options of a command as a table, and a quick reading of the plain cases.

argparse parses them and writes the help. It takes 9 ms to load and set up, where a whole boot takes 25. So a command
line of known options with their values is read here; argparse does the rest: help, mistakes, abbreviations.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import argparse
    from collections.abc import Sequence
    from typing import Any


class Option:
    """`--name METAVAR`, or a flag without `metavar`; without dashes in `name`, the one positional argument.

    One that may be `repeated` has a list for its value.
    """

    __slots__ = ("default", "help", "metavar", "name", "repeated", "short")

    def __init__(
        self,
        name: str,
        help: str,
        metavar: str | None = None,
        default: str | None = None,
        *,
        short: str | None = None,
        repeated: bool = False,
    ) -> None:
        self.name = name
        self.help = help
        self.metavar = metavar
        self.default = default
        self.short = short
        self.repeated = repeated

    @property
    def key(self) -> str:
        """The attribute that holds the value."""
        return self.name.lstrip("-").replace("-", "_")

    def absent(self) -> Any:
        """Return the value of an option that is not given."""
        return False if self.metavar is None else [] if self.repeated else self.default

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Declare the option to argparse."""
        names = [self.name] if self.short is None else [self.name, self.short]
        if not self.name.startswith("-"):
            parser.add_argument(self.name, metavar=self.metavar, help=self.help)
        elif self.metavar is None:
            parser.add_argument(*names, action="store_true", help=self.help)
        elif self.repeated:
            parser.add_argument(*names, metavar=self.metavar, action="append", default=[], help=self.help)
        else:
            parser.add_argument(*names, metavar=self.metavar, default=self.default, help=self.help)


def quick_parse(table: Sequence[Option], arguments: Sequence[str]) -> SimpleNamespace | None:
    """Return what argparse would make of `arguments` where that is plain to see, else None."""
    by_name = {option.name: option for option in table}
    positional = [option for option in table if not option.name.startswith("-")]
    values = {option.key: option.absent() for option in table if option not in positional}
    remaining = iter(arguments)
    for argument in remaining:
        option = by_name.get(argument) if argument.startswith("-") else positional.pop(0) if positional else None
        if option is None:
            return None
        if not argument.startswith("-"):
            values[option.key] = argument
        elif option.metavar is None:
            values[option.key] = True
        else:
            value = next(remaining, "-")
            if value.startswith("-"):
                return None
            values[option.key] = [*values[option.key], value] if option.repeated else value
    return None if positional else SimpleNamespace(**values)


KVM_OPTION = Option("--kvm", "the KVM device (default: the environment's PYVCPU_KVM, or /dev/kvm)", "PATH")


ACCEL_OPTION = Option(
    "--accel",
    "who runs the guest: kvm, tcg (in software) or dummy (nobody), or a list (default: PYVCPU_ACCEL, or kvm:tcg)",
    "NAME[:NAME]",
)
SMP_OPTION = Option(
    "--smp",
    "vCPUs (default 1), as sockets of cores of threads, with room for maxcpus",
    "N[,sockets=S][,cores=C][,threads=T][,maxcpus=M]",
    "1",
)
CPU_OPTION = Option(
    "--cpu",
    "host (all that KVM supports, the default) or x86-64-v1 to v4, then +feature, -feature, check (warn of what is"
    " missing), enforce (refuse it), phys-bits=N, tsc-khz=N, kvm=on|off, hv=on|off, with commas between",
    "MODEL[,...]",
    "host",
)


def named_kvm(given: str | None) -> str | None:
    """Return the KVM device that --kvm, or else the environment, names; None for none."""
    return given or os.environ.get("PYVCPU_KVM") or None
