"""KvmContext: the VM that the vCPUs of one machine share, and who serves what its guest asks for (QEMU: KVMState)."""

from __future__ import annotations

import threading

from ..kvm.abi.basic import KVM_CAP_MAX_VCPU_ID, KVM_CREATE_VCPU
from .shared import SyncedFd

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Any, Protocol, TypeVar

    from ..addresses import AddressSpace
    from ..exits import ExitEvent
    from ..kvm.system import Kvm
    from ..kvm.vm import VmFd
    from ..symbols import Symbols
    from . import handle
    from .handle import Vcpu
    from .recent import RecentExits

    T = TypeVar("T")
    ExitHandler = Callable[[Vcpu, ExitEvent], object]
    Run = Callable[[int, int], object]  # Kernel.request
    Find = Callable[[int], Callable[[Vcpu, bytes], object] | None]  # the short way to serve a port access, by its key
    Serve = Callable[[int, int], str | None]  # serve an exit the general way: reason, key

    class Debugger(Protocol):
        """What debugs the vCPUs of a machine: debug.debugger has the one there is. On the vCPU's thread."""

        def cpu_exec(self, cpu: Any, loop: Callable[[], str]) -> str:
            """Run the vCPU, as the run loop `loop` does, and step by step where that is needed."""

        def debug_exit(self, cpu: Any) -> str | None:
            """Serve a debug exit: return why to leave cpu_exec, None to go on."""

        def handle_guest_debug(self, cpu: Any) -> bool:
            """Stop the machine after a debug exit; False: nobody wants to know."""

        def crashed(self, cpu: Any, event: ExitEvent, report: str) -> bool:
            """Stop it at an exit that nobody can go on from; False: nobody wants to know."""

        def created(self, cpu: Any) -> None:
            """Debug a vCPU that begins a life, too."""

        def control(self, cpu: Any) -> bytes:
            """Return the struct kvm_guest_debug that the vCPU is to have."""

        def step(self, vcpu: Vcpu) -> int:
            """Run one instruction. Any thread."""

    class Probe(handle.Probe, Protocol):
        """What sees a run: statistics, a timeline, an explanation. Its methods run on the thread that takes the
        step.
        """

        def attach(self, vcpus: int) -> None:
            """Get ready for so many vCPUs, before any of them is started."""

        def step(self, index: int, name: str, function: Callable[[], T]) -> T:
            """Call `function`, the step `name` in the life of vCPU `index`, and return or raise what it does."""

        def loop(self, vcpu: Vcpu, run: Run, find: Find, serve: Serve) -> tuple[Run, Find, Serve]:
            """Return what the run loop of `vcpu` is to call in place of the three."""


NO_LIMIT = 1 << 32  # KVM_CREATE_VCPU will tell


class KvmContext:
    """One VM and its address spaces.

    Fixed before the first vCPU starts: all but `_parked`, which `_lock` guards. `irqchip` is none, kernel or split once
    that is decided. `drain(cpu)` serves the writes that KVM has collected in the coalesced ring; `eoi(vector)` tells
    the IOAPIC, where that is ours, that a vector was served; `warn(line)` says what is no reason to stop.
    `debugger`: who takes debug exits, None until somebody debugs; `make_debugger` makes it. `symbols()`: the guest's.
    `recent`: the last exits of each vCPU, where they are kept.
    """

    def __init__(self, kvm: Kvm, vm: VmFd, addresses: AddressSpace, warn: Callable[[str], object]) -> None:
        self.kvm = kvm
        self.vm = vm
        self.addresses = addresses
        self.memory, self.ports, self.mmio = addresses.memory, addresses.ports, addresses.mmio
        self.warn = warn
        self.irqchip = ""
        self.run_size = kvm.get_vcpu_mmap_size()
        self.vcpu_ids = kvm.check_extension(KVM_CAP_MAX_VCPU_ID) or NO_LIMIT
        self.exit_handlers: dict[int, ExitHandler] = {}
        self.probe: Probe | None = None
        self.drain: Callable[[Any], object] = bool
        self.eoi: Callable[[int], object] = bool
        self.debugger: Debugger | None = None
        self.debugger_lock = threading.Lock()
        self.make_debugger: Callable[[], Debugger]
        self.recent: RecentExits | None = None
        self.symbols: Callable[[], Symbols | None] = lambda: None
        self._caps: dict[int, int] = {}
        self._lock = threading.Lock()
        self._parked: dict[int, SyncedFd] = {}

    def has(self, cap: int) -> int:
        """Return what KVM_CHECK_EXTENSION says, asked once. Any thread: two that ask at once get the same."""
        found = self._caps.get(cap)
        if found is None:
            found = self._caps[cap] = self.kvm.check_extension(cap)
        return found

    def step(self, index: int, name: str, function: Callable[[], T]) -> T:
        """Take a step in the life of vCPU `index`, seen by the probe if there is one."""
        probe = self.probe
        return function() if probe is None else probe.step(index, name, function)

    def get_vcpu(self, vcpu_id: int) -> SyncedFd:
        """Return the vCPU's fd: the one parked by an earlier life, else KVM_CREATE_VCPU's (QEMU: kvm_get_vcpu)."""
        with self._lock:
            fd = self._parked.pop(vcpu_id, None)
        return fd or self.vm.create(SyncedFd, KVM_CREATE_VCPU, vcpu_id, f"vCPU {vcpu_id}")

    def park_vcpu(self, vcpu_id: int, fd: SyncedFd) -> None:
        """Keep the fd of a destroyed vCPU: KVM never creates the same id twice (QEMU: kvm_park_vcpu)."""
        with self._lock:
            self._parked[vcpu_id] = fd

    def close_parked(self) -> None:
        """Close the fds of all unplugged vCPUs; what a Ctrl-C leaves is closed by the next call."""
        while self._parked:
            vcpu_id, fd = next(iter(self._parked.items()))
            fd.close()
            self._parked.pop(vcpu_id, None)
