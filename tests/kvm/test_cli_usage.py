"""Mistakes on the command line, and hosts without KVM: one line each, with a way out, and the status for its kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kvm.support import HLT, IMAGES, boot, command, environment, pyvcpu
from tests.kvm.test_cli import check_one_line, through

HELLO = IMAGES / "hello.bin"

# Runs the command line that follows without root's privilege to open files that forbid it.
UNPRIVILEGED = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nonexistent.bin"], "/nonexistent.bin: No such file or directory"),
        (["/"], "/: Is a directory"),
        (["/dev/null"], "the image is empty"),
        ([HELLO, "--smp", "0"], "at least 1 vCPU, not 0"),
        ([HELLO, "--smp", "-1"], "at least 1 vCPU, not -1"),
        ([HELLO, "--smp", "5000"], "not 5000"),
        ([HELLO, "--smp", "x"], "--smp takes a whole number, not 'x'"),
        ([HELLO, "--smp", ""], "--smp"),
        ([HELLO, "--smp", "99999999999999999999"], "99999999999999999999"),
        ([HELLO, "--memory", "0"], "positive multiple of 4K"),
        ([HELLO, "--memory", "12X"], "such as 64M or 2G, not '12X'"),
        ([HELLO, "--memory", "5"], "positive multiple of 4K, not 5"),
        ([HELLO, "--memory", "-1"], "not '-1'"),
        ([HELLO, "--memory", ""], "such as 64M"),
        ([HELLO, "--load", "64M"], "load address 0x4000000 is not in RAM"),
        ([HELLO, "--load", "-1"], "not '-1'"),
        ([HELLO, "--load", "here"], "--load takes an address such as 0x7c00, not 'here'"),
        ([HELLO, "--entry", "0x10000000"], "entry 0x10000000 is not in RAM"),
        ([HELLO, "--entry", "1M"], "real mode reaches the first 1 MiB"),
        ([HELLO, "--entry", "0x"], "--entry takes an address"),
        ([HELLO, "--mode", "virtual"], "real, protected or long, not 'virtual'"),
        ([HELLO, "--format", "tar"], "not 'tar'"),
        ([HELLO, "--format", "bootsector"], "0x55 0xAA"),
        ([HELLO, "--start", "some"], "all or bsp, not 'some'"),
        ([HELLO, "--irqchip", "some"], "none, kernel or split, not 'some'"),
        ([HELLO, "--timeout", "0"], "above 0, not '0'"),
        ([HELLO, "--timeout", "-1"], "above 0, not '-1'"),
        ([HELLO, "--timeout", "x"], "above 0, not 'x'"),
        ([HELLO, "--timeout", "nan"], "not 'nan'"),
        ([HELLO, "--timeout", "inf"], "not 'inf'"),
        ([HELLO, "--frobnicate"], "--frobnicate"),
        ([HELLO, "--smp"], "--smp"),
        ([HELLO, HELLO], "hello.bin"),
        ([], "IMAGE"),
    ],
    ids=lambda value: " ".join(map(str, value)).replace(str(HELLO), "hello") if isinstance(value, list) else "",
)
def test_mistakes(arguments: list[object], words: str) -> None:
    done = pyvcpu("boot", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert words in check_one_line(done.stderr)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["frobnicate"], "frobnicate"),
        (["--frobnicate"], "COMMAND"),
        (["info", "now"], "now"),
        (["info", "--frobnicate"], "--frobnicate"),
    ],
)
def test_commands_that_there_are_not(arguments: list[str], words: str) -> None:
    done = pyvcpu(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert words in check_one_line(done.stderr)


def test_an_image_that_is_larger_than_the_memory(image: Callable[[bytes], Path]) -> None:
    done = boot(image(bytes(2 << 20)), "--memory", "1M", "--mode", "protected")
    assert done.returncode == 2
    assert "give the guest more memory" in check_one_line(done.stderr)


def test_an_image_of_no_bytes(image: Callable[[bytes], Path]) -> None:
    done = boot(image(b""))
    assert (done.returncode, check_one_line(done.stderr)) == (2, "pyvcpu: the image is empty\n")


def test_an_image_that_one_may_not_read(image: Callable[[bytes], Path]) -> None:
    secret = image(HLT)
    secret.chmod(0)
    done = through(UNPRIVILEGED, *command("boot", secret))
    assert (done.returncode, done.stdout) == (2, b"")
    assert f"{secret}: Permission denied" in check_one_line(done.stderr)


def test_names_of_any_bytes(tmp_path: Path) -> None:
    """A name that is no text, or that looks like lines, is a name all the same."""
    for name in (b"/tmp/\xff\xfe", b"/tmp/two\nlines", "/tmp/\u00fc".encode()):
        done = pyvcpu("boot", name.decode("utf-8", "surrogateescape"), env=environment(LC_ALL="C"))
        assert done.returncode == 2
        assert "No such file or directory" in check_one_line(done.stderr)
    (tmp_path / "-image").write_bytes(HLT)
    assert pyvcpu("boot", "--", "-image", cwd=tmp_path).returncode == 0


def test_abbreviations_and_equals_signs() -> None:
    for arguments in (["--smp=2"], ["--sm", "2"], ["--smp", "2", "--mem=1M"], ["-m", "1M", "--smp", "2"]):
        done = boot(HELLO, *arguments)
        assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)


# Status 4: KVM is missing or refused.


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/nonexistent", ["open /nonexistent", "No such file or directory", "the usual one is /dev/kvm"]),
        ("/dev/null", ["/dev/null", "not a KVM device", "/dev/kvm"]),
        ("/dev", ["open /dev", "Is a directory", "/dev/kvm"]),
        ("/etc/passwd", ["/etc/passwd", "not a KVM device"]),
        ("/nonexistent/deeper", ["/nonexistent/deeper"]),
    ],
)
@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_device_that_is_not_kvm(path: str, words: list[str], by: str) -> None:
    said = {"option": ["--kvm", path], "environment": []}[by]
    done = boot(HELLO, *said, env=environment(PYVCPU_KVM=path if by == "environment" else None))
    assert (done.returncode, done.stdout) == (4, b"")
    line = check_one_line(done.stderr)
    assert [word for word in words if word not in line] == []


def test_the_option_goes_before_the_environment() -> None:
    assert boot(HELLO, "--kvm", environment()["PYVCPU_KVM"], env=environment(PYVCPU_KVM="/nonexistent")).returncode == 0


@pytest.mark.parametrize("mode", [0o000, 0o060])
def test_a_device_that_one_may_not_open(tmp_path: Path, mode: int) -> None:
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(mode)
    done = through(UNPRIVILEGED, *command("boot", HELLO, "--kvm", device))
    assert (done.returncode, done.stdout) == (4, b"")
    line = check_one_line(done.stderr)
    assert f"open {device}: Permission denied" in line
    assert f"it belongs to group {device.group()}" in line
    assert "usermod -aG" in line


@pytest.mark.parametrize("size", ["1000T", "8388607T", "99999999999T"])
def test_memory_that_the_host_does_not_give(size: str) -> None:
    done = boot(HELLO, "--memory", size)
    assert (done.returncode, done.stdout) == (4, b"")
    line = check_one_line(done.stderr)
    assert f"the host does not give {size} of memory" in line
    assert "ask for less" in line


def test_every_message_of_status_4_has_a_hint() -> None:
    for path in ("/nonexistent", "/dev/null", "/dev"):
        assert re.search(r"\(.{20,}\)$|; .{10,}$", check_one_line(boot(HELLO, "--kvm", path).stderr).rstrip("\n"))


# Help.


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["boot", "--help"], ["boot", "-h"], ["info", "--help"]])
def test_help(arguments: list[str]) -> None:
    done = pyvcpu(*arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert text.startswith("usage: pyvcpu")
    if arguments[0] == "boot":
        for option in (
            "--smp",
            "--memory",
            "--format",
            "--mode",
            "--load",
            "--entry",
            "--start",
            "--irqchip",
            "--timeout",
        ):
            assert option in text
        for status in ("124", "130"):
            assert status in text


def test_version() -> None:
    import pyvcpu as package

    assert pyvcpu("--version").stdout.decode() == f"pyvcpu {package.__version__}\n"


def test_help_that_nobody_can_read() -> None:
    with open("/dev/full", "wb") as full:
        assert b"Traceback" not in pyvcpu("--help", stdout=full).stderr
    line = ["sh", "-c", '"$@" | true', "sh", *command("boot", "--help")]
    assert through("import os, sys; os.execvp(sys.argv[1], sys.argv[1:])", *line).stderr == b""


def test_help_needs_no_kvm() -> None:
    assert pyvcpu("boot", "--help", env=environment(PYVCPU_KVM="/nonexistent")).returncode == 0
