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
    from typing import Any

    from ..exits import ExitEvent
    from .accel import Region
    from .vcpu import Vcpu

# Why cpu_exec came back.
EXCP_INTERRUPT, EXCP_HLT, EXCP_DEBUG = "interrupt", "hlt", "debug"
IO_EXIT, KVM_RUN = abi.KVM_EXIT_IO, abi.KVM_RUN.number

# struct kvm_run from exit_reason on, read at once because that is quicker than field by field: exit_reason; the first
# quadword of the exits' union, which is io's direction, size, port and count, or mmio's phys_addr; the first byte of
# port data, where KVM has it on x86; first and last of the coalesced ring.
IMMEDIATE_EXIT, EXIT_REASON = 1, 8
PIO_DATA, RING = 4096, 8192
EXIT = Struct(f"<I20xQ{PIO_DATA - 40}xc{RING - PIO_DATA - 1}xII")
IO = Struct("<I20xBBHIQ")
MMIO = Struct("<I20xQ8sIB")
MMIO_DATA = 40
EOI_VECTOR = 32
FINISH_TRIES = 64  # a page-crossing string instruction asks again for each piece
NO_SHORTCUTS: dict[int, Callable[[Any, bytes], object]] = {}


def cpu_exec(vcpu: Vcpu) -> str:
    """Run the guest and serve its exits until something else is to be done; return why.

    On the vCPU's thread. A handler's exception passes through. Nothing of an exit is read after a KVM_RUN that failed.
    """
    accel = vcpu.accel
    if accel.observer is not None:
        return accel.observer.cpu_exec(vcpu)
    run, fd, kvm_run, unpack = vcpu.run, vcpu.fd.fd, vcpu.fd.kernel.request, EXIT.unpack_from
    io_shortcut = shortcuts(vcpu)
    while True:
        try:
            kvm_run(fd, KVM_RUN)
        except OSError as error:
            why = refused(vcpu, error.errno)
            if why is not None:
                return why
            continue
        # The fast path, a port access of one element: 0.4 us of Python.
        reason, key, byte, first, last = unpack(run, EXIT_REASON)
        if first != last:
            accel.drain(vcpu)
        if reason == IO_EXIT:
            access = io_shortcut(key)
            if access is not None:
                access(vcpu, byte)
                continue
        why = serve(vcpu, reason, key)
        if why is not None:
            return why


def shortcuts(vcpu: Vcpu) -> Callable[[int], Callable[[Any, bytes], object] | None]:
    """Return the look-up of short ways to serve port accesses: none where a handler wants to see the exits first."""
    accel = vcpu.accel
    return (NO_SHORTCUTS if abi.KVM_EXIT_IO in accel.exit_handlers else accel.ports.shortcuts).get


def refused(vcpu: Vcpu, code: int | None) -> str | None:
    """See to a KVM_RUN that failed with errno `code`; return why to leave cpu_exec, None to call it again."""
    if code == EINTR:
        vcpu.accel.drain(vcpu)
        return EXCP_INTERRUPT
    if code == EAGAIN:  # an application processor has got its SIPI
        return None
    raise KvmError("KVM_RUN", code or 0, vcpu.fd.where)


def serve(vcpu: Vcpu, reason: int, key: int) -> str | None:
    """Serve an exit the general way; return why to leave cpu_exec, None to go on."""
    accel = vcpu.accel
    if reason in accel.exit_handlers:
        if _user_handler(vcpu, reason):
            return None
    elif reason == IO_EXIT:
        accel.ports.learn(key, key >> 16 & 0xFFFF, lambda region, offset: io_access(key, region, offset))
    return EXITS.get(reason, _fatal)(vcpu)


def io_access(key: int, region: Region, offset: int) -> Callable[[Vcpu, bytes], object] | None:
    """Return the short way to serve the port access that `key` describes, None for one of several elements.

    It is called with the vCPU and the byte at PIO_DATA.
    """
    direction, size, count = key & 0xFF, key >> 8 & 0xFF, key >> 32
    if count != 1:
        return None
    data = slice(PIO_DATA, PIO_DATA + size)
    if not direction:

        def port_in(vcpu: Vcpu, byte: bytes) -> None:
            vcpu.run[data] = region.answer(vcpu, offset, size)

        return port_in
    write = region.writer(offset)
    if write is None or size == 1:
        return write
    return lambda vcpu, byte: write(vcpu, vcpu.run[data])


def finish_io(vcpu: Vcpu) -> None:
    """Let KVM complete the port or memory access that it last asked for, so that the registers are whole.

    Needed where cpu_exec was left by an exception; everywhere else the KVM_RUN that answers a kick has done it.
    Pieces of an access that are still to come get nothing (api.rst, KVM_EXIT_IO: the note on pending operations).
    """
    for _ in range(FINISH_TRIES):
        vcpu.run[IMMEDIATE_EXIT] = 1
        if vcpu.fd.kernel.ioctl(vcpu.fd.fd, KVM_RUN, 0):
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


def _ioapic_eoi(vcpu: Vcpu) -> None:
    vcpu.accel.eoi(vcpu.run[EOI_VECTOR])


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
    abi.KVM_EXIT_IOAPIC_EOI: _ioapic_eoi,
}
