"""VcpuThread: the thread that is the life of one vCPU.

The steps are QEMU's: realize, start_vcpu, init_vcpu, then cpu_exec and wait_io_event in turn until unplugged, and
destroy_vcpu.
"""

from __future__ import annotations

import os
import threading

from ..errors import StateError
from ..kvm.abi.layout import IMMEDIATE_EXIT
from ..posix import signal
from . import arch
from .arch_init import arch_init_vcpu
from .arch_realize import realize
from .core import Cpu
from .execute import EXCP_DEBUG, make_loop
from .handle import SIG_IPI, Work, set_current_cpu
from .pieces import finish_io
from .shared import SharedRegisters
from .states import BEING_BORN, BUSY, Command, State
from .work import do

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .context import KvmContext
    from .handle import Control, Vcpu
    from .template import CpuTemplate
    from .virtual import VirtualMemory

# A vCPU thread takes no signal but the kick, and those that a fault of its own raises: they are the main thread's.
BLOCKED = signal.valid_signals() - {
    SIG_IPI,
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGTRAP,
}


class VcpuThread(Cpu):
    """A vCPU and its life, from realize to destroy_vcpu, as often as it is plugged.

    realize(), start_thread() and wait_created() are for the thread that starts it; the rest runs on its own.
    """

    def __init__(self, vcpu: Vcpu, context: KvmContext, template: CpuTemplate, control: Control) -> None:
        super().__init__(vcpu, context, template, control)
        vcpu.life = self
        self._failure: BaseException | None = None
        self._loop: Callable[[], str]

    # What the caller's thread does.

    def realize(self) -> None:
        """Prepare the processor: features, CPUID, APIC id. No thread yet (QEMU: x86_cpu_realizefn, steps 1 to 7).

        Raise ConfigError when this KVM cannot be such a processor.
        """
        self.step("realize", lambda: realize(self))

    def start_vcpu(self) -> None:
        """Start the thread `CPU <n>/KVM` and wait until the vCPU is created; it is paused then.

        Raise what went wrong in the thread, or StateError when the vCPU has one (QEMU: qemu_kvm_start_vcpu).
        """
        self.start_thread()
        self.wait_created()

    def start_thread(self) -> None:
        """Do the first half of start_vcpu(); several vCPUs get ready at the same time if all are started first."""
        self.step("thread start", self._start_thread)

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._thread_fn, name=f"CPU {self.index}/KVM", daemon=True)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            # Thread.start() does not bear a Ctrl-C, and the new thread gets its mask from the one that starts it.
            signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
            with self.control.lock:
                if self.control.closed:
                    raise StateError(f"vCPU {self.index} cannot start any more: its machine is closed")
                self.vcpu._apply(Command.START)
                self._failure = None
                self.vcpu.thread = thread
            thread.start()
        except BaseException as error:
            self._disown(thread)
            if isinstance(error, RuntimeError) and not isinstance(error, StateError):  # the host has no thread left
                raise StateError(f"vCPU {self.index}: {error}; the host limits threads (ulimit -u)") from None
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _disown(self, thread: threading.Thread) -> None:
        """Forget a thread that may not have started. If it has, and got no further than _claim(), it ends there."""
        with self.control.lock:
            if self.vcpu.thread is thread and not self.vcpu._ident:
                self.vcpu._end_life(Command.FAILED)

    def wait_created(self) -> None:
        """Do the second half of start_vcpu()."""
        vcpu = self.vcpu
        self.step("wait for created", lambda: self.control.cond.wait_for(lambda: vcpu.state not in BEING_BORN))
        failure = self._failure
        if failure is not None:
            raise failure

    def plug(self) -> None:
        """Realize and start the vCPU anew, from its starting state; it runs if the machine does."""
        if not self.context.irqchip:
            raise StateError("a vCPU can be plugged once the machine is started: start() or run() it first")
        self.realize()
        self.start_vcpu()
        with self.control.lock:
            if self.control.running:
                self.vcpu.command_locked(Command.RESUME)

    def reset(self) -> None:
        """Go back to the starting state together with all others (QEMU: cpu_reset)."""
        from . import state

        self.vcpu.run_on_cpu(lambda vcpu: self.step("cpu_reset", lambda: state.reset(self, machine_wide=True)))

    def close_copy(self) -> None:
        """Close what a forked child has of a vCPU whose thread it does not have."""
        fd, page = self.vcpu._fd, self.vcpu._page
        if fd is not None:
            if fd.shared is not None:
                fd.shared.drop()
            fd.close()
        if page is not None:
            try:  # noqa: SIM105 - contextlib costs every boot its import
                page.close()
            except BufferError:  # goes with the process
                pass

    def view_memory(self) -> VirtualMemory:
        """Return memory as the vCPU addresses it."""
        from ..x86.walk import Paging
        from .virtual import VirtualMemory

        def paging() -> Paging:
            sregs = self.vcpu.sregs.copy()
            return Paging(sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer)

        return VirtualMemory(self.context.memory, paging)

    def step_guest(self) -> int:
        """Run one instruction."""
        if self.context.debugger is None:
            self.context.debugger = self.context.make_debugger()
        return self.context.debugger.step(self.vcpu)

    # What the vCPU's own thread does.

    def _thread_fn(self) -> None:
        """Live: init, then run and wait in turn until unplugged, then destroy (QEMU: qemu_kvm_cpu_thread_fn)."""
        if not self._claim():
            return
        vcpu = self.vcpu
        try:
            self.step("init_vcpu", self.init_vcpu)
            self.step("init_cpu_signals", self.init_cpu_signals)
        except BaseException as error:  # it belongs to start_vcpu's caller
            with self.control.lock:
                vcpu._ident, self._failure = 0, error
                vcpu._end_life(Command.FAILED)
            return
        with self.control.lock:
            vcpu.created = self.has_lived = True
            self.vcpu._apply(Command.CREATED)
            if self.waits_for_sipi:
                self.vcpu._apply(Command.HALT)
        try:
            while vcpu.state is not State.LEAVING:
                if vcpu.state is State.RUNNING:
                    self._run_guest()
                self.step("wait_io_event", self.wait_io_event)
        except BaseException as error:  # a mistake of ours: this vCPU ends, and nobody waits for it for ever
            self.control.fail(error)
            with self.control.lock:
                self.vcpu._apply(Command.UNPLUG)
        self.step("destroy_vcpu", self.destroy_vcpu)

    def _run_guest(self) -> None:
        try:
            debugger = self.context.debugger
            why = self._loop() if debugger is None else debugger.cpu_exec(self, self._loop)
            if why == EXCP_DEBUG:
                self.step("handle_guest_debug", self.handle_guest_debug)
        except BaseException as error:  # of a handler: it stops the machine, and this vCPU with it
            self.control.fail(error)
            with self.control.lock:
                self.vcpu.post_locked(Command.PAUSE)
            finish_io(self)

    def _claim(self) -> bool:
        """Note that this thread is the vCPU's; False where its starter gave it up before."""
        with self.control.lock:
            if self.vcpu.thread is not threading.current_thread():
                return False
            self.vcpu._ident = threading.get_ident()
            self.vcpu.thread_id = threading.get_native_id()
        set_current_cpu(self.vcpu)
        return True

    def init_vcpu(self) -> None:
        """Get the fd, map kvm_run, set the processor up (QEMU: kvm_init_vcpu)."""
        self._name_thread()
        vcpu = self.vcpu
        vcpu._fd = self.fd = self.step("kvm_get_vcpu", lambda: self.context.get_vcpu(self.apic_id))
        try:
            self.run = self.step("mmap kvm_run", lambda: self.fd.map_run(self.context.run_size))
            with self.control.lock:
                vcpu._page = self.run
                if vcpu._cpus is not None:
                    os.sched_setaffinity(0, vcpu._cpus)
            vcpu._shared = self.fd.shared = SharedRegisters(self.fd, self.run)
            vcpu.takes_interrupts = not self.has_apic
            vcpu._interrupts.clear()
            self.clear_page()
            arch_init_vcpu(self)
            self._loop = make_loop(self)
            if self.context.debugger is not None:
                self.context.debugger.created(self)
        except BaseException:
            self._unmap_and_park()
            raise

    def init_cpu_signals(self) -> None:
        """Have the kick interrupt KVM_RUN. Its starter has blocked all other signals, and perhaps this one, too.

        QEMU: kvm_init_cpu_signals.
        """
        self.context.kvm.kernel.catch(SIG_IPI)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (SIG_IPI,))

    def _name_thread(self) -> None:
        try:
            with open("/proc/thread-self/comm", "wb", buffering=0) as comm:
                comm.write(f"CPU {self.index}/KVM".encode())
        except OSError:
            pass  # a name for people; without /proc nobody would see it

    def wait_io_event(self) -> None:
        """Do what other threads posted; sleep until there is some, or the vCPU can run (QEMU: qemu_wait_io_event)."""
        resumed, vcpu = False, self.vcpu
        while True:
            with self.control.lock:
                self._clear_kick()
                if vcpu.state is State.LEAVING:
                    return
                item = vcpu._inbox.popleft() if vcpu._inbox else None
                if isinstance(item, Command):
                    vcpu._applied += 1
                    self.vcpu._apply(item)
                    resumed |= item is Command.RESUME
                elif item is None:
                    if vcpu.state in BUSY:
                        break
                    vcpu._sleeping = True
                else:
                    item.taken = True
            if item is None:
                vcpu._bell.acquire()  # until the next kick
            elif isinstance(item, Work):
                do(self, item)
        if resumed and self.has_apic:
            arch.tell_guest_it_was_paused(self)

    def _clear_kick(self) -> None:
        """Take back a kick, with the lock held: what it was for is seen to next."""
        self.vcpu._kicked = False
        self.run[IMMEDIATE_EXIT] = 0

    def handle_guest_debug(self) -> None:
        """Stop the machine at a debug exit that no handler took (QEMU: cpu_handle_guest_debug)."""
        from ..exits import decode

        debugger = self.context.debugger
        if debugger is not None and debugger.handle_guest_debug(self):
            return

        self.control.finish("debug", 0, vcpu=self.vcpu, exit=decode(self.run))

    def destroy_vcpu(self) -> None:
        """Unmap kvm_run, park the fd, answer what is still posted, say that it is gone.

        QEMU: qemu_kvm_destroy_vcpu.
        """
        self._unmap_and_park()
        with self.control.lock:
            self.vcpu._ident = 0
            self.vcpu._end_life(Command.GONE)

    def _unmap_and_park(self) -> None:
        vcpu, fd = self.vcpu, self.fd
        if fd.shared is not None:
            fd.shared.drop()
        vcpu._shared = fd.shared = vcpu._fd = None
        with self.control.lock:
            page, vcpu._page = vcpu._page, None
        if page is not None:
            try:
                page.close()
            except BufferError:
                del page  # the traceback of an error about a register holds a view: the mapping goes with that
        self.context.park_vcpu(self.apic_id, fd)
