"""The parts of tools/roots.py that need no root: what runs where, and when a boot is what it should be."""

from __future__ import annotations

import subprocess

import pytest

from tools import roots
from tools.roots import Kind

HELLO = "".join(f"hello from vCPU {index} of 4\n" for index in (1, 0, 3, 2))
SOFTWARE = "pyvcpu: no KVM here: open /dev/kvm: No such file or directory; going on with tcg\n"


def test_what_a_system_has() -> None:
    bare, full = Kind("13", tools=False, kvm=False), Kind("sid", python="3.14")
    assert str(bare) == "Debian 13, without tools, without /dev/kvm"
    assert str(full) == "Debian sid, Python 3.14, with tools, with /dev/kvm"
    assert bare.packages() == sorted(roots.PACKAGES)
    assert set(full.packages()) == {*roots.PACKAGES, *roots.TOOLS, "python3.14", "python3.14-venv"}


@pytest.mark.parametrize(
    ("status", "said", "kvm", "right"),
    [
        (0, HELLO, True, True),
        (1, HELLO, True, False),
        (0, HELLO + "more\n", True, False),
        (0, "", True, False),
        (0, SOFTWARE + HELLO, False, True),
        (0, HELLO, False, False),
        (0, SOFTWARE + HELLO, True, False),
        (3, SOFTWARE, False, False),
        (1, "Traceback (most recent call last):\n" + SOFTWARE + HELLO, False, False),
    ],
)
def test_how_boot_must_end(status: int, said: str, kvm: bool, right: bool) -> None:
    problem = roots.boot_problem(subprocess.CompletedProcess([], status, said), kvm)
    assert (problem is None) is right


def test_what_runs_the_tests() -> None:
    assert roots.test_command(Kind("12"), []) == "make test VENV=/tmp/venv ARGS=''"
    command = roots.test_command(Kind("12"), ["-k", "one or two"])
    assert command == """make pytest VENV=/tmp/venv ARGS='-k '"'"'one or two'"'"''"""
    command = roots.test_command(Kind("sid", python="3.15"), ["tests/unit"])
    assert command.startswith("python3.15 -m venv /tmp/venv && ")
    assert command.endswith(" && /tmp/venv/bin/python -m pytest tests/unit")
    assert "'pytest>=" in command
    assert "mypy" not in command


def test_how_the_counts_are_found() -> None:
    said = (
        "== 3 passed in 1.00s ==\n=== short test summary info ===\n===== 1 failed, 7 passed in 61.02s (0:01:01) =====\n"
    )
    assert roots.COUNTS.findall(said)[-1] == "1 failed, 7 passed in 61.02s (0:01:01)"
