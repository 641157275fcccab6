"""cpu_exec: KVM_RUN and what its exits lead to (QEMU: kvm_cpu_exec)."""

from __future__ import annotations

from errno import EAGAIN, EINTR

from ..kvm.abi import basic as abi
from ..kvm.abi.layout import (
    EOI_VECTOR,
    EXIT_REASON,
    IF_FLAG,
    IMMEDIATE_EXIT,
    MMIO_DATA,
    PIO_DATA,
    READY_FOR_INTERRUPT_INJECTION,
    REASON_AND_IO,
    REASON_AND_MMIO,
    REASON_KEY_BYTE_RING,
    REQUEST_INTERRUPT_WINDOW,
)
from ..kvm.errors import KvmError
from .states import Command

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from ..bus import Region, Shortcut
    from ..exits import ExitEvent
    from .context import Find, Run, Serve
    from .core import Cpu
    from .handle import Vcpu

# Why cpu_exec came back.
EXCP_INTERRUPT, EXCP_HLT, EXCP_DEBUG = "interrupt", "hlt", "debug"
IO_EXIT, KVM_RUN = abi.KVM_EXIT_IO, abi.KVM_RUN.number
NO_SHORTCUTS: dict[int, Shortcut] = {}
# No exit has this reason: it shows whether there was one between two KVM_RUNs that failed.
NO_EXIT = b"\xff\xff\xff\xff"
MOST_AGAIN = 1000


def make_loop(cpu: Cpu) -> Callable[[], str]:
    """Return cpu_exec for this life of the vCPU: the one run loop there is, with the probe's eyes in it if there is
    one.

    cpu_exec() runs the guest and serves its exits until something else is to be done, and returns why. It is for the
    vCPU's thread. A handler's exception passes through. Nothing of an exit is read after a KVM_RUN that failed.
    """
    context, vcpu = cpu.context, cpu.vcpu
    find = shortcuts(cpu)
    kvm_run: Run = cpu.fd.kernel.request

    def serve_here(reason: int, key: int) -> str | None:
        return serve(cpu, reason, key)

    serve_exit: Serve = serve_here
    if context.recent is not None:
        kvm_run = context.recent.noting(cpu.index, cpu.run, kvm_run)
    if context.probe is not None:
        kvm_run, find, serve_exit = context.probe.loop(vcpu, kvm_run, find, serve_exit)

    def cpu_exec() -> str:
        # Locals: an access to a name of the enclosing function takes longer, and caches are cold after an exit.
        run, fd, enter, look, other = cpu.run, cpu.fd.fd, kvm_run, find, serve_exit
        unpack, io_exit, handle = REASON_KEY_BYTE_RING.unpack_from, IO_EXIT, vcpu
        cpu.has_run = True
        if handle._interrupts:
            inject(cpu)
        while True:
            try:
                enter(fd, KVM_RUN)
            except OSError as error:
                why = refused(cpu, error.errno)
                if why is not None:
                    return why
                continue
            # The fast path, a port access of one element: 0.4 us of Python.
            reason, key, byte, first, last = unpack(run, EXIT_REASON)
            if first != last:
                context.drain(cpu)
            if reason == io_exit:
                access = look(key)
                if access is not None:
                    access(handle, byte)
                    continue
            why = other(reason, key)
            if why is not None:
                return why

    return cpu_exec


def shortcuts(cpu: Cpu) -> Find:
    """Return the look-up of short ways to serve port accesses: none where a handler wants to see the exits first."""
    context = cpu.context
    return (NO_SHORTCUTS if abi.KVM_EXIT_IO in context.exit_handlers else context.ports.shortcuts).get


def refused(cpu: Cpu, code: int | None) -> str | None:
    """See to a KVM_RUN that failed with errno `code`; return why to leave cpu_exec, None to call it again."""
    if code == EINTR:
        cpu.context.drain(cpu)
        return EXCP_INTERRUPT
    if code != EAGAIN:
        raise KvmError("KVM_RUN", code or 0, cpu.fd.where)
    # Two meanings: an application processor has got its SIPI; or the kernel may start no thread for this VM.
    run = cpu.run
    if run[IMMEDIATE_EXIT]:
        return EXCP_INTERRUPT
    reason = slice(EXIT_REASON, EXIT_REASON + 4)
    cpu.again = cpu.again + 1 if run[reason] == NO_EXIT else 1
    run[reason] = NO_EXIT
    if cpu.again >= MOST_AGAIN:
        raise KvmError("KVM_RUN", code, cpu.fd.where)
    return None


def inject(cpu: Cpu) -> None:
    """Give the guest an interrupt that waits for it, or ask for an exit as soon as it lets one in.

    For machines without interrupt controllers (QEMU: kvm_arch_pre_run).
    """
    waiting, run = cpu.vcpu._interrupts, cpu.run
    if waiting and run[READY_FOR_INTERRUPT_INJECTION]:
        cpu.fd.interrupt(waiting.popleft())
        cpu.fd.events_set = False
        run[READY_FOR_INTERRUPT_INJECTION] = 0
    run[REQUEST_INTERRUPT_WINDOW] = bool(waiting)


