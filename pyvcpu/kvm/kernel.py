"""The one door to the kernel: `Kernel` says what must be behind it, `LinuxKernel` is the real one.

A KVM in software or a test's fake stands in the same place: Kvm(path, kernel).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import sys

from ..posix import signal

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from functools import partial
    from mmap import mmap as Mapping
    from typing import Protocol
else:
    from _functools import partial  # functools itself takes 3 ms to load

    Protocol = object  # typing takes 4 ms to load, which every start would pay


class Kernel(Protocol):
    """What pyvcpu asks of the kernel. A class need not derive from this one; it must have these methods.

    Threads: any thread may call any method at any time, several at once. The kernel serializes what it must. Only
    KVM_RUN lasts: it is made by the vCPU's own thread, and must not hold up other threads while the guest runs.

    File descriptors: numbers from 0 to 2**31 - 1, which belong to the caller until close(). They are unique among all
    open files of the process, because fileno() hands them out: a KVM in software takes real ones, such as memory files
    or eventfds. A request on a number that is not open fails with EBADF.

    After a fork the child may close() its copies, which changes nothing for the parent. All else may fail there (EIO).

    Ctrl-C: a method written in Python can be interrupted in the main thread, between any two of its steps. A descriptor
    that it has opened and not yet returned is then lost; one that it was to close stays open. LinuxKernel's open, ioctl
    and close are functions of C, to which that cannot happen.
    """

    __slots__ = ()

    def open(self, path: str, /) -> int:
        """Open the device `path` for reading and writing; return its descriptor, not inherited by other programs.

        Raise OSError with the errno. Called once for each Kvm object, in the thread that makes it. A KVM in software
        may take `path` for a name of its own.
        """

    def ioctl(self, fd: int, number: int, argument: int, /) -> int:
        """Make the request `number` on `fd`; return what the request defines, or -1, with the reason in errno().

        `number` is that of linux/kvm.h. `argument` is a number of up to 64 bits: a plain value, or the address of
        memory of this process, in the form that the request defines, which stays valid until the call returns. Never
        raises for what the kernel refuses. Never repeats a request that a signal interrupted: EINTR is an error as any.
        Other Python threads run meanwhile.
        """

    def errno(self) -> int:
        """Return why the last ioctl() of this thread gave -1. Undefined after one that succeeded."""

    def request(self, fd: int, number: int, /) -> object:
        """Make a request without argument, for the sake of speed: KVM_RUN, by the vCPU's own thread.

        Return anything when it succeeded; raise OSError with the errno when it failed, EINTR and EAGAIN included. A
        request that failed may have been made twice: what it returned the first time is then lost. After a kick
        (immediate_exit set, then a signal), it must come back with EINTR. `number` fits into 31 bits.
        """

    def mmap(self, fd: int, length: int, /) -> Mapping:
        """Map the first `length` bytes of a vCPU's descriptor: kvm_run and the pages behind it.

        `length` is what KVM_GET_VCPU_MMAP_SIZE says. Return a writable mmap.mmap that shares its memory with the
        kernel; it stays valid when `fd` is closed, and its owner closes it. Raise OSError with the errno.
        """

    def mmap_at(self, fd: int, length: int, offset: int, /) -> Mapping:
        """Map `length` bytes of `fd` from `offset` on, both whole pages; otherwise as mmap(). For dirty rings."""

    def close(self, fd: int, /) -> None:
        """Close `fd`, once for each descriptor. Raise OSError where it is not open.

        What it stood for lives on while something else refers to it: a VM while its vCPUs' descriptors are open, a
        vCPU as long as its VM.
        """

    def catch(self, number: int, /) -> None:
        """Let the signal `number`, sent to a thread, interrupt KVM_RUN there and do nothing else.

        Called by each vCPU's thread before its first KVM_RUN, and again by any thread; a second call changes nothing. A
        handler that the program has set for this signal stays.
        """


# From Python 3.14 on, fcntl.ioctl repeats a request that a signal has interrupted, by itself: a kick would be lost.
FCNTL_RETRIES = sys.version_info >= (3, 14)
# mmap keeps a copy of the descriptor for resize(), which nobody needs here. From 3.13 on it need not.
UNTRACKED: dict[str, bool] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


def request_by(ioctl: Callable[[int, int, int], int], errno: Callable[[], int]) -> Callable[[int, int], object]:
    """Return a Kernel.request made of the other two; each request is made once."""

    def request(fd: int, number: int) -> None:
        if ioctl(fd, number, 0) < 0:
            raise OSError(errno(), "ioctl")

    return request


def request_again(
    fast: Callable[[int, int, int], int], ioctl: Callable[[int, int, int], int], errno: Callable[[], int]
) -> Callable[[int, int], object]:
    """Return a Kernel.request that uses `fast`, an ioctl which does not keep errno.

    Where that fails, `ioctl` makes the request once more to learn why. For KVM_RUN that is right: with a kick pending,
    or after any other error, it fails at once for the same reason; else the guest runs on, as it would have anyway.
    """

    def request(fd: int, number: int) -> None:
        if fast(fd, number, 0) < 0 and ioctl(fd, number, 0) < 0:
            raise OSError(errno(), "ioctl")

    return request


class LinuxKernel(Kernel):
    """The kernel that this process runs on, through the C library and ctypes."""

    __slots__ = ("_nothing", "_signal", "errno", "ioctl", "request")

    ioctl: Callable[[int, int, int], int]
    errno: Callable[[], int]
    request: Callable[[int, int], object]

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._signal = libc.signal
        self._signal.argtypes, self._signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
        self._nothing = ctypes.cast(libc.abs, ctypes.c_void_p).value
        function = libc.ioctl
        function.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
        function.restype = ctypes.c_int
        self.ioctl = function
        self.errno = ctypes.get_errno
        self.request = self._request()

    def _request(self) -> Callable[[int, int], object]:
        """Return the quickest way to make a KVM_RUN with this Python."""
        # Nanoseconds of a KVM_GET_API_VERSION, the kernel's part included, with Python 3.11.7, 3.12.1 and 3.13.0:
        #   fcntl.ioctl      210   220   240
        #   request_again    420   520   640
        #   request_by       900  1230  1420
        # python -m timeit -s "from pyvcpu.kvm import Kvm; k = Kvm(); ask = k.kernel.request" "ask(k.fd, 0xAE00)"
        # with `ask` as in tests/kvm/api/test_errors.py for the other two. Behind an exit, with cold caches, it is more.
        if not FCNTL_RETRIES:
            return fcntl.ioctl
        # Without argtypes and errno, ctypes has less to do. The three arguments are plain ints, passed as C's int.
        return request_again(ctypes.CDLL(None).ioctl, self.ioctl, self.errno)

    def catch(self, number: int) -> None:
        """Let signal `number` interrupt system calls, and do nothing else. Any thread.

        Python's own handlers would not do: they run in the main thread, each time. So the handler is a function of the
        C library that takes a number, looks at it and leaves nothing behind: abs(). A handler of the program's stays.
        """
        before = self._signal(number, self._nothing)
        if before not in (None, signal.SIG_DFL, signal.SIG_IGN, self._nothing):
            self._signal(number, before)

    def mmap(self, fd: int, length: int) -> Mapping:
        """Map the first `length` bytes of `fd`, shared with the kernel."""
        return self.mmap_at(fd, length, 0)

    def mmap_at(self, fd: int, length: int, offset: int) -> Mapping:
        """Map `length` bytes of `fd` from `offset` on, both in bytes and whole pages."""
        return mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset, **UNTRACKED)

    # Functions of C, as ioctl is: a Ctrl-C during the system call finds no line of Python between it and the caller.
    open = staticmethod(partial(os.open, flags=os.O_RDWR | os.O_CLOEXEC))
    close = staticmethod(os.close)
