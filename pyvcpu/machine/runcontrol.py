"""RunControl: how a run of a machine begins, stands still and ends; who waits for that, and who holds it.

A run begins with resume() or run(), and ends once, with one outcome. The outcome, and what handlers raised, belong to
that run. Who waits for it gets them, however late. An end that nobody has seen yet is kept: no other run begins before
someone has. So a stop() is never lost: where no run is under way, it is the end of the next one.
"""

from __future__ import annotations

import os
import threading
from time import monotonic

from ..errors import StateError
from ..vcpu import Command, State, Vcpu, current_cpu
from ..vcpu.cond import Cond, check_timeout
from ..vcpu.states import BEING_BORN, MOVING, NO_THREAD, STATES
from .outcome import Outcome, Run

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from ..exits import ExitEvent

    class Still(Protocol):
        """What the host feeds a guest with, and stands still with the world: an event loop, a gate."""

        def hold(self, timeout: float | None = None) -> bool:
            """Let nothing happen from now on, and return when what was under way is over; False after `timeout`."""

        def release(self) -> None:
            """Take back one hold()."""

    class Devices(Still, Protocol):
        """What serves devices beside the vCPUs."""

        def drain(self, timeout: float | None = None) -> bool:
            """Serve what is asked for now; False when `timeout` seconds passed first."""


PATIENCE = 0.01  # seconds that a pause waits for a vCPU to run which was just resumed
DRAIN = 0.05  # seconds that a pause gives to requests that were made before it
MOST_FAILURES = 64  # that are kept of a run; each vCPU has one, a device may have more


