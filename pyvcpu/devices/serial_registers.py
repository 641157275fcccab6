"""The registers of a 16550A. Source: National Semiconductor PC16550D data sheet (June 1995), section 8."""

from __future__ import annotations

from .device import StateDataError, bits, checked, flag, integer, octets
from .serial_input import FIFO_SIZE, Receiver

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .device import State

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
_MCR_BITS = MCR_DTR | MCR_RTS | MCR_OUT1 | MCR_OUT2 | MCR_LOOP
_IER_BITS = IER_RDI | IER_THRI | IER_RLSI | IER_MSI
_LOOPED_BACK = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))

_STATE = {
    "ier": bits(_IER_BITS),
    "lcr": integer(0, 0xFF),
    "mcr": bits(_MCR_BITS),
    "msr_deltas": bits(_MSR_DELTAS),
    "scr": integer(0, 0xFF),
    "divisor": integer(0, 0xFFFF),
    "fifos_enabled": flag,
    "trigger": integer(0, len(FCR_TRIGGERS) - 1),
    "overrun": flag,
    "thr_emptied": flag,
    "sent": integer(0, FIFO_SIZE),
    "listening": flag,
    "fifo": octets(0, FIFO_SIZE),
    "looped": integer(0, (1 << FIFO_SIZE) - 1),
    "waiting": octets(0, FIFO_SIZE),
}


class Registers:
    """What the guest reads and writes, and whether an interrupt is pending.

    Threads: the lock of the serial port is held while a method is called.
    """

    __slots__ = (
        "_divisor",
        "_modem",
        "_overrun",
        "_scratch",
        "_sent",
        "_thr_emptied",
        "_trigger",
        "dip",
        "direct",
        "ier",
        "lcr",
        "mcr",
        "receiver",
    )

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self._clear()

    def _clear(self) -> None:
        self.ier = 0
        self.lcr = 0
        self.mcr = 0
        self._modem = _MSR_CONNECTED  # MSR
        self._scratch = 0
        self._divisor = bytearray((12, 0))  # 9600 baud, as firmware leaves it; of no effect
        self._trigger = 0  # an index of FCR_TRIGGERS
        self._overrun = 0  # LSR_OE or 0
        self._thr_emptied = True  # a THRE interrupt is due
        self._sent = 0  # characters since the last one was enabled or shown, FIFO_SIZE at most
        self.direct = True  # writing THR does nothing but transmit
        self.dip = False  # the access under way makes an edge due, if the line is high

    def reset(self) -> None:
        """Return to the state after power-on, but for the host's input, which waits until the guest listens."""
        self._clear()
        self.receiver.reset()

    def state(self) -> State:
        """Return the registers, and the input that the guest has not read, as plain data."""
        fifo, looped, waiting = self.receiver.state()
        return {
            "ier": self.ier,
            "lcr": self.lcr,
            "mcr": self.mcr,
            "msr_deltas": self._modem & _MSR_DELTAS,
            "scr": self._scratch,
            "divisor": int.from_bytes(self._divisor, "little"),
            "fifos_enabled": self.receiver.enabled,
            "trigger": self._trigger,
            "overrun": bool(self._overrun),
            "thr_emptied": self._thr_emptied,
            "sent": self._sent,
            "listening": self.receiver.on,
            "fifo": fifo,
            "looped": looped,
            "waiting": waiting,
        }

    def restore(self, values: State) -> None:
        """Take over what check() returned."""
        self.ier, self.lcr, self.mcr = values["ier"], values["lcr"], values["mcr"]
        self._modem = modem_lines(self.mcr) | values["msr_deltas"]
        self._scratch, self._trigger = values["scr"], values["trigger"]
        self._divisor = bytearray(values["divisor"].to_bytes(2, "little"))
        self._overrun = LSR_OE if values["overrun"] else 0
        self._thr_emptied, self._sent = values["thr_emptied"], values["sent"]
        self.direct = self._is_direct()
        receiver = self.receiver
        receiver.enabled, receiver.on = values["fifos_enabled"], values["listening"]
        receiver.loop = bool(self.mcr & MCR_LOOP)
        receiver.restore(values["fifo"], values["looped"], values["waiting"])

    def shows_listening(self, register: int) -> bool:
        """Return whether reading `register` is a sign that the guest listens."""
        return register == LSR or (register == RBR and not self.lcr & LCR_DLAB)

    def read(self, register: int) -> int:
        """Read one of the eight registers."""
        return _READ[register](self)

    def write(self, register: int, value: int) -> bool:
        """Write one of the eight registers; return whether THR has transmitted `value`."""
        if register == THR:
            return self._write_thr(value)
        _WRITE[register](self, value)
        self.direct = self._is_direct()
        self.receiver.refill()
        return False

    def _is_direct(self) -> bool:
        return not (self.lcr & LCR_DLAB or self.mcr & MCR_LOOP or self.ier & IER_THRI)

    def _write_thr(self, value: int) -> bool:
        if self.lcr & LCR_DLAB:
            self._divisor[DLL] = value
            return False
        self._thr_emptied = True
        loop = self.mcr & MCR_LOOP
        if loop:
            self._overrun |= LSR_OE if self.receiver.loop_back(value) else 0
        else:
            self._sent = min(self._sent + 1, FIFO_SIZE)
        # The interrupt ends, and comes again when the character has left: at once.
        self.dip = self.pending() == IIR_THRI
        return not loop

    def _read_rbr(self) -> int:
        if self.lcr & LCR_DLAB:
            return self._divisor[DLL]
        if not self.receiver.fifo:
            return 0
        value = self.receiver.pop(handler=bool(self.ier & IER_RDI))
        self.dip = self.pending() in (IIR_RDI, IIR_TIMEOUT)
        return value

    def _read_ier(self) -> int:
        return self._divisor[DLM] if self.lcr & LCR_DLAB else self.ier

    def _read_iir(self) -> int:
        pending = self.pending()
        if pending == IIR_THRI:
            if self.receiver.enabled and self._sent >= FIFO_SIZE:
                pending = IIR_NO_INT  # it has been sent a moment later
                self.dip = True
            else:
                self._thr_emptied = False
            self._sent = 0
        if pending == IIR_NO_INT:
            self.receiver.found_nothing()
        return pending | (IIR_FIFO if self.receiver.enabled else 0)

    def _read_lcr(self) -> int:
        return self.lcr

    def _read_mcr(self) -> int:
        return self.mcr

    def _read_lsr(self) -> int:
        overrun, self._overrun = self._overrun, 0
        return LSR_TEMT | LSR_THRE | overrun | (LSR_DR if self.receiver.fifo else 0)

    def _read_msr(self) -> int:
        value = self._modem
        self._modem &= ~_MSR_DELTAS
        return value

    def _read_scr(self) -> int:
        return self._scratch

    def _write_ier(self, value: int) -> None:
        if self.lcr & LCR_DLAB:
            self._divisor[DLM] = value
            return
        if value & ~self.ier & IER_THRI:
            self._thr_emptied = True  # enabling the interrupt of an empty register raises it
            self._sent = 0
        self.ier = value & _IER_BITS

    def _write_fcr(self, value: int) -> None:
        """Write FCR, whose other bits count only with FCR_ENABLE. The transmitter's FIFO is always empty."""
        enable = bool(value & FCR_ENABLE)
        self._trigger = value >> 6
        if enable != self.receiver.enabled or (enable and value & FCR_CLEAR_RCVR):
            self.receiver.clear()
        self.receiver.enabled = enable

    def _write_lcr(self, value: int) -> None:
        self.lcr = value

    def _write_mcr(self, value: int) -> None:
        """Write MCR; in loopback mode its outputs take the place of the modem's lines."""
        self.mcr = value & _MCR_BITS
        self.receiver.loop = bool(value & MCR_LOOP)
        lines = modem_lines(value)
        changed = lines ^ self._modem & ~_MSR_DELTAS
        deltas = changed >> 4 & (MSR_DCTS | MSR_DDSR | MSR_DDCD)
        if changed & ~lines & MSR_RI:
            deltas |= MSR_TERI  # only the trailing edge counts
        self._modem = lines | self._modem & _MSR_DELTAS | deltas

    def _write_scr(self, value: int) -> None:
        self._scratch = value

    def _ignore_write(self, value: int) -> None:
        """LSR and MSR: writing is for factory tests."""

    def pending(self) -> int:
        """Return the identification of the pending interrupt of the highest priority."""
        ier = self.ier
        if ier & IER_RLSI and self._overrun:
            return IIR_RLSI
        receiver = self.receiver
        if ier & IER_RDI and receiver.fifo:
            below = receiver.enabled and len(receiver.fifo) < FCR_TRIGGERS[self._trigger]
            return IIR_TIMEOUT if below else IIR_RDI
        if ier & IER_THRI and self._thr_emptied:
            return IIR_THRI
        if ier & IER_MSI and self._modem & _MSR_DELTAS:
            return IIR_MSI
        return IIR_NO_INT

    def level(self) -> bool:
        """Return the level that the line should have: loopback mode holds the OUT2 pin inactive, too."""
        return self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2 and self.pending() != IIR_NO_INT


