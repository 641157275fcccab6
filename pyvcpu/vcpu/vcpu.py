"""Vcpu: one virtual processor and the thread that is its life.

The steps are QEMU's: realize, start_vcpu, init_vcpu, then cpu_exec and wait_io_event in turn until unplugged, and
destroy_vcpu.
"""

from __future__ import annotations

import os
import signal
import threading

from ..errors import StateError
from . import arch, registers
from .execute import EXCP_DEBUG, IMMEDIATE_EXIT, cpu_exec, finish_io
from .handle import SIG_IPI, Handle, Work, set_current_cpu
from .states import BUSY, Command, State

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import mmap

    from ..kvm.cpuid import CpuidTable
    from ..kvm.vcpu import VcpuFd
    from ..x86.start import StartState
    from .accel import Accel
    from .registers import RegisterFile

# A vCPU thread takes no signals: they are the main thread's. Those that a fault of its own raises stay open.
BLOCKED = signal.valid_signals() - {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGTRAP,
}
IN_KVM_RUN = tuple(BLOCKED - {SIG_IPI})


class Vcpu(Handle):
    """One vCPU. Public methods and properties may be used from any thread, also from handlers.

    `index`, `state`, `thread_id` (as in /proc, 0 before the start), `registers` and `sregs` are for everyone.
    `start` is its starting state, None for a processor that waits for INIT-SIPI-SIPI. `fd`, `run` (struct kvm_run and
    what follows it) and the register views belong to the vCPU's thread; the rest is fixed before that starts.
    """

    def __init__(self, index: int, accel: Accel) -> None:
        super().__init__(index, accel)
        self.apic_id = index
        self.start: StartState | None = None
        self.waits_for_sipi = False
        self.cpuid: CpuidTable
        self.reset_sregs = b""
        self.tsc_khz = 0
        self.fd: VcpuFd
        self.run: mmap.mmap
        self.registers: RegisterFile = registers.general(self)
        self.sregs: RegisterFile = registers.system(self)
        self._failure: BaseException | None = None

    # What the caller's thread does.

    def realize(self) -> None:
        """Prepare the processor: CPUID, APIC id. No thread yet (QEMU: x86_cpu_realizefn)."""
        arch.realize(self)

    def start_vcpu(self) -> None:
        """Start the thread `CPU <n>/KVM` and wait until the vCPU is created; it is paused then.

        Raise what went wrong in the thread, or StateError when the vCPU has one (QEMU: qemu_kvm_start_vcpu).
        """
        self.start_thread()
        self.wait_created()

    def start_thread(self) -> None:
        """Do the first half of start_vcpu(); several vCPUs get ready at the same time if all are started first."""
        thread = threading.Thread(target=self._thread_fn, name=f"CPU {self.index}/KVM", daemon=True)
        with self.accel.lock:
            self._apply(Command.START)
            self._failure = None
            self.thread = thread
        try:
            thread.start()
        except BaseException as error:
            self._disown(thread)
            if isinstance(error, RuntimeError):  # the host has no thread left
                raise StateError(f"vCPU {self.index}: {error}; the host limits threads (ulimit -u)") from None
            raise

    def _disown(self, thread: threading.Thread) -> None:
        """Forget a thread of which it is not certain that it has started; if it has, and got no further, it ends."""
        with self.accel.lock:
            if self.thread is thread and not self._ident:
                self._end_life(Command.FAILED)

    def wait_created(self) -> None:
        """Do the second half of start_vcpu()."""
        with self.accel.lock:
            self.accel.cpu_cond.wait_for(lambda: self.state is not State.STARTING)
            failure = self._failure
        if failure is not None:
            raise failure

    def plug(self) -> None:
        """Start the vCPU anew, from its starting state; it runs if the machine does."""
        self.start_vcpu()
        with self.accel.lock:
            if self.accel.running:
                self.post_locked(Command.RESUME)

    # What the vCPU's own thread does.

    def _thread_fn(self) -> None:
        """Live: init, then run and wait in turn until unplugged, then destroy (QEMU: qemu_kvm_cpu_thread_fn)."""
        if not self._claim():
            return
        try:
            self.init_vcpu()
        except BaseException as error:  # it belongs to start_vcpu's caller
            with self.accel.lock:
                self._ident, self._failure = 0, error
                self._end_life(Command.FAILED)
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

    def _claim(self) -> bool:
        """Enter this thread into the books; False when the starter gave it up before."""
        with self.accel.lock:
            if self.thread is not threading.current_thread():
                return False
            self._ident = threading.get_ident()
            self.thread_id = threading.get_native_id()
        set_current_cpu(self)
        return True

    def init_vcpu(self) -> None:
        """Get the fd, map kvm_run, set the processor up, get ready for kicks (QEMU: kvm_init_vcpu)."""
        self._name_thread()
        signal.pthread_sigmask(signal.SIG_SETMASK, BLOCKED)
        self.fd, reused = self.accel.get_vcpu(self.apic_id)
        try:
            self.run = self.fd.map_run(self.accel.run_size)
            with self.accel.lock:
                self._page = self.run
                self.run[IMMEDIATE_EXIT] = self._kicked
                if self._cpus is not None:
                    os.sched_setaffinity(0, self._cpus)
            self.run[registers.VALID_REGS : registers.SYNC] = bytes(registers.SYNC - registers.VALID_REGS)
            arch.arch_init_vcpu(self, reused)
            self.fd.set_signal_mask(IN_KVM_RUN)
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
                    if item is Command.RESUME and self.accel.irqchip == "kernel":
                        arch.tell_guest_it_was_paused(self)
                    self._apply(item)
                    self._applied += 1
                    continue
            self._do(item)

    def _clear_kick(self) -> None:
        """Take back a kick, with the lock held: what it was for is seen to next."""
        while signal.sigtimedwait((SIG_IPI,), 0) is not None:
            pass
        self._kicked = False
        self.run[IMMEDIATE_EXIT] = 0

    def _do(self, work: Work) -> None:
        try:
            work.result = work.function(self)
        except BaseException as error:  # it belongs to the one who posted the work
            work.error = error
        with self.accel.lock:
            work.done = True
            self._applied += 1
            self.accel.cpu_cond.notify_all()

    def handle_guest_debug(self) -> None:
        """Stop the machine at a debug exit that no handler took (QEMU: cpu_handle_guest_debug)."""
        from ..exits import decode
        from ..outcome import Outcome

        self.accel.finish(Outcome("debug", 0, self, decode(self.run)))

    def halt(self) -> None:
        """Note that the guest executed HLT."""
        with self.accel.lock:
            self._apply(Command.HALT)

    def destroy_vcpu(self) -> None:
        """Unmap kvm_run, park the fd, answer what is still posted, say that it is gone.

        QEMU: qemu_kvm_destroy_vcpu.
        """
        self._unmap_and_park()
        with self.accel.lock:
            self._ident = 0
            self._end_life(Command.GONE)

    def _unmap_and_park(self) -> None:
        self.registers.drop_view()
        self.sregs.drop_view()
        with self.accel.lock:
            page, self._page = self._page, None
        if page is not None:
            page.close()
        self.accel.park_vcpu(self.apic_id, self.fd)

    def flag(self, offset: int, bit: int) -> None:
        """Set a bit of kvm_valid_regs or kvm_dirty_regs."""
        self.run[offset] |= bit
