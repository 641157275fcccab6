"""Debugger: what stops the vCPUs of one machine, and who is told.

QEMU: cpu_handle_guest_debug and the breakpoints of accel/kvm. The context of the vCPUs has one from the moment on at
which anything is to be debugged; the run loop asks it at a debug exit, at a crash, and each time that it is entered.
"""

from __future__ import annotations

import threading
from functools import partial

from ..errors import PyvcpuError, StateError
from ..kvm.abi.debug import BP_VECTOR
from ..kvm.abi.layout import EXIT_REASON, IMMEDIATE_EXIT
from ..vcpu import State, current_cpu
from ..vcpu.execute import EXCP_DEBUG, EXCP_HLT, EXCP_INTERRUPT, inject
from ..vcpu.handle import Work
from ..vcpu.states import Command
from .methods import EXECUTE, WRITE, Methods, methods
from .points import COMPARE, INT3, REGISTER, SOFTWARE, Breakpoint, DebugError, Points, Site, rule_of, single
from .stepping import (
    DR6_STEPPED,
    REASON_AND_DEBUG,
    Stepped,
    give_int3_back,
    is_user,
    pc_of,
    set_control,
    step,
    steps,
    wait_for_sipi,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from ..exits import ExitEvent
    from ..vcpu import Vcpu
    from ..vcpu.context import KvmContext
    from ..vcpu.core import Cpu
    from ..vcpu.handle import Control
    from ..vcpu.virtual import VirtualMemory
    from .points import Handler, Request

    class Client(Protocol):
        """Whoever is told when a vCPU stops: a debugger's target, a prompt. Its methods run on the vCPU's thread."""

        def stopped(self, index: int, stop: Hit) -> bool:
            """Have the world stand still because of this; False: nobody listens."""

        def crashed(self, cpu: Cpu, event: ExitEvent, report: str) -> bool:
            """The same for an exit that nobody can go on from; False: end the run."""


TRACE_PART = 4096  # steps in turn without a look at what other threads want of the vCPU


class Hit:
    """Why a vCPU stops: at a breakpoint (`point`), or because the one step that it was to make is done (None)."""

    __slots__ = ("pc", "point")

    def __init__(self, pc: int, point: Breakpoint | None = None) -> None:
        self.pc = pc
        self.point = point


class CpuDebug:
    """What is being debugged of one vCPU; for its thread, or for others while it stands still.

    `stepping`: it is to stop after one instruction. `over`: the address of a breakpoint that it has stopped at and is
    to leave by one instruction. `before`: where the last instruction began. `copies`: what watched memory held.
    `hit`: why it stops. `single`: KVM was told to step it. `in_handler`: a handler of a breakpoint is being called.
    """

    __slots__ = ("before", "copies", "hit", "in_handler", "over", "single", "stepping")

    def __init__(self) -> None:
        self.stepping = False
        self.over: int | None = None
        self.before = 0
        self.copies: dict[Site, bytes] = {}
        self.hit: Hit | None = None
        self.single = False
        self.in_handler = False


class Debugger:
    """The breakpoints of a machine and the steps of its vCPUs.

    Any thread may set and remove breakpoints, also handlers; the rest says whose it is. `clients` are told of stops,
    until one says that it has taken it; where none does, a stop ends the run with the outcome "debug".
    """

    def __init__(self, control: Control, context: KvmContext, cpus: Sequence[Cpu]) -> None:
        self._control = control
        self._context = context
        self._cpus = cpus
        self._states = [CpuDebug() for _ in cpus]
        self._lock = threading.Lock()  # the points
        self.methods: Methods = methods(context.kvm)
        self.points = Points(self.methods)
        self.clients: list[Client] = []

    # Breakpoints. Any thread.

    def break_at(self, address: int, handler: Handler | None = None) -> Breakpoint:
        """Set a breakpoint; see Machine.break_at()."""
        return self.add(Breakpoint(EXECUTE, address, 1, handler))

    def watch(self, address: int, size: int, kinds: str, handler: Handler | None = None) -> Breakpoint:
        """Set a watchpoint; see Machine.watch()."""
        if size < 1:
            raise ValueError(f"a watchpoint has a size of at least 1 byte, not {size}")
        return self.add(Breakpoint(rule_of(kinds), address, size, handler))

    def add(self, point: Breakpoint) -> Breakpoint:
        """Set `point`, on all vCPUs; raise DebugError where nothing works."""
        if not 0 <= point.address < 1 << 64:
            raise ValueError(f"an address has 64 bits, not {point.address:#x}")
        with self._lock:
            # Whoever goes on from an int3 takes it away for a step; other vCPUs would miss it.
            site = self.points.add(point, software=point.owner is not None or len(self._cpus) == 1)
            if site.method == SOFTWARE and not site.original:
                self._patch(site)
        point._remove = self.remove
        if point.method not in ("debug register", SOFTWARE) and point.owner is None:
            what = "breakpoint" if point.rule == EXECUTE else "watchpoint"
            self._context.warn(f"the {what} at {point.address:#x} works by {point.method}")
        self._apply_everywhere()
        return point

    def remove(self, point: Breakpoint) -> None:
        """Remove `point`."""
        with self._lock:
            site = self.points.discard(point)
            if site is not None and site.original:
                self._memory_of_any().write(site.address, site.original)
        self._apply_everywhere()

    def _patch(self, site: Site) -> None:
        memory = self._memory_of_any()
        try:
            original = memory.read(site.address, 1)
            memory.write(site.address, INT3)
        except PyvcpuError:
            self.points.discard(site.users[0])
            raise
        site.original = original

    def method_of(self, point: Breakpoint) -> str:
        """Return how a breakpoint works, with what it does not reach on this host."""
        words = point.method
        if point.method == REGISTER and not self.methods.user_execute and self.methods.execute:
            words += ", which does not stop code at CPL 3 on this host"
        return words

    def describe(self, address: int) -> str:
        """Return an address with the symbol that it is in."""
        symbols = self._context.symbols()
        name = symbols.describe(address) if symbols is not None else ""
        return f"{address:#x} ({name})" if name else f"{address:#x}"

    def without_patches(self, address: int, data: bytes) -> bytes:
        """Return memory at `address` as it is without int3 in it."""
        with self._lock:
            patched = [site for site in self.points.software if 0 <= site.address - address < len(data)]
        if not patched:
            return data
        seen = bytearray(data)
        for site in patched:
            seen[site.address - address : site.address - address + 1] = site.original
        return bytes(seen)

    def write_under_patches(self, memory: VirtualMemory, address: int, data: bytes) -> None:
        """Write memory; each int3 stays, and what it hides is what was written."""
        with self._lock:
            patched = [site for site in self.points.software if 0 <= site.address - address < len(data)]
            put = bytearray(data)
            for site in patched:
                put[site.address - address] = INT3[0]
            memory.write(address, bytes(put))
            for site in patched:
                site.original = data[site.address - address :][:1]

    def _memory_of_any(self) -> Any:
        return next(cpu.vcpu for cpu in self._cpus if cpu.vcpu.created).memory

    def _apply_everywhere(self) -> None:
        """Let every vCPU know, before it runs any further; wait for that, unless this is a handler."""
        works, here = [], current_cpu()
        with self._control.lock:
            for cpu in self._cpus:
                vcpu = cpu.vcpu
                if vcpu is here or not vcpu.created or vcpu.state in (State.LEAVING, State.UNPLUGGED):
                    continue
                work = Work(lambda vcpu: self.apply(self._cpus[vcpu.index]))
                vcpu.post_locked(work)
                works.append(work)
        if here is not None and here.control is self._control:
            self.apply(self._cpus[here.index])
            return
        self._control.cond.wait_for(lambda: all(work.done for work in works))
        for work in works:
            if work.error is not None and not isinstance(work.error, StateError):
                raise work.error

    # The vCPU's thread, or a debugger's while it stands still and through run_on_cpu().

    def state(self, index: int) -> CpuDebug:
        """Return what is being debugged of a vCPU."""
        return self._states[index]

    def is_single(self, index: int) -> bool:
        """Whether the vCPU runs by single steps."""
        state = self._states[index]
        return state.stepping or state.over is not None or bool(self.points.compare)

    def control(self, cpu: Cpu) -> bytes:
        """Return the struct kvm_guest_debug that the vCPU is to have; on its thread."""
        return self._wanted(self._states[cpu.index]).data

    def _wanted(self, state: CpuDebug) -> Request:
        with self._lock:
            stepping = state.stepping or state.over is not None or bool(self.points.compare)
            return self.points.control(stepping, state.over, state.stepping and self.methods.block_irq)

    def apply(self, cpu: Cpu) -> None:
        """Tell KVM; on the vCPU's thread."""
        state = self._states[cpu.index]
        state.single = self.is_single(cpu.index)
        set_control(cpu, self._wanted(state))
        for site in self.points.compare:
            if site.rule == WRITE and site not in state.copies:
                state.copies[site] = _watched(cpu, site)

    def cpu_exec(self, cpu: Cpu, loop: Callable[[], str]) -> str:
        """Run the vCPU: by single steps as long as they are needed, then with `loop`, which is the run loop."""
        if self._states[cpu.index].single or self.is_single(cpu.index):
            why = self._steps(cpu)
            if why is not None:
                return why
        return loop()

    def debug_exit(self, cpu: Cpu) -> str | None:
        """Take a debug exit in the run loop: call the handlers. Return why to leave cpu_exec, None to go on."""
        _, _, pc, dr6 = REASON_AND_DEBUG.unpack_from(cpu.run, EXIT_REASON)
        done = self._states[cpu.index].single and bool(dr6 & DR6_STEPPED)  # a handler has just turned it on
        why = self._arrived(cpu, Stepped(pc, done=done, dr6=dr6))
        if why is None and self.is_single(cpu.index):
            return self._steps(cpu, self._states[cpu.index].over)
        return why

    def _steps(self, cpu: Cpu, pc: int | None = None) -> str | None:
        """Step until no single step is needed any more; return why to leave cpu_exec, None to go on at full speed.

        `pc`: where the vCPU is, if that is known.
        """
        state = self._states[cpu.index]
        if cpu.vcpu._interrupts:
            inject(cpu)
        if cpu.vcpu.start is None and cpu.has_apic and not wait_for_sipi(cpu):
            return EXCP_INTERRUPT
        self.apply(cpu)
        while self.is_single(cpu.index):
            state.before = pc_of(cpu) if pc is None else pc
            pc = None
            if self._stands_at_site(state):
                why = self._arrived(cpu, Stepped(state.before, done=False, dr6=0))
                if why is not None:
                    return why
                continue  # the handler may have led it elsewhere
            made = self._step_from(cpu, state)
            if made.again:
                self.apply(cpu)
                continue
            why = self._arrived(cpu, made) if made.done or made.why is None else None
            if why == EXCP_DEBUG or made.why is None:
                if why is not None:
                    return why
                continue
            return made.why
        return None

    def _stands_at_site(self, state: CpuDebug) -> bool:
        """Tell whether the next instruction is at a breakpoint that is stepped to, and that was not reached by a step.

        The vCPU stood there when it was set, or was led there.
        """
        site = self.points.at.get(state.before)
        return site is not None and site.method == COMPARE and state.over != state.before

    def _step_from(self, cpu: Cpu, state: CpuDebug) -> Stepped:
        """Make a step; the instruction is the guest's own, also where an int3 stands for it."""
        site = self.points.at.get(state.before)
        if site is None or not site.original:
            return step(cpu, state.before)
        memory = cpu.vcpu.memory
        memory.write(site.address, site.original)
        try:
            return step(cpu, state.before)
        finally:
            if site.users:
                memory.write(site.address, INT3)

    def _arrived(self, cpu: Cpu, made: Stepped) -> str | None:
        """Look at what a vCPU has come to; call the handlers. EXCP_DEBUG: it is to stop; None: it goes on."""
        state = self._states[cpu.index]
        stepped, left = state.stepping and made.done, state.over is not None and made.done
        if made.done:
            state.over = None
        # Behind a HLT it has not reached the next instruction: that comes when it is woken.
        sites = [] if made.why == EXCP_HLT else self._reached(cpu, made, stepped)
        stop: Breakpoint | None = None
        state.in_handler = True
        try:
            for site in sites:
                for point in site.users:
                    point.hits += 1
                    handler = point.handler
                    if handler is None or handler(cpu.vcpu) is False:
                        stop = stop or point
        finally:
            state.in_handler = False
            pc = pc_of(cpu) if sites else made.pc
            if sites and pc == made.pc and any(site.rule == EXECUTE for site in sites):
                state.over = pc
            state.stepping &= not (stepped or stop)
            if left or stepped or (sites and state.single):  # else _steps() does it
                self.apply(cpu)
        if stop is None and not stepped:
            return None if sites or made.done else self._unknown(cpu, made)
        state.hit = Hit(pc, stop)
        return EXCP_DEBUG

    def _unknown(self, cpu: Cpu, made: Stepped) -> str | None:
        """Take a debug exit that nobody asked for: of a breakpoint that is gone meanwhile, an int3 of the guest's own,
        which it gets back, or one of what the user has set with requests of his own.
        """
        if made.dr6 & 0xF or made.why is not None:
            return None
        _, exception, _, _ = REASON_AND_DEBUG.unpack_from(cpu.run, EXIT_REASON)
        if exception == BP_VECTOR and self.points.software:
            give_int3_back(cpu)
            return None
        self._states[cpu.index].hit = Hit(made.pc)
        return EXCP_DEBUG

    def _reached(self, cpu: Cpu, made: Stepped, stepped: bool) -> list[Site]:
        state, points = self._states[cpu.index], self.points
        with self._lock:
            site = points.at.get(made.pc)
            # A vCPU that stops after its step is told of a breakpoint of KVM's there when it goes on.
            found = [site] if site is not None and state.over != made.pc and not (stepped and site.slots) else []
            if made.dr6 & 0xF:
                for slot, other in points.by_slot.items():
                    if other.rule != EXECUTE and made.dr6 >> slot & 1 and other not in found:
                        found.append(other)
            if not points.compare:
                return found
            compared = [site for site in points.compare if site.rule == WRITE]
        for site in compared if made.done else ():
            before, now = state.copies.get(site), _watched(cpu, site)
            state.copies[site] = now
            if before is not None and before != now:
                found.append(site)
        return found

    def handle_guest_debug(self, cpu: Cpu) -> bool:
        """Stop the machine because of what debug_exit() said; False where nobody is to be told of it."""
        state = self._states[cpu.index]
        hit, state.hit = state.hit, None
        return hit is not None and any(client.stopped(cpu.index, hit) for client in self.clients)

    def crashed(self, cpu: Cpu, event: ExitEvent, report: str) -> bool:
        """Let a debugger have a look at a crash before it ends the run; False where there is none."""
        return any(client.crashed(cpu, event, report) for client in self.clients)

    def created(self, cpu: Cpu) -> None:
        """Let a vCPU that begins a life have the breakpoints; on its thread."""
        self._states[cpu.index] = CpuDebug()
        self.apply(cpu)

    # Steps for programs.

    def step(self, vcpu: Vcpu) -> int:
        """Run one instruction of a vCPU that stands still; see Vcpu.step()."""
        return self.trace(vcpu, 1)[-1]

    def trace(self, vcpu: Vcpu, limit: int) -> list[int]:
        """Run up to `limit` instructions; return the address of each, and at last where the vCPU is then."""
        if current_cpu() is not None and current_cpu() is not vcpu:
            raise StateError("a handler can step its own vCPU only")
        # A single step is of the code that runs, a trace of all that the processor does.
        control = single(block_irq=limit == 1 and self.methods.block_irq)
        trail: list[int] = []
        while True:
            part = min(limit - len(trail), TRACE_PART)
            more = vcpu.run_on_cpu(partial(self._trace_here, part, control))
            trail += more[:-1]
            if len(more) <= part or len(trail) >= limit:
                return [*trail, more[-1]]

    def _trace_here(self, most: int, control: Request, vcpu: Vcpu) -> list[int]:
        """Make up to `most` steps on the vCPU's thread; return the way, one address more than steps were made."""
        cpu, state = self._cpus[vcpu.index], self._states[vcpu.index]
        if vcpu.state is not State.PAUSED and not state.in_handler:
            raise StateError(f"vCPU {cpu.index} is {vcpu.state}: only one that stands still can be stepped")
        self.check_steps(cpu)
        trail = [pc_of(cpu)]
        try:
            set_control(cpu, control)
            while len(trail) <= most:
                made = steps(cpu, trail, most)
                if made.done:
                    trail.append(made.pc)
                    state.over = None
                if made.again:
                    trail[-1] = made.pc
                if made.again or (made.why == EXCP_INTERRUPT and not self._look_at_kick(cpu)):
                    set_control(cpu, control)
                    continue
                if made.why is not None or not made.done:
                    break
        finally:
            self.apply(cpu)
        return trail

    def check_steps(self, cpu: Cpu) -> None:
        """Raise DebugError where a step would not be reported, and the guest would run on; on the vCPU's thread."""
        if self.methods.user_step:
            return
        if not self.methods.step:
            raise DebugError("this host's KVM reports no single steps")
        if is_user(cpu):
            raise DebugError("this host's KVM reports no single steps of code at CPL 3")

    def _look_at_kick(self, cpu: Cpu) -> bool:
        """Take back a kick that came during a trace; True where it is for a command, which ends the trace."""
        vcpu = cpu.vcpu
        with self._control.lock:
            if any(isinstance(item, Command) for item in vcpu._inbox) or self._control.closed:
                return True
            vcpu._kicked = False
            cpu.run[IMMEDIATE_EXIT] = 0
            return False


def _watched(cpu: Cpu, site: Site) -> bytes:
    return bytes(cpu.vcpu.memory.read_some(site.address, site.length))
