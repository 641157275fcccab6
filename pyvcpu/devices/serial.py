"""A serial port: the 16550A UART, with a line that takes no time.

Source: National Semiconductor PC16550D data sheet (June 1995), section 8. Where a real line takes time, this
one does not: the transmitter is always empty, and the receiver's character timeout has always run out.

But time it takes between one FIFO and the next. Drivers (Linux's is one) stay in their interrupt handler for as long as
there is something to do, with interrupts disabled: on a line that is never busy, until all has been sent and received.
And what they receive they leave to others, who need the processor as long again: a guest that takes a FIFO in 30 ms (an
emulated one does) and finds the next at once does nothing else any more, and its watchdogs bark.
"""

from __future__ import annotations

import threading
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

COM1 = 0x3F8
COM1_IRQ = 4

# Registers, as offsets from the first port
RBR = THR = DLL = 0  # receiver buffer (read), transmitter holding (write); divisor latch when LCR_DLAB is set
IER = DLM = 1
IIR = FCR = 2
LCR = 3
MCR = 4
LSR = 5
MSR = 6
SCR = 7

IER_RDI = 0x01  # received data available, and character timeout
IER_THRI = 0x02  # transmitter holding register empty
IER_RLSI = 0x04  # receiver line status
IER_MSI = 0x08  # modem status

# Interrupt identification, highest priority first
IIR_RLSI = 0x06
IIR_RDI = 0x04
IIR_TIMEOUT = 0x0C
IIR_THRI = 0x02
IIR_MSI = 0x00
IIR_NO_INT = 0x01
IIR_FIFO = 0xC0  # both bits are set while the FIFOs are enabled

FCR_ENABLE = 0x01
FCR_CLEAR_RCVR = 0x02
FCR_TRIGGERS = (1, 4, 8, 14)  # by bits 7-6
FIFO_SIZE = 16
GAP = 0.001  # seconds after which more input comes for a guest that has not looked whether there is more
REST = 0.05  # seconds at most that an interrupt handler's guest has for itself: it may have been paused meanwhile

LCR_DLAB = 0x80

MCR_DTR = 0x01
MCR_RTS = 0x02
MCR_OUT1 = 0x04
MCR_OUT2 = 0x08  # on a PC, connects the interrupt to the interrupt controller
MCR_LOOP = 0x10

LSR_DR = 0x01
LSR_OE = 0x02
LSR_THRE = 0x20
LSR_TEMT = 0x40

MSR_DCTS = 0x01
MSR_DDSR = 0x02
MSR_TERI = 0x04
MSR_DDCD = 0x08
MSR_CTS = 0x10
MSR_DSR = 0x20
MSR_RI = 0x40
MSR_DCD = 0x80

_MSR_DELTAS = MSR_DCTS | MSR_DDSR | MSR_TERI | MSR_DDCD
_MSR_CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD  # the other end is always there
_LOOPED_BACK = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))


