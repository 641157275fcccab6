"""Accel: what the vCPUs of one machine share, as KVMState and the big lock are shared in QEMU."""

from __future__ import annotations

import threading

from ..kvm.abi.basic import KVM_CAP_MAX_VCPU_ID
from ..outcome import Outcome
from .cond import Cond
from .handle import current_cpu
from .states import STATES, Command, State

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from ..exits import ExitEvent
    from ..kvm.cpuid import CpuidTable
    from ..kvm.system import Kvm
    from ..kvm.vcpu import VcpuFd
    from ..kvm.vm import VmFd
    from ..memory import GuestMemory
    from ..x86.cpu import Cpu
    from ..x86.cpuid import Key, Leaves, Template
    from ..x86.topology import Topology
    from .vcpu import Vcpu

    ExitHandler = Callable[[Vcpu, ExitEvent], object]

    Shortcut = Callable[[Any, bytes], object]

    class Region(Protocol):
        """A range of a Bus with its handlers; devices.bus.Region is one."""

        def writer(self, offset: int) -> Shortcut | None: ...
        def answer(self, initiator: object, offset: int, size: int) -> bytes: ...

    class Observer(Protocol):
        """What runs the guest in cpu_exec's place where exits are measured."""

        def attach(self, vcpus: Sequence[Vcpu]) -> None: ...
        def cpu_exec(self, vcpu: Vcpu) -> str: ...

    class Bus(Protocol):
        """An address space that answers the guest's accesses; devices.Bus is one."""

        shortcuts: dict[int, Shortcut]

        def learn(self, key: int, address: int, make: Callable[[Any, int], Shortcut | None]) -> None: ...
        def read(self, initiator: object, address: int, size: int) -> bytes: ...
        def write(self, initiator: object, address: int, data: bytes) -> None: ...


NO_LIMIT = 1 << 32  # KVM_CREATE_VCPU will tell


