"""Standard input as the guest's console."""

from __future__ import annotations

import os
import select
import threading

from ..devices.serial import IER, IER_RDI, LCR, LCR_DLAB, LSR, LSR_DR
from ..posix import signal
from . import say

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from queue import SimpleQueue
    from types import FrameType
    from typing import Any

    from ..bios.keyboard import Input as Serial  # COM1, or a keyboard that has such a side
    from .keys import Keys

STDIN = 0
CHUNK = 4096


class Terminal:
    """Standard input as a terminal: raw while the guest has it, and then as it was before.

    In raw mode each key arrives at once, as the byte that it is: no echo, no line editing, no signals (Ctrl-C, Ctrl-Z,
    Ctrl-\\), no flow control (Ctrl-S, Ctrl-Q), and Enter is a carriage return. Output is processed as before, so that
    lines which end in a bare line feed do not run down the screen like stairs.

    A terminal that we are not in the foreground of is left alone: the shell, or another program, has it then.
    Threads: the caller's lock guards it.
    """

    def __init__(self) -> None:
        self._saved: list[Any] | None = None

    @property
    def raw(self) -> bool:
        """Whether enter() has switched the terminal over, and leave() not back."""
        return self._saved is not None

    def enter(self) -> None:
        """Switch to raw mode (again: another program may have been in the foreground since)."""
        attributes = _attributes()
        if attributes is None:
            return
        import termios

        self._saved = self._saved or attributes
        iflag, oflag, cflag, lflag, ispeed, ospeed, characters = attributes
        iflag &= ~(termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP)
        iflag &= ~(termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON)
        lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN | termios.ISIG)
        characters = characters.copy()
        characters[termios.VMIN], characters[termios.VTIME] = 1, 0
        _set_attributes([iflag, oflag, cflag, lflag, ispeed, ospeed, characters])

    def leave(self) -> None:
        """Put back what enter() found."""
        saved, self._saved = self._saved, None
        if saved is not None and _attributes() is not None:
            _set_attributes(saved)


def _in_foreground() -> bool | None:
    """Return whether we have standard input; None when it is no terminal, or not the one that controls us."""
    try:
        return os.tcgetpgrp(STDIN) == os.getpgrp()
    except OSError:
        return None


def _attributes() -> list[Any] | None:
    """Return the terminal's attributes; None where we are not in the foreground of one, or it has been hung up."""
    if not _in_foreground():
        return None
    import termios

    try:
        return termios.tcgetattr(STDIN)
    except termios.error:
        return None


def _set_attributes(attributes: list[Any]) -> None:
    """Set the terminal's attributes, without waiting for its output: it may be held (Ctrl-S)."""
    import termios

    try:
        termios.tcsetattr(STDIN, termios.TCSANOW, attributes)
    except termios.error:
        return  # it has been hung up


