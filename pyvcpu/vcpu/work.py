"""What a vCPU's thread does for other threads: the work in its inbox (QEMU: process_queued_cpu_work)."""

from __future__ import annotations

from ..kvm.abi.layout import IF_FLAG
from .handle import Work
from .states import Command, State

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .core import Cpu


def do(cpu: Cpu, work: Work) -> None:
    """Do a piece of work that was taken from the inbox, and say that it is done."""
    vcpu = cpu.vcpu
    try:
        work.result = work.function(vcpu)
    except BaseException as error:  # it belongs to the one who posted the work
        work.error = error
    with cpu.control.lock:
        _wake_if_asked(cpu)
        work.done = True
        vcpu._applied += 1
        cpu.control.cond.notify_all()


def _wake_if_asked(cpu: Cpu) -> None:
    """End a HLT, with the lock held, where an interrupt or NMI waits for the vCPU now."""
    vcpu, fd = cpu.vcpu, cpu.fd
    halted = vcpu.state in (State.HALTED, State.PAUSED_HALTED) and not cpu.waits_for_sipi
    if halted and (fd.events_set or (vcpu._interrupts and cpu.run[IF_FLAG])):
        vcpu._apply(Command.WAKE)
    fd.events_set = False


def do_work_until(cpu: Cpu, predicate: Callable[[], object]) -> None:
    """Do the work that other threads post, and nothing else, until `predicate()`, called with the lock held, is true.

    For a vCPU that has to wait in the middle of an exit: the one that it waits for may wait for its work. Whoever makes
    the predicate true kicks this vCPU.
    """
    vcpu = cpu.vcpu
    while True:
        with cpu.control.lock:
            if predicate():
                return
            work = next((item for item in vcpu._inbox if isinstance(item, Work)), None)
            if work is not None:
                vcpu._inbox.remove(work)
                work.taken = True
            else:
                vcpu._kicked = False  # immediate_exit stays: what that is for has not been seen to
                vcpu._sleeping = True
        if work is None:
            vcpu._bell.acquire()
        else:
            do(cpu, work)