class Accel:
    """One VM and what its vCPU threads need of it.

    `lock` guards, here and in every Vcpu, all that is not said to belong to one thread: states, inboxes, parked fds,
    the outcome. It is held for moments only, never in KVM_RUN, in a handler or in other people's code.
    `cpu_cond` is signalled at every change that someone may wait for.
    """

    def __init__(
        self,
        kvm: Kvm,
        vm: VmFd,
        memory: GuestMemory,
        ports: Bus,
        mmio: Bus,
        topology: Topology,
        cpu: Cpu,
        warn: Callable[[str], object],
    ) -> None:
        self.kvm = kvm
        self.vm = vm
        self.memory = memory
        self.ports = ports
        self.mmio = mmio
        self.topology = topology
        self.cpu = cpu
        self.warn = warn
        # What realize makes of the two, before any vCPU has a thread: the leaves that all processors show, those of the
        # hypervisor that KVM offers, and the leaves ready for each.
        self.leaves: Leaves
        self.paravirtual: dict[Key, list[int]] = {}
        self.template: Template | None = None
        self.reset_msrs: dict[int, int] | None = None  # what MSRs hold after reset, once a vCPU is used again
        self.irqchip = ""  # none, kernel or split, once decided; before the first vCPU is started
        self.run_size = kvm.get_vcpu_mmap_size()
        self.vcpu_ids = kvm.check_extension(KVM_CAP_MAX_VCPU_ID) or NO_LIMIT
        self.exit_handlers: dict[int, ExitHandler] = {}
        self.observer: Observer | None = None  # sees every exit; set before the first start
        self.drain: Callable[[Vcpu], object] = bool  # serves the writes that KVM has collected in the coalesced ring
        self.eoi: Callable[[int], object] = bool  # tells the IOAPIC, where that is ours, that a vector was served
        self.lock = threading.Lock()
        self.cpu_cond = Cond(self.lock)
        self.vcpus: Sequence[Vcpu] = ()
        self.parked: dict[int, VcpuFd] = {}
        self.counts = dict.fromkeys(STATES.values(), 0)
        self._supported_cpuid: CpuidTable | None = None
        self.running = False  # what a plugged vCPU does next
        self.closed = False  # no vCPU is started any more
        self._outcome: Outcome | None = None
        self._failure: BaseException | None = None

    def supported_cpuid(self) -> CpuidTable:
        """Return what KVM_GET_SUPPORTED_CPUID says, asked once; the table is not to be changed."""
        if self._supported_cpuid is None:
            self._supported_cpuid = self.kvm.get_supported_cpuid()
        return self._supported_cpuid

    def get_vcpu(self, vcpu_id: int) -> VcpuFd:
        """Return the vCPU's fd, the one that was parked by an earlier life if there was one (QEMU: kvm_get_vcpu)."""
        with self.lock:
            fd = self.parked.pop(vcpu_id, None)
        return fd if fd is not None else self.vm.create_vcpu(vcpu_id)

    def park_vcpu(self, vcpu_id: int, fd: VcpuFd) -> None:
        """Keep the fd of a destroyed vCPU: KVM never creates the same id twice (QEMU: kvm_park_vcpu)."""
        with self.lock:
            self.parked[vcpu_id] = fd

    def unplug_all(self) -> None:
        """Unplug every vCPU for good, and wait until their threads have ended."""
        with self.lock:
            self.closed = True
            threads = [(vcpu, vcpu.thread) for vcpu in self.vcpus if vcpu.thread is not None]
            self.post_to_all_locked(Command.UNPLUG)
        for vcpu, thread in threads:
            # Not join() alone: a thread that another one is just starting cannot be joined yet.
            self._wait_gone(vcpu, thread)
            thread.join()

    def _wait_gone(self, vcpu: Vcpu, thread: threading.Thread) -> None:
        self.cpu_cond.wait_for(lambda: vcpu.thread is not thread)

    def close_parked(self) -> None:
        """Close the fds of all unplugged vCPUs."""
        with self.lock:
            parked, self.parked = self.parked, {}
        for fd in parked.values():
            fd.close()

    def finish(self, outcome: Outcome) -> None:
        """Stop every vCPU; the first outcome of a run is the one that counts. Any thread, also in a handler."""
        if outcome.vcpu is None:
            outcome.vcpu = current_cpu()
        with self.lock:
            self.finish_locked(outcome)

    def fail(self, failure: BaseException) -> None:
        """Stop every vCPU; `failure` is raised in whoever waits for the machine."""
        with self.lock:
            if self._failure is None:
                self._failure = failure
            self.finish_locked(Outcome("failed", 1))

    def finish_locked(self, outcome: Outcome) -> None:
        """Do what finish() does, with the lock held."""
        if self._outcome is None:
            self._outcome = outcome
            self.post_to_all_locked(Command.PAUSE)
            self.cpu_cond.notify_all()
        elif (vcpu := current_cpu()) is not None and vcpu.accel is self:
            vcpu.post_locked(Command.PAUSE)  # it was resumed by itself after the machine's end

    def post_to_all(self, command: Command) -> list[tuple[Vcpu, int]]:
        """Post `command` to every vCPU that has a thread; return them with the numbers to wait for. Any thread."""
        with self.lock:
            return self.post_to_all_locked(command)

    def post_to_all_locked(self, command: Command) -> list[tuple[Vcpu, int]]:
        """Do what post_to_all() does, with the lock held."""
        self.running = command is Command.RESUME
        return [(vcpu, vcpu.post_locked(command)) for vcpu in self.vcpus if vcpu.thread is not None]

    def changed_state(self, old: State, new: State) -> None:
        """Keep count, with the lock held, and see the machine's end: every vCPU is halted, none is left to wake it."""
        self.counts[old] -= 1
        self.counts[new] += 1
        self.cpu_cond.notify_all()
        counts = self.counts
        if (
            new in (State.HALTED, State.UNPLUGGED)
            and counts[State.HALTED]
            and not counts[State.RUNNING] + counts[State.STARTING] + counts[State.PAUSED] + counts[State.LEAVING]
            and not counts[State.PAUSED_HALTED]
        ):
            self.finish_locked(Outcome("halted", vcpu=current_cpu()))

    def rearm(self) -> None:
        """Forget the outcome of the last run."""
        with self.lock:
            self._outcome = self._failure = None

    def wait(self, timeout: float | None) -> Outcome | None:
        """Wait at most `timeout` seconds for the machine's end: return its outcome, or raise what a handler raised."""
        self.cpu_cond.wait_for(lambda: self._outcome is not None, timeout)
        with self.lock:
            failure, self._failure = self._failure, None
            outcome = self._outcome
        if failure is not None:
            raise failure
        return outcome
