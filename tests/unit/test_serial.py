"""The 16550A, from its data sheet: registers, FIFO, interrupts, loopback; then its threads."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.devices import serial, serial_input
from pyvcpu.devices.bus import PORTS_SIZE, Bus
from pyvcpu.devices.line import Line
from pyvcpu.devices.serial import COM1, FCR, IER, IIR, LCR, LSR, MCR, MSR, RBR, SCR, THR, Serial

JOIN = 30  # seconds after which a thread counts as hung

NO_INT = 0x01
RECEIVE, TIMEOUT, THRE, LINE_STATUS, MODEM = 0x04, 0x0C, 0x02, 0x06, 0x00
FIFOS_ON = 0xC0


class Port:
    """A serial port seen by a guest, with a record of what it did."""

    def __init__(self, on_listen: Callable[[], object] | None = None) -> None:
        self._sent = bytearray()
        self.levels: list[bool] = []
        self.uart = Serial(self._sent.extend, self.levels.append, on_listen)

    @property
    def sent(self) -> bytes:
        return bytes(self._sent)

    @property
    def line(self) -> bool:
        return bool(self.levels) and self.levels[-1]

    def inb(self, register: int) -> int:
        return self.uart.read(register, 1)[0]

    def outb(self, register: int, value: int) -> None:
        self.uart.write(register, bytes((value,)))

    def changes(self) -> list[bool]:
        """Return the line's changes since the last call."""
        changes = self.levels.copy()
        self.levels.clear()
        return changes


@pytest.fixture
def port() -> Port:
    return Port()


def enable(port: Port, ier: int, fcr: int = 0x01) -> None:
    """Enable interrupts and connect them (OUT2)."""
    port.outb(FCR, fcr)
    port.outb(MCR, 0x0B)
    port.outb(IER, ier)


# Registers


def test_master_reset_state(port: Port) -> None:
    assert [port.inb(register) for register in (IER, IIR, LCR, MCR, LSR)] == [0, NO_INT, 0, 0, 0x60]
    assert port.inb(MSR) == 0xB0  # DCD, DSR and CTS: somebody is there; no deltas
    assert port.levels == []


def test_com1_is_where_a_pc_has_it() -> None:
    assert (serial.COM1, serial.COM1_IRQ, Serial.LENGTH, Serial.name) == (0x3F8, 4, 8, "COM1")


@pytest.mark.parametrize("register", [LCR, SCR])
@pytest.mark.parametrize("value", [0x00, 0x55, 0xAA, 0xFF])
def test_registers_that_keep_every_bit(port: Port, register: int, value: int) -> None:
    port.outb(register, value)
    assert port.inb(register) == value


@pytest.mark.parametrize(("register", "mask"), [(IER, 0x0F), (MCR, 0x1F)])
def test_reserved_bits_read_as_zero(port: Port, register: int, mask: int) -> None:
    port.outb(register, 0xFF)
    assert port.inb(register) == mask


@pytest.mark.parametrize("register", [LSR, MSR])
def test_status_registers_ignore_writes(port: Port, register: int) -> None:
    before = port.inb(register)
    port.outb(register, ~before & 0xFF)
    assert port.inb(register) == before


def test_divisor_latch_lies_over_the_first_two_registers(port: Port) -> None:
    port.outb(IER, 0x05)
    port.outb(LCR, 0x83)
    port.outb(0, 0x34)
    port.outb(1, 0x12)
    assert (port.inb(0), port.inb(1)) == (0x34, 0x12)
    port.outb(LCR, 0x03)
    assert (port.sent, port.inb(IER)) == (b"", 0x05)
    port.outb(LCR, 0x80)
    assert (port.inb(0), port.inb(1)) == (0x34, 0x12)


# Transmission


def test_transmission_takes_no_time(port: Port) -> None:
    for character in b"hello":
        port.outb(THR, character)
        assert port.inb(LSR) == 0x60  # THRE, TEMT
    assert port.sent == b"hello"


@pytest.mark.parametrize("ier", [0x00, 0x02, 0x0F])
@pytest.mark.parametrize("fcr", [0x00, 0x01])
def test_all_byte_values_are_sent_in_every_mode(port: Port, ier: int, fcr: int) -> None:
    enable(port, ier, fcr)
    for character in range(256):
        port.outb(THR, character)
    assert port.sent == bytes(range(256))


