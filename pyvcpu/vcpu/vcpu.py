"""Vcpu: one virtual processor and the thread that is its life.

The steps are QEMU's: realize, start_vcpu, init_vcpu, then cpu_exec and wait_io_event in turn until unplugged, and
destroy_vcpu.
"""

from __future__ import annotations

import os
import threading

from ..errors import StateError
from ..posix import signal
from . import arch, registers
from .arch_init import arch_init_vcpu
from .arch_realize import realize
from .arch_reset import cpu_reset, forget_former_life
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
REQUEST_INTERRUPT_WINDOW, CR8 = 0, 16  # offsets in struct kvm_run


class Vcpu(Handle):
    """One vCPU. Public methods and properties may be used from any thread, also from handlers.

    `index`, `state`, `thread_id` (as in /proc, 0 before the start), `registers` and `sregs` are for everyone.
    `start` is its starting state, None for a processor that waits for INIT-SIPI-SIPI. `fd`, `run` (struct kvm_run and
    what follows it) and the register views belong to the vCPU's thread; the rest is fixed before that starts.
    """

    def __init__(self, index: int, accel: Accel) -> None:
        super().__init__(index, accel)
        self.apic_id = accel.topology.apic_id(index)
        self.start: StartState | None = None
        self.waits_for_sipi = False
        self.cpuid: CpuidTable
        self.reset_sregs = b""
        self.tsc_khz = 0
        self.mcg_cap = 0
        self.has_lived = False  # it was created: KVM was told all that can be told once
        self.fd: VcpuFd
        self.run: mmap.mmap
        self.registers: RegisterFile = registers.general(self)
        self.sregs: RegisterFile = registers.system(self)
        self._failure: BaseException | None = None

    # What the caller's thread does.

    def realize(self) -> None:
        """Prepare the processor: features, CPUID, APIC id. No thread yet (QEMU: x86_cpu_realizefn, steps 1 to 7).

        Raise ConfigError when this KVM cannot be such a processor.
        """
        realize(self)

    def start_vcpu(self) -> None:
        """Start the thread `CPU <n>/KVM` and wait until the vCPU is created; it is paused then.

        Raise what went wrong in the thread, or StateError when the vCPU has one (QEMU: qemu_kvm_start_vcpu).
        """
        self.start_thread()
        self.wait_created()

    def start_thread(self) -> None:
        """Do the first half of start_vcpu(); several vCPUs get ready at the same time if all are started first."""
        thread = threading.Thread(target=self._thread_fn, name=f"CPU {self.index}/KVM", daemon=True)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            # Thread.start() does not bear a Ctrl-C, and the new thread gets its mask from the one that starts it.
            signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
            with self.accel.lock:
                if self.accel.closed:
                    raise StateError(f"vCPU {self.index} cannot start any more: its machine is closed")
                self._apply(Command.START)
                self._failure = None
                self.thread = thread
            thread.start()
        except BaseException as error:
            self._disown(thread)
            if isinstance(error, RuntimeError) and not isinstance(error, StateError):  # the host has no thread left
                raise StateError(f"vCPU {self.index}: {error}; the host limits threads (ulimit -u)") from None
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _disown(self, thread: threading.Thread) -> None:
        """Forget a thread of which it is not certain that it has started; if it has, and got no further, it ends."""
        with self.accel.lock:
            if self.thread is thread and not self._ident:
                self._end_life(Command.FAILED)

    def wait_created(self) -> None:
        """Do the second half of start_vcpu()."""
        self.accel.cpu_cond.wait_for(lambda: self.state is not State.STARTING)
        failure = self._failure
        if failure is not None:
            raise failure

    def plug(self) -> None:
        """Realize and start the vCPU anew, from its starting state; it runs if the machine does."""
        self.realize()
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
            self.created = self.has_lived = True
            self._apply(Command.CREATED)
            if self.waits_for_sipi:
                self._apply(Command.HALT)
        try:
            while self.state is not State.LEAVING:
                if self.state is State.RUNNING:
                    self._run_guest()
                self.wait_io_event()
        except BaseException as error:  # a mistake of ours: this vCPU ends, and nobody waits for it for ever
            self.accel.fail(error)
            with self.accel.lock:
                self._apply(Command.UNPLUG)
        self.destroy_vcpu()

    def _run_guest(self) -> None:
        try:
            if cpu_exec(self) == EXCP_DEBUG:
                self.handle_guest_debug()
        except BaseException as error:  # of a handler: it stops the machine, and this vCPU with it
            self.accel.fail(error)
            with self.accel.lock:
                self.post_locked(Command.PAUSE)
            finish_io(self)

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
        self.fd = self.accel.get_vcpu(self.apic_id)
        try:
            self.run = self.fd.map_run(self.accel.run_size)
            with self.accel.lock:
                self._page = self.run
                if self._cpus is not None:
                    os.sched_setaffinity(0, self._cpus)
            self.clear_page()
            arch_init_vcpu(self)
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
        resumed = False
        while True:
            with self.accel.lock:
                self._clear_kick()
                if self.state is State.LEAVING:
                    return
                item = self._inbox.popleft() if self._inbox else None
                if isinstance(item, Command):
                    self._applied += 1
                    self._apply(item)
                    resumed |= item is Command.RESUME
                elif item is None:
                    if self.state in BUSY:
                        break
                    self._sleeping = True
            if item is None:
                self._bell.acquire()  # until the next kick
            elif isinstance(item, Work):
                self._do(item)
        if resumed and self.accel.irqchip != "none":
            arch.tell_guest_it_was_paused(self)

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
            try:
                page.close()
            except BufferError:
                del page  # the traceback of an error about a register holds a view: the mapping goes with that
        self.accel.park_vcpu(self.apic_id, self.fd)

    def reset(self, machine_wide: bool = False) -> None:
        """Go back to the starting state, on the vCPU's own thread; halted or not, it can run then.

        `machine_wide`: all vCPUs are being reset (QEMU: cpu_reset).
        """
        forget_former_life(self, machine_wide)
        cpu_reset(self)
        with self.accel.lock:
            self._apply(Command.WAKE)
            if self.waits_for_sipi:
                self._apply(Command.HALT)

    def clear_page(self) -> None:
        """Take back what kvm_run asks of the next KVM_RUN, save a kick that is on its way."""
        with self.accel.lock:
            self.run[REQUEST_INTERRUPT_WINDOW] = 0
            self.run[IMMEDIATE_EXIT] = self._kicked
            self.run[CR8 : CR8 + 8] = bytes(8)
            self.run[registers.VALID_REGS : registers.SYNC] = bytes(registers.SYNC - registers.VALID_REGS)

    def flag(self, offset: int, bit: int) -> None:
        """Set a bit of kvm_valid_regs or kvm_dirty_regs."""
        self.run[offset] |= bit
