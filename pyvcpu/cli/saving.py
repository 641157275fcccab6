"""Snapshots that a command takes of its running machine: at SIGUSR1, at Ctrl-A S, and at the end."""

from __future__ import annotations

import os
import sys
import threading
from time import monotonic

from ..errors import ConfigError, PyvcpuError
from ..posix import signal
from . import say

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from types import FrameType
    from typing import Any

    from ..machine import Machine
    from ..snapshot import Snapshot

PATIENCE = 1.0  # seconds after which progress is shown


class Saver:
    """Takes snapshots of `machine` into the file `path`, whenever ask() is called, on a thread of its own."""

    def __init__(self, machine: Machine, path: str) -> None:
        self._machine = machine
        self._path = path
        self._bell = threading.Semaphore(0)
        self._closed = False
        check_folder(path)
        self._old = signal.signal(signal.SIGUSR1, self._signalled)
        self._thread = threading.Thread(target=self._work, name="snapshots", daemon=True)
        self._thread.start()

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self.ask()

    def ask(self) -> None:
        """Have one taken soon. Any thread, a signal handler, too."""
        self._bell.release()

    def _work(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        while True:
            self._bell.acquire()
            if self._closed:
                return
            try:
                save(self._machine, self._path)
            except (PyvcpuError, OSError) as error:
                say(f"no snapshot: {in_words(error, self._path)}")
            else:
                say(f"snapshot in {self._path}")

    def close(self) -> None:
        """Wait for the one that is being taken."""
        signal.signal(signal.SIGUSR1, self._old)
        self._closed = True
        self._bell.release()
        self._thread.join()


def save(machine: Machine, path: str) -> None:
    """Take a snapshot and save it. Raise PyvcpuError or OSError."""
    with machine.snapshot() as snapshot:
        snapshot.save(path, progress=Progress("saved"))


def save_at_exit(machine: Machine, path: str) -> None:
    """Do so at the end; raise ConfigError, with all that is to be said, for a file that cannot be written."""
    try:
        save(machine, path)
    except OSError as error:
        raise ConfigError(f"no snapshot: {in_words(error, path)}") from None


def check_folder(path: str) -> None:
    """Raise ConfigError now for a file that could not be written later."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ConfigError(f"{path}: a snapshot cannot be written there")


def in_words(error: Exception, path: str) -> str:
    """Return what went wrong, in one line."""
    return f"{path}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)


def load(path: str, verify: bool) -> Snapshot:
    """Load the snapshot in a file. Raise ConfigError, in words, for a file that is none or cannot be read."""
    from ..snapshot import Snapshot, SnapshotError

    try:
        return Snapshot.load(path, verify=verify, progress=Progress("read"))
    except (SnapshotError, OSError) as error:
        raise ConfigError(in_words(error, path)) from None


class Progress:
    """Shows how far a save or load has come, on a terminal, once it takes longer than a second."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._begin = monotonic()
        self._shown = -1

    def __call__(self, done: int, total: int) -> None:
        """Take note: `done` of `total` bytes."""
        if monotonic() - self._begin < PATIENCE:
            return
        stream: Any = sys.stderr
        percent = done * 100 // max(total, 1)
        try:
            if percent != self._shown and stream.isatty():
                self._shown = percent
                stream.write(f"\rpyvcpu: {percent} % {self._what}" + ("\n" if done >= total else ""))
                stream.flush()
        except (OSError, ValueError, AttributeError):
            pass
