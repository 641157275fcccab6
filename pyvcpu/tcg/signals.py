"""Signals of a thread in KVM_RUN: kept back while it runs guest code, let in where it sleeps.

KVM_RUN comes back with EINTR when a signal arrives. Here the thread blocks all signals on entry and looks now and then
which are pending; the sleep of a halted vCPU unblocks them atomically (ppoll). So none is lost, and each is handled
when KVM_RUN is left.

ctypes.PyDLL keeps the interpreter's lock during a call, which for these takes less than to give it up.
"""

from __future__ import annotations

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)
_held = ctypes.PyDLL(None)
SIZE = 128  # sigset_t of glibc and musl
SIG_BLOCK, SIG_SETMASK = 0, 2
POLLIN = 1
# Left alone: what the processor raises, what stops and continues, what is ignored where nobody cares for it.
_FREE = (4, 5, 6, 7, 8, 11, 31, 9, 19, 17, 18, 20, 21, 22, 28)
Mask = ctypes.c_uint64 * (SIZE // 8)
_all = Mask(((1 << 64) - 1) & ~sum(1 << number - 1 for number in _FREE))

_mask, _pending = _held.pthread_sigmask, _held.sigpending
_mask.argtypes, _mask.restype = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p), ctypes.c_int
_pending.argtypes, _pending.restype = (ctypes.c_void_p,), ctypes.c_int
_ppoll = _libc.ppoll
_ppoll.argtypes, _ppoll.restype = (ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_void_p), ctypes.c_int
_ALL = ctypes.addressof(_all)


class pollfd(ctypes.Structure):
    """struct pollfd (poll.h)."""

    _fields_ = [("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short)]


class timespec(ctypes.Structure):
    """struct timespec (time.h)."""

    _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]


class Signals:
    """What a vCPU knows of its thread's signals. `mask`: which stay blocked in KVM_RUN; None: as in the thread."""

    __slots__ = ("_before", "_before_at", "_fd", "_inside", "_inside_at", "_pending", "_pending_at", "mask")

    def __init__(self) -> None:
        self._before, self._inside, self._pending = Mask(), Mask(), Mask()
        self._before_at, self._inside_at, self._pending_at = map(
            ctypes.addressof, (self._before, self._inside, self._pending)
        )
        self._fd = pollfd(-1, POLLIN)
        self.mask: int | None = None

    def enter(self) -> None:
        """Block all signals of the calling thread."""
        _mask(SIG_BLOCK, _ALL, self._before_at)

    def leave(self) -> None:
        """Put the thread's mask back; what has arrived is handled now."""
        _mask(SIG_SETMASK, self._before_at, None)

    def pending(self) -> bool:
        """Tell whether a signal waits that is to interrupt KVM_RUN."""
        _pending(self._pending_at)
        waiting = self._pending[0]
        return bool(waiting and waiting & ~(self._before[0] if self.mask is None else self.mask))

    def sleep(self, fd: int) -> bool:
        """Sleep until the eventfd `fd` is signalled, or a signal arrives; tells whether it was a signal."""
        self._inside[0] = self._before[0] if self.mask is None else self.mask
        self._fd.fd = fd
        code = _ppoll(ctypes.addressof(self._fd), 1, None, self._inside_at)
        return bool(code < 0 and ctypes.get_errno() == errno.EINTR)


def block_all() -> None:
    """Leave all signals to the other threads of the process, for good."""
    _mask(SIG_BLOCK, _ALL, None)


def wait(fds: list[int], nanoseconds: int | None) -> list[int]:
    """Wait until one of some fds can be read, or for a time; return those that can be."""
    array = (pollfd * len(fds))(*[pollfd(fd, POLLIN) for fd in fds])
    limit = None
    if nanoseconds is not None:
        limit = ctypes.addressof(time := timespec(*divmod(max(nanoseconds, 0), 1_000_000_000)))
    code = _ppoll(ctypes.addressof(array), len(fds), limit, None)
    if limit is not None:
        del time
    return [entry.fd for entry in array if entry.revents] if code > 0 else []


def drain(fd: int) -> bool:
    """Take what a nonblocking eventfd counts; tells whether it was more than 0."""
    try:
        return bool(os.read(fd, 8))
    except (BlockingIOError, OSError):
        return False
