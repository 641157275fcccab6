"""Ports through which guests talk to whoever develops them: a console and an exit status."""

from __future__ import annotations

from itertools import count

from .device import Stateless

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

CONSOLE_PORT = 0xE9
EXIT_PORT = 0xF4


class DebugConsole(Stateless):
    """The port 0xE9 console of Bochs: it emits every byte written, and reads say 0xE9: it is there.

    `out` is called in the thread of the vCPU that writes, by several threads at once when several write.
    """

    __slots__ = ("_out",)
    name = "debug console"
    LENGTH = 1

    def __init__(self, out: Callable[[bytes], object]) -> None:
        self._out = out

    def read(self, offset: int, size: int) -> bytes:
        """Return the signature by which guests detect the console."""
        return b"\xe9" * size

    def write(self, offset: int, data: bytes) -> None:
        """Emit all bytes of an access of any width."""
        self._out(data)


class DebugExit(Stateless):
    """QEMU's isa-debug-exit with iosize 4: a write of v ends the machine with exit status (v << 1) | 1.

    The status is cut to the 8 bits that a process has; it is always odd. Every write calls `exit`, in the
    thread of the vCPU that writes: the callee decides what a second one means.
    """

    __slots__ = ("_exit",)
    name = "debug exit"
    LENGTH = 4

    def __init__(self, exit: Callable[[int], object]) -> None:
        self._exit = exit

    def read(self, offset: int, size: int) -> bytes:
        """Return zeros, as QEMU does."""
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        """Ask for the end of the machine, at whichever offset and width."""
        self._exit((int.from_bytes(data, "little") << 1 | 1) & 0xFF)


class After:
    """A callable for `out` that calls `then` once, before the call number `times` of `out`.

    It is the host's, and no part of a device's state: what `then` does lasts beyond a reset. No lock is held while
    either callable is called, so each may wait for another thread.
    """

    __slots__ = ("_count", "_out", "_then", "_times")

    def __init__(self, out: Callable[[bytes], object], times: int, then: Callable[[], object]) -> None:
        self._out = out
        self._count = count(1)
        self._times = times
        self._then = then

    def __call__(self, data: bytes) -> None:
        if next(self._count) == self._times:
            self._then()
        self._out(data)
