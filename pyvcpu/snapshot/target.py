"""What a snapshot needs of a machine (machine.Machine is one)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from threading import RLock
    from typing import Any, Protocol

    from ..boot.plan import Plan
    from ..kvm.system import Kvm
    from ..kvm.vm import VmFd
    from ..memory import GuestMemory
    from ..vcpu.context import KvmContext
    from ..vcpu.handle import Vcpu
    from ..vcpu.thread import VcpuThread
    from ..x86.topology import Topology
    from .data import Snapshot
    from .reset import Tracker

    class Control(Protocol):
        """The run of the machine (machine.runcontrol.RunControl)."""

        start_lock: RLock

        def forget_end(self) -> None: ...

    class Target(Protocol):
        """A machine. `_parent`: the snapshot that it was restored from last, None if from none. `_clock_line`: 16
        bytes that it has in common with those snapshots whose clocks have gone on with its own. `_tracker`: what knows
        which pages have changed since it was restored.
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

        @property
        def control(self) -> Control: ...
        @property
        def devices(self) -> Mapping[str, Any]: ...
        def start(self) -> None: ...
        def plug(self, index: int) -> None: ...
        def unplug(self, index: int) -> None: ...
        def paused(self, by: str = "", timeout: float | None = None) -> AbstractContextManager[None]: ...