def check(name: str, data: object) -> State:
    """Return `data` if state() can have given it; raise StateDataError otherwise."""
    values = checked(name, _STATE, data)
    fifo, looped, waiting = values["fifo"], values["looped"], values["waiting"]
    if len(fifo) > (FIFO_SIZE if values["fifos_enabled"] else 1) or looped >> len(fifo):
        raise StateDataError(f"{name}: the receiver must hold no more than its FIFO has room for")
    if len(fifo) - looped.bit_count() + len(waiting) > FIFO_SIZE:
        raise StateDataError(f"{name}: at most {FIFO_SIZE} characters of input can wait for the guest")
    return values


def modem_lines(mcr: int) -> int:
    """Return what MSR shows of the modem's lines."""
    if mcr & MCR_LOOP:
        return sum(line for output, line in _LOOPED_BACK if mcr & output)
    return _MSR_CONNECTED


_READ: tuple[Callable[[Registers], int], ...] = (
    Registers._read_rbr,
    Registers._read_ier,
    Registers._read_iir,
    Registers._read_lcr,
    Registers._read_mcr,
    Registers._read_lsr,
    Registers._read_msr,
    Registers._read_scr,
)
_WRITE: tuple[Callable[[Registers, int], None], ...] = (
    Registers._ignore_write,  # THR has its own path
    Registers._write_ier,
    Registers._write_fcr,
    Registers._write_lcr,
    Registers._write_mcr,
    Registers._ignore_write,
    Registers._ignore_write,
    Registers._write_scr,
)