def test_wide_accesses_are_split_over_successive_registers(port: Port) -> None:
    port.uart.write(THR, b"A\x05")  # outw: THR, IER
    assert (port.sent, port.inb(IER)) == (b"A", 0x05)
    port.uart.write(LCR, b"\x03\x0b\x00\x00")  # outl: LCR, MCR, LSR, MSR
    assert port.uart.read(LCR, 2) == b"\x03\x0b"
    port.uart.write(SCR, b"\x42\x99")  # the second byte is beyond the last register
    assert port.uart.read(SCR, 4) == b"\x42\xff\xff\xff"
    assert port.sent == b"A"


# Reception


def test_without_fifos_the_receiver_holds_one_character(port: Port) -> None:
    assert port.uart.receive(b"ab") == 1
    assert port.uart.receive(b"b") == 0
    assert port.inb(LSR) == 0x61
    assert port.inb(RBR) == ord("a")
    assert port.inb(LSR) == 0x60
    assert port.uart.receive(b"b") == 1
    assert port.inb(RBR) == ord("b")


def test_fifo_holds_16_characters_and_never_overruns(port: Port) -> None:
    port.outb(FCR, 0x01)
    assert port.uart.receive(bytes(range(20))) == 16
    assert port.uart.receive(b"x") == 0
    assert [port.inb(RBR) for _ in range(4)] == [0, 1, 2, 3]
    assert port.uart.receive(b"0123456789") == 4
    assert [port.inb(RBR) for _ in range(16)] == [*range(4, 16), *b"0123"]
    assert port.inb(LSR) == 0x60  # empty, and no overrun


def test_receive_of_nothing_takes_nothing(port: Port) -> None:
    assert port.uart.receive(b"") == 0
    assert port.inb(LSR) == 0x60


def test_empty_receiver_reads_zero(port: Port) -> None:
    assert port.inb(RBR) == 0


@pytest.mark.parametrize(
    ("before", "fcr", "left"),
    [
        (0x01, 0x01, b"abc"),  # no change
        (0x01, 0x03, b""),  # FCR1 clears the receiver's FIFO
        (0x01, 0x05, b"abc"),  # FCR2 clears the transmitter's
        (0x01, 0x00, b""),  # so does leaving FIFO mode
        (0x01, 0x02, b""),
        (0x00, 0x01, b""),  # and entering it
        (0x00, 0x00, b"a"),
        (0x00, 0x02, b"a"),  # without FCR0 the other bits are not programmed
        (0x01, 0xC1, b"abc"),
    ],
)
def test_clearing_the_fifo(port: Port, before: int, fcr: int, left: bytes) -> None:
    port.outb(FCR, before)
    port.inb(LSR)
    port.uart.receive(b"abc")
    port.outb(FCR, fcr)
    received = bytearray()
    while port.inb(LSR) & 0x01:
        received.append(port.inb(RBR))
    assert received == left


def test_iir_says_whether_the_fifos_are_on(port: Port) -> None:
    port.outb(FCR, 0x01)
    assert port.inb(IIR) == FIFOS_ON | NO_INT
    port.outb(FCR, 0x00)
    assert port.inb(IIR) == NO_INT


# Interrupts


@pytest.mark.parametrize(("fcr", "trigger"), [(0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)])
def test_receive_interrupt_at_the_trigger_level_and_timeout_below(port: Port, fcr: int, trigger: int) -> None:
    enable(port, 0x01, fcr)
    assert (port.inb(IIR), port.changes()) == (FIFOS_ON | NO_INT, [])
    for count in range(1, 17):
        assert port.uart.receive(b"x") == 1
        assert port.inb(IIR) == FIFOS_ON | (RECEIVE if count >= trigger else TIMEOUT)
    assert port.changes() == [True]
    for count in range(15, 0, -1):
        port.inb(RBR)
        assert port.inb(IIR) == FIFOS_ON | (RECEIVE if count >= trigger else TIMEOUT)
        assert port.changes() == [False, True]  # an edge for each character that is left
    port.inb(RBR)
    assert (port.inb(IIR), port.changes()) == (FIFOS_ON | NO_INT, [False])


def test_receive_interrupt_without_fifos(port: Port) -> None:
    enable(port, 0x01, 0x00)
    port.uart.receive(b"x")
    assert (port.inb(IIR), port.changes()) == (RECEIVE, [True])
    port.inb(RBR)
    assert (port.inb(IIR), port.changes()) == (NO_INT, [False])


