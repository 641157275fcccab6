"""StandIn: another thread does a paused vCPU's work in the place of its own, which sleeps on meanwhile.

Handing work over to a thread takes 20 to 60 us. For a guest that runs for less between two resets, that is most of the
time. KVM takes requests for a vCPU from any thread of the process; what else is bound to the thread (the kick's target,
current_cpu) changes hands under the machine's lock.
"""

from __future__ import annotations

import threading
from time import monotonic

from ..posix import signal
from . import arch
from .handle import SIG_IPI, Work, current_cpu, set_current_cpu
from .states import Command, State
from .work import do

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .handle import Control, Vcpu
    from .thread import VcpuThread

LONGEST = 3600.0  # seconds that the watchdog sleeps at a time


class StandIn:
    """Stands in for the thread of one vCPU, from begin_locked() to end_locked(), both called by one thread.

    In between, the vCPU may be used as in a handler; run() has it run until it is paused.
    """

    def __init__(self, thread: VcpuThread) -> None:
        self._thread = thread
        self._vcpu = thread.vcpu
        self._lock = thread.control.lock
        self._own = 0
        self._checked: set[int] = set()  # threads that the kick can interrupt

    def can_be_kicked(self) -> bool:
        """Tell whether a kick could interrupt the calling thread in KVM_RUN; it must not be a vCPU's either."""
        me = threading.get_ident()
        if me not in self._checked:
            if SIG_IPI in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
                return False
            self._thread.context.kvm.kernel.catch(SIG_IPI)
            self._checked.add(me)
        return current_cpu() is None

    def begin_locked(self) -> bool:
        """Take the vCPU over, with the lock held, for a thread that can_be_kicked(); False where its own is at work."""
        vcpu = self._vcpu
        if (
            vcpu.state is not State.PAUSED
            or not vcpu._sleeping
            or vcpu._kicked
            or vcpu._inbox
            or vcpu._cpus is not None
        ):
            return False
        vcpu._sleeping = False
        self._own, vcpu._ident = vcpu._ident, threading.get_ident()
        set_current_cpu(vcpu)
        return True

    def end_locked(self) -> None:
        """Give the vCPU back, with the lock held; its own thread sees to what is left to do."""
        vcpu = self._vcpu
        set_current_cpu(None)
        vcpu._ident = self._own
        if vcpu._inbox or vcpu._kicked or vcpu.state is not State.PAUSED:
            vcpu._bell.release()
        else:
            vcpu._sleeping = True

    def run(self) -> None:
        """Run the guest as its own thread would, until it is not to run any more."""
        thread, vcpu = self._thread, self._vcpu
        if thread.has_apic:
            arch.tell_guest_it_was_paused(thread)
        while vcpu.state is State.RUNNING and not vcpu._inbox:
            thread._run_guest()
            self.serve_inbox()

    def serve_inbox(self) -> None:
        """Do what other threads posted, up to an unplug, which is for the vCPU's own thread."""
        thread, vcpu, lock = self._thread, self._vcpu, self._lock
        while True:
            with lock:
                thread._clear_kick()
                inbox = vcpu._inbox
                while inbox:
                    item = inbox[0]
                    if item is Command.UNPLUG:
                        return
                    inbox.popleft()
                    if isinstance(item, Work):
                        item.taken = True
                        break
                    vcpu._applied += 1
                    vcpu._apply(item)
                else:
                    return
            do(thread, item)


class Watchdog:
    """Pauses a vCPU that runs for too long, from a thread of its own, which wakes up seldom.

    arm() and disarm() cost next to nothing: the thread sleeps until the earliest end that it has known, and only then
    looks for a later one.
    """

    def __init__(self, vcpu: Vcpu, control: Control) -> None:
        self._vcpu = vcpu
        self._control = control
        self._end: float | None = None
        self._wakes = 0.0  # when the thread looks next
        self._bell = threading.Lock()
        self._bell.acquire()
        self._closed = False
        self._thread: threading.Thread | None = None

    def arm(self, seconds: float) -> None:
        """Pause the vCPU in so many seconds."""
        end = monotonic() + seconds
        with self._control.lock:
            self._end = end
            start, late = self._thread is None, self._wakes > end
            if not start and late:
                self._wakes = end
                self._ring()
        if start:
            self._wakes = end
            thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            thread.start()
            self._thread = thread

    def disarm_locked(self) -> None:
        """Leave the vCPU alone; with the machine's lock held."""
        self._end = None

    def _ring(self) -> None:
        if self._bell.locked():
            self._bell.release()

    def _watch(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        while not self._closed:
            now = monotonic()
            with self._control.lock:
                if self._end is not None and now >= self._end:
                    self._end = None
                    self._vcpu.command_locked(Command.PAUSE)
                self._wakes = now + LONGEST if self._end is None else self._end
            self._bell.acquire(timeout=max(self._wakes - now, 0))

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        with self._control.lock:
            self._ring()
        if self._thread is not None:
            self._thread.join()
