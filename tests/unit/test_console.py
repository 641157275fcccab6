"""The console: what is typed arrives whole, nobody can hold up the end, and the terminal is put back."""

from __future__ import annotations

import os
import pty
import signal
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyvcpu.cli import console
from pyvcpu.cli.console import Input
from pyvcpu.cli.keys import HELP_LINES
from pyvcpu.devices.serial import FCR, FCR_ENABLE, IER, LCR, LSR, LSR_DR, RBR, Serial
from tests.pipes import Pipe, read_all
from tests.threads import until

DEADLINE = 30.0  # for what should take no time


class Guest:
    """A serial port and a guest that reads it."""

    def __init__(self, *, fifo: bool = False) -> None:
        self.serial = Serial(out=lambda data: None)
        if fifo:
            self.serial.write(FCR, bytes([FCR_ENABLE]))

    def read(self, count: int) -> bytes:
        """Read `count` characters as a polling driver does."""
        got = b""
        while len(got) < count:
            if self.serial.read(LSR, 1)[0] & LSR_DR:
                got += self.serial.read(RBR, 1)
            time.sleep(0)  # as KVM_RUN does, let others run
        return got


def feed(monkeypatch: pytest.MonkeyPatch, fd: int) -> Input:
    """Return an Input that reads `fd`."""
    monkeypatch.setattr(console, "STDIN", fd)
    return Input()


def feeders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("console ")]


def join_feeders() -> None:
    for thread in feeders():
        thread.join(DEADLINE)
    assert not feeders()


@pytest.mark.parametrize("fifo", [False, True])
def test_input_arrives_whole_and_in_order(monkeypatch: pytest.MonkeyPatch, pipe: Pipe, fifo: bool) -> None:
    guest, source = Guest(fifo=fifo), feed(monkeypatch, pipe.reader)
    sent = bytes(range(256)) * 8
    os.write(pipe.writer, sent)
    source.start(guest.serial)
    assert guest.read(len(sent)) == sent
    os.write(pipe.writer, b"later")
    assert guest.read(5) == b"later"
    pipe.close_writer()  # the end of the input ends the thread
    join_feeders()
    source.close()


def test_input_is_read_no_faster_than_the_guest_does(monkeypatch: pytest.MonkeyPatch, pipe: Pipe) -> None:
    """Whoever starts after us in the same shell gets what the guest left: at most a handful of bytes is lost."""
    guest, source = Guest(), feed(monkeypatch, pipe.reader)
    os.write(pipe.writer, b"x" * 1000)
    source.start(guest.serial)
    assert guest.read(1) == b"x"
    source.close()
    guest.serial.close()
    join_feeders()
    pipe.close_writer()
    assert len(read_all(pipe.reader)) >= 1000 - 64


def test_starting_twice_feeds_once(monkeypatch: pytest.MonkeyPatch, pipe: Pipe) -> None:
    guest, source = Guest(), feed(monkeypatch, pipe.reader)
    source.start(guest.serial)
    source.start(guest.serial)
    assert len(feeders()) == 1
    os.write(pipe.writer, b"ab")
    assert guest.read(2) == b"ab"
    source.close()
    source.close()
    join_feeders()


def test_nothing_starts_after_close(monkeypatch: pytest.MonkeyPatch, pipe: Pipe) -> None:
    source = feed(monkeypatch, pipe.reader)
    source.close()
    source.start(Guest().serial)
    assert feeders() == []


def test_close_ends_a_thread_that_waits_for_input_or_for_room(monkeypatch: pytest.MonkeyPatch, pipe: Pipe) -> None:
    guest, source = Guest(), feed(monkeypatch, pipe.reader)
    source.start(guest.serial)
    source.close()
    join_feeders()
    guest, source = Guest(), feed(monkeypatch, pipe.reader)
    os.write(pipe.writer, b"more than the receiver takes")
    source.start(guest.serial)
    source.close()
    guest.serial.close()  # as Machine.close() does
    join_feeders()


def test_input_that_cannot_be_read_is_no_input(monkeypatch: pytest.MonkeyPatch, pipe: Pipe) -> None:
    source = feed(monkeypatch, pipe.writer)  # the end that only writes
    source.start(Guest().serial)
    source.close()
    join_feeders()


def test_a_terminal_of_somebody_else_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that is not the controlling one (docker -t, setsid): no job control, and no failure."""
    master, slave = pty.openpty()
    try:
        before = termios.tcgetattr(slave)
        source = feed(monkeypatch, slave)
        source.start(Guest().serial)
        source.close()
        join_feeders()
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)


class Screen:
    """A terminal that this process has in the foreground, standard input of an Input, and a guest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fifo: bool = False) -> None:
        self.master, self.slave = pty.openpty()
        monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp())
        self.before = self.attributes()
        self.guest = Guest(fifo=fifo)
        self.input = feed(monkeypatch, self.slave)
        self.quits = self.interrupts = 0
        self.input.on_quit = self.quit
        monkeypatch.setattr(console, "_interrupt", self.interrupt)
        self.said: list[str] = []
        monkeypatch.setattr(console, "say", self.said.append)

    def quit(self) -> None:
        self.quits += 1

    def interrupt(self) -> None:
        self.interrupts += 1

    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def start(self) -> None:
        self.input.start(self.guest.serial)

    def close(self) -> None:
        self.input.close()
        self.guest.serial.close()
        join_feeders()
        assert self.attributes() == self.before
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    screen = Screen(monkeypatch)
    yield screen
    screen.close()