class RunControl:
    """The run of one machine. `lock` guards it, and what the handles of its vCPUs say that it does.

    The lock is held for moments only: never in KVM_RUN, in a handler or in other people's code. `cond` is signalled at
    every change that someone may wait for.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cond = Cond(self.lock)
        # Taken by those who change which vCPUs there are or what they are: start, plug, unplug, reset, close.
        self.start_lock = threading.RLock()
        self.cond.on_delay = self._kick_again
        self.vcpus: Sequence[Vcpu] = ()
        self.counts = dict.fromkeys(STATES.values(), 0)
        self.closed = False  # no vCPU is started any more
        self.run = Run()
        self.running = (
            False  # what a vCPU does that is plugged now: resume() was called, and neither pause() nor an end
        )
        self.holders: list[str] = []
        self.frozen: frozenset[int] = frozenset()  # indexes of vCPUs that stand still though the world goes on
        # What stands still beside the vCPUs: what serves devices, also while the machine is paused; what the host
        # feeds.
        self.devices: list[Devices] = []
        self.feeds: list[Still] = []
        self._devices_paused = False  # pause() holds `devices`
        self.on_resume: list[Callable[[], object]] = []  # called with the lock held
        self.on_end: list[Callable[[Outcome], object]] = []  # the same, with the first outcome of a run
        self._pid = os.getpid()

    def add(self, vcpus: Sequence[Vcpu]) -> None:
        """Take these as the machine's; before any of them is started."""
        self.vcpus = vcpus
        for vcpu in vcpus:
            self.counts[vcpu.state] += 1

    def add_devices(self, devices: Devices) -> None:
        """Have something more stand still with the world, at once if that is held already. Any thread."""
        with self.lock:
            self.devices.append(devices)
            for _ in range(len(self.holders) + self._devices_paused):
                devices.hold(0)  # it is new: nothing is under way in it

    @property
    def held(self) -> bool:
        """Whether somebody holds the world still."""
        return bool(self.holders)

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that made the machine, and not a child that it forked."""
        return os.getpid() == self._pid

    def check_ours(self) -> None:
        """Raise StateError in a forked child. It has none of the threads, and any of them may hold a lock for ever."""
        if not self.is_ours:
            raise StateError("the machine belongs to the process that made it; a forked child can only close it")

    def is_vcpu_thread(self) -> bool:
        """Whether the calling thread is that of a vCPU of this machine."""
        current = current_cpu()
        return current is not None and current.control is self

    # How a run begins.

    def open(self) -> Run:
        """Return the run that run() is to wait for: a new one where the last is over, so that a stop() counts for
        it.
        """
        with self.lock:
            return self._open_locked()

    def _open_locked(self) -> Run:
        if self.run.is_over:
            self.run = Run()
        return self.run

    def resume(self) -> Run:
        """Let all vCPUs run, unless the run has ended and nobody has seen that yet. One step under the lock."""
        with self.lock:
            run = self._open_locked()
            if run.outcome is None and not self.closed:
                self.running = True
                self._command_all_locked(Command.RESUME)
                for function in self.on_resume:
                    function()
            release = self.running and self._devices_paused
            if release:
                self._devices_paused = False
        if release:
            _release(self.devices)
        return run

    def begin_here_locked(self) -> Run | None:
        """Do what resume() does, but for the vCPUs, with the lock held: for a caller that runs the one there is itself.

        Return the run; None where that is not to begin now.
        """
        if self.closed or self.holders or self._devices_paused or self.on_resume:
            return None
        run = self._open_locked()
        return None if run.outcome is not None else run

    def forget_end(self) -> None:
        """Take the outcome as seen: a reset lets the machine begin anew. What handlers raised still waits."""
        with self.lock:
            self.run.seen |= self.run.outcome is not None

    # How it ends.

    def finish(
        self,
        reason: str,
        status: int | None = None,
        *,
        vcpu: Vcpu | None = None,
        exit: ExitEvent | None = None,
        report: str = "",
    ) -> None:
        """End the run and stop every vCPU; the first outcome is the one that counts. Any thread, also in a handler.

        A signal handler that interrupts the main thread where it holds the lock cannot wait for it: a thread does.
        """
        current = current_cpu() if vcpu is None else None
        if current is not None and current.control is self:
            vcpu = current
        outcome = Outcome(reason, status, vcpu, exit, report)
        self._with_lock(lambda: self._finish_locked(outcome))

    def fail(self, error: BaseException) -> None:
        """End the run; `error` is raised in everyone who waits for it, also where it had ended before."""

        def note() -> None:
            if len(self.run.failures) < MOST_FAILURES and not any(error is known for known in self.run.failures):
                self.run.failures.append(error)
            self._finish_locked(Outcome("failed", 1, current_cpu() if self.is_vcpu_thread() else None))
            self.cond.notify_all()

        self._with_lock(note)

    def _with_lock(self, function: Callable[[], None]) -> None:
        if self.lock.acquire(blocking=False) or self.lock.acquire(
            blocking=threading.current_thread() is not threading.main_thread()
        ):
            try:
                function()
            finally:
                self.lock.release()
            return
        # Either another thread has it for a moment, or the main thread itself has, under the signal handler that calls.
        if self.lock.acquire(timeout=0.05):
            try:
                function()
            finally:
                self.lock.release()
            return
        threading.Thread(target=self._with_lock, args=(function,), name="stop", daemon=True).start()

    def _finish_locked(self, outcome: Outcome) -> None:
        if self._open_locked().outcome is None:
            self.run.outcome = outcome
            self.running = False
            self._command_all_locked(Command.PAUSE)
            for function in self.on_end:
                function(outcome)
            self.cond.notify_all()
        else:
            current = current_cpu()
            if current is not None and current.control is self and current.state not in NO_THREAD:
                current.command_locked(Command.PAUSE)  # it was resumed by itself after the machine's end

    def changed_state(self, vcpu: Vcpu, old: State, new: State) -> None:
        """Keep count, with the lock held, and see the machine's end: every vCPU is halted, none is left to wake it."""
        counts = self.counts
        counts[old] -= 1
        counts[new] += 1
        self.cond.notify_all()
        if new in (State.HALTED, State.UNPLUGGED) and counts[State.HALTED] and self._nobody_can_wake():
            self._finish_locked(Outcome("halted", vcpu=current_cpu() if self.is_vcpu_thread() else None))

    def _nobody_can_wake(self) -> bool:
        counts = self.counts
        others = (State.RUNNING, State.PAUSED, State.LEAVING, State.PAUSED_HALTED, *BEING_BORN)
        return not any(counts[state] for state in others)

    # Who waits for the end.

    def wait(self, run: Run, timeout: float | None) -> Outcome | None:
        """Wait at most `timeout` seconds for the end of `run`: return its outcome, or raise what a handler raised."""
        self.cond.wait_for(lambda: run.outcome is not None, timeout)
        with self.lock:
            return run.tell()

    def current(self) -> Run:
        """Return the run that is under way, or the last."""
        with self.lock:
            return self.run

    # How it stands still.

    def pause(self, timeout: float | None) -> bool:
        """Stop all vCPUs and wait until they have; False when `timeout` seconds passed first. See Machine.pause()."""
        check_timeout(timeout)
        end = None if timeout is None else monotonic() + timeout
        self._let_them_run(timeout)
        with self.lock:
            self.running = False
            tickets = self._command_all_locked(Command.PAUSE)
        if self.is_vcpu_thread():
            return True
        if not self.cond.wait_for(lambda: all(vcpu.is_done_locked(ticket) for vcpu, ticket in tickets), _left(end)):
            return False
        # What was notified before is served, unless that takes long: then the rest comes after the pause.
        for still in self.devices:
            still.drain(DRAIN if end is None else min(DRAIN, max(end - monotonic(), 0)))
        held = self._hold_stills(end)
        with self.lock:
            keep = len(held) == len(self.devices) and not self.running and not self._devices_paused
            self._devices_paused |= keep
        if not keep:
            _release(held)
        return len(held) == len(self.devices)

    def _let_them_run(self, timeout: float | None) -> None:
        """Wait until those that were just resumed have begun to run, for a moment at most.

        Without it threads that pause and resume in turn could go on for ever, and the guest would never get on.
        """
        if not self.is_vcpu_thread():
            limit = PATIENCE if timeout is None else min(PATIENCE, timeout)
            self.cond.wait_for(lambda: all(vcpu.is_resumed_locked for vcpu in self.vcpus), limit)

    def _hold_stills(self, end: float | None, stills: Sequence[Still] | None = None) -> list[Still]:
        """Hold what stands still beside the vCPUs, and return it; only a part once it is `end`."""
        held: list[Still] = []
        try:
            for still in self.devices if stills is None else stills:
                if not still.hold(_left(end)):
                    break
                held.append(still)
        except BaseException:
            _release(held)
            raise
        return held

    def enter_hold(self, who: str, timeout: float | None) -> None:
        """Have the world stand still for `who`. Raise TimeoutError, and take it back, after `timeout` seconds."""
        check_timeout(timeout)
        end = None if timeout is None else monotonic() + timeout
        self._let_them_run(timeout)
        self.begin_hold(who)
        try:
            self.complete_hold(timeout, end=end)
        except BaseException:
            self.drop_hold(who)
            raise

    def begin_hold(self, who: str) -> None:
        """Have the vCPUs stop, without waiting for it: the first half of enter_hold(). Any thread, a vCPU's, too."""
        with self.lock:
            if self.closed:
                raise StateError("the machine is closed; make another one")
            self.holders.append(who)
            if len(self.holders) == 1:
                self._post_all_locked(Command.PAUSE)

    def complete_hold(
        self, timeout: float | None, is_off: Callable[[], object] = bool, end: float | None = None
    ) -> bool:
        """Wait until the world stands still: the second half. False, with nothing held, once `is_off()` is true.

        Whoever makes that true says so with cond.notify_all(). `end`: when `timeout` is over, where it began before.
        """
        if end is None and timeout is not None:
            end = monotonic() + timeout
        held: list[Still] = []
        try:
            if not self.cond.wait_for(lambda: is_off() or self._is_still(), _left(end)):
                raise TimeoutError(f"the machine does not stand still within {timeout} s: {self._who_moves()}")
            if is_off():
                return False
            stills = [*self.devices, *self.feeds]
            held = self._hold_stills(end, stills)
            if len(held) < len(stills):
                raise TimeoutError(f"the machine does not stand still within {timeout} s: a device is at work")
        except BaseException:
            _release(held)
            raise
        return True

    def leave_hold(self, who: str) -> None:
        """Take back enter_hold(); the world goes on when the last has."""
        try:
            self.release_stills()
        finally:
            self.drop_hold(who)

    def release_stills(self) -> None:
        """Take back what complete_hold() did."""
        _release([*self.devices, *self.feeds])

    def drop_hold(self, who: str) -> None:
        """Take back begin_hold(): the vCPUs go on, save those that are frozen, when the last holder is gone."""
        with self.lock:
            self.holders.remove(who)
            if self.holders:
                return
            for vcpu in self.vcpus:
                if vcpu.state not in NO_THREAD and not vcpu.stopped and vcpu.index not in self.frozen:
                    vcpu.post_locked(Command.RESUME)

    def _is_still(self) -> bool:
        return not any(self.counts[state] for state in MOVING)

    def _who_moves(self) -> str:
        with self.lock:
            return ", ".join(f"vCPU {vcpu.index} is {vcpu.state}" for vcpu in self.vcpus if vcpu.state in MOVING)

    # The end of it all.

    def close(self) -> None:
        """Unplug every vCPU for good, and wait until their threads have ended. Closing again waits for the same."""
        threads = self.close_later()
        # join() alone would not do: a thread that another one is just starting cannot be joined yet.
        self.cond.wait_for(lambda: all(vcpu.thread is not thread for vcpu, thread in threads))
        for _, thread in threads:
            thread.join()

    def close_later(self) -> list[tuple[Vcpu, threading.Thread]]:
        """Unplug every vCPU for good, without waiting; return the threads that are still there."""
        with self.lock:
            self.closed = True
            if self.run.outcome is None:
                self.run.outcome = Outcome("closed")  # for another thread that still waits for the end
            self.running = False
            threads = [(vcpu, vcpu.thread) for vcpu in self.vcpus if vcpu.thread is not None]
            self._post_all_locked(Command.UNPLUG)
            self.cond.notify_all()
        return threads

    # With the lock held.

    def _command_all_locked(self, command: Command) -> list[tuple[Vcpu, int]]:
        """Give a command to every vCPU; return those that have a thread, with the numbers to wait for."""
        tickets = []
        for vcpu in self.vcpus:
            if vcpu.thread is not None:
                tickets.append((vcpu, vcpu.command_locked(command)))
            elif vcpu.state not in NO_THREAD:
                vcpu.stopped = command is Command.PAUSE
        return tickets

    def _post_all_locked(self, command: Command) -> None:
        for vcpu in self.vcpus:
            if vcpu.thread is not None:
                vcpu.post_locked(command)

    def _kick_again(self) -> None:
        """Signal once more those whose kick may have been lost: a program may reset the signal's handler at any
        time.
        """
        for vcpu in self.vcpus:
            vcpu.kick_again_locked()


def _left(end: float | None) -> float | None:
    return None if end is None else max(end - monotonic(), 0)


def _release(stills: Sequence[Still]) -> None:
    for still in reversed(stills):
        still.release()


class Hold:
    """`with machine.paused():`; see there."""

    def __init__(self, control: RunControl, by: str, timeout: float | None) -> None:
        self._control = control
        self._who = f"{threading.current_thread().name}{f' ({by})' if by else ''}"
        self._timeout = timeout

    def __enter__(self) -> None:
        if self._control.is_vcpu_thread():
            raise StateError("paused() would wait for the vCPU whose handler calls it; use it from another thread")
        self._control.enter_hold(self._who, self._timeout)

    def __exit__(self, *exc: object) -> None:
        self._control.leave_hold(self._who)
