"""Vcpu: one virtual processor as its users and other threads see it. They post commands and work, kick, and wait."""

from __future__ import annotations

import os
import threading
from collections import deque

from ..errors import StateError
from ..kvm.abi.layout import IMMEDIATE_EXIT
from ..kvm.fd import in_range
from ..posix import signal
from . import registers
from .states import NO_THREAD, TRANSITIONS, Command, State

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import mmap
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Protocol, TypeVar

    from ..exits import ExitEvent
    from ..x86.start import StartState
    from .cond import Cond
    from .registers import RegisterFile
    from .shared import SharedRegisters, SyncedFd
    from .virtual import VirtualMemory

    T = TypeVar("T")

    class Control(Protocol):
        """The run of the machine, as its vCPUs need it; machine.runcontrol has the one there is.

        `lock` guards all of Vcpu that is not said to belong to one thread. `held`: the world stands still, and no vCPU
        may run. `frozen`: the indexes of those that a debugger does not let run.
        `running`: what a vCPU does that comes new into the machine. `closed`: none is started any more.
        """

        lock: threading.Lock
        cond: Cond
        vcpus: Sequence[Vcpu]
        frozen: frozenset[int]

        @property
        def held(self) -> bool: ...
        @property
        def running(self) -> bool: ...
        @property
        def closed(self) -> bool: ...
        def check_ours(self) -> None:
            """Raise StateError in a forked child."""

        def changed_state(self, vcpu: Vcpu, old: State, new: State) -> None:
            """Take note of a change of state; with the lock held."""

        def finish(
            self,
            reason: str,
            status: int | None = None,
            *,
            vcpu: Vcpu | None = None,
            exit: ExitEvent | None = None,
            report: str = "",
        ) -> None:
            """End the run."""

        def fail(self, error: BaseException) -> None:
            """End the run; `error` is raised in whoever waits for it."""

        start_lock: threading.RLock  # taken by those who change which vCPUs there are

    class Life(Protocol):
        """The vCPU's thread, in all its lives; thread.VcpuThread is one."""

        def plug(self) -> None: ...
        def view_memory(self) -> VirtualMemory: ...
        def step_guest(self) -> int: ...

    class Probe(Protocol):
        """What sees changes of state and kicks; the machine's lock is held meanwhile."""

        def moment(self, index: int, command: str, before: str, after: str) -> None: ...
        def kick(self, index: int, how: str) -> None: ...


# The kick. SIGURG is ignored by default, and few programs have a handler for it. SIGUSR1, which QEMU takes, has other
# uses in many. Real-time signals are queued, and the queue of a user can be full.
SIG_IPI = signal.SIGURG

_thread = threading.local()


def current_cpu() -> Vcpu | None:
    """Return the vCPU whose thread this is, or None (QEMU: current_cpu)."""
    vcpu: Vcpu | None = getattr(_thread, "cpu", None)
    return vcpu


def set_current_cpu(vcpu: Vcpu | None) -> None:
    """Note that the calling thread is the one of `vcpu`, or of none."""
    _thread.cpu = vcpu


class Work:
    """A function that another thread wants run on a vCPU's thread, and what came of it (under the machine's lock)."""

    __slots__ = ("done", "error", "function", "result", "taken")

    def __init__(self, function: Callable[[Any], object]) -> None:
        self.function = function
        self.taken = False  # the vCPU's thread has begun with it
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None


