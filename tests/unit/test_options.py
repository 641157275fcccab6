"""The quick reading of a command line agrees with argparse wherever it answers at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.cli import COMMANDS, load
from pyvcpu.cli.options import quick_parse
from pyvcpu.cli.parser import parse

NAMES = [option.name for name in COMMANDS for option in load(name).OPTIONS]
WORDS = st.sampled_from([*NAMES, "a.bin", "4", "", "-", "--", "-1", "-m", "--mem", "--smp=4", "--help", "0x1000", "-x"])


def argparse_says(command: str, arguments: list[str]) -> dict[str, object] | None:
    """Return argparse's values, None where it exits."""
    try:
        name, namespace = parse([command, *arguments], COMMANDS, load)
    except SystemExit:
        return None
    assert name == command
    values = dict(vars(namespace))
    del values["command"]
    return values


@given(st.sampled_from(COMMANDS), st.lists(WORDS, max_size=7))
def test_it_says_what_argparse_says_or_nothing(command: str, arguments: list[str]) -> None:
    quick = quick_parse(load(command).OPTIONS, arguments)
    if quick is not None:
        assert vars(quick) == argparse_says(command, arguments)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("boot", ["image.bin"]),
        ("boot", ["image.bin", "--smp", "4"]),
        ("boot", ["--smp", "4", "image.bin", "--timeout", "1.5", "--mode", "long"]),
        ("info", []),
        ("info", ["--json"]),
    ],
)
def test_plain_command_lines_do_not_need_argparse(command: str, arguments: list[str]) -> None:
    quick = quick_parse(load(command).OPTIONS, arguments)
    assert quick is not None
    assert vars(quick) == argparse_says(command, arguments)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["x", "y"], ["x", "--smp"], ["x", "--smp=4"], ["x", "--mem", "1G"], []]
)
def test_the_rest_is_left_to_argparse(arguments: list[str]) -> None:
    assert quick_parse(load("boot").OPTIONS, arguments) is None
