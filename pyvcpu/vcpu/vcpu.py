"""Vcpu: one virtual processor and the thread that is its life.

The steps are QEMU's: realize, start_vcpu, init_vcpu, then cpu_exec and wait_io_event in turn until unplugged, and
destroy_vcpu. Other threads hold the same object as a handle: they post commands and work, and wait for the answer.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque

from ..errors import StateError
from . import arch, registers
from .execute import EXCP_DEBUG, IMMEDIATE_EXIT, cpu_exec, finish_io
from .states import BUSY, NO_THREAD, TRANSITIONS, Command, State

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import mmap
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    from ..kvm.cpuid import CpuidTable
    from ..kvm.vcpu import VcpuFd
    from ..x86.start import StartState
    from .accel import Accel
    from .registers import RegisterFile

    T = TypeVar("T")

# The kick. vCPU threads block it save within KVM_RUN, so that no handler is needed; a real-time signal, because
# programs have uses of their own for SIGUSR1, which QEMU takes.
SIG_IPI = signal.SIGRTMIN
# A vCPU thread takes no signals: they are the main thread's. Those that a fault of its own raises stay open.
BLOCKED = signal.valid_signals() - {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGTRAP,
}
IN_KVM_RUN = tuple(BLOCKED - {SIG_IPI})

_thread = threading.local()


def current_cpu() -> Vcpu | None:
    """Return the vCPU whose thread this is, or None (QEMU: current_cpu)."""
    vcpu: Vcpu | None = getattr(_thread, "cpu", None)
    return vcpu


class Work:
    """A function that another thread wants run on a vCPU's thread, and what came of it (under the lock)."""

    __slots__ = ("done", "error", "function", "result")

    def __init__(self, function: Callable[[Vcpu], object]) -> None:
        self.function = function
        self.done = False
        self.result: object = None
        self.error: BaseException | None = None


