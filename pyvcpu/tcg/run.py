"""KVM_RUN: finish what user space has answered, run the processor, and write down why it came back.

The offsets are those of struct kvm_run (linux/kvm.h); Documentation/virt/kvm/api.rst, section 5.
"""

from __future__ import annotations

import errno
import os
from struct import Struct
from threading import get_ident

from . import state
from .clock import NEVER
from .contract import EXIT_ATTENTION
from .exits import EXIT_REASON, EXITS, IMMEDIATE_EXIT, INTR, LONG, READY, REQUEST_WINDOW, UNKNOWN, WORD, shutdown
from .signals import drain

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .rings import Ring
    from .vcpu import Vcpu

# Signals and timers are looked at every so many instructions: as many as take about SHORT to LONG_TURN ns.
SHORT_TURN, LONG_TURN = 400_000, 1_600_000
LEAST, MOST = 500, 50_000
VALID_REGS, SYNC = 288, 304
HEAD = Struct("<BBHQQ")  # from READY: ready_for_interrupt_injection, if_flag, flags, cr8, apic_base
MASKS = Struct("<QQ")  # kvm_valid_regs, kvm_dirty_regs
REGS, SREGS, EVENTS = 1, 2, 4
SREGS_AT = SYNC + state.REGS.size
EVENTS_AT = SREGS_AT + state.SREGS.size
RUNNABLE, UNINITIALIZED, INIT_RECEIVED, HALTED = range(4)
IF = 1 << 9
DIRTY_RING_FULL = 31


def kvm_run(vcpu: Vcpu, argument: int) -> int:
    """Serve KVM_RUN; returns 0 where the page tells of an exit. Raises OSError EINTR, EAGAIN, EINVAL, EFAULT."""
    if argument:
        raise OSError(errno.EINVAL, "KVM_RUN takes nothing")
    with vcpu.mutex:
        vcpu.thread = get_ident()
        signals = vcpu.signals
        signals.enter()
        try:
            if vcpu.ring is None:
                return _run(vcpu)
            return _run_with_ring(vcpu, vcpu.ring)
        finally:
            signals.leave()


def _run_with_ring(vcpu: Vcpu, ring: Ring) -> int:
    """Run a vCPU whose written pages go into a ring; a ring that is nearly full is to be emptied first."""
    rings = vcpu.vm.memory.rings
    assert rings is not None
    rings.by_thread[vcpu.thread] = ring
    try:
        return _run(vcpu)
    finally:
        del rings.by_thread[vcpu.thread]


def _run(vcpu: Vcpu) -> int:
    page = vcpu.page
    vcpu.has_run = True
    page[14:16] = b"\0\0"
    try:
        if vcpu.mp_state == UNINITIALIZED:
            return _wait_for_init(vcpu)
        valid, dirty = MASKS.unpack_from(page, VALID_REGS)
        if (valid | dirty) & ~7:
            raise OSError(errno.EINVAL, "kvm_valid_regs")
        if dirty:
            _take_synced(vcpu, dirty)
        if vcpu.lapic is None:
            (cr8,) = LONG.unpack_from(page, 16)
            if cr8 > 15:
                raise OSError(errno.EINVAL, "cr8")
            vcpu.cr8 = cr8
        completion = vcpu.completion
        if completion is not None:
            vcpu.completion = None
            if not completion(vcpu):
                return 0
        if vcpu.was_kicked:
            vcpu.was_kicked = False
            vcpu.vm.clock.give_way()  # whoever kicked has got his answer, and should be able to look at it
        if page[IMMEDIATE_EXIT]:
            raise OSError(errno.EINTR, "immediate_exit")
        _loop(vcpu)
        vcpu.exits += 1
        return 0
    except OSError:
        vcpu.was_kicked = True
        raise
    finally:
        _save(vcpu)


def _wait_for_init(vcpu: Vcpu) -> int:
    """Wait until INIT or a signal comes; KVM_RUN then gives EAGAIN, to be called again."""
    if vcpu.page[IMMEDIATE_EXIT]:
        raise OSError(errno.EINTR, "immediate_exit")
    interrupted = _block(vcpu)
    with vcpu.vm.irqs.lock:
        vcpu.accept_init_sipi()
    if interrupted:
        WORD.pack_into(vcpu.page, EXIT_REASON, INTR)
        raise OSError(errno.EINTR, "signal")
    raise OSError(errno.EAGAIN, "INIT")


def _take_synced(vcpu: Vcpu, dirty: int) -> None:
    """Take the registers that user space has changed in the page (KVM_CAP_SYNC_REGS)."""
    page = vcpu.page
    if dirty & REGS:
        state.set_regs(vcpu, bytes(page[SYNC:SREGS_AT]))
        dirty_left = dirty & ~REGS
        LONG.pack_into(page, VALID_REGS + 8, dirty_left)
    if dirty & SREGS:
        state.set_sregs(vcpu, bytes(page[SREGS_AT:EVENTS_AT]))
        LONG.pack_into(page, VALID_REGS + 8, dirty & EVENTS)
    if dirty & EVENTS:
        state.set_events(vcpu, bytes(page[EVENTS_AT : EVENTS_AT + state.EVENTS.size]))
    LONG.pack_into(page, VALID_REGS + 8, 0)


