"""MachineTarget: a Machine as gdb/target.py wants to see one.

While a debugger has the machine stopped, it holds the world still as `with machine.paused():` does. So a run() and its
timeout go on, and others may hold it, too. A vCPU that reaches a breakpoint begins the hold itself, which stops all; a
thread of this object's waits until all stand still, and says so.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue

from ..errors import PyvcpuError, StateError
from ..exits import InternalFailure, describe
from ..gdb import target as gdb
from ..gdb.target import Stop, TargetError
from ..kvm.errors import KvmError
from ..memory import GuestMemoryError
from ..vcpu.states import NO_THREAD
from ..vcpu.virtual import VirtualMemory
from ..x86.walk import Paging
from . import monitor, registers
from .methods import ACCESS, EXECUTE, WRITE
from .points import Breakpoint, DebugError
from .stepping import pc_of

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeVar

    from ..exits import ExitEvent
    from ..gdb.target import Registers
    from ..machine import Machine
    from ..machine.outcome import Outcome
    from ..vcpu import Vcpu
    from ..vcpu.core import Cpu
    from .debugger import Hit

    T = TypeVar("T")

WHO = "debugger"
RUNNING, STOPPING, STOPPED, ENDED = "running", "stopping", "stopped", "ended"
RULES = {gdb.SOFTWARE: EXECUTE, gdb.HARDWARE: EXECUTE, gdb.WRITE: WRITE, gdb.READ: ACCESS, gdb.ACCESS: ACCESS}
SIGILL, SIGSEGV = 4, 11
CLOSE, STILL, END, BEGIN = "close", "still", "end", "begin"


class Mark:
    """The owner of a debugger's breakpoint: its kind as the debugger knows it."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind


