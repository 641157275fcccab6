"""--top, in a terminal: tmux is one, and tells what is on its screen."""

from __future__ import annotations

import os
import pty
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kvm.support import DEVICE, IMAGES, ROOT, boot, command
from tests.threads import until

pytestmark = pytest.mark.kvm

TMUX = shutil.which("tmux")
LOOP = bytes.fromhex("e650 ebfc")  # 1: out %al,$0x50; jmp 1b
SAY_A = bytes.fromhex("b041 e6e9")  # mov $'A',%al; out %al,$0xe9


class Terminal:
    """A tmux server of our own, with one command in it."""

    def __init__(self, socket: Path) -> None:
        self._tmux = [str(TMUX), "-S", str(socket), "-f", "/dev/null"]

    def __call__(self, *arguments: str) -> str:
        """Give tmux a command and return what it says."""
        return subprocess.run([*self._tmux, *arguments], check=True, capture_output=True, text=True).stdout

    def boot(self, *arguments: object) -> None:
        """Boot with --top, then print the exit status, and wait."""
        boots = shlex.join(command("boot", *arguments, "--top"))
        shell = f"trap : INT; cd {ROOT}; echo before; PYVCPU_KVM={DEVICE} {boots}; echo status $?; cat"
        self("new-session", "-d", "-x", "100", "-y", "20", "sh", "-c", shell)

    @property
    def lines(self) -> list[str]:
        """What is on the screen."""
        return self("capture-pane", "-p").splitlines()

    @property
    def picture(self) -> list[list[str]]:
        """The words of the picture's lines, none before there is one."""
        lines = self.lines
        heads = [at for at, line in enumerate(lines) if line.startswith("exits/s")]
        return [line.split() for line in lines[heads[-1] :]] if heads else []

    def kill(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    if TMUX is None:
        pytest.skip("tmux is not installed")
    made = Terminal(tmp_path / "socket")
    yield made
    made.kill()


def image(tmp_path: Path, code: bytes) -> Path:
    path = tmp_path / "image.bin"
    path.write_bytes(code)
    return path


def test_rates_are_drawn_below_what_the_guest_says_and_the_screen_is_put_back(
    terminal: Terminal, tmp_path: Path
) -> None:
    terminal.boot(image(tmp_path, SAY_A + LOOP), "--smp", 2)
    heads = [["exits/s", "all", "IO"], ["all"], ["vCPU", "0"], ["vCPU", "1"]]
    until(lambda: [row[: len(head)] for row, head in zip(terminal.picture, heads, strict=False)] == heads)
    assert terminal.lines[:2] == ["before", "AA"]
    assert len(terminal.lines) == 20
    until(lambda: any(row[:1] == ["all"] and int(row[1]) > 0 for row in terminal.picture))
    terminal("send-keys", "C-c")
    until(lambda: "status 130" in "".join(terminal.lines))
    assert terminal.lines[0] == "before"
    assert terminal.lines[1].startswith("AA")
    assert not terminal.picture


def test_the_picture_follows_the_size_of_the_terminal(terminal: Terminal, tmp_path: Path) -> None:
    terminal.boot(image(tmp_path, LOOP), "--smp", 12)
    until(lambda: terminal.picture[9:] == [["and", "5", "vCPUs", "more"]])  # half of the screen
    terminal("resize-window", "-x", "100", "-y", "40")
    until(lambda: len(terminal.picture) == 14 and len(terminal.lines) == 40)
    terminal("resize-window", "-x", "12", "-y", "3")
    until(lambda: terminal.picture == [["exits/s"]])
    terminal("resize-window", "-x", "100", "-y", "20")
    until(lambda: terminal.picture[-1:] == [["and", "5", "vCPUs", "more"]])
    terminal("send-keys", "C-c")
    until(lambda: "status 130" in "".join(terminal.lines))


def test_other_lines_are_not_mixed_with_it(terminal: Terminal, tmp_path: Path) -> None:
    terminal.boot(image(tmp_path, LOOP), "--explain", "--stats", "--trace", tmp_path / "trace.json")
    until(lambda: len(terminal.picture) == 3)
    assert any("exit IO out 0x50" in line for line in terminal.lines)
    terminal("send-keys", "C-c")
    until(lambda: "status 130" in "".join(terminal.lines))
    assert any("counted by KVM" in line for line in terminal.lines)
    assert (tmp_path / "trace.json").stat().st_size > 0


def test_without_a_terminal_it_is_said() -> None:
    done = boot(IMAGES / "hello.bin", "--top")
    assert done.returncode == 2
    assert b"must be a terminal" in done.stderr


@pytest.mark.parametrize(
    ("term", "words"),
    [("no-such-terminal", b"does not know this terminal"), ("dumb", b"cannot draw"), ("", b"is TERM right?")],
)
def test_a_terminal_that_cannot_is_said(term: str, words: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    ours, its = pty.openpty()
    try:
        done = boot(IMAGES / "hello.bin", "--top", stderr=its)
        assert (done.returncode, done.stdout) == (2, b"")
        said = os.read(ours, 4096)
        assert words in said
        assert said.count(b"\n") == 1
    finally:
        os.close(ours)
        os.close(its)
