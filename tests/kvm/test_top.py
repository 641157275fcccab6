"""--top, in a terminal: tmux is one, and tells what is on its screen."""

from __future__ import annotations

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


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[list[str]]:
    """Give the command line of a tmux server of our own."""
    if TMUX is None:
        pytest.skip("tmux is not installed")
    line = [TMUX, "-S", str(tmp_path / "socket"), "-f", "/dev/null"]
    yield line
    subprocess.run([*line, "kill-server"], check=False, capture_output=True)


def test_rates_are_drawn_and_the_screen_is_put_back(tmux: list[str], tmp_path: Path) -> None:
    image = tmp_path / "loop.bin"
    image.write_bytes(bytes.fromhex("e650 ebfc"))  # 1: out %al,$0x50; jmp 1b
    boots = shlex.join(command("boot", image, "--smp", 2, "--top"))
    shell = f"trap : INT; cd {ROOT}; PYVCPU_KVM={DEVICE} {boots}; echo status $?; cat"
    subprocess.run([*tmux, "new-session", "-d", "-x", "100", "-y", "20", "sh", "-c", shell], check=True)

    def screen() -> str:
        return subprocess.run([*tmux, "capture-pane", "-p"], check=True, capture_output=True, text=True).stdout

    until(lambda: "vCPU 1" in screen())
    lines = screen().splitlines()
    assert lines[0].split() == ["exits/s", "IO", "all"]
    assert [line.split()[0] for line in lines[1:4]] == ["all", "vCPU", "vCPU"]
    assert int(lines[1].split()[-1]) > 0
    subprocess.run([*tmux, "send-keys", "C-c"], check=True)
    until(lambda: "status 130" in screen())
    assert "exits/s" not in screen()


def test_without_a_terminal_it_is_said() -> None:
    done = boot(IMAGES / "hello.bin", "--top")
    assert done.returncode == 2
    assert b"must be a terminal" in done.stderr
