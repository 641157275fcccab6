"""cpu_exec: KVM_RUN and what its exits lead to (QEMU: kvm_cpu_exec)."""

from __future__ import annotations

from errno import EAGAIN, EINTR
from struct import Struct

from ..kvm.abi import basic as abi
from ..kvm.errors import KvmError
from ..outcome import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from ..exits import ExitEvent
    from .vcpu import Vcpu

# Why cpu_exec came back.
EXCP_INTERRUPT, EXCP_HLT, EXCP_DEBUG = "interrupt", "hlt", "debug"
IO_EXIT = abi.KVM_EXIT_IO

# struct kvm_run from exit_reason on, read at once because that is quicker than field by field: exit_reason, then the
# exits' union read as io (direction, size, port, count, data_offset) or as mmio (phys_addr, data, len, is_write).
IMMEDIATE_EXIT, EXIT_REASON = 1, 8
IO = Struct("<I20xBBHIQ")
MMIO = Struct("<I20xQ8sIB")
MMIO_DATA = 40
FINISH_TRIES = 64  # a page-crossing string instruction asks again for each piece


def cpu_exec(vcpu: Vcpu) -> str:
    """Run the guest and serve its exits until something else is to be done; return why.

    On the vCPU's thread. A handler's exception passes through. Nothing of an exit is read after a KVM_RUN that failed.
    """
    kernel = vcpu.fd.kernel
    kvm_run, errno = kernel.prepare(vcpu.fd.fd, abi.KVM_RUN.number), kernel.errno
    run, unpack = vcpu.run, IO.unpack_from
    writer = vcpu.accel.ports.writers.get
    user_handlers = vcpu.accel.exit_handlers
    plain_io = abi.KVM_EXIT_IO not in user_handlers
    while True:
        if kvm_run():
            code = errno()
            if code == EINTR:
                return EXCP_INTERRUPT
            if code == EAGAIN:  # an application processor has got its SIPI
                continue
            raise KvmError("KVM_RUN", code, vcpu.fd.where)
        reason, direction, size, port, count, offset = unpack(run, EXIT_REASON)
        if reason == IO_EXIT and direction and count == 1 and plain_io:
            # The fast path, an `out`: 0.4 us of Python beside the 0.2 us that the call of KVM_RUN takes.
            write = writer(port)
            if write is not None:
                write(vcpu, run[offset : offset + size])
                continue
        if reason in user_handlers and _user_handler(vcpu, reason):
            continue
        why = EXITS.get(reason, _fatal)(vcpu)
        if why is not None:
            return why


def finish_io(vcpu: Vcpu) -> None:
    """Let KVM complete the port or memory access that it last asked for, so that the registers are whole.

    Needed where cpu_exec was left by an exception; everywhere else the KVM_RUN that answers a kick has done it.
    Pieces of an access that are still to come get nothing (api.rst, KVM_EXIT_IO: the note on pending operations).
    """
    for _ in range(FINISH_TRIES):
        vcpu.run[IMMEDIATE_EXIT] = 1
        if vcpu.fd.kernel.ioctl(vcpu.fd.fd, abi.KVM_RUN.number, 0):
            return


def _io(vcpu: Vcpu) -> None:
    """Serve `in`, `out`, and `rep ins`, `rep outs`: count accesses, one after the other."""
    run, ports = vcpu.run, vcpu.accel.ports
    _, direction, size, port, count, offset = IO.unpack_from(run, EXIT_REASON)
    for at in range(offset, offset + size * count, size):
        if direction:
            ports.write(vcpu, port, run[at : at + size])
        else:
            run[at : at + size] = ports.read(vcpu, port, size)


def _mmio(vcpu: Vcpu) -> None:
    _, address, data, length, is_write = MMIO.unpack_from(vcpu.run, EXIT_REASON)
    if is_write:
        vcpu.accel.mmio.write(vcpu, address, data[:length])
    else:
        vcpu.run[MMIO_DATA : MMIO_DATA + length] = vcpu.accel.mmio.read(vcpu, address, length)


def _hlt(vcpu: Vcpu) -> str:
    vcpu.halt()
    return EXCP_HLT


def _debug(vcpu: Vcpu) -> str:
    return EXCP_DEBUG


def _again(vcpu: Vcpu) -> None:
    """Go on: the exit only says that something may be done now."""


def _interrupted(vcpu: Vcpu) -> str:
    return EXCP_INTERRUPT


def _system_event(vcpu: Vcpu) -> str:
    from ..kvm.abi.exits import SystemEvent

    event = _decode(vcpu)
    kind = getattr(event, "event", 0)
    if kind in (SystemEvent.SHUTDOWN, SystemEvent.RESET):
        reason = "power-off" if kind == SystemEvent.SHUTDOWN else "reset"
        vcpu.accel.finish(Outcome(reason, vcpu=vcpu, exit=event))
        return EXCP_INTERRUPT
    return _fatal(vcpu)


def _fatal(vcpu: Vcpu) -> str:
    """End the machine with all that is known of an exit that nobody can go on from."""
    from .report import crash_report

    event = _decode(vcpu)
    vcpu.accel.finish(Outcome("crashed", vcpu=vcpu, exit=event, report=crash_report(vcpu, event)))
    return EXCP_INTERRUPT


def _decode(vcpu: Vcpu) -> ExitEvent:
    from ..exits import decode

    return decode(vcpu.run)


def _user_handler(vcpu: Vcpu, reason: int) -> bool:
    """Call the handler that Machine.on_exit() put in for `reason`; True when it says that it has dealt with it."""
    return bool(vcpu.accel.exit_handlers[reason](vcpu, _decode(vcpu)))


EXITS: dict[int, Callable[[Vcpu], str | None]] = {
    abi.KVM_EXIT_IO: _io,
    abi.KVM_EXIT_MMIO: _mmio,
    abi.KVM_EXIT_HLT: _hlt,
    abi.KVM_EXIT_DEBUG: _debug,
    abi.KVM_EXIT_INTR: _interrupted,
    abi.KVM_EXIT_IRQ_WINDOW_OPEN: _again,
    abi.KVM_EXIT_SYSTEM_EVENT: _system_event,
}