def test_a_disabled_interrupt_is_neither_shown_nor_signalled(port: Port) -> None:
    enable(port, 0x00)
    port.uart.receive(b"xy")
    port.outb(THR, 0x41)
    port.inb(RBR)
    assert (port.inb(IIR), port.changes()) == (FIFOS_ON | NO_INT, [])
    port.outb(IER, 0x01)
    assert port.changes() == [True]
    port.outb(IER, 0x00)
    assert port.changes() == [False]


def test_clearing_the_fifo_ends_its_interrupt(port: Port) -> None:
    enable(port, 0x01)
    port.uart.receive(b"xy")
    port.outb(FCR, 0x03)
    assert port.changes() == [True, False]


def test_enabling_the_transmitter_interrupt_raises_it(port: Port) -> None:
    enable(port, 0x02, 0x00)
    assert port.changes() == [True]
    assert (port.inb(IIR), port.changes()) == (THRE, [False])  # reading IIR clears it
    assert port.inb(IIR) == NO_INT
    port.outb(IER, 0x03)  # enabled already: no rising edge
    assert port.changes() == []
    port.outb(IER, 0x00)
    port.outb(IER, 0x02)
    assert port.changes() == [True]


def test_transmitter_interrupt_after_each_character(port: Port) -> None:
    enable(port, 0x02, 0x00)
    for _ in range(3):
        assert port.inb(IIR) == THRE
        port.changes()
        port.outb(THR, 0x41)
        assert port.changes() == [True]


def test_writing_thr_ends_the_interrupt_and_brings_the_next(port: Port) -> None:
    """A handler that never reads IIR needs an edge as well."""
    enable(port, 0x02, 0x00)
    port.changes()
    port.outb(THR, 0x41)
    assert port.changes() == [False, True]


def test_reading_iir_clears_the_transmitter_interrupt_only_when_it_shows_it(port: Port) -> None:
    enable(port, 0x03)
    port.uart.receive(b"x")
    assert port.inb(IIR) == FIFOS_ON | RECEIVE
    assert port.inb(IIR) == FIFOS_ON | RECEIVE
    port.inb(RBR)
    assert port.line
    assert port.inb(IIR) == FIFOS_ON | THRE
    assert port.inb(IIR) == FIFOS_ON | NO_INT
    assert not port.line


@pytest.mark.parametrize("sent", [15, 16, 40])
def test_a_full_transmitter_lets_the_handler_go_once(port: Port, sent: int) -> None:
    """Or a driver that fills the FIFO for as long as IIR says so would stay in its handler, interrupts disabled."""
    enable(port, 0x02)
    assert port.inb(IIR) == FIFOS_ON | THRE
    for _ in range(sent):
        port.outb(THR, 0x41)
    assert port.changes()[-1] is True
    if sent >= 16:
        assert port.inb(IIR) == FIFOS_ON | NO_INT
        assert port.changes() == [False, True], "an edge brings the handler back"
    assert port.inb(IIR) == FIFOS_ON | THRE
    assert port.inb(IIR) == FIFOS_ON | NO_INT
    assert port.changes() == [False]


def test_writing_thr_does_not_disturb_a_higher_interrupt(port: Port) -> None:
    enable(port, 0x03)
    port.uart.receive(b"x")
    port.changes()
    port.outb(THR, 0x41)
    assert port.changes() == []


def test_priorities(port: Port) -> None:
    """Line status, then received data, then transmitter empty, then modem status."""
    enable(port, 0x0F, 0xC1)
    port.outb(MCR, 0x1B)  # loopback; DTR, RTS and OUT2 are up: DSR, CTS and DCD stay as they were
    for _ in range(17):
        port.outb(THR, 0x41)  # the last one overruns
    port.outb(MCR, 0x10)  # the modem's lines fall
    assert port.inb(IIR) == FIFOS_ON | LINE_STATUS
    assert port.inb(LSR) == 0x63
    assert port.inb(IIR) == FIFOS_ON | RECEIVE
    for _ in range(3):
        port.inb(RBR)
    assert port.inb(IIR) == FIFOS_ON | TIMEOUT
    port.outb(FCR, 0xC3)
    assert port.inb(IIR) == FIFOS_ON | THRE
    assert port.inb(IIR) == FIFOS_ON | MODEM
    assert port.inb(MSR) == 0x0B
    assert port.inb(IIR) == FIFOS_ON | NO_INT


def test_out2_connects_the_line(port: Port) -> None:
    port.outb(IER, 0x02)
    assert (port.inb(IER), port.levels) == (0x02, [])
    port.outb(MCR, 0x08)
    assert port.changes() == [True]
    port.outb(MCR, 0x07)
    assert port.changes() == [False]


