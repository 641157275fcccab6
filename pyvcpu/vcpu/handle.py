"""Handle: the side of a vCPU that other threads touch. They post commands and work, kick, and wait for the answer."""

from __future__ import annotations

import os
import threading
from collections import deque

from ..errors import StateError
from ..posix import signal
from .execute import IMMEDIATE_EXIT
from .states import NO_THREAD, TRANSITIONS, Command, State

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import mmap
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    from .accel import Accel
    from .vcpu import Vcpu

    T = TypeVar("T")

# The kick. Not SIGUSR1, which QEMU takes: programs have uses of their own for it. Not a real-time signal: they are
# queued, and the queue of a user can be full. Hardly a program has a handler for SIGURG, which is ignored by default.
SIG_IPI = signal.SIGURG

_thread = threading.local()


def current_cpu() -> Vcpu | None:
    """Return the vCPU whose thread this is, or None (QEMU: current_cpu)."""
    vcpu: Vcpu | None = getattr(_thread, "cpu", None)
    return vcpu


def set_current_cpu(vcpu: Vcpu) -> None:
    """Note that the calling thread is the one of `vcpu`."""
    _thread.cpu = vcpu


class Work:
    """A function that another thread wants run on a vCPU's thread, and what came of it (under the machine's lock)."""

    __slots__ = ("done", "error", "function", "result")

    def __init__(self, function: Callable[[Any], object]) -> None:
        self.function = function
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None


class Handle:
    """What other threads may do with a vCPU, and the state that this takes; all of it under the machine's lock.

    The one order in which a command is given, so that none is lost: 1. it is visible in the inbox; 2. immediate_exit is
    set; 3. the thread is signalled, if it lives. The vCPU's thread takes 2 and 3 back under the same lock under which
    it then looks at the inbox.
    """

    def __init__(self, index: int, accel: Accel) -> None:
        self.index = index
        self.accel = accel
        # Those that only maxcpus has room for are as if unplugged.
        self.state = State.REALIZED if index < accel.topology.cpus else State.UNPLUGGED
        self.created = False
        self.thread: threading.Thread | None = None
        self.thread_id = 0
        self._bell = threading.Lock()  # held; released to wake the vCPU's thread from wait_io_event
        self._bell.acquire()
        self._ident = 0
        self._page: mmap.mmap | None = None  # struct kvm_run, for the kick
        self._inbox: deque[Command | Work] = deque()
        self._posted = self._applied = self._lives = 0
        self._kicked = self._sleeping = False
        self._cpus: frozenset[int] | None = None
        accel.counts[self.state] += 1

    def __repr__(self) -> str:
        return f"<vCPU {self.index} {self.state}>"

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
        return self._command(Command.UNPLUG, timeout)

    def kick(self) -> None:
        """Make the vCPU leave KVM_RUN once and look at its inbox (QEMU: qemu_cpu_kick)."""
        with self.accel.lock:
            self._kick()

    def run_on_cpu(self, function: Callable[[Vcpu], T], timeout: float | None = None) -> T:
        """Run `function(vcpu)` on the vCPU's thread, outside KVM_RUN, and return or raise what it does.

        The vCPU goes on afterwards as it was. Raise StateError when it has no thread, TimeoutError after `timeout`
        seconds. Two handlers that wait for each other's vCPU wait for ever (QEMU: run_on_cpu).
        """
        current = current_cpu()
        if current is not None and current is self:
            return function(current)
        work = Work(function)

        def post() -> None:
            if self.state in NO_THREAD:
                raise StateError(f"vCPU {self.index} is {self.state}: it has no thread to run this on")
            self.post_locked(work)

        if not self.accel.cpu_cond.wait_for(lambda: work.done, timeout, post):
            raise TimeoutError(f"vCPU {self.index} did not get to it within {timeout} s")
        if work.error is not None:
            raise work.error
        result: T = work.result
        return result

    def pin(self, cpus: Iterable[int]) -> None:
        """Let the vCPU's thread run on these host CPUs only, now and after a later plug (sched_setaffinity)."""
        wanted = frozenset(cpus)
        with self.accel.lock:
            if self._page is not None:  # before that the thread has yet to look at _cpus
                os.sched_setaffinity(self.thread_id, wanted)
            self._cpus = wanted

    def wait_for(self, ticket: int, timeout: float | None = None) -> bool:
        """Wait until what post_locked() numbered `ticket` is seen to; False when `timeout` seconds passed first."""
        return self.accel.cpu_cond.wait_for(lambda: self._applied >= ticket, timeout)

    def post_locked(self, item: Command | Work) -> int:
        """Post `item` and return its number; with the machine's lock held."""
        if self.state is State.UNPLUGGED:
            raise StateError(f"vCPU {self.index} is unplugged: plug it first")
        self._posted += 1
        self._inbox.append(item)  # 1. visible
        self._kick()
        return self._posted

    def _command(self, command: Command, timeout: float | None) -> bool:
        accel = self.accel
        with accel.lock:
            life, thread, ticket = self._lives, self.thread, self.post_locked(command)
            if current_cpu() is not None or self.state in NO_THREAD:
                return True  # it is seen to when this handler returns, or when the vCPU is started
        if command is not Command.UNPLUG:
            return self.wait_for(ticket, timeout)
        gone = accel.cpu_cond.wait_for(lambda: self._lives != life, timeout)
        if gone and thread is not None:
            thread.join()  # only its last steps are left
        return gone

    # The rest is called with the machine's lock held.

    def kick_if_locked(self, asked: Callable[[mmap.mmap], bool]) -> None:
        """Kick the vCPU if `asked` says so of its mapping."""
        if self._page is not None and asked(self._page):
            self._kick()

    def _kick(self) -> None:
        if self._kicked:
            return  # a kick is on its way; what this one is for will be seen together with it
        if self._page is not None:
            self._page[IMMEDIATE_EXIT] = 1  # 2. the next KVM_RUN returns at once
        if self._sleeping:
            self._sleeping = False
            self._bell.release()
        elif self.created:
            signal.pthread_kill(self._ident, SIG_IPI)  # 3. and so does the one under way
        self._kicked = True  # last: where a Ctrl-C cut this short, the next kick does it all again

    def _apply(self, command: Command) -> None:
        """Take the step that the table says; raise StateError where it says none."""
        new = TRANSITIONS.get((self.state, command))
        if new is None:
            raise StateError(f"vCPU {self.index} is {self.state}: it cannot {command} now")
        old, self.state = self.state, new
        self.accel.changed_state(old, new)

    def _end_life(self, command: Command) -> None:
        """Leave no thread behind in the books, and nobody waiting for an answer that will not come."""
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
