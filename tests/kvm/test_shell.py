"""The prompt inside the machine, driven through a terminal."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kvm.support import boot
from tests.kvm.test_console import CRASH_AT_A_KEY, ECHO, Terminal
from tests.threads import until

PROMPT = b">>> "
# mov $0,%dx; 1003: cmp $7,%dx; 1006: jne 1003; 1008: mov $9,%al; out %al,$0xf4
WAITS_FOR_DX = bytes.fromhex("ba0000 83fa07 75fb b009 e6f4")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Terminal]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    yield terminal
    terminal.close()


def say(terminal: Terminal, line: str) -> list[str]:
    """Type a line at the prompt; return what comes before the next prompt."""
    terminal.type(line.encode() + b"\r")
    _, *lines = terminal.see(PROMPT).decode().replace("\r", "").split("\n")
    return lines[:-1]


def at_prompt(terminal: Terminal, image: Path, *arguments: object) -> None:
    """Boot, and press Ctrl-A C once keys are read."""
    terminal.boot(image, "--shell", *arguments)
    until(terminal.is_raw)
    terminal.type(b"\x01c")
    terminal.see(PROMPT)


def test_a_register_is_changed_and_the_guest_shows_it(terminal: Terminal, image: Callable[[bytes], Path]) -> None:
    at_prompt(terminal, image(WAITS_FOR_DX))
    assert say(terminal, "cpu.registers.rip in (0x1003, 0x1006)") == ["True"]
    assert say(terminal, "mem.read(0x1000, 3).hex()") == ["'ba0000'"]
    assert say(terminal, "dump(0x1003, 3)") == ["0x000000001003  83 fa 07" + " " * 41 + "..."]
    assert say(terminal, "walk(0x1234)") == ["0x1234: paging off", "  physical 0x1234, page of 0x1000, rwx user"]
    assert say(terminal, "regs()")[0] == "vCPU 0, paused: real mode"
    assert say(terminal, "cpu.registers.rip = 0x1003") == []
    assert say(terminal, "step(2)") == ["vCPU 0 is at 0x1003"]
    assert say(terminal, "exits()") == ["there were none"]
    assert say(terminal, "cpu.registers.rdx = 7") == []
    terminal.type(b"cont()\r")
    status, stderr = terminal.end()
    assert status == 9 << 1 | 1
    assert stderr.startswith("the guest stands still\nPython, with machine, vcpus, cpu (vCPU 0)")


def test_disassembly(terminal: Terminal, image: Callable[[bytes], Path], tool: Callable[[str], str]) -> None:
    tool("objdump")
    at_prompt(terminal, image(WAITS_FOR_DX))
    assert [line.lstrip("=> ") for line in say(terminal, "disas(0x1000, 3)")] == [
        "0x1000:  mov $0x0,%dx",
        "0x1003:  cmp $0x7,%dx",
        "0x1006:  jne 0x1003",
    ]
    terminal.type(b"\x04")  # Ctrl-D leaves the prompt; then Ctrl-A X the machine
    until(terminal.is_raw)
    terminal.type(b"\x01x")
    assert terminal.end()[0] == 0


def test_a_breakpoint_opens_it(terminal: Terminal, image: Callable[[bytes], Path]) -> None:
    at_prompt(terminal, image(WAITS_FOR_DX))
    assert say(terminal, "point = machine.break_at(0x1006)") == []
    say(terminal, "cont()")
    assert say(terminal, "hex(cpu.registers.rip), point.hits") == ["('0x1006', 1)"]
    say(terminal, "cont()")
    assert say(terminal, "point.hits") == ["2"]
    terminal.type(b"machine.stop('enough', 44)\r")
    terminal.see(PROMPT)
    terminal.type(b"exit()\r")
    status, stderr = terminal.end()
    assert status == 44
    assert "vCPU 0 is at 0x1006\n" in stderr


def test_it_opens_before_the_first_instruction(terminal: Terminal, image: Callable[[bytes], Path]) -> None:
    terminal.boot(image(WAITS_FOR_DX), "--shell", "-S")
    terminal.see(PROMPT)
    assert say(terminal, "hex(cpu.registers.rip)") == ["'0x1000'"]
    assert say(terminal, "cpu.step()") == ["4099"]
    assert say(terminal, "cpu.registers.rdx = 7") == []
    terminal.type(b"cont()\r")
    assert terminal.end()[0] == 9 << 1 | 1


def test_a_crash_opens_it_and_ends_the_run_afterwards(terminal: Terminal, image: Callable[[bytes], Path]) -> None:
    terminal.boot(image(CRASH_AT_A_KEY), "--mode", "protected", "--shell")
    until(terminal.is_raw)
    terminal.type(b"k")
    terminal.see(PROMPT)
    assert say(terminal, "exits()")[-1] == "SHUTDOWN"
    terminal.type(b"\x04")
    status, stderr = terminal.end()
    assert status == 6
    assert "vCPU 0 crashed: triple fault" in stderr
    assert re.search(r"the last \d+ exits, the latest at the end:\n", stderr)


def test_a_mistake_is_told_and_ctrl_c_leaves_a_line(terminal: Terminal, image: Callable[[bytes], Path]) -> None:
    at_prompt(terminal, image(WAITS_FOR_DX))
    say(terminal, "1 / 0")
    say(terminal, "machine.symbols['nothing']")
    terminal.type(b"while True: pass\r\r")
    terminal.type(b"\x03")
    terminal.see(PROMPT)
    assert say(terminal, "1 + 1") == ["2"]
    terminal.type(b"machine.stop()\r\x04")
    status, stderr = terminal.end()
    assert status == 0
    assert "ZeroDivisionError" in stderr
    assert "KeyboardInterrupt" in stderr
    assert "\nno symbol 'nothing'\n" in stderr


def test_a_signal_ends_it_and_puts_the_terminal_back(terminal: Terminal, image: Callable[[bytes], Path]) -> None:
    at_prompt(terminal, image(WAITS_FOR_DX))
    terminal.signal(signal.SIGTERM)
    assert terminal.end()[0] == -signal.SIGTERM


def test_keys_are_the_guests_again_afterwards(terminal: Terminal) -> None:
    at_prompt(terminal, ECHO)
    terminal.type(b"\x04")
    until(terminal.is_raw)
    terminal.type(b"k")
    assert terminal.see(b"k").endswith(b"k")
    terminal.type(b"\x04")
    assert terminal.end()[0] == 1


def test_history_is_kept(terminal: Terminal, image: Callable[[bytes], Path], tmp_path: Path) -> None:
    at_prompt(terminal, image(WAITS_FOR_DX))
    say(terminal, "something = 5")
    terminal.type(b"machine.stop()\r\x04")
    terminal.end()
    if os.path.exists(tmp_path / ".pyvcpu_history"):  # a Python with readline
        assert "something = 5" in (tmp_path / ".pyvcpu_history").read_text()


def test_without_a_terminal_it_is_refused(image: Callable[[bytes], Path]) -> None:
    done = boot(image(WAITS_FOR_DX), "--shell")
    assert done.returncode == 2
    assert "standard input is none" in str(done.stderr)