def test_without_a_line_interrupts_are_still_identified() -> None:
    uart = Serial(lambda data: None)
    uart.write(MCR, b"\x0b")
    uart.write(IER, b"\x03")
    uart.receive(b"x")
    assert uart.read(IIR, 1) == bytes((RECEIVE,))
    assert uart.read(RBR, 1) == b"x"
    uart.write(THR, b"A")
    assert uart.read(IIR, 1) == bytes((THRE,))


# Loopback


def test_loopback_receives_what_it_transmits(port: Port) -> None:
    """What boot code does to find out whether the chip works."""
    port.outb(FCR, 0xC7)
    port.outb(MCR, 0x1E)
    port.outb(THR, 0xAE)
    assert (port.inb(LSR), port.inb(RBR), port.inb(LSR)) == (0x61, 0xAE, 0x60)
    assert port.sent == b""
    port.outb(MCR, 0x0F)
    port.outb(THR, 0x41)
    assert port.sent == b"A"


def test_loopback_disconnects_the_line(port: Port) -> None:
    port.outb(FCR, 0x01)
    port.outb(MCR, 0x10)
    assert (port.uart.receive(b"x"), port.uart.wait_room(0)) == (0, False)
    port.outb(MCR, 0x00)
    assert (port.uart.wait_room(0), port.uart.receive(b"x")) == (True, 1)


def test_loopback_overrun_without_fifos_overwrites(port: Port) -> None:
    port.outb(MCR, 0x10)
    port.outb(THR, 0x41)
    port.outb(THR, 0x42)
    assert port.inb(LSR) == 0x63
    assert port.inb(LSR) == 0x61  # reading clears the error
    assert port.inb(RBR) == 0x42


def test_loopback_overrun_of_the_fifo_keeps_what_is_in_it(port: Port) -> None:
    port.outb(FCR, 0x01)
    port.outb(MCR, 0x10)
    for character in range(20):
        port.outb(THR, character)
    assert port.inb(LSR) == 0x63
    assert [port.inb(RBR) for _ in range(17)] == [*range(16), 0]


def test_loopback_holds_the_interrupt_line_low(port: Port) -> None:
    enable(port, 0x02)
    port.changes()
    port.outb(MCR, 0x1B)
    assert (port.changes(), port.inb(IIR)) == ([False], FIFOS_ON | THRE)


@pytest.mark.parametrize(
    ("mcr", "msr"),
    [
        (0x11, 0x20),  # DTR: DSR
        (0x12, 0x10),  # RTS: CTS
        (0x14, 0x40),  # OUT1: RI
        (0x18, 0x80),  # OUT2: DCD
        (0x1F, 0xF0),
        (0x10, 0x00),
        (0x0F, 0xB0),  # no loopback
    ],
)
def test_loopback_of_the_modem_lines(port: Port, mcr: int, msr: int) -> None:
    port.outb(MCR, mcr)
    assert port.inb(MSR) & 0xF0 == msr


@pytest.mark.parametrize(
    ("before", "after", "deltas"),
    [
        (0x10, 0x11, 0x02),  # DSR rises: DDSR
        (0x11, 0x10, 0x02),
        (0x10, 0x12, 0x01),  # CTS: DCTS
        (0x12, 0x10, 0x01),
        (0x10, 0x18, 0x08),  # DCD: DDCD
        (0x18, 0x10, 0x08),
        (0x10, 0x14, 0x00),  # RI rises: nothing
        (0x14, 0x10, 0x04),  # RI falls: TERI
        (0x15, 0x15, 0x00),
        (0x10, 0x0F, 0x0B),  # back to a line whose other end is there
    ],
)
def test_modem_deltas(port: Port, before: int, after: int, deltas: int) -> None:
    enable(port, 0x08)
    port.outb(MCR, before)
    port.inb(MSR)
    port.outb(MCR, after)
    assert port.inb(IIR) & 0x0F == (MODEM if deltas else NO_INT)
    assert port.inb(MSR) & 0x0F == deltas
    assert port.inb(MSR) & 0x0F == 0
    assert port.inb(IIR) & 0x0F == NO_INT


def test_deltas_add_up_until_read(port: Port) -> None:
    port.outb(MCR, 0x1F)
    port.inb(MSR)
    for mcr in (0x1E, 0x1C, 0x18, 0x10, 0x1F):
        port.outb(MCR, mcr)
    assert port.inb(MSR) == 0xFF