class Input:
    """Standard input, to the guest's serial port, from the moment at which the guest listens.

    A pipe or file is read no further than the guest takes; at its end the machine runs on. A terminal is switched to
    raw mode, and back by close(). Its keys are all read at once, so that those that are for us (keys.py) work also when
    the guest takes none; the others wait here until the guest does. Ctrl-C is the guest's once it takes input: until
    then it interrupts, as in any program that is not looking.

    start() runs on a vCPU thread, all else on the main thread, and the threads that start() starts read and feed;
    `_lock` guards what they share. `on_quit` is called on the reading thread at Ctrl-A X, `on_prompt`, if there is one,
    at Ctrl-A C.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._wake = -1  # an eventfd: look at _closed, and whether the terminal is still raw
        self._terminal = Terminal()
        self._told = False  # where Ctrl-C goes; for the reading thread
        self._old_handler = signal.signal(signal.SIGCONT, self._continued) if os.isatty(STDIN) else None
        self.on_quit: Callable[[], object] = _interrupt
        self.on_prompt: Callable[[], object] | None = None
        self._suspended = False  # somebody else reads the terminal
        self.on_snapshot: Callable[[], object] = _no_snapshot

    def start(self, serial: Serial) -> None:
        """Switch the terminal over and start to feed `serial`; does nothing after close(), or a second time."""
        with self._lock:
            if self._closed or self._wake >= 0:
                return
            self._wake = os.eventfd(0, os.EFD_CLOEXEC)
            self._terminal.enter()
            run = self._read_keys if os.isatty(STDIN) else self._feed
            threading.Thread(target=run, args=(serial,), name="console input", daemon=True).start()

    def close(self) -> None:
        """Put the terminal back and let the reading thread end; closing again does nothing."""
        if self._old_handler is not None:
            signal.signal(signal.SIGCONT, self._old_handler)
            self._old_handler = None
        with self._lock:
            self._closed = True
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
            self._terminal.leave()

    def suspend(self) -> None:
        """Leave the terminal, as it was before, to somebody else."""
        with self._lock:
            self._suspended = True
            self._terminal.leave()
            self._ring()

    def resume(self) -> None:
        """Take it back."""
        with self._lock:
            self._suspended = False
            self._ring()  # the reading thread switches it over

    def _ring(self) -> None:
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def _continued(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGCONT: the terminal may have been another's meanwhile. Without the lock, which close() may hold."""
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def _read(self, size: int) -> bytes:
        """Wait for input and return up to `size` bytes of it; none at the end, after an error, and after close()."""
        while True:
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            if not self._suspended:
                poll.register(STDIN, select.POLLIN)
            ready = [fd for fd, _ in poll.poll()]
            if self._wake in ready:
                os.eventfd_read(self._wake)
            elif self._suspended:
                continue
            elif _in_foreground() is not False or _stop_in_background():
                break
            with self._lock:
                if self._closed:
                    return b""
                if not self._suspended:
                    self._terminal.enter()
        try:
            return os.read(STDIN, size)
        except OSError:
            return b""

    def _feed(self, serial: Serial) -> None:
        """Read no faster than the guest does: what it has not taken stays in the pipe."""
        while serial.wait_room() and (data := self._read(16)):
            _give(serial, data)

    def _read_keys(self, serial: Serial) -> None:
        """Sort the keys into those for us and those for the guest, which another thread hands over."""
        from queue import SimpleQueue

        waiting: SimpleQueue[bytes] = SimpleQueue()  # an empty one is the end
        threading.Thread(target=_hand_over, args=(serial, waiting), name="console feed", daemon=True).start()
        from .keys import Keys

        keys, reader = Keys(), _ReadDetector(serial)
        while data := self._read(CHUNK):
            with self._lock:
                raw = self._terminal.raw
            if raw:
                data = self._obey(keys, data, reader)
            if data:
                reader.given = True
                waiting.put(data)
        waiting.put(b"")

    def _obey(self, keys: Keys, data: bytes, reader: _ReadDetector) -> bytes:
        """Do what keys for us say; return the others."""
        from .keys import HELP_LINES, INTERRUPT, PROMPT, PROMPT_LINE, QUIT, SNAPSHOT, SUMMARY

        data, commands = keys.take(data)
        for command in commands:
            if command == QUIT:
                self.on_quit()
            elif command == SNAPSHOT:
                self.on_snapshot()
            elif command != PROMPT:
                for line in (*HELP_LINES, *([PROMPT_LINE] if self.on_prompt is not None else [])):
                    say(line)
            elif self.on_prompt is not None:
                self.on_prompt()
        if INTERRUPT not in data:
            return data
        if not reader.reads():
            _interrupt()
            return data.replace(bytes((INTERRUPT,)), b"")
        if not self._told:
            self._told = True
            say(f"Ctrl-C goes to the guest; {SUMMARY}")
        return data


class _ReadDetector:
    """Tell whether the guest behind a serial port takes input; the port feeds a guest that merely looks at its status.

    Such a guest may only want to know whether it can write. One that takes input has its receive interrupt enabled, or
    has taken what it was `given`. What was true once stays so. For the thread that reads keys.
    """

    def __init__(self, serial: Serial) -> None:
        self._serial = serial
        self._reads = False
        self.given = False

    def reads(self) -> bool:
        """Look at the port's registers, as the guest sees them."""
        if not self._reads:
            interrupts = not self._register(LCR) & LCR_DLAB and self._register(IER) & IER_RDI
            taken = self.given and not self._register(LSR) & LSR_DR
            self._reads = bool(interrupts or taken)
        return self._reads

    def _register(self, offset: int) -> int:
        return self._serial.read(offset, 1)[0]


def _hand_over(serial: Serial, waiting: SimpleQueue[bytes]) -> None:
    while data := waiting.get():
        _give(serial, data)


def _give(serial: Serial, data: bytes) -> None:
    """Wait until the guest has taken all of `data`, or the port is closed."""
    while data and serial.wait_room():
        data = data[serial.receive(data) :]


def _stop_in_background() -> bool:
    """Stop, as whoever reads a terminal in the background, until `fg`; return whether that was of no use.

    A read would do the same, and then wait for a line, because the terminal is not raw yet.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTTIN,))  # this thread was made by a vCPU's, which blocks it
    signal.raise_signal(signal.SIGTTIN)
    return not _in_foreground()


def _no_snapshot() -> None:
    say("no snapshot: name the file with --snapshot FILE")


def _interrupt() -> None:
    """Do what Ctrl-C does in a terminal that is not raw."""
    os.kill(os.getpid(), signal.SIGINT)
