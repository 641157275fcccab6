"""What a snapshot needs of a machine (machine.Machine is one)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from threading import Lock, RLock
    from typing import Any, Protocol

    from ..boot.plan import Plan
    from ..kvm.system import Kvm
    from ..kvm.vm import VmFd
    from ..memory import GuestMemory
    from ..vcpu.context import KvmContext
    from ..vcpu.handle import Vcpu
    from ..vcpu.standin import StandIn
    from ..vcpu.thread import VcpuThread
    from ..x86.topology import Topology
    from .data import Snapshot
    from .tracker import Tracker

    class Run(Protocol):
        """One run (machine.runcontrol.Run)."""

        seen: bool

        @property
        def outcome(self) -> object: ...

    class Control(Protocol):
        """The run of the machine (machine.runcontrol.RunControl)."""

        lock: Lock
        start_lock: RLock
        holders: list[str]
        closed: bool

        @property
        def run(self) -> Run: ...
        def forget_end(self) -> None: ...

    class Board(Protocol):
        """The devices (machine.board.Board)."""

        @property
        def has_thread(self) -> bool: ...

    class Target(Protocol):
        """A machine. `_parent`: the snapshot that it was restored from last, None if from none. `_clock_line`: 16
        bytes that it has in common with those snapshots whose clocks have gone on with its own. `_tracker`: what knows
        which pages have changed since it was restored, `_quick` what resets it to the same snapshot once more.
        `_stand_in`: lets the caller's thread do the work of the one vCPU that there is.
        """

        kvm: Kvm
        vm: VmFd
        memory: GuestMemory
        topology: Topology
        context: KvmContext
        vcpus: tuple[Vcpu, ...]
        _threads: list[VcpuThread]
        _plan: Plan | None
        _parent: Snapshot | None
        _clock_line: bytes
        _tracker: Tracker | None
        _quick: Any  # quick.Quick, which knows this module
        _stand_in: StandIn | None

        @property
        def control(self) -> Control: ...
        @property
        def board(self) -> Board: ...
        @property
        def devices(self) -> Mapping[str, Any]: ...
        def start(self) -> None: ...
        def plug(self, index: int) -> None: ...
        def unplug(self, index: int) -> None: ...
        def paused(self, by: str = "", timeout: float | None = None) -> AbstractContextManager[None]: ...