# The first sign that the guest listens


@pytest.mark.parametrize("access", [(RBR, None), (LSR, None), (IER, 0x01), (IER, 0x0F)])
def test_on_listen_is_called_once(access: tuple[int, int | None]) -> None:
    calls: list[int] = []
    port = Port(lambda: calls.append(1))
    register, value = access
    for _ in range(3):
        if value is None:
            port.inb(register)
        else:
            port.outb(register, value)
        assert calls == [1]
    port.inb(LSR)
    port.outb(IER, 0x01)
    assert calls == [1]


def test_a_guest_that_only_talks_does_not_listen() -> None:
    calls: list[int] = []
    port = Port(lambda: calls.append(1))
    port.outb(LCR, 0x80)
    port.outb(0, 0x01)
    port.outb(1, 0x01)  # DLM, not IER
    assert port.inb(0) == 0x01  # DLL, not RBR
    port.outb(LCR, 0x03)
    port.outb(FCR, 0xC7)
    port.outb(MCR, 0x0B)
    port.outb(IER, 0x0E)
    for register in (IER, IIR, LCR, MCR, MSR, SCR):
        port.inb(register)
    port.outb(THR, 0x41)
    assert (calls, port.sent) == ([], b"A")


@pytest.mark.parametrize(("register", "value"), [(LSR, 0x61), (RBR, ord("x"))])
def test_input_of_on_listen_is_there_at_once(register: int, value: int) -> None:
    listening = Port(lambda: listening.uart.receive(b"x"))
    assert listening.inb(register) == value


def test_input_of_on_listen_interrupts_at_once() -> None:
    listening = Port(lambda: listening.uart.receive(b"x"))
    enable(listening, 0x01)
    assert listening.changes() == [True]


# Waiting for room


def test_wait_room_returns_at_once_when_there_is_room(port: Port) -> None:
    assert port.uart.wait_room()
    port.uart.receive(b"x")
    assert not port.uart.wait_room(0)
    assert not port.uart.wait_room(0.001)


@pytest.mark.parametrize(
    "accesses",
    [[(RBR, None)] * 16, [(FCR, 0x00)], [(FCR, 0x03)]],
    ids=["empty the FIFO", "leave FIFO mode", "clear"],
)
def test_wait_room_is_woken_by_the_guest(port: Port, accesses: list[tuple[int, int | None]]) -> None:
    port.outb(FCR, 0x01)
    port.inb(LSR)
    assert port.uart.receive(bytes(16)) == 16
    waiter = Waiter(port.uart)
    for register, value in accesses:
        if value is None:
            port.inb(register)
        else:
            port.outb(register, value)
    assert waiter.result() is True


def test_wait_room_waits_for_an_empty_receiver(port: Port) -> None:
    """Less is not worth waking a thread for; what there is room for can be put there all the same."""
    port.outb(FCR, 0x01)
    port.uart.receive(bytes(16))
    for _ in range(7):
        port.inb(RBR)
        assert not port.uart.wait_room(0)
    assert port.uart.receive(bytes(16)) == 7
    for _ in range(16):
        port.inb(RBR)
    assert port.uart.wait_room(0)