def serve(cpu: Cpu, reason: int, key: int) -> str | None:
    """Serve an exit the general way; return why to leave cpu_exec, None to go on."""
    context = cpu.context
    if reason in context.exit_handlers:
        if context.exit_handlers[reason](cpu.vcpu, _decode(cpu)):
            return None
    elif reason == IO_EXIT:
        context.ports.learn(key, key >> 16 & 0xFFFF, lambda region, offset: io_access(key, region, offset))
    return EXITS.get(reason, _fatal)(cpu)


def io_access(key: int, region: Region, offset: int) -> Shortcut | None:
    """Return the short way to serve the port access that `key` describes, None for one of several elements.

    It is called with the vCPU and the byte at PIO_DATA.
    """
    direction, size, count = key & 0xFF, key >> 8 & 0xFF, key >> 32
    if count != 1:
        return None
    data = slice(PIO_DATA, PIO_DATA + size)
    if not direction:

        def port_in(vcpu: Vcpu, byte: bytes) -> None:
            vcpu._page[data] = region.answer(vcpu, offset, size)  # type: ignore[index]  # it is there while it runs

        return port_in
    write = region.writer(offset)
    if write is None or size == 1:
        return write
    return lambda vcpu, byte: write(vcpu, vcpu._page[data])


def _io(cpu: Cpu) -> None:
    """Serve `in`, `out`, and `rep ins`, `rep outs`: count accesses, one after the other."""
    vcpu, run, ports = cpu.vcpu, cpu.run, cpu.context.ports
    _, direction, size, port, count, offset = REASON_AND_IO.unpack_from(run, EXIT_REASON)
    for at in range(offset, offset + size * count, size):
        if direction:
            ports.write(vcpu, port, run[at : at + size])
        else:
            run[at : at + size] = ports.read(vcpu, port, size)


def _mmio(cpu: Cpu) -> None:
    _, address, data, length, is_write = REASON_AND_MMIO.unpack_from(cpu.run, EXIT_REASON)
    if is_write:
        cpu.context.mmio.write(cpu.vcpu, address, data[:length])
    else:
        cpu.run[MMIO_DATA : MMIO_DATA + length] = cpu.context.mmio.read(cpu.vcpu, address, length)


def _hlt(cpu: Cpu) -> str | None:
    if cpu.vcpu._interrupts and cpu.run[IF_FLAG]:
        inject(cpu)  # it ends the HLT at once
        return None
    cpu.vcpu.take_step(Command.HALT)
    return EXCP_HLT


def _debug(cpu: Cpu) -> str | None:
    debugger = cpu.context.debugger
    return EXCP_DEBUG if debugger is None else debugger.debug_exit(cpu)


def _window(cpu: Cpu) -> None:
    """Go on: the guest lets interrupts in now."""
    inject(cpu)


def _again(cpu: Cpu) -> None:
    """Go on: the guest has lowered CR8, its task priority, and there is no local APIC that would have to know."""


def _interrupted(cpu: Cpu) -> str:
    return EXCP_INTERRUPT


def _ioapic_eoi(cpu: Cpu) -> None:
    cpu.context.eoi(cpu.run[EOI_VECTOR])


def _system_event(cpu: Cpu) -> str:
    from ..kvm.abi.exits import SystemEvent

    event = _decode(cpu)
    kind = getattr(event, "event", 0)
    if kind in (SystemEvent.SHUTDOWN, SystemEvent.RESET):
        reason = "power-off" if kind == SystemEvent.SHUTDOWN else "reset"
        cpu.control.finish(reason, vcpu=cpu.vcpu, exit=event)
        return EXCP_INTERRUPT
    return _fatal(cpu)


def _fatal(cpu: Cpu) -> str:
    """End the machine with all that is known of an exit that nobody can go on from."""
    from .report import crash_report

    event, debugger = _decode(cpu), cpu.context.debugger
    report = crash_report(cpu, event)
    if debugger is None or not debugger.crashed(cpu, event, report):
        cpu.control.finish("crashed", vcpu=cpu.vcpu, exit=event, report=report)
    return EXCP_INTERRUPT


def _decode(cpu: Cpu) -> ExitEvent:
    from ..exits import decode

    return decode(cpu.run)


EXITS: dict[int, Callable[[Cpu], str | None]] = {
    abi.KVM_EXIT_IO: _io,
    abi.KVM_EXIT_MMIO: _mmio,
    abi.KVM_EXIT_HLT: _hlt,
    abi.KVM_EXIT_DEBUG: _debug,
    abi.KVM_EXIT_INTR: _interrupted,
    abi.KVM_EXIT_IRQ_WINDOW_OPEN: _window,
    abi.KVM_EXIT_SET_TPR: _again,
    abi.KVM_EXIT_SYSTEM_EVENT: _system_event,
    abi.KVM_EXIT_IOAPIC_EOI: _ioapic_eoi,
}