class Serial:
    """A 16550A: eight ports, an interrupt line, and callables for what it says.

    `out(data)` gets each byte that the guest transmits. `set_irq(level)` gets each change of the interrupt
    line, which starts low. `on_listen()` is called once, at the guest's first sign that it listens: it reads
    RBR or LSR, or enables the receive interrupt.

    The host's input goes in through `receive` and `wait_room`. All that a FIFO has room for arrives at once,
    faster than on any line; with the receive interrupt enabled, what comes next comes when IIR has said that nothing
    is to be done, and as long again as that took. IIR says so, once, when the guest has filled the transmitter's FIFO;
    the interrupt comes after that.

    So that a handler which reads one character for each interrupt, from an edge-triggered interrupt controller, still
    sees an edge for each, the line falls and rises again when RBR is read and more data is left.

    Threads: every method may be called in any thread. `_lock` guards all state; **no callable is called while
    it is held**, so each may call back in, block, or wait for another thread.
    * `out` is called in the thread that writes, before its write returns: each vCPU's bytes keep their order.
      Several threads may be in it at once.
    * `set_irq` is called by one thread at a time: levels alternate and the last one is the line's. A thread
      whose access or input changes the line calls it, unless another is in it: that one passes the change on.
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
    ) -> None:
        self._out = out
        self._set_irq = set_irq or (lambda level: None)
        self._on_listen = on_listen
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)  # notified when the receiver has room, and by close
        self._closed = False
        self._ier = 0
        self._lcr = 0
        self._mcr = 0
        self._modem = _MSR_CONNECTED  # MSR
        self._direct = True  # writing THR does nothing but transmit
        self._scratch = 0
        self._divisor = bytearray((12, 0))  # 9600 baud, as firmware leaves it; of no effect
        self._fifo = bytearray()  # RBR when the FIFOs are off: then it holds one character
        self._fifo_enabled = False
        self._trigger = 1
        self._overrun = 0  # LSR_OE or 0
        self._thr_emptied = True  # a THRE interrupt is due
        self._sent = 0  # characters since the last one was enabled or shown
        self._found_empty = True  # the guest has looked, and found no more input
        self._received = 0.0  # when the last input came, on the monotonic clock
        self._line = False  # the level that set_irq got last
        self._dip = False  # the line must fall, or have fallen, before it is high again
        self._driving = False  # a thread is in set_irq

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
                direct = self._direct
            if direct:
                self._out(data)
                return
        for register, value in zip(range(offset, self.LENGTH), data, strict=False):
            if register == THR:
                self._write_thr(value)
            else:
                self._write_register(register, value)

    def _read_register(self, register: int) -> bytes:
        with self._lock:
            on_listen = self._take_on_listen(register) if self._on_listen is not None else None
            if on_listen is None:
                value = _READ[register](self)
                due = self._line_due()
        if on_listen is not None:
            on_listen()
            return self._read_register(register)
        if due:
            self._drive_line()
        return _BYTES[value]

    def _write_thr(self, value: int) -> None:
        with self._lock:
            if self._lcr & LCR_DLAB:
                self._divisor[DLL] = value
                return
            self._thr_emptied = True
            loop = self._mcr & MCR_LOOP
            if loop:
                self._receive_looped_back(value)
            else:
                self._sent += 1
            # The interrupt ends, and comes again when the character has left: at once.
            self._dip |= self._pending() == IIR_THRI
            due = self._line_due()
        if not loop:
            self._out(_BYTES[value])
        if due:
            self._drive_line()

    def _write_register(self, register: int, value: int) -> None:
        with self._lock:
            _WRITE[register](self, value)
            self._direct = not (self._lcr & LCR_DLAB or self._mcr & MCR_LOOP or self._ier & IER_THRI)
            on_listen = None
            if self._ier & IER_RDI:
                on_listen, self._on_listen = self._on_listen, None
            self._tell_room()
            due = self._line_due()
        if on_listen is not None:
            on_listen()
        if due:
            self._drive_line()

    # The host's side

    def receive(self, data: bytes) -> int:
        """Put the first bytes of `data` into the receiver, as many as it has room for; return how many.

        In loopback mode the line is disconnected and there is room for none, as there is after close().
        """
        with self._lock:
            taken = min(len(data), self._free())
            self._fifo += data[:taken]
            self._found_empty = self._found_empty and not taken
            self._received = monotonic()
            due = self._line_due()
        if due:
            self._drive_line()
        return taken

    def wait_room(self, timeout: float | None = None) -> bool:
        """Wait until the receiver is empty, at most `timeout` seconds; return whether it is.

        If the guest's handler does not look for more then, that is after GAP; if it does, as much later as the guest
        took. It returns False at once when the port is closed, and when that happens during the wait.
        """
        end = None if timeout is None else monotonic() + timeout
        with self._lock:
            if self._closed or (self._found_empty and self._is_empty()):
                return self._is_empty()
            self._wait(self._is_empty, timeout)
            self._wait(lambda: self._found_empty, _at_most(GAP, end))
            if self._ier & IER_RDI and self._is_empty():
                self._wait(lambda: False, _at_most(min(monotonic() - self._received, REST), end))
            return self._is_empty()

    def _wait(self, condition: Callable[[], bool], timeout: float | None) -> None:
        self._room.wait_for(lambda: self._closed or condition(), timeout)

    def close(self) -> None:
        """Take no more input, and wake all who wait for room. The guest's side goes on working."""
        with self._lock:
            self._closed = True
            self._room.notify_all()

    # Everything below, but for the last two methods, is called with _lock held.

    def _take_on_listen(self, register: int) -> Callable[[], object] | None:
        """Return on_listen, and forget it, if reading `register` is a first sign that the guest listens."""
        if register == LSR or (register == RBR and not self._lcr & LCR_DLAB):
            on_listen, self._on_listen = self._on_listen, None
            return on_listen
        return None

    def _free(self) -> int:
        """Return how many characters the receiver has room for."""
        if self._closed or self._mcr & MCR_LOOP:
            return 0
        return (FIFO_SIZE if self._fifo_enabled else 1) - len(self._fifo)

    def _is_empty(self) -> bool:
        return not self._fifo and self._free() > 0

    def _tell_room(self) -> None:
        if self._is_empty():
            self._room.notify_all()

    def _read_rbr(self) -> int:
        if self._lcr & LCR_DLAB:
            return self._divisor[DLL]
        if not self._fifo:
            return 0
        value = self._fifo.pop(0)
        self._found_empty = not self._fifo and not self._ier & IER_RDI  # no handler to stay in
        self._tell_room()
        self._dip |= self._pending() in (IIR_RDI, IIR_TIMEOUT)
        return value

    def _read_ier(self) -> int:
        return self._divisor[DLM] if self._lcr & LCR_DLAB else self._ier

    def _read_iir(self) -> int:
        pending = self._pending()
        if pending == IIR_THRI:
            if self._fifo_enabled and self._sent >= FIFO_SIZE:
                pending = IIR_NO_INT  # it has been sent a moment later
                self._dip = True
            else:
                self._thr_emptied = False
            self._sent = 0
        if pending == IIR_NO_INT and not self._fifo:
            self._found_empty = True
            self._tell_room()
        return pending | (IIR_FIFO if self._fifo_enabled else 0)

    def _read_lcr(self) -> int:
        return self._lcr

    def _read_mcr(self) -> int:
        return self._mcr

    def _read_lsr(self) -> int:
        overrun, self._overrun = self._overrun, 0
        return LSR_TEMT | LSR_THRE | overrun | (LSR_DR if self._fifo else 0)

    def _read_msr(self) -> int:
        value = self._modem
        self._modem &= ~_MSR_DELTAS
        return value

    def _read_scr(self) -> int:
        return self._scratch

    def _write_ier(self, value: int) -> None:
        if self._lcr & LCR_DLAB:
            self._divisor[DLM] = value
            return
        if value & ~self._ier & IER_THRI:
            self._thr_emptied = True  # enabling the interrupt of an empty register raises it
            self._sent = 0
        self._ier = value & (IER_RDI | IER_THRI | IER_RLSI | IER_MSI)

    def _write_fcr(self, value: int) -> None:
        """Write FCR, whose other bits count only with FCR_ENABLE. The transmitter's FIFO is always empty."""
        enable = bool(value & FCR_ENABLE)
        self._trigger = FCR_TRIGGERS[value >> 6]
        if enable != self._fifo_enabled or (enable and value & FCR_CLEAR_RCVR):
            self._fifo.clear()
        self._fifo_enabled = enable

    def _write_lcr(self, value: int) -> None:
        self._lcr = value

    def _write_mcr(self, value: int) -> None:
        """Write MCR; in loopback mode its outputs take the place of the modem's lines."""
        self._mcr = value & (MCR_DTR | MCR_RTS | MCR_OUT1 | MCR_OUT2 | MCR_LOOP)
        lines = _MSR_CONNECTED
        if value & MCR_LOOP:
            lines = sum(line for output, line in _LOOPED_BACK if value & output)
        changed = lines ^ self._modem & ~_MSR_DELTAS
        deltas = changed >> 4 & (MSR_DCTS | MSR_DDSR | MSR_DDCD)
        if changed & ~lines & MSR_RI:
            deltas |= MSR_TERI  # only the trailing edge counts
        self._modem = lines | self._modem & _MSR_DELTAS | deltas

    def _write_scr(self, value: int) -> None:
        self._scratch = value

    def _ignore_write(self, value: int) -> None:
        """LSR and MSR: writing is for factory tests."""

    def _receive_looped_back(self, value: int) -> None:
        """Receive what was transmitted in loopback mode, where nobody waits for room."""
        if len(self._fifo) < (FIFO_SIZE if self._fifo_enabled else 1):
            self._fifo.append(value)
            return
        self._overrun = LSR_OE
        if not self._fifo_enabled:
            self._fifo[0] = value  # RBR is overwritten; a full FIFO keeps what it has

    def _pending(self) -> int:
        """Return the identification of the pending interrupt of the highest priority."""
        ier = self._ier
        if ier & IER_RLSI and self._overrun:
            return IIR_RLSI
        if ier & IER_RDI and self._fifo:
            return IIR_TIMEOUT if self._fifo_enabled and len(self._fifo) < self._trigger else IIR_RDI
        if ier & IER_THRI and self._thr_emptied:
            return IIR_THRI
        if ier & IER_MSI and self._modem & _MSR_DELTAS:
            return IIR_MSI
        return IIR_NO_INT

    def _level(self) -> bool:
        """Return the level that the line should have: loopback mode holds the OUT2 pin inactive, too."""
        return self._mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2 and self._pending() != IIR_NO_INT

    def _line_due(self) -> bool:
        """Note what an access did to the line; return whether the caller must then call _drive_line.

        A fall is noted at once: data that arrives before set_irq was told of it must still make an edge.
        """
        level = self._level()
        self._dip |= self._line and not level
        return self._dip or level != self._line

    def _drive_line(self) -> None:
        """Pass the line's changes on, unless another thread is at it: that one sees the latest as well."""
        with self._lock:
            if self._driving:
                return
            self._driving = True
        try:
            while (level := self._next_level()) is not None:
                self._set_irq(level)
        except BaseException:
            with self._lock:
                self._driving = False
            raise

    def _next_level(self) -> bool | None:
        """Return the next level for set_irq; None, and the end of driving, when it has had the latest."""
        with self._lock:
            level = self._level() and not (self._dip and self._line)
            self._dip = False
            if level == self._line:
                self._driving = False
                return None
            self._line = level
            return level


def _at_most(seconds: float, end: float | None) -> float:
    """Return `seconds`, or what is left until `end`."""
    return seconds if end is None else max(0.0, min(seconds, end - monotonic()))


_BYTES = tuple(bytes((value,)) for value in range(256))

_READ: tuple[Callable[[Serial], int], ...] = (
    Serial._read_rbr,
    Serial._read_ier,
    Serial._read_iir,
    Serial._read_lcr,
    Serial._read_mcr,
    Serial._read_lsr,
    Serial._read_msr,
    Serial._read_scr,
)
_WRITE: tuple[Callable[[Serial, int], None], ...] = (
    Serial._ignore_write,  # THR has its own path
    Serial._write_ier,
    Serial._write_fcr,
    Serial._write_lcr,
    Serial._write_mcr,
    Serial._ignore_write,
    Serial._ignore_write,
    Serial._write_scr,
)
