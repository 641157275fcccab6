"""A serial port: the 16550A UART, with a line that takes no time.

Source: National Semiconductor PC16550D data sheet (June 1995), section 8. Where a real line takes time, this
one does not: the transmitter is always empty, and the receiver's character timeout has always run out. It takes time
only between one FIFO and the next (serial_input.py says why).
"""

from __future__ import annotations

import threading

from .line import Line
from .serial_input import Receiver
from .serial_registers import (
    FCR,
    FCR_ENABLE,
    IER,
    IER_RDI,
    IIR,
    LCR,
    LCR_DLAB,
    LSR,
    LSR_DR,
    MCR,
    MSR,
    RBR,
    SCR,
    THR,
    Registers,
    check,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from .device import State

COM1 = 0x3F8
COM1_IRQ = 4

# What others need to drive a port.
__all__ = [
    "COM1",
    "COM1_IRQ",
    "FCR",
    "FCR_ENABLE",
    "IER",
    "IER_RDI",
    "IIR",
    "LCR",
    "LCR_DLAB",
    "LSR",
    "LSR_DR",
    "MCR",
    "MSR",
    "RBR",
    "SCR",
    "THR",
    "Serial",
]

_BYTES = tuple(bytes((value,)) for value in range(256))


class Serial:
    """A 16550A: eight ports, an interrupt line, and callables for what it says.

    `out(data)` gets each byte that the guest transmits. `set_irq(level)` gets each change of the interrupt
    line, which starts low. `on_listen()` is called once, at the guest's first sign that it listens: it reads
    RBR or LSR, or enables the receive interrupt; or restore() brings a guest that has done so.

    `receive` goes through `gate`, which is shut while the world is held still.

    The host's input goes in through `receive` and `wait_room`. All that the FIFO has room for arrives at once, faster
    than on any line, and not before the guest listens: drivers clear the FIFO as they start. With the receive interrupt
    enabled, what comes next comes when IIR has said that nothing is to be done, and as long again as that took. IIR
    says so, once, when the guest has filled the transmitter's FIFO; the interrupt comes after that.

    So that a handler which reads one character for each interrupt, from an edge-triggered interrupt controller, still
    sees an edge for each, the line falls and rises again when RBR is read and more data is left.

    Threads: every method may be called in any thread. `_lock` guards all state; **no callable is called while
    it is held**, so each may call back in, block, or wait for another thread.
    * `out` is called in the thread that writes, before its write returns: each vCPU's bytes keep their order.
      Several threads may be in it at once.
    * `set_irq` is called by one thread at a time, as Line says.
    * `on_listen` is called before that first access returns; what it puts into the FIFO is there to read.
    An exception of a callable goes to the caller of the method.
    """

    name = "COM1"
    LENGTH = 8

    def __init__(
        self,
        out: Callable[[bytes], object],
        set_irq: Callable[[bool], object] | None = None,
        on_listen: Callable[[], object] | None = None,
        gate: AbstractContextManager[object] | None = None,
    ) -> None:
        self._out = out
        self._on_listen = on_listen
        self._gate = gate
        self._lock = threading.Lock()
        self._line = Line(self._lock, set_irq or bool)
        self._receiver = Receiver(self._lock)
        self._registers = Registers(self._receiver)

    # The machine's side

    def reset(self) -> None:
        """Return to the state after power-on. The host's input that the guest has not read waits until it listens."""
        with self._lock:
            self._registers.reset()
            self._line.want(False)
        self._line.drive()

    def state(self) -> State:
        """Return the registers, and the input that the guest has not read, as plain data."""
        with self._lock:
            return self._registers.state()

    def restore(self, data: object) -> None:
        """Take over what state() gave, and drive the line to its level; the input from before is gone.

        Raise StateDataError for what no serial port could have given.
        """
        values = check(self.name, data)
        with self._lock:
            self._registers.restore(values)
            self._line.restore(self._registers.level())
            on_listen = self._take_on_listen() if self._receiver.on else None
        self._line.drive()
        if on_listen is not None:
            on_listen()

    # The guest's side

    def read(self, offset: int, size: int) -> bytes:
        """Read registers: an access wider than a byte reads successive ones, as the ISA bus splits it."""
        if size == 1 and offset < self.LENGTH:
            return self._read_register(offset)
        registers = range(offset, min(offset + size, self.LENGTH))
        return b"".join(map(self._read_register, registers)).ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:
        """Write registers: an access wider than a byte writes successive ones, lowest first."""
        if offset == THR and len(data) == 1:
            with self._lock:  # the path of console output: 0.3 us, against 0.75 us for the general one
                direct = self._registers.direct
            if direct:
                self._out(data)
                return
        for register, value in zip(range(offset, self.LENGTH), data, strict=False):
            self._write_register(register, value)

    def _read_register(self, register: int) -> bytes:
        with self._lock:
            registers, on_listen = self._registers, None
            if not self._receiver.on and registers.shows_listening(register):
                self._receiver.listen()
                on_listen = self._take_on_listen()
            if on_listen is None:
                value = registers.read(register)
                due = self._line_due()
        if on_listen is not None:
            on_listen()
            return self._read_register(register)
        if due:
            self._line.drive()
        return _BYTES[value]

    def _write_register(self, register: int, value: int) -> None:
        with self._lock:
            transmitted = self._registers.write(register, value)
            on_listen = None
            if not self._receiver.on and self._registers.ier & IER_RDI:
                self._receiver.listen()
                on_listen = self._take_on_listen()
            due = self._line_due()
        if transmitted:
            self._out(_BYTES[value])
        if on_listen is not None:
            on_listen()
        if due:
            self._line.drive()

    # The host's side

    @property
    def listens(self) -> bool:
        """Whether the guest has shown, since power-on or a reset, that it listens."""
        return self._receiver.on

    def receive(self, data: bytes) -> int:
        """Put the first bytes of `data` into the receiver, as many as it has room for; return how many.

        In loopback mode the line is disconnected and there is room for none, as there is after close().
        """
        if self._gate is None:
            return self._receive(data)
        with self._gate:
            return self._receive(data)

    def _receive(self, data: bytes) -> int:
        with self._lock:
            taken = self._receiver.take(data)
            due = self._line_due()
        if due:
            self._line.drive()
        return taken

    def wait_room(self, timeout: float | None = None) -> bool:
        """Wait until the receiver is empty, at most `timeout` seconds; return whether it is.

        If the guest's handler does not look for more then, that is after GAP; if it does, as much later as the guest
        took. It returns False at once when the port is closed, and when that happens during the wait.
        """
        return self._receiver.wait_room(timeout, lambda: self._registers.ier & IER_RDI)

    def close(self) -> None:
        """Take no more input, and wake all who wait for room. The guest's side goes on working."""
        with self._lock:
            self._receiver.close()

    # Everything below is called with _lock held.

    def _take_on_listen(self) -> Callable[[], object] | None:
        """Return on_listen, the first time."""
        on_listen, self._on_listen = self._on_listen, None
        return on_listen

    def _line_due(self) -> bool:
        """Note what an access did to the line; return whether the caller must then drive it."""
        registers = self._registers
        dip, registers.dip = registers.dip, False
        return self._line.want(registers.level(), dip)
