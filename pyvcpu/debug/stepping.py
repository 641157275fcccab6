"""One instruction at a time, on the vCPU's thread: KVM_RUN with single step, and what may come in its way."""

from __future__ import annotations

from struct import Struct
from time import sleep

from ..errors import PyvcpuError
from ..kvm.abi import basic as abi
from ..kvm.abi.debug import KVM_GUESTDBG_SINGLESTEP, KVM_SET_GUEST_DEBUG
from ..kvm.abi.layout import EXIT_REASON, EXIT_UNION, IMMEDIATE_EXIT, REASON_KEY_BYTE_RING
from ..vcpu import state
from ..vcpu.execute import EXCP_HLT, refused, serve
from ..vcpu.states import Command, State
from ..x86.segments import EFER_LMA
from .points import NOTHING

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from ..vcpu.core import Cpu
    from .points import Request

# exit_reason, and of struct kvm_debug_exit_arch: exception, pc, dr6.
REASON_AND_DEBUG = Struct(f"<I{EXIT_UNION - EXIT_REASON - 4}xI4xQQ")
DEBUG, KVM_RUN, SET_GUEST_DEBUG = abi.KVM_EXIT_DEBUG, abi.KVM_RUN.number, KVM_SET_GUEST_DEBUG.number
DR6_STEPPED = 1 << 14  # DR6.BS
HLT = b"\xf4"
CR0_PE, USER = 1 << 0, 3
SIPI_LOOK = 0.001  # seconds between looks for a SIPI
MOST_PARTS = 1 << 16  # exits of one instruction: `rep outs` of as many elements


class Stepped:
    """What a step led to: `pc`, the linear address of the next instruction, `dr6`, and `done`: whether it was made.

    It is not where a breakpoint comes first. `why`: to leave cpu_exec for, as it returns it; None to go on. `again`:
    the step is still to be made, from `pc`, and KVM to be told so anew: a SIPI has led the processor there.
    """

    __slots__ = ("again", "done", "dr6", "pc", "why")

    def __init__(
        self, pc: int, *, done: bool = True, dr6: int = DR6_STEPPED, why: str | None = None, again: bool = False
    ) -> None:
        self.again = again
        self.pc = pc
        self.done = done
        self.dr6 = dr6
        self.why = why


def pc_of(cpu: Cpu) -> int:
    """Return the linear address of the vCPU's next instruction. For its thread, outside KVM_RUN."""
    shared = cpu.vcpu._shared
    assert shared is not None
    sregs, rip = shared.view(abi.KVM_SYNC_X86_SREGS), shared.view(abi.KVM_SYNC_X86_REGS).rip
    if sregs.efer & EFER_LMA and sregs.cs.l:
        return int(rip)
    return int(sregs.cs.base + rip) & 0xFFFF_FFFF


def is_user(cpu: Cpu) -> bool:
    """Tell whether the vCPU runs code at CPL 3, which SS.DPL says. For its thread."""
    shared = cpu.vcpu._shared
    assert shared is not None
    sregs = shared.view(abi.KVM_SYNC_X86_SREGS)
    return bool(sregs.cr0 & CR0_PE and sregs.ss.dpl == USER)


def set_control(cpu: Cpu, wanted: Request) -> None:
    """Tell KVM what to stop this vCPU for. Single step begins at rip as it is now, so it is told each time.

    It changes no register, so none is fetched anew, which would take several times as long.
    """
    fd = cpu.fd
    if wanted.data != (fd.debug_control or NOTHING) or wanted.data[0] & KVM_GUESTDBG_SINGLESTEP:
        if fd.shared is not None:
            fd.shared.flush()
        if fd.kernel.ioctl(fd.fd, SET_GUEST_DEBUG, wanted.address) < 0:
            raise fd.refusal(KVM_SET_GUEST_DEBUG.name)
        fd.debug_control = wanted.data


def wait_for_sipi(cpu: Cpu) -> bool:
    """Have a processor that waits for a SIPI not run before it is there; False after a kick.

    Else KVM would take it in KVM_RUN, and go on past the first instruction. KVM_GET_MP_STATE takes it, too.
    """
    while cpu.fd.get_mp_state() in (abi.KVM_MP_STATE_UNINITIALIZED, abi.KVM_MP_STATE_INIT_RECEIVED):
        if cpu.vcpu._kicked:
            return False
        sleep(SIPI_LOOK)
    if cpu.fd.shared is not None:
        cpu.fd.shared.fetch()
    return True


def give_int3_back(cpu: Cpu) -> None:
    """Have the guest take the #BP of an int3 that is its own. KVM knows how long the instruction was (QEMU does so)."""
    from ..kvm.abi.debug import BP_VECTOR
    from ..kvm.abi.events import kvm_vcpu_events

    events = kvm_vcpu_events.from_buffer_copy(state.get(cpu, "vcpu_events"))
    events.exception.injected, events.exception.nr, events.exception.has_error_code = 1, BP_VECTOR, 0
    state.put(cpu, "vcpu_events", bytes(events))


