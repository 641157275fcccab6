"""The command in a terminal of its own: keys, signals, and the terminal afterwards; then its input from a pipe.

tests/guests/echo.bin sends back each byte until Ctrl-D, which ends the run with status 1.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kvm.support import GUESTS, LONG, SPIN, boot, command, environment
from tests.threads import DEADLINE, until

ECHO = GUESTS / "echo.bin"
EDITING = termios.ICANON | termios.ECHO | termios.ISIG
IFLAG, OFLAG, LFLAG = 0, 1, 3

# Real mode
LOOK_ONLY = bytes.fromhex("bafd03 ec ebfd")  # mov $0x3fd,%dx; 1: in (%dx),%al; jmp 1b
READY = bytes.fromhex("b052 baf803 ee")  # mov $'R',%al; mov $0x3f8,%dx; out %al,(%dx)
FIFO_ON = bytes.fromhex("bafa03 b001 ee")  # mov $0x3fa,%dx; mov $1,%al; out %al,(%dx)

# Protected mode, at 0x1000: wait for a character at COM1, then crash.
# mov $0x3fd,%dx; 1: in (%dx),%al; test $1,%al; jz 1b; lidt 0x1012; ud2; .word 0; .long 0
CRASH_AT_A_KEY = bytes.fromhex("66bafd03 ec a801 74fb 0f011d12100000 0f0b 000000000000")

# Makes standard input the controlling terminal of the session that it leads, and becomes the command.
IN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)

# The same as a shell with job control: the command starts in the background, and comes to the foreground when it stops.
IN_BACKGROUND = """
import fcntl, os, signal, subprocess, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = subprocess.Popen(sys.argv[1:], process_group=0)
_, status = os.waitpid(job.pid, os.WUNTRACED)
assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTTIN, status
os.tcsetpgrp(0, job.pid)
os.kill(job.pid, signal.SIGCONT)
status = job.wait()
os.tcsetpgrp(0, os.getpgrp())
sys.exit(status)
"""


class Terminal:
    """A terminal, and `pyvcpu boot` in its foreground."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.before = self.attributes()
        self.process: subprocess.Popen[bytes] | None = None
        self.shown = b""

    def boot(self, image: Path, *arguments: object, launcher: str = IN_TERMINAL) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", launcher, *command("boot", image, *arguments)],
            stdin=self.slave,
            stdout=self.slave,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=environment(),
        )

    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    def is_raw(self) -> bool:
        return not self.attributes()[LFLAG] & EDITING

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def see(self, expected: bytes) -> bytes:
        """Wait until the screen shows `expected`; return all that came since the last call."""
        end = time.monotonic() + DEADLINE
        while expected not in self.shown:
            ready, _, _ = select.select([self.master], [], [], end - time.monotonic())
            assert ready, f"{expected!r} did not come, but {self.shown!r}"
            self.shown += os.read(self.master, 65536)
        shown, self.shown = self.shown, b""
        return shown

    def signal(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Wait for the end; return status and standard error. The terminal must be as it was."""
        assert self.process
        _, stderr = self.process.communicate(timeout=LONG)
        assert self.attributes() == self.before
        return self.process.returncode, stderr.decode()

    def close(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


@pytest.fixture
def echo(terminal: Terminal) -> Terminal:
    """Give a terminal whose guest has taken a key."""
    terminal.boot(ECHO)
    until(terminal.is_raw)
    terminal.type(b"k")
    assert terminal.see(b"k") == b"k"
    return terminal


def test_every_key_is_the_guests(echo: Terminal) -> None:
    keys = b"\x03\x1a\x1c\x11\x13\x16\x0f\x7f\x15\x00\xff\r"
    echo.type(keys)
    assert echo.see(b"\r") == keys
    echo.type(b"\x04")
    status, stderr = echo.end()
    assert (status, stderr) == (1, "pyvcpu: Ctrl-C goes to the guest; Ctrl-A X leaves, Ctrl-A H helps\n")


def test_line_feeds_do_not_run_down_the_screen_like_stairs(echo: Terminal) -> None:
    assert echo.attributes()[OFLAG] == echo.before[OFLAG]
    echo.type(b"a\nb")
    assert echo.see(b"b") == b"a\r\nb"


def test_keys_of_ours(echo: Terminal) -> None:
    echo.type(b"\x01h\x01a\x01\x01.")
    assert echo.see(b".") == b"\x01\x01."
    echo.type(b"\x01")
    echo.type(b"x")
    status, stderr = echo.end()
    assert (status, re.findall(r"pyvcpu: (Ctrl-A \w)", stderr)) == (0, ["Ctrl-A X", "Ctrl-A A", "Ctrl-A S", "Ctrl-A H"])


def test_leaving_a_guest_that_reads_nothing(terminal: Terminal, image: Callable[[bytes], Path]) -> None:
    terminal.boot(image(LOOK_ONLY))
    until(terminal.is_raw)
    terminal.type(b"nobody reads this" * 100)
    terminal.type(b"\x01x")
    assert terminal.end() == (0, "")


@pytest.mark.parametrize("code", [SPIN, LOOK_ONLY], ids=["does not look", "only looks"])
def test_ctrl_c_interrupts_a_guest_that_takes_no_input(
    terminal: Terminal, image: Callable[[bytes], Path], code: bytes
) -> None:
    terminal.boot(image(READY + code))
    terminal.see(b"R")
    until(lambda: terminal.is_raw() is (code == LOOK_ONLY))
    terminal.type(b"\x03")
    assert terminal.end() == (130, "")


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP)],
)
def test_a_signal_ends_it_as_ever(echo: Terminal, number: int, status: int) -> None:
    echo.signal(number)
    assert echo.end() == (status, "")


def test_a_crash_puts_the_terminal_back(terminal: Terminal, image: Callable[[bytes], Path]) -> None:
    terminal.boot(image(CRASH_AT_A_KEY), "--mode", "protected")
    until(terminal.is_raw)
    terminal.type(b"k")
    status, stderr = terminal.end()
    assert status == 6
    assert "triple fault" in stderr


def test_a_timeout_puts_the_terminal_back(terminal: Terminal) -> None:
    terminal.boot(ECHO, "--timeout", "1")
    until(terminal.is_raw)
    assert terminal.end()[0] == 124


def test_after_a_stop_the_terminal_is_raw_again(echo: Terminal) -> None:
    echo.signal(signal.SIGSTOP)
    assert echo.process
    os.waitpid(echo.process.pid, os.WUNTRACED)
    termios.tcsetattr(echo.slave, termios.TCSANOW, echo.before)  # as the shell does
    echo.signal(signal.SIGCONT)
    until(echo.is_raw)
    echo.type(b"\x03.")
    assert echo.see(b".") == b"\x03."


def test_in_the_background_it_stops_at_a_key_and_goes_on_in_the_foreground(terminal: Terminal) -> None:
    terminal.boot(ECHO, "--timeout", LONG, launcher=IN_BACKGROUND)
    terminal.type(b"x\n")
    terminal.see(b"x\r\nx\r\n")  # the terminal's echo, and the guest's
    terminal.type(b"\x03.")
    assert terminal.see(b".") == b"\x03."
    assert terminal.is_raw()
    terminal.type(b"\x01x")
    assert terminal.end()[0] == 0


def test_what_is_typed_ahead_is_not_lost(terminal: Terminal) -> None:
    """Keys from before the guest listens: the terminal still edits lines then."""
    terminal.type(b"early\n")
    terminal.boot(ECHO)
    until(terminal.is_raw)
    terminal.type(b"late.")
    assert terminal.see(b"late.").endswith(b"early\r\nlate.")


# From a pipe


@pytest.mark.parametrize(("before", "size"), [(b"", 2 << 10), (FIFO_ON, 20 << 10)], ids=["one by one", "FIFO"])
def test_what_comes_through_a_pipe_arrives_whole(image: Callable[[bytes], Path], before: bytes, size: int) -> None:
    sent = bytes(byte for byte in range(256) if byte != 4) * (size // 255 + 1)
    done = boot(image(before + ECHO.read_bytes()), input=sent + b"\x04")
    assert (done.returncode, done.stdout == sent, done.stderr) == (1, True, b"")


def test_the_machine_runs_on_at_the_end_of_its_input() -> None:
    done = boot(ECHO, "--timeout", "1", input=b"all of it")
    assert (done.returncode, done.stdout) == (124, b"all of it")
