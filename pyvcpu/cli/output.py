"""Standard output, to which the guest's words go in pieces worth a system call."""

from __future__ import annotations

import errno
import os
import select
import threading

from ..errors import PyvcpuError
from ..posix import signal

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

STDOUT = 1
CHUNK = 4096  # at most PIPE_BUF: a pipe that poll() finds writable takes so much without blocking
MOST = 2 * CHUNK  # what is kept for a reader that does not read, once nobody waits for him
TICK = 0.005  # seconds for which bytes may wait for others
GRACE = 100  # milliseconds that a reader has for each piece, once nobody waits for him any more


class OutputError(PyvcpuError):
    """Standard output cannot be written."""


class Output:
    """What the guest says, to `fd`, in the order it says it: at once when it is much, else within TICK of start().

    `write` runs on vCPU threads; `_lock` guards the buffer and keeps the pieces in order. A reader that does not read
    stops the writer, which stops that vCPU, until there is room or cancel() was called. When the reader has gone, or
    nothing can be written (a full disk, say), `on_broken` is called and what follows is dropped.

    The thread `console output` exists from start() on. Until then, and at the end, somebody must push() or close().
    """

    def __init__(self, fd: int = STDOUT) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._cancel = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = self._new_poll()
        self._buffer = bytearray()
        self._waiting = threading.Event()  # there is something in the buffer, or the thread is to end
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._cancelled = self._broken = False
        self._error: OSError | None = None
        self.on_broken: Callable[[], object] = bool

    def _new_poll(self) -> select.poll:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.register(self._cancel, select.POLLIN)
        return poll

    def write(self, data: bytes) -> None:
        """Take all of `data`; wait for the reader when there is more than a piece of it."""
        with self._lock:
            if self._broken:
                return
            self._buffer += data
            while len(self._buffer) >= CHUNK and self._some(-1):
                pass
            if self._cancelled:
                del self._buffer[MOST:]
        if not self._waiting.is_set():
            self._waiting.set()

    def push(self) -> bool:
        """Write what can be written without waiting; return whether there is more to wait for. Any thread."""
        with self._lock:
            while self._buffer and self._some(0):
                pass
            return bool(self._buffer) and not self._cancelled

    def wait_room(self, timeout: float | None) -> bool:
        """Wait until the reader takes something or cancel() was called; False when `timeout` seconds passed first.

        It changes nothing: an exception of a signal handler may come out of it.
        """
        return bool(self._new_poll().poll(None if timeout is None else max(timeout, 0) * 1000))

    def start(self) -> None:
        """Let a thread write what has waited long enough. Once; on the thread that also calls close()."""
        self._thread = threading.Thread(target=self._flush, name="console output", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Wait for the reader no more. Any thread, also while another one is in write()."""
        os.eventfd_write(self._cancel, 1)

    def close(self) -> None:
        """Write what is left, as far as the reader takes it; end the thread; raise OutputError when it was not taken.

        No vCPU runs any more.
        """
        self.cancel()
        self._closing.set()
        self._waiting.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            while self._buffer and self._some(GRACE):
                pass
            error, self._error = self._error, None
        if error is not None:
            raise OutputError(f"standard output: {error.strerror}")

    def _flush(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        while not self._closing.is_set():
            self._waiting.wait()
            self._closing.wait(TICK)
            self._waiting.clear()
            with self._lock:
                while self._buffer and self._some(-1):
                    pass

    def _some(self, timeout: int) -> bool:
        """Write a piece of the buffer, with the lock held; False when that is not to be had within `timeout` ms.

        -1: wait for it, until cancel().
        """
        ready = self._ready(timeout)
        if not ready:
            return False
        try:
            written = os.write(self._fd, self._buffer[:CHUNK])
        except BlockingIOError:
            return timeout < 0 and not self._cancelled
        except OSError as error:
            self._broken = True
            self._buffer.clear()
            if error.errno != errno.EPIPE:
                self._error = error
            self.on_broken()
            return False
        del self._buffer[:written]
        return True

    def _ready(self, timeout: int) -> bool:
        """Wait for room, at most `timeout` ms, with the lock held."""
        if not self._cancelled:
            ready = [fd for fd, _ in self._poll.poll(timeout)]
            if self._cancel not in ready:
                return bool(ready)
            self._cancelled = True  # and it stays so: from now on only the fd counts
            self._poll.unregister(self._cancel)
        return bool(self._poll.poll(max(timeout, 0)))