def steps(cpu: Cpu, trail: list[int], most: int) -> Stepped:
    """Make steps, and add to `trail` where each leads, until it has `most` addresses or one is more than a step.

    Return that one, which is not in the trail yet. The last of `trail` is where the vCPU is.
    """
    no_halts: set[int] = set()  # code at these addresses was looked at: what it is changes seldom in one call
    run, fd, request = cpu.run, cpu.fd.fd, cpu.fd.kernel.request
    unpack, add, before, halts = REASON_AND_DEBUG.unpack_from, trail.append, trail[-1], not cpu.has_apic
    cpu.has_run = True
    for _ in range(most - len(trail)):
        try:
            request(fd, KVM_RUN)
        except OSError as error:
            why = refused(cpu, error.errno)
            return Stepped(pc_of(cpu), done=False, again=True) if why is None else _interrupted(cpu, before, why)
        reason, _, pc, dr6 = unpack(run, EXIT_REASON)
        if reason != DEBUG or not dr6 & DR6_STEPPED:
            return step(cpu, before, entered=True)
        if halts and pc == before + 1 and before not in no_halts:
            if _was_halt(cpu, before):
                return step(cpu, before, entered=True)
            no_halts.add(before)
        add(pc)
        before = pc
    return step(cpu, before)


def step(cpu: Cpu, before: int, *, entered: bool = False) -> Stepped:
    """Run one instruction, at linear address `before`; single step is on. Serves the exits that it makes.

    What a handler raises passes through. `why` is EXCP_INTERRUPT after a kick: the step is still to be made then.
    `entered`: its first KVM_RUN has just been made.
    """
    run, fd, request = cpu.run, cpu.fd.fd, cpu.fd.kernel.request
    cpu.has_run = True
    for _ in range(MOST_PARTS):
        try:
            if not entered:
                request(fd, KVM_RUN)
            entered = False
        except OSError as error:
            why = refused(cpu, error.errno)
            return Stepped(pc_of(cpu), done=False, again=True) if why is None else _interrupted(cpu, before, why)
        reason, key, _, first, last = REASON_KEY_BYTE_RING.unpack_from(run, EXIT_REASON)
        if first != last:
            cpu.context.drain(cpu)
        if reason == DEBUG:
            return _debug(cpu, before)
        why = serve(cpu, reason, key)
        if why is not None:
            return Stepped(pc_of(cpu), done=why == EXCP_HLT, why=why)
        finished = _complete(cpu, before)
        if finished is not None:
            return finished
    return Stepped(pc_of(cpu), done=False, again=True)


def _interrupted(cpu: Cpu, before: int, why: str) -> Stepped:
    pc = pc_of(cpu)
    return Stepped(pc, done=pc != before, why=why)


def _debug(cpu: Cpu, before: int) -> Stepped:
    """Take a debug exit; a HLT that was stepped over is made good: a KVM that emulates it may tell the step alone."""
    _, _, pc, dr6 = REASON_AND_DEBUG.unpack_from(cpu.run, EXIT_REASON)
    done = bool(dr6 & DR6_STEPPED) or pc != before
    if done and pc == before + 1 and not cpu.has_apic and _was_halt(cpu, before):
        cpu.vcpu.take_step(Command.HALT)
        return Stepped(pc, dr6=dr6, why=EXCP_HLT)
    return Stepped(pc, done=done, dr6=dr6)


def _was_halt(cpu: Cpu, address: int) -> bool:
    try:
        return cpu.vcpu.memory.read(address, 1) == HLT and cpu.vcpu.state in (State.RUNNING, State.PAUSED)
    except PyvcpuError:
        return False


def _complete(cpu: Cpu, before: int) -> Stepped | None:
    """Have KVM complete the access that was just served; return the step if that was all of the instruction.

    KVM need not tell the step of an instruction that made an exit, as with `out` where it is emulated. So it is given
    no chance to run on: with immediate_exit it completes the access, and says either DEBUG or EINTR.
    """
    run = cpu.run
    run[IMMEDIATE_EXIT] = 1
    try:
        cpu.fd.kernel.request(cpu.fd.fd, KVM_RUN)
    except OSError:
        pc = pc_of(cpu)
        return Stepped(pc) if pc != before else None
    else:
        reason, key, _, _, _ = REASON_KEY_BYTE_RING.unpack_from(run, EXIT_REASON)
        if reason == DEBUG:
            return _debug(cpu, before)
        why = serve(cpu, reason, key)  # the next part of a large access
        return None if why is None else Stepped(pc_of(cpu), done=why == EXCP_HLT, why=why)
    finally:
        with cpu.control.lock:
            run[IMMEDIATE_EXIT] = cpu.vcpu._kicked