def _save(vcpu: Vcpu) -> None:
    """Fill in what kvm_run shows after each KVM_RUN."""
    cpu, page = vcpu.cpu, vcpu.page
    enabled = cpu.flags & IF
    ready = enabled and not cpu.interrupt_shadow and cpu.pending is None
    cr8 = vcpu.cr8
    if vcpu.lapic is not None:
        ready = vcpu.vm.irqs.pic is not None or (ready and vcpu.window_accepted())
        cr8 = vcpu.lapic.get_cr8()
    HEAD.pack_into(page, READY, bool(ready), bool(enabled), 0, cr8, vcpu.apic_base)
    if vcpu.stats is not None:
        vcpu.stats.write(vcpu)
    (valid,) = LONG.unpack_from(page, VALID_REGS)
    if valid & 7:
        if valid & REGS:
            page[SYNC:SREGS_AT] = state.get_regs(vcpu)
        if valid & SREGS:
            page[SREGS_AT:EVENTS_AT] = state.get_sregs(vcpu)
        if valid & EVENTS:
            page[EVENTS_AT : EVENTS_AT + state.EVENTS.size] = state.get_events(vcpu)


# The loop.


def _loop(vcpu: Vcpu) -> None:
    """Run until there is an exit, written into the page. Raise OSError EINTR for a signal."""
    cpu, vm, signals = vcpu.cpu, vcpu.vm, vcpu.signals
    timers, clock = vm.timers, vm.clock
    began = NEVER  # of the first turn, which most often ends with an exit, nobody knows how long it takes
    WORD.pack_into(vcpu.page, EXIT_REASON, UNKNOWN)
    cpu.recheck()
    while True:
        if vcpu.want_exit is not None:
            leave, vcpu.want_exit = vcpu.want_exit, None
            leave(vcpu)
            return
        if vcpu.init_pending or vcpu.sipi_pending:
            with vm.irqs.lock:
                vcpu.accept_init_sipi()
        if vcpu.ring is not None and vcpu.ring.full():
            WORD.pack_into(vcpu.page, EXIT_REASON, DIRTY_RING_FULL)
            return
        if vcpu.mp_state != RUNNABLE:
            if _block(vcpu):
                break
            _wake(vcpu)
            continue
        if vcpu.triple_fault:
            vcpu.triple_fault = False
            shutdown(vcpu)
            return
        _prepare(vcpu)
        vm.inside.add(vcpu)
        try:
            code = cpu.execute(vcpu.budget)
        finally:
            vm.inside.discard(vcpu)
            vcpu.turns += 1
            if vm.settling:
                vm.notify_left()
        if code != EXIT_ATTENTION and EXITS[code](vcpu):
            return
        now = clock.now()
        if code == EXIT_ATTENTION:
            _after_turn(vcpu, now - began)
            now = clock.now()
        began = now
        if timers.next <= now:
            timers.run()
        if signals.pending():
            break
    vcpu.signal_exits += 1
    WORD.pack_into(vcpu.page, EXIT_REASON, INTR)
    raise OSError(errno.EINTR, "signal")


def _after_turn(vcpu: Vcpu, took: int) -> None:
    """Let others have a turn; without others, see to it that the next one is about a millisecond."""
    vm = vcpu.vm
    if vm.inside or vm.woken:
        vm.woken = False
        vm.clock.give_way()
    elif took > LONG_TURN:
        vcpu.budget = max(vcpu.budget >> 1, LEAST)
    elif 0 <= took < SHORT_TURN:
        vcpu.budget = min(vcpu.budget << 1, MOST)


def _prepare(vcpu: Vcpu) -> None:
    """Tell the processor of interrupts that wait, and of user space that wants to know when it can take one."""
    irqs = vcpu.vm.irqs
    if vcpu.clock_version != vcpu.vm.clock_version:
        vcpu.clock_version = vcpu.vm.clock_version
        vcpu.update_clock()
    if irqs.mode == "none":
        if vcpu.page[REQUEST_WINDOW]:
            vcpu.cpu.irq_pending = True
        return
    with irqs.lock:
        if vcpu.has_interrupt() or (vcpu.page[REQUEST_WINDOW] and irqs.mode == "split"):
            vcpu.cpu.irq_pending = True


def runnable(vcpu: Vcpu) -> bool:
    """Tell whether a vCPU that does not run has a reason to. Under the lock of Irqs."""
    if vcpu.mp_state == RUNNABLE or vcpu.init_pending or vcpu.triple_fault:
        return True
    if vcpu.sipi_pending and vcpu.mp_state == INIT_RECEIVED:
        return True
    if vcpu.mp_state != HALTED:
        return False
    cpu = vcpu.cpu
    if (cpu.nmi_pending and not cpu.nmi_blocked) or cpu.pending is not None:
        return True
    return bool(cpu.get_rflags() & IF) and vcpu.has_interrupt()


def _block(vcpu: Vcpu) -> bool:
    """Sleep until there is something to do; tells whether a signal came first.

    `sleeping` is set under the lock under which others change what runnable() looks at: who changes it before sees to
    it that runnable() is true, who changes it later sees `sleeping` and writes to the eventfd.
    """
    vm = vcpu.vm
    if vcpu.wake_fd < 0:
        vcpu.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        while True:
            if vm.timers.next <= vm.clock.now():
                vm.timers.run()
            with vm.irqs.lock:
                if runnable(vcpu):
                    return False
                vcpu.sleeping = True
            if vcpu.signals.sleep(vcpu.wake_fd):
                return True
            drain(vcpu.wake_fd)
    finally:
        vcpu.sleeping = False


def _wake(vcpu: Vcpu) -> None:
    """Go on behind HLT."""
    if vcpu.mp_state == HALTED:
        vcpu.mp_state = RUNNABLE