def test_more_comes_when_the_handler_has_found_nothing_more(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux's looks at LSR for each character, and at IIR before it leaves."""
    monkeypatch.setattr(serial_input, "GAP", 1e6)
    enable(port, 0x01)
    port.uart.receive(b"x")
    waiter = Waiter(port.uart)
    for register in (IIR, LSR, RBR, LSR):
        port.inb(register)
    assert waiter.waits()
    assert port.inb(IIR) == FIFOS_ON | NO_INT
    assert waiter.result() is True


def test_more_comes_at_once_without_a_handler(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial_input, "GAP", 1e6)
    port.uart.receive(b"x")
    waiter = Waiter(port.uart)
    port.inb(RBR)
    assert waiter.result() is True


def test_more_comes_also_for_a_handler_that_never_looks(port: Port) -> None:
    enable(port, 0x01)
    port.uart.receive(b"x")
    port.inb(RBR)
    assert Waiter(port.uart).result() is True


def test_a_slow_handler_has_as_long_for_itself(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a guest that is slow does nothing but receive, for as long as there is input."""
    enable(port, 0x01)
    waiters = []
    for rest in (0, 1e6):
        monkeypatch.setattr(serial_input, "REST", rest)
        port.uart.receive(b"x")
        port.uart._receiver._received -= 1e6  # so long it takes
        waiters.append(Waiter(port.uart))
        for register in (IIR, LSR, RBR, LSR, IIR):
            port.inb(register)
        assert waiters[-1].waits() is bool(rest)
    port.uart.close()
    assert [waiter.result() for waiter in waiters] == [True, False]


def test_wait_room_is_woken_when_loopback_ends(port: Port) -> None:
    port.outb(MCR, 0x10)
    waiter = Waiter(port.uart)
    port.outb(MCR, 0x00)
    assert waiter.result() is True


def test_close_wakes_and_ends_reception(port: Port) -> None:
    port.outb(FCR, 0x01)
    port.uart.receive(bytes(15) + b"x")
    waiters = [Waiter(port.uart) for _ in range(3)]
    port.uart.close()
    assert [waiter.result() for waiter in waiters] == [False] * 3
    assert port.inb(RBR) == 0
    assert (port.uart.receive(b"y"), port.uart.wait_room()) == (0, False)
    assert [port.inb(RBR) for _ in range(15)] == [0] * 14 + [ord("x")]
    port.outb(THR, 0x41)
    port.uart.close()
    assert port.sent == b"A"


class Waiter:
    """A thread in wait_room()."""

    def __init__(self, uart: Serial) -> None:
        self._result: list[bool] = []
        self._thread = threading.Thread(target=lambda: self._result.append(uart.wait_room()), daemon=True)
        self._thread.start()

    def waits(self) -> bool:
        """Tell whether it does, once it has had the time to come to an end."""
        self._thread.join(0.05)
        return self._thread.is_alive()

    def result(self) -> bool:
        self._thread.join(JOIN)
        assert not self._thread.is_alive(), "wait_room was not woken"
        return self._result[0]


# Callables that call back in, block, or fail


def test_callables_may_call_back_in() -> None:
    """Each one uses every way into the device."""
    levels: list[bool] = []

    def call_back(*_: object) -> None:
        for register in range(8):
            uart.read(register, 1)
        uart.receive(b"x")
        uart.wait_room(0)
        uart.write(SCR, b"\x01")

    def set_irq(level: bool) -> None:
        levels.append(level)
        call_back()

    uart = Serial(call_back, set_irq, call_back)
    uart.write(MCR, b"\x0b")
    uart.write(IER, b"\x02")
    uart.write(THR, b"A")
    uart.read(LSR, 1)
    assert levels == [True, False, True, False]
    uart.write(IER, b"\x00")
    assert uart.read(IIR, 1) == bytes((NO_INT,))


@pytest.mark.parametrize("which", ["out", "set_irq", "on_listen"])
def test_callables_may_wait_for_another_thread_that_uses_the_port(which: str) -> None:
    def elsewhere(*_: object) -> None:
        thread = threading.Thread(target=use, daemon=True)
        thread.start()
        thread.join(JOIN)
        finished.append(not thread.is_alive())

    def use() -> None:
        uart.receive(b"x")
        uart.read(RBR, 1)
        uart.read(IIR, 1)
        uart.write(SCR, b"x")

    def nothing(*_: object) -> None:
        pass

    finished: list[bool] = []
    callables = {name: elsewhere if name == which else nothing for name in ("out", "set_irq", "on_listen")}
    uart = Serial(callables["out"], callables["set_irq"], callables["on_listen"])
    uart.write(MCR, b"\x0b")
    uart.write(IER, b"\x03")
    uart.write(THR, b"A")
    assert finished
    assert all(finished)


def test_a_change_made_inside_set_irq_is_passed_on_after_it() -> None:
    """Levels never nest: the next one comes when set_irq has returned."""
    trace: list[str] = []

    def set_irq(level: bool) -> None:
        trace.append(f"enter {level}")
        if level:
            uart.read(RBR, 1)
        trace.append(f"leave {level}")

    uart = Serial(lambda data: None, set_irq)
    uart.write(MCR, b"\x08")
    uart.write(IER, b"\x01")
    uart.receive(b"x")
    assert trace == ["enter True", "leave True", "enter False", "leave False"]


def test_an_exception_of_set_irq_reaches_the_caller_and_does_not_jam_the_line() -> None:
    levels: list[bool] = []

    def set_irq(level: bool) -> None:
        levels.append(level)
        if len(levels) == 1:
            raise OSError("first")

    uart = Serial(lambda data: None, set_irq)
    uart.write(MCR, b"\x08")
    uart.write(IER, b"\x01")
    with pytest.raises(OSError, match="first"):
        uart.receive(b"x")
    uart.read(RBR, 1)
    assert levels == [True, False]


@pytest.mark.parametrize("ier", [0x00, 0x02])
def test_an_exception_of_out_reaches_the_writer(ier: int) -> None:
    def fail(data: bytes) -> None:
        raise BrokenPipeError

    uart = Serial(fail)
    uart.write(IER, bytes((ier,)))
    for _ in range(2):
        with pytest.raises(BrokenPipeError):
            uart.write(THR, b"x")
    assert uart.read(LSR, 1) == b"\x60"


def test_input_between_the_fall_of_the_line_and_set_irq_makes_an_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's thread comes in just when a vCPU has read the last byte and is about to report the fall."""
    port = Port()
    enable(port, 0x01, 0x00)
    port.uart.receive(b"x")
    port.changes()
    drive = port.uart._line.drive

    def drive_late(line: Line) -> None:
        monkeypatch.undo()
        port.uart.receive(b"y")
        drive()

    monkeypatch.setattr(Line, "drive", drive_late)
    assert port.inb(RBR) == ord("x")
    assert port.changes() == [False, True]


# A hostile guest

sizes = st.sampled_from([1, 2, 4, 8])
reads = st.tuples(st.just("read"), st.integers(0, 7), sizes)
writes = st.tuples(st.just("write"), st.integers(0, 7), sizes.flatmap(lambda n: st.binary(min_size=n, max_size=n)))
inputs = st.tuples(st.just("receive"), st.just(0), st.binary(max_size=40))


@given(st.lists(st.one_of(reads, writes, inputs), max_size=60))
def test_no_access_raises_and_the_line_is_always_right(steps: list[tuple[str, int, int | bytes]]) -> None:
    port = Port()
    bus = Bus("port", PORTS_SIZE)
    bus.attach(COM1, Serial.LENGTH, port.uart)
    for _, register, argument in steps:
        match argument:
            case int(size):
                assert len(bus.read(None, COM1 + register, size)) == size
            case data if register or len(data) in (1, 2, 4, 8):
                bus.write(None, COM1 + register, data)
            case data:
                assert 0 <= port.uart.receive(data) <= min(len(data), 16)
        changes = port.levels
        assert changes == [n % 2 == 0 for n in range(len(changes))]  # they alternate and begin with a rise
        state = port.uart.state()
        assert len(state["fifo"]) + len(state["waiting"]) <= 32
        connected = port.inb(MCR) & 0x18 == 0x08
        before = port.line
        assert before == (connected and not port.inb(IIR) & 0x01)


@given(
    st.lists(st.one_of(st.binary(min_size=1, max_size=40), st.integers(1, 20))),
    st.sampled_from([0x00, 0x01, 0xC1]),
)
def test_bytes_come_out_as_they_went_in(steps: list[bytes | int], fcr: int) -> None:
    """A model of two lines: what was taken, in order, is what is read."""
    port = Port()
    enable(port, 0x01, fcr)
    taken, received = bytearray(), bytearray()
    for step in steps:
        if isinstance(step, bytes):
            taken += step[: port.uart.receive(step)]
        else:
            for _ in range(step):
                if port.inb(LSR) & 0x01:
                    received.append(port.inb(RBR))
        assert taken.startswith(received)
        assert port.line == (len(taken) > len(received))
        assert len(taken) - len(received) <= (16 if fcr else 1)


# Threads, by repetition


@pytest.fixture
def restless() -> Iterator[None]:
    """Let the interpreter change threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def run_together(*targets: Callable[[], object]) -> None:
    """Run each in a thread of its own, started together; fail when one hangs or raises."""
    start = threading.Barrier(len(targets))
    failures: list[BaseException] = []

    def body(target: Callable[[], object]) -> None:
        try:
            start.wait(JOIN)
            target()
        except BaseException as failure:  # handed to the test's thread
            failures.append(failure)

    threads = [threading.Thread(target=body, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN)
    assert failures == []
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"


def feeder(uart: Serial, data: bytes) -> Callable[[], None]:
    """Return what the host's thread does: put data in, and wait for room."""

    def feed() -> None:
        rest = data
        while rest:
            rest = rest[uart.receive(rest) :]
            if rest:
                assert uart.wait_room(JOIN)

    return feed


@pytest.mark.smp
@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("ier", [0x00, 0x02])
def test_each_writer_keeps_its_order_and_loses_nothing(ier: int) -> None:
    sent: list[int] = []
    levels: list[bool] = []
    uart = Serial(sent.extend, levels.append)
    uart.write(MCR, b"\x08")
    uart.write(IER, bytes((ier,)))

    def writer(number: int) -> Callable[[], None]:
        def write() -> None:
            for n in range(600):
                uart.write(THR, bytes((number << 6 | n % 64,)))

        return write

    run_together(*(writer(number) for number in range(4)))
    assert len(sent) == 4 * 600
    for number in range(4):
        assert [byte % 64 for byte in sent if byte >> 6 == number] == [n % 64 for n in range(600)]
    assert levels == [n % 2 == 0 for n in range(len(levels))]


@pytest.mark.smp
@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("fcr", [0x00, 0x01, 0xC1])
def test_a_polling_reader_gets_all_bytes_in_order(fcr: int) -> None:
    uart = Serial(lambda data: None)
    uart.write(FCR, bytes((fcr,)))
    data = bytes(n * 7 % 251 for n in range(2000))
    received = bytearray()

    def poll() -> None:
        while len(received) < len(data):
            if uart.read(LSR, 1)[0] & 0x01:
                received.extend(uart.read(RBR, 1))
            os.sched_yield()  # lets go of the interpreter, as a vCPU does in KVM_RUN

    run_together(feeder(uart, data), poll)
    assert received == data


@pytest.mark.smp
@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("fcr", [0x00, 0x01, 0x81, 0xC1])
def test_a_handler_that_reads_one_byte_per_edge_gets_all_bytes(fcr: int) -> None:
    """A handler as small kernels have it, behind an edge-triggered interrupt controller."""
    irr = threading.Event()  # as the controller's IRR bit: an edge sets it, edges do not add up

    def set_irq(level: bool) -> None:
        if level:
            irr.set()

    uart = Serial(lambda data: None, set_irq)
    uart.write(FCR, bytes((fcr,)))
    uart.write(MCR, b"\x0b")
    uart.write(IER, b"\x01")
    data = bytes(n * 7 % 251 + 1 for n in range(1000))
    received = bytearray()

    def handle() -> None:
        while len(received) < len(data):
            assert irr.wait(JOIN), f"no edge after {len(received)} bytes"
            irr.clear()
            if uart.read(LSR, 1)[0] & 0x01:
                received.extend(uart.read(RBR, 1))

    run_together(feeder(uart, data), handle)
    assert received == data


@pytest.mark.smp
@pytest.mark.usefixtures("restless")
def test_levels_alternate_and_end_right_whoever_changes_the_line() -> None:
    inside = itertools.count()
    overlapping: list[int] = []
    busy = threading.Lock()
    levels: list[bool] = []

    def set_irq(level: bool) -> None:
        if not busy.acquire(blocking=False):
            overlapping.append(next(inside))
            return
        levels.append(level)
        busy.release()

    uart = Serial(lambda data: None, set_irq)
    uart.write(FCR, b"\x01")
    uart.write(MCR, b"\x0b")

    def hammer(*accesses: tuple[int, int | None]) -> Callable[[], None]:
        def body() -> None:
            for _ in range(300):
                for register, value in accesses:
                    if value is None:
                        uart.read(register, 1)
                    else:
                        uart.write(register, bytes((value,)))

        return body

    def feed() -> None:
        for _ in range(300):
            uart.receive(b"xyz")

    run_together(
        hammer((IER, 0x03), (IIR, None), (IER, 0x00)),
        hammer((THR, 0x41), (IIR, None), (MCR, 0x0B)),
        hammer((RBR, None), (LSR, None), (MCR, 0x03)),
        feed,
    )
    assert overlapping == []
    assert levels == [n % 2 == 0 for n in range(len(levels))]
    connected = uart.read(MCR, 1)[0] & 0x18 == 0x08
    line = bool(levels) and levels[-1]
    assert line == (connected and not uart.read(IIR, 1)[0] & 0x01)


@pytest.mark.smp
@pytest.mark.usefixtures("restless")
def test_on_listen_is_called_once_however_many_vcpus_listen() -> None:
    calls: list[int] = []
    uart = Serial(lambda data: None, None, lambda: calls.append(1))
    run_together(
        *(lambda: uart.read(LSR, 1) for _ in range(3)),
        *(lambda: uart.write(IER, b"\x01") for _ in range(3)),
    )
    assert calls == [1]
