"""What the READMEs tell the reader to type works, and what they tell of the code is so."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest

from pyvcpu.cli import INTERRUPTED, NO_KVM, USAGE
from pyvcpu.machine.outcome import STATUS
from tests.kvm.support import DEVICE, LONG, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = (ROOT / "examples/README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
PYTHON = [block for kind, block in BLOCKS if kind == "python"]
LISTED = re.findall(r"`(python3 -m pyvcpu [^`]*)` \| (.*) \|$", EXAMPLES, re.MULTILINE)

HELLO = "python3 -m pyvcpu boot examples/images/hello.bin --smp 4"
CPUID = "python3 -m pyvcpu cpuid --smp 8,sockets=2,cores=2,threads=2 --index 5"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run `command` in the checkout, as a reader would."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PYVCPU_KVM"] = DEVICE
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell; its python3 is the one that runs the tests."""
    return run("sh", "-e", "-c", re.sub(r"\bpython3\b", shlex.quote(sys.executable), line))


def test_what_is_there() -> None:
    assert SHELL == [HELLO, "python3 -m pyvcpu info", CPUID]
    assert len(PYTHON) == 2
    assert len(LISTED) == 6
    assert "`make test`" in README


@pytest.mark.parametrize("line", SHELL)
def test_shell(line: str) -> None:
    done = shell(line)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_output_shown() -> None:
    (shown,) = [block for kind, block in BLOCKS if kind == "text"]
    assert sorted(shell(HELLO).stdout.splitlines()) == sorted(shown.splitlines())


def test_the_library() -> None:
    done = run(sys.executable, "-W", "error", "-c", PYTHON[0])
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    assert sorted(lines) == ["27 takes 111 steps", "871 takes 178 steps", "97 takes 118 steps"]
    assert re.fullmatch(r"<Outcome halted by vCPU [0-3], status 0> \[111, 118, 178\]", last)


def test_the_kvm_layer() -> None:
    done = run(sys.executable, "-W", "error", "-c", PYTHON[1])
    assert (done.returncode, done.stdout, done.stderr) == (0, "12 0xfff0\n", "")


@pytest.mark.parametrize(("line", "promised"), LISTED)
def test_images(line: str, promised: str) -> None:
    done = shell(line)
    status = re.search(r"status (\d+)", promised)
    assert (done.returncode, done.stderr) == (int(status[1]) if status else 0, "")


def test_every_status_is_in_the_table() -> None:
    table = README.partition("| exit status |")[2].partition("\n\n")[0]
    told = [int(status) for status in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert told == sorted({*STATUS.values(), USAGE, NO_KVM, INTERRUPTED})


def test_every_place_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    table = README.partition("## Where a thing lives")[2]
    places = [
        *re.findall(r"`([a-z/]+(?:/|\.py))`", table),
        *(f"examples/{name}" for name in re.findall(r"\]\(([^)]+)\)", EXAMPLES)),
    ]
    missing = {
        place
        for place in [*links, *places]
        if not any((ROOT / up / place).exists() for up in ("", "pyvcpu", "pyvcpu/vcpu", "pyvcpu/machine"))
    }
    assert not missing
    for folder in sorted(path.name for path in (ROOT / "pyvcpu").iterdir() if (path / "__init__.py").exists()):
        assert f"{folder}/" in table, f"{folder} is not in the table"
