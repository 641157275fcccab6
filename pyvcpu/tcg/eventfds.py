"""ioeventfd: accesses of the guest that signal an eventfd. irqfd: eventfds that drive an interrupt line."""

from __future__ import annotations

import errno
import os
import threading
from struct import unpack

from . import signals
from .clock import NEVER
from .thing import fetch

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .routes import Irqs
    from .vmcore import VmCore

DATAMATCH, PIO, DEASSIGN, VALID = 1, 2, 4, 0x1F
IRQFD_DEASSIGN, IRQFD_RESAMPLE = 1, 2
RESAMPLER_SOURCE = 1 << 1  # KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID


def check_eventfd(fd: int) -> None:
    """Raise OSError EBADF where the number is no open file, EINVAL where that is no eventfd."""
    os.fstat(fd)
    try:
        kind = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return  # no /proc: believe it
    if "[eventfd]" not in kind:
        raise OSError(errno.EINVAL, "no eventfd")


def same_file(first: int, second: int) -> bool:
    """Tell whether two fds are of one eventfd."""
    try:
        return _eventfd_id(first) == _eventfd_id(second)
    except OSError:
        return False


def _eventfd_id(fd: int) -> str:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii", errors="replace") as info:
        for line in info:
            if line.startswith("eventfd-id"):
                return line
    raise OSError(errno.EINVAL, "no eventfd")


class Ioevents:
    """The ioeventfds of a VM. `table` is replaced as a whole, under `_lock`; lookups go without."""

    __slots__ = ("_lock", "table")

    def __init__(self) -> None:
        # By port or memory, and address: length (0: any), value or None, the eventfd.
        self.table: dict[tuple[bool, int], list[tuple[int, int | None, int]]] = {}
        self._lock = threading.Lock()

    def assign(self, address: int) -> None:
        """Serve KVM_IOEVENTFD (api.rst 4.59)."""
        datamatch, place, length, fd, flags = unpack("<QQIiI", fetch(address, 28))
        if length not in (0, 1, 2, 4, 8) or flags & ~VALID or place + length > 1 << 64:
            raise OSError(errno.EINVAL, "length or flags")
        if not length and flags & DATAMATCH:
            raise OSError(errno.EINVAL, "no length to compare")
        key = bool(flags & PIO), place
        value = datamatch if flags & DATAMATCH else None
        check_eventfd(fd)
        with self._lock:
            there = self.table.get(key, [])
            if flags & DEASSIGN:
                for entry in there:
                    if entry[:2] == (length, value) and same_file(entry[2], fd):
                        self._replace(key, [other for other in there if other is not entry])
                        os.close(entry[2])
                        return
                raise OSError(errno.ENOENT, "not assigned")
            for other_length, other_value, _ in there:
                alike = not other_length or not length or other_length == length
                if alike and (other_value is None or value is None or other_value == value):
                    raise OSError(errno.EEXIST, "assigned")
            self._replace(key, [*there, (length, value, os.dup(fd))])

    def _replace(self, key: tuple[bool, int], entries: list[tuple[int, int | None, int]]) -> None:
        table = {**self.table, key: entries}
        if not entries:
            del table[key]
        self.table = table

    def signal(self, pio: bool, address: int, size: int, value: int) -> bool:
        """Signal the eventfd that waits for an access; False where none does."""
        entries = self.table.get((pio, address))
        if entries is None:
            return False
        for length, wanted, fd in entries:
            if length in (0, size) and wanted in (None, value):
                try:
                    os.eventfd_write(fd, 1)
                except OSError:  # just taken back
                    continue
                return True
        return False

    def close(self) -> None:
        """Give all eventfds back."""
        for entries in self.table.values():
            for entry in entries:
                os.close(entry[2])
        self.table = {}


class Irqfd:
    """An eventfd that raises a line; with `resample`, one that is told when the guest has ended the interrupt."""

    __slots__ = ("fd", "gsi", "resample")

    def __init__(self, fd: int, gsi: int, resample: int) -> None:
        self.fd, self.gsi, self.resample = fd, gsi, resample


class Helper:
    """The thread of a VM that waits for timers and irqfds. It is started when there is the first of either.

    `_lock` guards the list of irqfds and the thread's start and end. The eventfds are duplicates, so that closing the
    caller's numbers leaves them alone, as in KVM.
    """

    def __init__(self, vm: VmCore) -> None:
        self._vm = vm
        self._lock = threading.Lock()
        self._fd = -1
        self._thread: threading.Thread | None = None
        self._closed = False
        self.irqfds: list[Irqfd] = []
        self._gone: list[Irqfd] = []

    def poke(self) -> None:
        """Have the thread look at timers and irqfds again. Any thread."""
        if threading.current_thread() is self._thread:
            return
        with self._lock:
            if self._closed:
                return
            if self._thread is None:
                self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._thread = threading.Thread(target=self._serve, name="KVM timers", daemon=True)
                self._thread.start()
            else:
                os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """End the thread and give all eventfds back."""
        with self._lock:
            self._closed = True
        if self._thread is not None:
            os.eventfd_write(self._fd, 1)
            self._thread.join()
            os.close(self._fd)
        for one in (*self.irqfds, *self._gone):
            _close(one)
        self.irqfds, self._gone = [], []

    def _serve(self) -> None:
        timers, clock = self._vm.timers, self._vm.clock
        signals.block_all()  # a signal to the process must reach the thread that may be in KVM_RUN
        while True:
            with self._lock:
                gone, self._gone = self._gone, []
            for one in gone:
                _close(one)
            deadline = timers.run()
            wait = None if deadline == NEVER else deadline - clock.now()
            fds = [self._fd, *(one.fd for one in self.irqfds)]
            ready = signals.wait(fds, wait)
            if self._closed:
                return
            for fd in ready:
                there = signals.drain(fd)
                if there and fd != self._fd:
                    self._vm.irqs.raised([one for one in self.irqfds if one.fd == fd])

    def assign(self, address: int, irqs: Irqs) -> None:
        """Serve KVM_IRQFD (api.rst 4.75)."""
        fd, gsi, flags, resample = unpack("<IIII", fetch(address, 16))
        if flags & ~3:
            raise OSError(errno.EINVAL, "flags")
        if flags & IRQFD_DEASSIGN:
            self._deassign(fd, gsi)
            return
        if irqs.mode == "none" or (flags & IRQFD_RESAMPLE and irqs.mode != "kernel"):
            raise OSError(errno.EINVAL, "no controllers")
        check_eventfd(fd)
        if flags & IRQFD_RESAMPLE:
            check_eventfd(resample)
        with self._lock:
            if any(same_file(one.fd, fd) for one in self.irqfds):
                raise OSError(errno.EBUSY, "assigned")
            mine = Irqfd(os.dup(fd), gsi, os.dup(resample) if flags & IRQFD_RESAMPLE else -1)
            self.irqfds = [*self.irqfds, mine]
        self.poke()

    def _deassign(self, fd: int, gsi: int) -> None:
        check_eventfd(fd)
        with self._lock:
            gone = [one for one in self.irqfds if one.gsi == gsi and same_file(one.fd, fd)]
            self.irqfds = [one for one in self.irqfds if one not in gone]
        for one in gone:
            if one.resample >= 0:
                self._vm.irqs.set_line(RESAMPLER_SOURCE, one.gsi, False)
        with self._lock:
            self._gone += gone  # the thread closes them, for it may be waiting for them
        self.poke()


def _close(one: Irqfd) -> None:
    os.close(one.fd)
    if one.resample >= 0:
        os.close(one.resample)
