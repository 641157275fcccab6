"""Target: all that the stub sees of a machine."""

from __future__ import annotations

from ..errors import PyvcpuError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Mapping, Sequence
    from typing import Protocol

    Registers = dict[str, int]
else:
    Protocol = object  # typing is slow to import, and of no use at run time

# Kinds of breakpoints.
SOFTWARE, HARDWARE, WRITE, READ, ACCESS = "software", "hardware", "write", "read", "access"
# What a vCPU is to do.
CONTINUE, STEP = "continue", "step"
# Why a machine stands still.
PAUSED, STEPPED, SIGNAL, EXITED = "paused", "stepped", "signal", "exited"
BREAKPOINT, WATCHPOINT = "breakpoint", "watchpoint"
# Kinds of memory.
RAM, ROM, MMIO = "ram", "rom", "mmio"

SIGINT, SIGTRAP = 2, 5


class TargetError(PyvcpuError, RuntimeError):
    """The machine does not do what a debugger asks for; the message says why, in a line for people."""


class VcpuInfo:
    """One vCPU: its `index`, the `name` of its thread, and what it is doing, in a word or two for people."""

    __slots__ = ("index", "name", "state")

    def __init__(self, index: int, name: str, state: str = "") -> None:
        self.index = index
        self.name = name
        self.state = state


class Region:
    """A range of physical memory: `start`, the address behind it, and RAM, ROM or MMIO."""

    __slots__ = ("end", "kind", "start")

    def __init__(self, start: int, end: int, kind: str = RAM) -> None:
        self.start = start
        self.end = end
        self.kind = kind


class Stop:
    """The whole machine stands still, because of `vcpu`.

    `reason` is one of
      PAUSED: it was asked to;
      STEPPED: the instruction of a STEP is done;
      BREAKPOINT: rip is at one of `kind` (what the debugger asked for), before the instruction;
      WATCHPOINT: one of `kind` was touched, first at `address`; rip is behind the instruction;
      SIGNAL: it crashed, say; `signal` by its number in GDB, such as 11;
      EXITED: for good, with `status`. It comes also, unasked, when the machine ends while it stands still.
    `text`: a line for people, shown before the debugger tells of the stop.
    """

    __slots__ = ("address", "kind", "reason", "signal", "status", "text", "vcpu")

    def __init__(
        self,
        reason: str,
        vcpu: int = 0,
        *,
        kind: str = "",
        address: int = 0,
        signal: int = SIGTRAP,
        status: int = 0,
        text: str = "",
    ) -> None:
        self.reason = reason
        self.vcpu = vcpu
        self.kind = kind
        self.address = address
        self.signal = SIGINT if reason == PAUSED else signal
        self.status = status
        self.text = text


class Target(Protocol):
    """A machine as a debugger sees it: all of its vCPUs run or all stand still.

    Each method is called by the stub's thread alone, and returns soon: none waits for a guest. What cannot be done
    raises TargetError. vCPUs are named by their index. Addresses are linear ones, as they are after segmentation and
    before paging, unless they are called physical.

    Each attach() and each resume() is answered by exactly one Stop, at the latest soon after an interrupt(). When
    several vCPUs stop at once, one is reported; the others must come to the same stop again when they are resumed.
    """

    @property
    def running(self) -> bool:
        """Whether the machine runs."""

    def attach(self, on_stop: Callable[[Stop], None]) -> None:
        """Begin to debug: ask the machine to stand still, and give on_stop a Stop once it does (at once if it did).

        Any thread may call on_stop, this one too; it does not block. After detach() it is not called any more.
        """

    def detach(self, run: bool) -> None:
        """End what attach() began: remove all breakpoints, forget an interrupt that is not yet served.

        The machine runs on, if `run`, whatever it did before; else it stands still. May come before the Stop that
        attach() or resume() will have, after the machine's end, and after kill().
        """

    def vcpus(self) -> Sequence[VcpuInfo]:
        """List the vCPUs that are plugged, by index; also while they run."""

    def resume(self, actions: Mapping[int, str]) -> None:
        """Run the vCPUs that have an action: CONTINUE, or STEP for one instruction; the others stand still.

        The first vCPU that stops, stops all. One that already stands at a breakpoint stops there at once: a debugger
        that wants to leave it has removed the breakpoint.
        """

    def interrupt(self) -> None:
        """Ask a machine that runs to stand still; does nothing to one that does."""

    def read_registers(self, vcpu: int) -> Registers:
        """Return the registers of a vCPU that stands still, by the names in gdb/registers.py."""

    def write_registers(self, vcpu: int, values: Mapping[str, int]) -> None:
        """Change those registers, all or none of them."""

    def read_memory(self, vcpu: int, address: int, length: int) -> bytes:
        """Return up to `length` bytes, fewer where what follows cannot be read; TargetError when there is none.

        Rights in page tables do not matter. What software breakpoints overwrote is seen as it was.
        """

    def write_memory(self, vcpu: int, address: int, data: bytes) -> None:
        """Write memory, whatever its rights; nothing at all where a part of it cannot be written."""

    def read_physical(self, address: int, length: int) -> bytes:
        """As read_memory(), by physical address."""

    def write_physical(self, address: int, data: bytes) -> None:
        """As write_memory(), by physical address."""

    def memory_map(self) -> Sequence[Region]:
        """List the physical memory, by address."""

    def insert(self, kind: str, address: int, length: int) -> str:
        """Set a breakpoint on all vCPUs; return in a word or two which method was used, such as "debug register".

        `kind` is what a debugger asks for; a method that works is used instead of one that does not. For SOFTWARE and
        HARDWARE, `length` tells no more than how long an int3 would be. No breakpoint is set twice.
        """

    def remove(self, kind: str, address: int, length: int) -> None:
        """Remove a breakpoint that insert() set."""

    def reset(self) -> None:
        """Reset the machine, which stands still before and after."""

    def kill(self) -> None:
        """End the machine, without waiting for it."""

    def monitor(self, vcpu: int, words: Sequence[str]) -> str:
        """Do one of the machine's own commands (see monitor.py) and return what it says; "help" lists them.

        Raises LookupError for one that it does not know.
        """