class Vcpu:
    """One vCPU. Public methods and properties may be used from any thread, also from handlers.

    Who touches what (docs/threads.md): `state`, `created`, `thread`, the inbox and its counters, `_kicked`,
    `_sleeping` and `_page` are under the machine's lock; `fd`, `run` and the register views belong to the vCPU's
    thread; the rest is fixed before the thread starts.
    """

    def __init__(self, index: int, accel: Accel) -> None:
        self.index = index
        self.accel = accel
        self.apic_id = index
        self.start: StartState | None = None
        self.waits_for_sipi = False
        self.cpuid: CpuidTable
        self.reset_sregs = b""
        self.tsc_khz = 0
        self.fd: VcpuFd
        self.run: mmap.mmap  # struct kvm_run and what follows it
        self._page: mmap.mmap | None = None  # the same, for those who kick
        self.state = State.REALIZED
        self.created = False
        self.thread: threading.Thread | None = None
        self.thread_id = 0
        self._ident = 0
        self.halt_cond = threading.Condition(accel.lock)
        self._inbox: deque[Command | Work] = deque()
        self._posted = self._applied = self._lives = 0
        self._kicked = self._sleeping = False
        self._cpus: frozenset[int] | None = None
        self._failure: BaseException | None = None
        self.registers: RegisterFile = registers.general(self)
        self.sregs: RegisterFile = registers.system(self)
        accel.counts[State.REALIZED] += 1

    def __repr__(self) -> str:
        return f"<vCPU {self.index} {self.state}>"

    # Life, first half: what the caller's thread does.

    def realize(self) -> None:
        """Prepare the processor: CPUID, APIC id. No thread yet (QEMU: x86_cpu_realizefn)."""
        arch.realize(self)

    def start_vcpu(self) -> None:
        """Start the thread `CPU <n>/KVM` and wait until the vCPU is created; it is paused then.

        Raise what went wrong in the thread, or StateError when the vCPU has one (QEMU: qemu_kvm_start_vcpu).
        """
        accel = self.accel
        with accel.lock:
            self._apply(Command.START)
            self._failure = None
            self.thread = threading.Thread(target=self._thread_fn, name=f"CPU {self.index}/KVM", daemon=True)
        thread = self.thread
        try:
            thread.start()
        except RuntimeError as error:  # the host has no thread left
            with accel.lock:
                self.thread = None
                self._apply(Command.FAILED)
            raise StateError(f"vCPU {self.index}: {error}; the host limits threads (ulimit -u)") from None
        failure = self._wait_created()
        if failure is not None:
            thread.join()
            raise failure

    def _wait_created(self) -> BaseException | None:
        with self.accel.lock:
            self.accel.cpu_cond.wait_for(lambda: self.state is not State.STARTING)
            return self._failure

    # Life, second half: what the vCPU's own thread does.

    def _thread_fn(self) -> None:
        """Live: init, then run and wait in turn until unplugged, then destroy (QEMU: qemu_kvm_cpu_thread_fn)."""
        _thread.cpu = self
        try:
            self.init_vcpu()
        except BaseException as error:  # it belongs to start_vcpu's caller
            self._failed(error)
            return
        with self.accel.lock:
            self.created = True
            self._apply(Command.CREATED)
            if self.waits_for_sipi:
                self._apply(Command.HALT)
        while self.state is not State.LEAVING:
            try:
                if self.state is State.RUNNING and cpu_exec(self) == EXCP_DEBUG:
                    self.handle_guest_debug()
                self.wait_io_event()
            except BaseException as error:  # of a handler: it stops the machine, and this vCPU with it
                self.accel.fail(error)
                finish_io(self)
        self.destroy_vcpu()

    def init_vcpu(self) -> None:
        """Get the fd, map kvm_run, set the processor up, get ready for kicks (QEMU: kvm_init_vcpu)."""
        self._name_thread()
        signal.pthread_sigmask(signal.SIG_SETMASK, BLOCKED)
        self._ident = threading.get_ident()
        self.thread_id = threading.get_native_id()
        fd, reused = self.accel.get_vcpu(self.apic_id)
        self.fd = fd
        try:
            self.run = fd.map_run(self.accel.run_size)
            self.run[registers.VALID_REGS : registers.SYNC] = bytes(16)
            with self.accel.lock:
                self._page = self.run
                self.run[IMMEDIATE_EXIT] = self._kicked
            arch.arch_init_vcpu(self, reused)
            fd.set_signal_mask(IN_KVM_RUN)
            if self._cpus is not None:
                os.sched_setaffinity(0, self._cpus)
        except BaseException:
            self._unmap_and_park()
            raise

    def _name_thread(self) -> None:
        try:
            with open("/proc/thread-self/comm", "wb", buffering=0) as comm:
                comm.write(f"CPU {self.index}/KVM".encode())
        except OSError:
            pass  # a name for people; without /proc nobody would see it

    def wait_io_event(self) -> None:
        """Do what other threads posted; sleep until there is some, or the vCPU can run (QEMU: qemu_wait_io_event)."""
        while True:
            with self.accel.lock:
                self._clear_kick()
                while not self._inbox and self.state not in BUSY:
                    self._sleeping = True
                    self.halt_cond.wait()
                    self._sleeping = False
                    self._clear_kick()
                if not self._inbox or self.state is State.LEAVING:
                    return
                item = self._inbox.popleft()
                if isinstance(item, Command):
                    self._apply(item)
                    self._applied += 1
                    continue
            self._do(item)

    def _do(self, work: Work) -> None:
        result = error = None
        try:
            result = work.function(self)
        except BaseException as caught:  # it belongs to the one who posted the work
            error = caught
        with self.accel.lock:
            work.result, work.error, work.done = result, error, True
            self._applied += 1
            self.accel.cpu_cond.notify_all()

    def handle_guest_debug(self) -> None:
        """Stop the machine at a debug exit that no handler took (QEMU: cpu_handle_guest_debug)."""
        from ..exits import decode
        from ..outcome import Outcome

        self.accel.finish(Outcome("debug", 0, self, decode(self.run)))

    def halt(self) -> None:
        """Note, in its own thread, that the guest executed HLT."""
        with self.accel.lock:
            self._apply(Command.HALT)

    def destroy_vcpu(self) -> None:
        """Unmap kvm_run, park the fd, answer what is still posted, say that it is gone.

        QEMU: qemu_kvm_destroy_vcpu.
        """
        self._unmap_and_park()
        with self.accel.lock:
            self.created = False
            self.thread = None
            self._drop_inbox()
            self._kicked = False
            self._lives += 1
            self._apply(Command.GONE)

    def _failed(self, error: BaseException) -> None:
        with self.accel.lock:
            self._failure = error
            self.thread = None
            self._drop_inbox()
            self._apply(Command.FAILED)

    def _unmap_and_park(self) -> None:
        self.registers.drop_view()
        self.sregs.drop_view()
        with self.accel.lock:
            page, self._page = self._page, None
        if page is not None:
            page.close()
        self.accel.park_vcpu(self.apic_id, self.fd)

    # The handle: what other threads may do. Methods named *_locked, and those with an underscore, want the lock held.

    def _apply(self, command: Command) -> None:
        new = TRANSITIONS.get((self.state, command))
        if new is None:
            raise StateError(f"vCPU {self.index} is {self.state}: it cannot {command} now")
        old, self.state = self.state, new
        self.accel.changed_state(self, old, new)

    def post_locked(self, item: Command | Work) -> int:
        """Post `item` and return its number; the one order that loses nothing."""
        if self.state is State.UNPLUGGED:
            raise StateError(f"vCPU {self.index} is unplugged: plug it first")
        self._inbox.append(item)  # 1. visible
        self._posted += 1
        self._kick()
        return self._posted

    def _kick(self) -> None:
        if self._kicked:
            return  # a kick is on its way; what it is for will be seen
        self._kicked = True
        if self._page is not None:
            self._page[IMMEDIATE_EXIT] = 1  # 2. the next KVM_RUN returns at once
        if self._sleeping:
            self.halt_cond.notify()
        elif self.created:
            signal.pthread_kill(self._ident, SIG_IPI)  # 3. and so does the one under way

    def _clear_kick(self) -> None:
        """Take back a kick, on the vCPU's own thread: what it was for is seen to now."""
        while signal.sigtimedwait((SIG_IPI,), 0) is not None:
            pass
        self._kicked = False
        self.run[IMMEDIATE_EXIT] = 0

    def _drop_inbox(self) -> None:
        gone = StateError(f"vCPU {self.index} was unplugged before it could do this")
        for item in self._inbox:
            if isinstance(item, Work):
                item.error, item.done = gone, True
        self._inbox.clear()
        self._applied = self._posted

    def kick(self) -> None:
        """Make the vCPU leave KVM_RUN once and come back; what it does in between is up to others (qemu_cpu_kick)."""
        with self.accel.lock:
            self._kick()

    def pause(self, timeout: float | None = None) -> bool:
        """Stop the vCPU and wait until it has; return False when `timeout` seconds passed first.

        From a vCPU's own thread, that is from a handler, it only posts the command: waiting there could be for ever.
        """
        return self._command(Command.PAUSE, timeout)

    def resume(self, timeout: float | None = None) -> bool:
        """Let the vCPU run (again); as pause()."""
        return self._command(Command.RESUME, timeout)

    def unplug(self, timeout: float | None = None) -> bool:
        """Take the vCPU out of the machine: its thread ends and its fd is parked for plug(); as pause()."""
        with self.accel.lock:
            thread = self.thread
        if not self._command(Command.UNPLUG, timeout):
            return False
        if thread is not None and current_cpu() is None:
            thread.join(timeout)
        return True

    def plug(self) -> None:
        """Start the vCPU anew, from its starting state, and let it run."""
        self.start_vcpu()
        self.resume()

    def _command(self, command: Command, timeout: float | None) -> bool:
        accel = self.accel
        with accel.lock:
            ticket = self.post_locked(command)
            if current_cpu() is not None or self.state in NO_THREAD:
                return True  # it is seen to when this handler returns, or when the vCPU is started
            if command is Command.UNPLUG:
                life = self._lives
                return accel.cpu_cond.wait_for(lambda: self._lives != life, timeout)
            return accel.cpu_cond.wait_for(lambda: self._applied >= ticket, timeout)

    def wait_for(self, ticket: int, timeout: float | None = None) -> bool:
        """Wait until what post_locked() numbered `ticket` has been seen to; False when `timeout` seconds passed."""
        with self.accel.lock:
            return self.accel.cpu_cond.wait_for(lambda: self._applied >= ticket, timeout)

    def run_on_cpu(self, function: Callable[[Vcpu], T], timeout: float | None = None) -> T:
        """Run `function(vcpu)` on the vCPU's thread, outside KVM_RUN, and return or raise what it does.

        The vCPU goes on afterwards as it was. Raise StateError when it has no thread, TimeoutError after `timeout`
        seconds. Two handlers that wait for each other's vCPU wait for ever (QEMU: run_on_cpu).
        """
        if current_cpu() is self:
            return function(self)
        work = Work(function)
        with self.accel.lock:
            if self.state in NO_THREAD:
                raise StateError(f"vCPU {self.index} is {self.state}: it has no thread to run this on")
            self.post_locked(work)
            if not self.accel.cpu_cond.wait_for(lambda: work.done, timeout):
                raise TimeoutError(f"vCPU {self.index} did not get to it within {timeout} s")
        if work.error is not None:
            raise work.error
        return work.result  # type: ignore[return-value]  # Work does not know T

    def pin(self, cpus: Iterable[int]) -> None:
        """Let the vCPU's thread run on these host CPUs only, now and after a later plug (sched_setaffinity)."""
        self._cpus = frozenset(cpus)
        with self.accel.lock:
            if self.created:
                os.sched_setaffinity(self.thread_id, self._cpus)

    def flag(self, offset: int, bit: int) -> None:
        """Set a bit of kvm_valid_regs or kvm_dirty_regs; on the vCPU's own thread."""
        self.run[offset] |= bit