def is_raw(attributes: list[Any]) -> bool:
    iflag, lflag = attributes[tty.IFLAG], attributes[tty.LFLAG]
    editing = termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN
    return not (lflag & editing or iflag & (termios.ICRNL | termios.IXON | termios.ISTRIP))


def test_a_terminal_in_the_foreground_is_raw_and_then_put_back(screen: Screen) -> None:
    assert not is_raw(screen.before)
    screen.start()
    during = screen.attributes()
    assert is_raw(during)
    assert during[tty.OFLAG] == screen.before[tty.OFLAG]  # line feeds still become new lines
    screen.type(b"k\r\x04\x1a\x1c\x11\x13")  # no line end
    assert screen.guest.read(7) == b"k\r\x04\x1a\x1c\x11\x13"
    screen.input.close()
    assert screen.attributes() == screen.before


def test_a_terminal_that_is_hung_up_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    screen.start()
    os.close(screen.master)
    join_feeders()
    screen.input.close()
    os.close(screen.slave)


def test_ctrl_a_x_leaves_whether_the_guest_reads_or_not(screen: Screen) -> None:
    screen.start()
    screen.type(b"nobody reads this" * 100)
    screen.type(b"\x01")
    screen.type(b"x")
    until(lambda: screen.quits)
    assert (screen.quits, screen.interrupts, screen.said) == (1, 0, [])


def test_what_the_guest_has_not_taken_waits(screen: Screen, in_thread: Callable[..., threading.Thread]) -> None:
    sent = bytes(range(32, 127)) * 200
    screen.start()

    def paste() -> None:
        rest = sent
        while rest:
            rest = rest[os.write(screen.master, rest[:1000]) :]

    pasting = in_thread(paste)
    pasting.join(DEADLINE)  # all of it, though the guest has taken none
    assert screen.guest.read(len(sent)) == sent


def test_ctrl_a_h_says_which_keys_there_are(screen: Screen) -> None:
    screen.start()
    screen.type(b"\x01ha")
    assert screen.guest.read(1) == b"a"
    assert screen.said == list(HELP_LINES)


def test_ctrl_c_interrupts_while_the_guest_takes_nothing(screen: Screen) -> None:
    screen.start()
    screen.type(b"\x03")
    until(lambda: screen.interrupts)
    screen.type(b"ab")
    until(lambda: screen.guest.serial.read(LSR, 1)[0] & LSR_DR)
    screen.type(b"\x03")
    until(lambda: screen.interrupts == 2)
    assert screen.guest.read(2) == b"ab"
    assert screen.said == []


@pytest.mark.parametrize("fifo", [False, True])
def test_ctrl_c_is_the_guests_once_it_has_taken_something(monkeypatch: pytest.MonkeyPatch, fifo: bool) -> None:
    screen = Screen(monkeypatch, fifo=fifo)
    screen.start()
    screen.type(b"a")
    assert screen.guest.read(1) == b"a"
    for _ in range(3):  # and stays so while it does not look
        screen.type(b"\x03")
    assert screen.guest.read(3) == b"\x03\x03\x03"
    assert screen.interrupts == 0
    assert screen.said == ["Ctrl-C goes to the guest; Ctrl-A X leaves, Ctrl-A H helps"]
    screen.close()


def test_ctrl_c_is_the_guests_when_it_has_the_receive_interrupt_on(screen: Screen) -> None:
    screen.guest.serial.write(IER, b"\x01")
    screen.start()
    screen.type(b"\x03")
    assert screen.guest.read(1) == b"\x03"
    assert screen.interrupts == 0


def test_a_divisor_latch_is_not_the_receive_interrupt(screen: Screen) -> None:
    screen.guest.serial.write(LCR, b"\x80")
    screen.guest.serial.write(IER, b"\x01")  # DLM
    screen.start()
    screen.type(b"\x03")
    until(lambda: screen.interrupts)


def test_after_a_stop_the_terminal_is_raw_again(screen: Screen) -> None:
    screen.start()
    termios.tcsetattr(screen.slave, termios.TCSANOW, screen.before)  # as a shell does when it takes over
    os.kill(os.getpid(), signal.SIGCONT)
    until(lambda: is_raw(screen.attributes()))
    screen.type(b"k")
    assert screen.guest.read(1) == b"k"


def test_brought_to_the_foreground_the_terminal_becomes_raw(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(monkeypatch)
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: -1)
    screen.start()
    assert screen.attributes() == screen.before
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp())
    os.kill(os.getpid(), signal.SIGCONT)
    until(lambda: is_raw(screen.attributes()))
    screen.close()


def test_in_the_background_the_terminal_is_not_put_back_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell has set it as it likes."""
    screen = Screen(monkeypatch)
    screen.start()
    raw = screen.attributes()
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: -1)
    screen.input.close()
    assert screen.attributes() == raw
    termios.tcsetattr(screen.slave, termios.TCSANOW, screen.before)
    screen.close()


def test_the_handler_of_sigcont_is_put_back(screen: Screen) -> None:
    assert signal.getsignal(signal.SIGCONT) != signal.SIG_DFL
    screen.input.close()
    assert signal.getsignal(signal.SIGCONT) == signal.SIG_DFL


def test_a_pipe_has_no_keys_of_ours(monkeypatch: pytest.MonkeyPatch, pipe: Pipe) -> None:
    guest, source = Guest(), feed(monkeypatch, pipe.reader)
    source.on_quit = lambda: pytest.fail("Ctrl-A X came through a pipe")
    os.write(pipe.writer, b"\x01x\x03\x01h")
    source.start(guest.serial)
    assert guest.read(5) == b"\x01x\x03\x01h"
    source.close()
    guest.serial.close()
    join_feeders()