class Vcpu:
    """One vCPU. Its methods and attributes are for any thread, and for handlers, which get it as first argument.

    `index` and `apic_id`: its number in the machine, its id in the processor. `state`: where it is in its life.
    `thread`, `thread_id` (as in /proc; 0 without a thread). `tsc_khz`: the rate of its time-stamp counter, 0 where
    unknown. `registers` and `sregs`: read and write by name. `start`: the state that it starts in, None for a
    processor that waits for INIT-SIPI-SIPI; set before the thread is started. `stopped`: a pause() asked it to stand
    still, and no resume() came since (QEMU: CPUState.stopped).

    All of it that changes is under the machine's lock. The one order in which a command is given, so that none is lost:
    1. it is visible in the inbox; 2. immediate_exit is set; 3. the thread is signalled, if it lives. The vCPU's thread
    takes 2 and 3 back under the same lock under which it then looks at the inbox.
    """

    def __init__(self, index: int, apic_id: int, control: Control, *, present: bool = True) -> None:
        self.index = index
        self.apic_id = apic_id
        self.control = control
        self.start: StartState | None = None
        # Those that only maxcpus has room for are as if unplugged.
        self.state = State.REALIZED if present else State.UNPLUGGED
        self.created = False
        self.stopped = True
        self.thread: threading.Thread | None = None
        self.thread_id = 0
        self.tsc_khz = 0  # known once it is created
        self.registers: RegisterFile = registers.general(self._with_shared)
        self.sregs: RegisterFile = registers.system(self._with_shared)
        self.life: Life | None = None  # whoever makes the threads says so
        self._bell = threading.Lock()  # held; released to wake the vCPU's thread from wait_io_event (QEMU: halt_cond)
        self._bell.acquire()
        self._ident = 0
        self._fd: SyncedFd | None = None
        self._shared: SharedRegisters | None = None
        self._page: mmap.mmap | None = None  # struct kvm_run, for the kick
        self._inbox: deque[Command | Work] = deque()
        self._posted = self._applied = self._lives = self._last_resume = 0
        self._kicked = self._sleeping = False
        self.probe: Probe | None = None  # set before the first start
        self._interrupts: deque[int] = deque()  # vectors for the guest; the vCPU's thread alone touches it
        self.takes_interrupts = False  # there are no interrupt controllers: interrupt() may be used
        self._cpus: frozenset[int] | None = None

    def __repr__(self) -> str:
        return f"<vCPU {self.index} {self.state}>"

    def pause(self, timeout: float | None = None) -> bool:
        """Stop the vCPU and wait until it has; return False when `timeout` seconds passed first.

        From a handler, on the thread of a vCPU of this machine, it only posts the command: waiting there could be for
        ever.
        """
        return self._command(Command.PAUSE, timeout)

    def resume(self, timeout: float | None = None) -> bool:
        """Let the vCPU run (again); as pause(). While the machine is held still it runs once that is over."""
        return self._command(Command.RESUME, timeout)

    def unplug(self, timeout: float | None = None) -> bool:
        """Take the vCPU out of the machine: its thread ends and its fd is parked for Machine.plug(); as pause()."""
        return self._command(Command.UNPLUG, timeout)

    def plug(self) -> None:
        """Put the vCPU into the machine: it starts anew, and runs if the machine does. See Machine.plug()."""
        current, lock = current_cpu(), self.control.start_lock
        # In a handler there is no waiting: whoever has the lock may wait for this vCPU.
        if not lock.acquire(blocking=current is None or current.control is not self.control):
            raise StateError(
                f"vCPU {self.index} cannot be plugged: another thread is resetting, plugging or unplugging"
            )
        try:
            if self.life is None or self.control.closed:
                raise StateError(f"vCPU {self.index} cannot be plugged: its machine is closed")
            self.life.plug()
        finally:
            lock.release()

    def kick(self) -> None:
        """Make the vCPU leave KVM_RUN once and look at its inbox (QEMU: qemu_cpu_kick)."""
        self.control.check_ours()
        with self.control.lock:
            self.kick_locked()

    def interrupt(self, vector: int) -> None:
        """Have the guest take the external interrupt `vector`, 0 to 255, as soon as it lets interrupts in.

        A HLT with interrupts on ends by it. For machines without interrupt controllers, as a PIC of one's own would do
        it (KVM_INTERRUPT, api.rst 4.16); with them it is Machine.set_line() that does, and StateError is raised here.
        """
        in_range("an interrupt vector", vector, 0xFF)

        def queue(vcpu: Vcpu) -> None:
            if not vcpu.takes_interrupts:
                raise StateError("this machine has interrupt controllers: raise a line with Machine.set_line()")
            vcpu._interrupts.append(vector)

        self.run_on_cpu(queue)

    def nmi(self) -> None:
        """Give the guest a non-maskable interrupt, which also ends a HLT (KVM_NMI, api.rst 4.64)."""
        self.run_on_cpu(lambda vcpu: vcpu.fd.nmi())

    def wake(self) -> None:
        """Let a halted vCPU go on behind its HLT; does nothing to one that is not halted."""
        self.run_on_cpu(lambda vcpu: vcpu.take_step(Command.WAKE))

    @property
    def fd(self) -> SyncedFd:
        """The vCPU's fd, for requests to KVM of one's own; in its thread only: in handlers and run_on_cpu()."""
        if current_cpu() is not self:
            raise StateError(
                f"the fd of vCPU {self.index} belongs to its thread; use it in a handler, or through run_on_cpu()"
            )
        assert self._fd is not None
        return self._fd

    @property
    def run(self) -> mmap.mmap:
        """The vCPU's struct kvm_run and what is mapped behind it; in its thread only, as fd."""
        self.fd  # noqa: B018  # checks the thread
        assert self._page is not None
        return self._page

    @property
    def memory(self) -> VirtualMemory:
        """Guest memory by linear address, through the guest's page tables. Any thread; see VirtualMemory."""
        assert self.life is not None
        return self.life.view_memory()

    def step(self) -> int:
        """Run one instruction and return the linear address of the next; the exits that it makes are served.

        For a vCPU that stands still, from any thread, or in a handler of one of its breakpoints. No breakpoint stops
        it, no handler of one is called. Raise StateError where it does not stand still, DebugError where this host's
        KVM cannot step the code that it runs.
        """
        assert self.life is not None
        return self.life.step_guest()

    def run_on_cpu(self, function: Callable[[Vcpu], T], timeout: float | None = None) -> T:
        """Run `function(vcpu)` on the vCPU's thread, outside KVM_RUN, and return or raise what it does.

        The vCPU goes on afterwards as it was. Raise StateError when it has no thread; TimeoutError after `timeout`
        seconds: what was not begun by then is not done any more. Two handlers that wait for each other's vCPU wait for
        ever (QEMU: run_on_cpu).
        """
        self.control.check_ours()
        if current_cpu() is self:
            return function(self)
        work = Work(function)

        def post() -> None:
            if self.state in NO_THREAD:
                raise StateError(f"vCPU {self.index} is {self.state}: it has no thread to run this on")
            self.post_locked(work)

        try:
            done = self.control.cond.wait_for(lambda: work.done, timeout, post)
        except BaseException:
            self._withdraw(work)
            raise
        if not done:
            begun = "has begun, and" if self._withdraw(work) else "did not get to it, and it"
            raise TimeoutError(f"vCPU {self.index} {begun} is not done within {timeout} s")
        if work.error is not None:
            raise work.error
        result: T = work.result
        return result

    def pin(self, cpus: Iterable[int]) -> None:
        """Let the vCPU's thread run on these host CPUs only, now and after a later plug (sched_setaffinity)."""
        wanted = frozenset(cpus)
        with self.control.lock:
            if self._page is not None:  # before that the thread has yet to look at _cpus
                os.sched_setaffinity(self.thread_id, wanted)
            self._cpus = wanted

    def _withdraw(self, work: Work) -> bool:
        """Take back work that nobody waits for any more; True where the thread has begun with it."""
        with self.control.lock:
            if not work.taken and work in self._inbox:
                self._inbox.remove(work)
                self._applied += 1
            return work.taken

    def _with_shared(self, function: Callable[[SharedRegisters], T]) -> T:
        if current_cpu() is self:
            assert self._shared is not None
            return function(self._shared)
        return self.run_on_cpu(lambda vcpu: vcpu._with_shared(function))

    def take_step(self, command: Command) -> None:
        """Take a step of the state machine, on the vCPU's thread: halt or wake."""
        with self.control.lock:
            self._apply(command)

    def take_step_locked(self, command: Command) -> None:
        """Do the same with the machine's lock held."""
        self._apply(command)

    def _command(self, command: Command, timeout: float | None) -> bool:
        control = self.control
        control.check_ours()
        with control.lock:
            life, thread, ticket = self._lives, self.thread, self.command_locked(command)
            current = current_cpu()
            if (current is not None and current.control is control) or self.state in NO_THREAD:
                return True  # it is seen to when this handler returns, or when the vCPU is started
        if command is not Command.UNPLUG:
            return control.cond.wait_for(lambda: self._applied >= ticket, timeout)
        gone = control.cond.wait_for(lambda: self._lives != life, timeout)
        if gone and thread is not None:
            thread.join()  # only its last steps are left
        return gone

    # The rest is called with the machine's lock held.

    def command_locked(self, command: Command) -> int:
        """Give a command and return its number: done once `applied` has reached it."""
        if self.state is State.UNPLUGGED:
            raise StateError(f"vCPU {self.index} is unplugged: plug it first")
        if command is not Command.UNPLUG:
            self.stopped = command is Command.PAUSE
            if self.control.held or (command is Command.RESUME and self.index in self.control.frozen):
                return 0  # it stands still already; the end of the hold looks at `stopped`
        return self.post_locked(command)

    def post_locked(self, item: Command | Work) -> int:
        """Post `item` and return its number."""
        if self.state is State.UNPLUGGED:
            raise StateError(f"vCPU {self.index} is unplugged: plug it first")
        if item is Command.PAUSE and self.state is State.PAUSED and self._applied == self._posted:
            return self._posted  # it stands still already, and nothing steps it: its thread need not wake up
        self._posted += 1
        if item is Command.RESUME:
            self._last_resume = self._posted
        self._inbox.append(item)  # 1. visible
        self.kick_locked()
        return self._posted

    def is_done_locked(self, ticket: int) -> bool:
        """Whether what post_locked() gave the number `ticket` is seen to."""
        return self._applied >= ticket

    @property
    def is_resumed_locked(self) -> bool:
        """Whether the last RESUME has taken effect, if there was one."""
        return self._applied >= self._last_resume

    def kick_if_locked(self, asked: Callable[[mmap.mmap], bool]) -> None:
        """Kick the vCPU if `asked` says so of its mapping."""
        if self._page is not None and asked(self._page):
            self.kick_locked()

    def kick_again_locked(self) -> None:
        """Signal once more a thread that was kicked and has not looked at it yet: the signal may have been lost."""
        if self._kicked and self.created and not self._sleeping and self._ident:
            fd = self._fd  # its thread takes it away without the lock
            if fd is not None:
                fd.kernel.catch(SIG_IPI)
            signal.pthread_kill(self._ident, SIG_IPI)

    def kick_locked(self) -> None:
        """Do what kick() does."""
        if self._kicked:
            return  # a kick is on its way; what this one is for will be seen together with it
        if self.probe is not None and self.created:
            self.probe.kick(self.index, "bell" if self._sleeping else "signal")
        if self._page is not None:
            self._page[IMMEDIATE_EXIT] = 1  # 2. the next KVM_RUN returns at once
        if self._sleeping:
            self._sleeping = False
            self._bell.release()
        elif self.created and self._ident != threading.get_ident():
            signal.pthread_kill(self._ident, SIG_IPI)  # 3. and so does the one under way
        self._kicked = True  # last: where a Ctrl-C cut this short, the next kick does it all again

    def _apply(self, command: Command) -> None:
        """Take the step that the table says; raise StateError where it says none."""
        new = TRANSITIONS.get((self.state, command))
        if new is None:
            raise StateError(f"vCPU {self.index} is {self.state}: it cannot {command} now")
        old, self.state = self.state, new
        if self.probe is not None:
            self.probe.moment(self.index, command, old, new)
        self.control.changed_state(self, old, new)

    def _end_life(self, command: Command) -> None:
        """Leave no trace of a thread, and nobody waiting for an answer that will not come."""
        gone = StateError(f"vCPU {self.index} was unplugged before it could do this")
        for item in self._inbox:
            if isinstance(item, Work):
                item.error, item.done = gone, True
        self._inbox.clear()
        self._applied = self._posted
        self._lives += 1
        self._kicked = self.created = False
        self.thread = None
        self._apply(command)
