"""Standard input and output as the guest's console."""

from __future__ import annotations

import errno
import os
import select
import threading

from ..errors import PyvcpuError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Any

    from ..devices.serial import Serial

STDIN, STDOUT = 0, 1
CHUNK = 4096  # at most PIPE_BUF: a pipe that poll() finds writable takes so much without blocking


class OutputError(PyvcpuError):
    """Standard output cannot be written."""


class Output:
    """What the guest says, to standard output, in the order and at the time it says it.

    `write` runs on vCPU threads. `_lock` keeps one write whole. A reader that does not read stops the writer, which
    stops that vCPU, until there is room or cancel() was called. When the reader has gone, `on_broken` is called and
    what follows is dropped.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancel = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(STDOUT, select.POLLOUT)
        self._poll.register(self._cancel, select.POLLIN)
        self._broken = False
        self.on_broken: Callable[[], object] = bool

    def write(self, data: bytes) -> None:
        """Write all of `data`; raise OutputError when standard output takes nothing (a full disk, say)."""
        with self._lock:
            while data and not self._broken:
                data = data[self._some(data) :]

    def _some(self, data: bytes) -> int:
        if any(fd == self._cancel for fd, _ in self._poll.poll()):
            self._broken = True
            return 0
        try:
            return os.write(STDOUT, data[:CHUNK])
        except BlockingIOError:
            return 0
        except OSError as error:
            self._broken = True
            if error.errno != errno.EPIPE:
                raise OutputError(f"standard output: {error.strerror}") from None
            self.on_broken()
            return 0

    def cancel(self) -> None:
        """Drop what is being written and what follows. Any thread, also while another one is in write()."""
        os.eventfd_write(self._cancel, 1)


class Input:
    """Standard input, to the guest's serial port, from the moment at which the guest listens.

    start() runs on a vCPU thread, close() on the main thread; `_lock` guards what they share. A terminal is switched to
    single characters without echo (Ctrl-C still interrupts), and back by close().
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._wake = -1
        self._saved: list[Any] | None = None

    def start(self, serial: Serial) -> None:
        """Switch the terminal over and start the thread that feeds `serial`; does nothing after close()."""
        with self._lock:
            if self._closed or self._wake >= 0:
                return
            self._wake = os.eventfd(0, os.EFD_CLOEXEC)
            self._switch_terminal()
            threading.Thread(target=self._feed, args=(serial,), name="console input", daemon=True).start()

    def _switch_terminal(self) -> None:
        """Turn off line editing and echo, where standard input is a terminal that we are in the foreground of."""
        if not os.isatty(STDIN) or os.tcgetpgrp(STDIN) != os.getpgrp():
            return
        import termios

        self._saved = termios.tcgetattr(STDIN)
        changed = termios.tcgetattr(STDIN)
        changed[3] &= ~(termios.ICANON | termios.ECHO)
        changed[6][termios.VMIN], changed[6][termios.VTIME] = 1, 0
        termios.tcsetattr(STDIN, termios.TCSADRAIN, changed)

    def _feed(self, serial: Serial) -> None:
        """Read no faster than the guest does: what it has not taken stays in the pipe."""
        poll = select.poll()
        poll.register(STDIN, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while serial.wait_room():
            if any(fd == self._wake for fd, _ in poll.poll()):
                return
            try:
                data = os.read(STDIN, 16)
            except OSError:
                return
            if not data:
                return
            while data and serial.wait_room():
                data = data[serial.receive(data) :]

    def close(self) -> None:
        """Put the terminal back and let the reading thread end; closing again does nothing."""
        with self._lock:
            self._closed = True
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
            saved, self._saved = self._saved, None
        if saved is not None:
            import termios

            termios.tcsetattr(STDIN, termios.TCSADRAIN, saved)