class MachineTarget:
    """A machine that is being debugged. Starts the machine if need be; with `wait` it stands still from then on.

    `reboots`: an end by "reset" is none: whoever runs the machine boots it again. close() lets go of the machine.

    `_lock` guards the state. It is taken before the machine's lock, and never with that held: what is called with it
    (the end of a run) only leaves a note for the thread.
    """

    def __init__(self, machine: Machine, *, wait: bool = False, reboots: bool = False) -> None:
        self._machine = machine
        self._control = machine.control
        self._reboots = reboots
        machine.start()
        self._debugger = machine.debugger
        self._lock = threading.RLock()
        self._state = RUNNING
        self._hold: object = None  # the token of the hold that is beginning, or there
        self._stop = Stop(gdb.PAUSED)
        self._on_stop: Callable[[Stop], None] | None = None
        self._points: dict[tuple[str, int, int], Breakpoint] = {}
        self._unreported: dict[int, Stop] = {}  # of vCPUs that stopped while another was already the first to
        self._crash: Callable[[], None] | None = None  # ends the run that a debugger looks at the wreck of
        self._paging: dict[int, Paging] = {}
        self._notes: SimpleQueue[tuple[str, object]] = SimpleQueue()
        self._control.on_end.append(self._note_end)
        self._control.on_resume.append(self._note_begin)
        self._debugger.clients.append(self)
        self._thread = threading.Thread(target=self._work, name="debug", daemon=True)
        self._thread.start()
        if wait:
            self._halt(Stop(gdb.PAUSED, self._first()))

    def close(self, outcome: Outcome | None = None) -> None:
        """Let go of the machine, which runs on if it was to. Closing again does nothing.

        `outcome`: how it ended, for a debugger that was not told because nothing in the machine ended it, as with a
        timeout.
        """
        if self not in self._debugger.clients:
            return
        self._debugger.clients.remove(self)
        self._control.on_end.remove(self._note_end)
        self._control.on_resume.remove(self._note_begin)
        self._notes.put((CLOSE, None))
        with self._lock:
            if self._state == STOPPING:
                self._let_go()
        self._thread.join()  # an end that was noted before is told first
        if outcome is not None:
            self._tell_end(outcome)
        self.detach(run=True)

    # How it comes to stand still.

    def stopped(self, index: int, hit: Hit) -> bool:
        """Stop all vCPUs because one has; on its thread."""
        if hit.point is None:
            stop = Stop(gdb.STEPPED, index)
        elif isinstance(hit.point.owner, Mark):
            kind = hit.point.owner.kind
            reason = gdb.BREAKPOINT if hit.point.rule == EXECUTE else gdb.WATCHPOINT
            stop = Stop(reason, index, kind=kind, address=hit.point.address)
        else:
            where = self._debugger.describe(hit.point.address)
            stop = Stop(gdb.SIGNAL, index, text=f"a handler of the program's stops the machine at {where}")
        with self._lock:
            if self._on_stop is None and (hit.point is None or isinstance(hit.point.owner, Mark)):
                return self._state != ENDED  # of a debugger that has left meanwhile: go on
            if self._on_stop is None:
                return False
            if not self._halt(stop) and self._state in (STOPPING, STOPPED):
                self._unreported[index] = stop
            return True

    def crashed(self, cpu: Cpu, event: ExitEvent, report: str) -> bool:
        """Stop all vCPUs at an exit that nobody can go on from; on the vCPU's thread."""
        with self._lock:
            if self._on_stop is None:
                return False
            number = SIGILL if isinstance(event, InternalFailure) else SIGSEGV
            text = f"vCPU {cpu.index} crashed: {describe(event)}"
            vcpu = cpu.vcpu
            self._crash = lambda: self._control.finish("crashed", vcpu=vcpu, exit=event, report=report)
            stop = Stop(gdb.SIGNAL, cpu.index, signal=number, text=text)
            if not self._halt(stop):
                self._unreported[cpu.index] = stop
            return True

    def _halt(self, stop: Stop) -> bool:
        """Begin to hold the world because of `stop`, unless that is under way for another reason."""
        with self._lock:
            if self._state != RUNNING:
                return False
            try:
                self._control.begin_hold(WHO)
            except StateError:  # it is being closed
                return False
            self._state, self._stop, self._hold = STOPPING, stop, object()
            self._notes.put((STILL, self._hold))
            return True

    def _let_go(self) -> None:
        """End the hold, with the lock held."""
        state, self._state, self._hold = self._state, RUNNING, None
        self._paging.clear()
        if state == STOPPED:
            self._control.leave_hold(WHO)
        elif state == STOPPING:
            self._control.drop_hold(WHO)
            with self._control.lock:
                self._control.cond.notify_all()
        elif state == ENDED:
            self._state = ENDED

    def _note_end(self, outcome: Outcome) -> None:
        if not (self._reboots and outcome.reason == "reset"):
            self._notes.put((END, outcome))

    def _note_begin(self) -> None:
        self._notes.put((BEGIN, None))

    def _work(self) -> None:
        """The thread: wait until the world stands still, and tell; tell of the machine's end."""
        from ..posix import signal

        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        while True:
            what, about = self._notes.get()
            if what == CLOSE:
                return
            if what == STILL:
                self._wait_still(about)
            elif what == END:
                self._tell_end(about)
            else:
                with self._lock:
                    if self._state == ENDED and self._control.current().outcome is None:
                        self._state = RUNNING

    def _wait_still(self, token: object) -> None:
        try:
            if not self._control.complete_hold(None, lambda: self._hold is not token):
                return
        except PyvcpuError:
            return
        with self._lock:
            if self._hold is not token:
                self._control.release_stills()
                return
            self._state = STOPPED
            self._tell(self._stop)

    def _tell_end(self, outcome: object) -> None:
        with self._lock:
            if self._state == ENDED:
                return
            self._control.frozen = frozenset()
            self._let_go()
            self._state = ENDED
            self._tell(self._end_of(outcome))

    def _end_of(self, outcome: object) -> Stop:
        vcpu, status = getattr(outcome, "vcpu", None), getattr(outcome, "status", 0)
        text = f"the machine has ended: {getattr(outcome, 'reason', 'closed')}"
        return Stop(gdb.EXITED, self._first() if vcpu is None else vcpu.index, status=status, text=text)

    def _tell(self, stop: Stop) -> None:
        if self._on_stop is not None:
            self._on_stop(stop)

    def _first(self) -> int:
        return next((vcpu.index for vcpu in self._machine.vcpus if vcpu.state not in NO_THREAD), 0)

    # What a debugger asks for (gdb/target.py).

    @property
    def running(self) -> bool:
        """Whether the machine runs."""
        return self._state == RUNNING

    def attach(self, on_stop: Callable[[Stop], None]) -> None:
        """Begin to debug; see Target."""
        with self._lock:
            self._on_stop = on_stop
            if self._state == STOPPED:
                on_stop(Stop(gdb.PAUSED, self._first()))
            elif self._state == ENDED:
                on_stop(self._end_of(self._control.current().outcome))
            else:
                self._halt(Stop(gdb.PAUSED, self._first()))

    def detach(self, run: bool) -> None:
        """End what attach() began; see Target."""
        with self._lock:
            self._on_stop = None
            points, self._points = self._points, {}
            self._unreported.clear()
        for point in points.values():
            point.remove()
        for vcpu in self._plugged():
            self._debugger.state(vcpu.index).stepping = False
        with self._lock:
            self._control.frozen = frozenset()
            crash, self._crash = self._crash, None
            if crash is not None:
                crash()
            elif run and self._state != ENDED:
                self._let_go()
                self._control.resume()
            elif not run:
                self._halt(Stop(gdb.PAUSED, self._first()))

    def vcpus(self) -> Sequence[gdb.VcpuInfo]:
        """List the vCPUs that are plugged."""
        return [gdb.VcpuInfo(vcpu.index, f"CPU {vcpu.index}/KVM", str(vcpu.state)) for vcpu in self._plugged()]

    def _plugged(self) -> list[Vcpu]:
        return [vcpu for vcpu in self._machine.vcpus if vcpu.state not in NO_THREAD]

    def resume(self, actions: Mapping[int, str]) -> None:
        """Run vCPUs; see Target."""
        with self._lock:
            self._standing()
            stop = self._at_once(actions)
            if stop is not None:
                self._stop = stop
                self._tell(stop)
                return
            if self._crash is not None:
                crash, self._crash = self._crash, None
                crash()  # the end comes as a note
                return
            everybody = {vcpu.index for vcpu in self._plugged()}
            for index, action in actions.items():
                if action == gdb.STEP and index in everybody:
                    self._on_cpu(index, self._debugger.check_steps)
            for index, action in actions.items():
                if index in everybody:
                    self._debugger.state(index).stepping = action == gdb.STEP
            self._control.frozen = frozenset(everybody - actions.keys())
            self._let_go()
        if not self._control.running:
            self._control.resume()

    def _at_once(self, actions: Mapping[int, str]) -> Stop | None:
        """Return why a vCPU that is to run stops before it does: what it was not asked for yet, or a breakpoint."""
        unreported, self._unreported = self._unreported, {}
        places = {key[1]: point for key, point in self._points.items() if point.rule == EXECUTE}
        for index, action in actions.items():
            before = unreported.pop(index, None)
            if before is not None and (
                before.reason in (gdb.SIGNAL, gdb.WATCHPOINT) or (before.reason == gdb.STEPPED and action == gdb.STEP)
            ):
                self._unreported = unreported
                return before
            if places:
                at = self._on_cpu(index, pc_of)
                if at in places:
                    self._unreported = unreported
                    mark = places[at].owner
                    kind = mark.kind if isinstance(mark, Mark) else gdb.SOFTWARE
                    return Stop(gdb.BREAKPOINT, index, kind=kind, address=at)
        return None

    def interrupt(self) -> None:
        """Ask a machine that runs to stand still."""
        self._halt(Stop(gdb.PAUSED, self._first()))

    def _standing(self) -> None:
        if self._state == ENDED:
            raise TargetError("the machine has ended")
        if self._state != STOPPED:
            raise TargetError("the machine runs")

    def _on_cpu(self, vcpu: int, function: Callable[[Cpu], T]) -> T:
        self._standing()
        if not 0 <= vcpu < len(self._machine.vcpus):
            raise TargetError(f"there is no vCPU {vcpu}")
        cpu = self._machine._threads[vcpu]
        try:
            return self._machine.vcpus[vcpu].run_on_cpu(lambda _: function(cpu))
        except (KvmError, ValueError, StateError, DebugError) as error:
            raise TargetError(str(error)) from None

    def read_registers(self, vcpu: int) -> Registers:
        """Return all registers of a vCPU."""
        return self._on_cpu(vcpu, registers.read)

    def write_registers(self, vcpu: int, values: Mapping[str, int]) -> None:
        """Change registers of a vCPU, all or none."""
        self._paging.pop(vcpu, None)
        self._on_cpu(vcpu, lambda cpu: registers.write(cpu, values))

    def read_memory(self, vcpu: int, address: int, length: int) -> bytes:
        """Read by linear address."""
        data = self._debugger.without_patches(address, self._virtual(vcpu).read_some(address, length))
        if not data and length:
            raise TargetError(self._why_not(vcpu, address))
        return data

    def write_memory(self, vcpu: int, address: int, data: bytes) -> None:
        """Write by linear address."""
        try:
            self._debugger.write_under_patches(self._virtual(vcpu), address, data)
        except PyvcpuError as error:
            raise TargetError(str(error)) from None

    def _why_not(self, vcpu: int, address: int) -> str:
        found = self._virtual(vcpu).walk(address)
        return found.fault or f"physical {found.physical:#x} is not RAM"

    def _virtual(self, vcpu: int) -> VirtualMemory:
        self._standing()
        paging = self._paging.get(vcpu)
        if paging is None:
            sregs = self._on_cpu(vcpu, lambda cpu: cpu.vcpu.sregs.copy())
            paging = self._paging[vcpu] = Paging(sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer)
        return VirtualMemory(self._machine.memory, lambda: paging)

    def read_physical(self, address: int, length: int) -> bytes:
        """Read by physical address."""
        for start, end, _ in self._machine.memory.ranges:
            if start <= address < end:
                return self._machine.memory.read(address, min(length, end - address))
        raise TargetError(f"physical {address:#x} is not RAM")

    def write_physical(self, address: int, data: bytes) -> None:
        """Write by physical address."""
        try:
            self._machine.memory.write(address, data)
        except GuestMemoryError as error:
            raise TargetError(str(error)) from None

    def memory_map(self) -> Sequence[gdb.Region]:
        """List RAM."""
        return [gdb.Region(start, end) for start, end, _ in self._machine.memory.ranges]

    def insert(self, kind: str, address: int, length: int) -> str:
        """Set a breakpoint; see Target."""
        self._standing()
        rule = RULES[kind]
        point = Breakpoint(rule, address, 1 if rule == EXECUTE else length, owner=Mark(kind))
        try:
            self._debugger.add(point)
        except (PyvcpuError, ValueError) as error:
            raise TargetError(str(error)) from None
        self._points[kind, address, length] = point
        return self._debugger.method_of(point)

    def remove(self, kind: str, address: int, length: int) -> None:
        """Remove a breakpoint."""
        point = self._points.pop((kind, address, length), None)
        if point is not None:
            point.remove()

    def reset(self) -> None:
        """Reset the machine, which stands still."""
        self._standing()
        self._crash = None
        self._paging.clear()
        self._unreported.clear()
        try:
            self._machine.reset()
        except (PyvcpuError, TimeoutError) as error:
            raise TargetError(str(error)) from None

    def kill(self) -> None:
        """End the machine, with the status of a stop()."""
        self._crash = None
        self._control.finish("stopped")

    def monitor(self, vcpu: int, words: Sequence[str]) -> str:
        """Do one of the machine's own commands."""
        return monitor.run(self._machine, vcpu, words)
