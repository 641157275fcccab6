"""Keys behind Ctrl-A, wherever a read cuts them."""

from __future__ import annotations

import doctest
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.cli import keys
from pyvcpu.cli.keys import HELP_LINES, Keys


@pytest.mark.parametrize(
    ("typed", "passed", "commands"),
    [
        (b"", b"", ""),
        (b"ls -l\r", b"ls -l\r", ""),
        (b"\x03\x1a\x1c\x04\x11\x13\x7f\x1b[A\x00\xff", b"\x03\x1a\x1c\x04\x11\x13\x7f\x1b[A\x00\xff", ""),
        (b"\x01x", b"", "x"),
        (b"\x01X", b"", "x"),
        (b"\x01h\x01H", b"", "hh"),
        (b"\x01a", b"\x01", ""),
        (b"\x01A", b"\x01", ""),
        (b"\x01\x01", b"\x01", ""),
        (b"\x01\x01x", b"\x01x", ""),
        (b"\x01\x01\x01x", b"\x01", "x"),
        (b"\x01q\x01\x03after", b"after", ""),  # not a command
        (b"a\x01hb\x01xc", b"abc", "hx"),
        (b"xhXH", b"xhXH", ""),
    ],
)
def test_what_is_typed(typed: bytes, passed: bytes, commands: str) -> None:
    assert Keys().take(typed) == (passed, commands)


@given(st.lists(st.sampled_from(b"\x01aAxXhHq\x03")).map(bytes), st.lists(st.integers(1, 5), min_size=1))
def test_the_cuts_between_reads_mean_nothing(typed: bytes, sizes: list[int]) -> None:
    cut, passed, commands, rest = Keys(), b"", "", typed
    for size in itertools.cycle(sizes):
        if not rest:
            break
        some, more = cut.take(rest[:size])
        passed, commands, rest = passed + some, commands + more, rest[size:]
    assert (passed, commands) == Keys().take(typed)


def test_the_help_names_every_command() -> None:
    named = {line.split()[1].lower() for line in HELP_LINES}
    assert named == {keys.QUIT, keys.HELP, keys.SNAPSHOT, "a"}


def test_the_example() -> None:
    assert doctest.testmod(keys).failed == 0
