"""The IOAPIC against its data sheet: registers, edges, levels, masks; then whatever a guest may write."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.devices.ioapic import EOI, IOREGSEL, IOWIN, PINS, Ioapic

ID, VERSION, ARBITRATION, TABLE = 0, 1, 2, 0x10
LEVEL, MASKED, REMOTE_IRR, LOW_ACTIVE, LOGICAL = 1 << 15, 1 << 16, 1 << 14, 1 << 13, 1 << 11
LOWEST, SMI, NMI, INIT, EXTINT = 1 << 8, 2 << 8, 4 << 8, 5 << 8, 7 << 8
VECTOR, OTHER_VECTOR = 0x41, 0x52
ADDRESS = 0xFEE0_0000
ASSERTED = 0xC000  # a message's level and trigger mode


class Guest:
    """An IOAPIC, the accesses that a guest makes, and what came of them."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, int]] = []
        self.routes: list[list[tuple[int, int, int]]] = []
        self.ioapic = Ioapic(
            lambda address, data: self.messages.append((address, data)),
            lambda routes: self.routes.append(list(routes)),
        )

    def get(self, register: int) -> int:
        self.ioapic.write(IOREGSEL, bytes([register, 0, 0, 0]))
        return int.from_bytes(self.ioapic.read(IOWIN, 4), "little")

    def put(self, register: int, value: int) -> None:
        self.ioapic.write(IOREGSEL, bytes([register, 0, 0, 0]))
        self.ioapic.write(IOWIN, value.to_bytes(4, "little"))

    def pin(self, pin: int, low: int, high: int = 0) -> None:
        self.put(TABLE + 2 * pin + 1, high)
        self.put(TABLE + 2 * pin, low)

    def taken(self) -> list[int]:
        """Return the data of the messages that came since the last call."""
        messages, self.messages = self.messages, []
        return [data for _, data in messages]


def test_after_reset() -> None:
    guest = Guest()
    assert [guest.get(register) for register in (ID, VERSION, ARBITRATION)] == [0, (PINS - 1) << 16 | 0x20, 0]
    assert [guest.get(TABLE + i) for i in range(2 * PINS)] == [MASKED, 0] * PINS
    for pin in range(PINS):
        guest.ioapic.set_line(pin, True)
    assert (guest.messages, guest.routes) == ([], [])


def test_registers_keep_what_is_writable() -> None:
    guest = Guest()
    for register in range(0x100):
        guest.put(register, 0xFFFF_FFFF)
    assert [guest.get(register) for register in (ID, VERSION, ARBITRATION)] == [0x0F00_0000, 0x17_0020, 0x0F00_0000]
    assert [guest.get(TABLE + i) for i in range(2 * PINS)] == [0x1_AFFF, 0xFF00_0000] * PINS
    assert [guest.get(register) for register in (3, 0xF, TABLE + 2 * PINS, 0xFF)] == [0, 0, 0, 0]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_sizes_of_access(size: int) -> None:
    guest = Guest()
    guest.ioapic.write(IOREGSEL, (TABLE + 2).to_bytes(size, "little"))
    assert guest.ioapic.read(IOREGSEL, size) == (TABLE + 2).to_bytes(size, "little")
    guest.ioapic.write(IOWIN, VECTOR.to_bytes(size, "little"))
    assert guest.ioapic.read(IOWIN, size) == VECTOR.to_bytes(size, "little")
    assert guest.get(TABLE + 2) == VECTOR
    assert guest.ioapic.read(IOWIN + 4, size) == bytes(size)


def test_an_edge_is_sent_once() -> None:
    guest = Guest()
    guest.pin(4, VECTOR)
    for level in (True, True, False, False, True):
        guest.ioapic.set_line(4, level)
    assert guest.taken() == [VECTOR, VECTOR]
    assert guest.routes == []


def test_an_edge_at_a_masked_pin_is_lost() -> None:
    guest = Guest()
    guest.pin(4, MASKED | VECTOR)
    guest.ioapic.set_line(4, True)
    guest.pin(4, VECTOR)
    assert guest.taken() == []
    guest.ioapic.set_line(4, False)
    guest.ioapic.set_line(4, True)
    assert guest.taken() == [VECTOR]


def test_a_level_is_sent_again_after_each_eoi() -> None:
    guest = Guest()
    guest.pin(4, LEVEL | VECTOR)
    guest.ioapic.set_line(4, True)
    guest.ioapic.set_line(4, True)
    assert guest.taken() == [ASSERTED | VECTOR]
    assert guest.get(TABLE + 8) == LEVEL | REMOTE_IRR | VECTOR
    guest.ioapic.eoi(OTHER_VECTOR)
    assert guest.taken() == []
    guest.ioapic.eoi(VECTOR)
    assert guest.taken() == [ASSERTED | VECTOR]
    guest.ioapic.set_line(4, False)
    guest.ioapic.eoi(VECTOR)
    assert guest.taken() == []
    assert guest.get(TABLE + 8) == LEVEL | VECTOR


def test_a_level_that_dips_while_it_is_served_is_sent_after_the_eoi() -> None:
    guest = Guest()
    guest.pin(4, LEVEL | VECTOR)
    for level in (True, False, True):
        guest.ioapic.set_line(4, level)
    assert guest.taken() == [ASSERTED | VECTOR]
    guest.ioapic.eoi(VECTOR)
    assert guest.taken() == [ASSERTED | VECTOR]


def test_a_level_waits_for_the_mask() -> None:
    guest = Guest()
    guest.pin(4, MASKED | LEVEL | VECTOR)
    guest.ioapic.set_line(4, True)
    assert guest.taken() == []
    guest.pin(4, LEVEL | VECTOR)
    assert guest.taken() == [ASSERTED | VECTOR]
    guest.pin(4, MASKED | LEVEL | VECTOR)
    guest.ioapic.eoi(VECTOR)
    assert guest.taken() == []
    assert guest.get(TABLE + 8) == MASKED | LEVEL | VECTOR


def test_pins_that_share_a_vector_share_its_eoi() -> None:
    guest = Guest()
    for pin in (16, 17):
        guest.pin(pin, LEVEL | VECTOR)
        guest.ioapic.set_line(pin, True)
    guest.ioapic.set_line(17, False)
    guest.taken()
    guest.ioapic.eoi(VECTOR)
    assert guest.taken() == [ASSERTED | VECTOR]
    assert guest.get(TABLE + 2 * 17) == LEVEL | VECTOR


def test_the_eoi_register() -> None:
    guest = Guest()
    guest.pin(4, LEVEL | VECTOR)
    guest.ioapic.set_line(4, True)
    guest.taken()
    guest.ioapic.write(EOI, VECTOR.to_bytes(4, "little"))
    assert guest.taken() == [ASSERTED | VECTOR]


def test_a_pin_made_edge_triggered_forgets_what_is_served() -> None:
    """So that Linux gets an interrupt going again of which the EOI was lost."""
    guest = Guest()
    guest.pin(4, LEVEL | VECTOR)
    guest.ioapic.set_line(4, True)
    guest.taken()
    guest.put(TABLE + 8, MASKED | VECTOR)
    assert guest.get(TABLE + 8) == MASKED | VECTOR
    guest.put(TABLE + 8, LEVEL | VECTOR)
    assert guest.taken() == [ASSERTED | VECTOR]


def test_the_guest_does_not_write_remote_irr() -> None:
    guest = Guest()
    guest.pin(4, LEVEL | REMOTE_IRR | VECTOR)
    assert guest.get(TABLE + 8) == LEVEL | VECTOR
    guest.ioapic.set_line(4, True)
    guest.put(TABLE + 8, LEVEL | VECTOR)
    assert guest.get(TABLE + 8) == LEVEL | REMOTE_IRR | VECTOR
    assert guest.taken() == [ASSERTED | VECTOR]


@pytest.mark.parametrize("mode", [SMI, NMI, INIT, EXTINT])
def test_modes_without_eoi_are_edge_triggered(mode: int) -> None:
    guest = Guest()
    guest.pin(4, LEVEL | mode | VECTOR)
    for level in (True, True, False, True):
        guest.ioapic.set_line(4, level)
    assert guest.taken() == [mode | VECTOR] * 2
    assert guest.routes == []


@pytest.mark.parametrize(
    ("low", "high", "address", "data"),
    [
        (VECTOR, 0x0300_0000, ADDRESS | 3 << 12, VECTOR),
        (VECTOR | LOGICAL, 0xFF00_0000, ADDRESS | 0xFF << 12 | 4, VECTOR),
        (VECTOR | LOWEST | LEVEL, 0x0100_0000, ADDRESS | 1 << 12, ASSERTED | LOWEST | VECTOR),
        (VECTOR | LOW_ACTIVE, 0, ADDRESS, VECTOR),
    ],
)
def test_messages(low: int, high: int, address: int, data: int) -> None:
    guest = Guest()
    guest.pin(9, low, high)
    guest.ioapic.set_line(9, True)
    assert guest.messages == [(address, data)]


def test_routes_are_those_of_level_triggered_pins_and_come_first() -> None:
    order: list[str] = []
    ioapic = Ioapic(lambda address, data: order.append("message"), lambda routes: order.append(f"{len(routes)} routes"))
    guest = Guest()
    guest.ioapic = ioapic
    ioapic.set_line(4, True)
    guest.pin(4, LEVEL | VECTOR)
    assert order == ["1 routes", "message"]
    guest = Guest()
    guest.pin(4, MASKED | LEVEL | VECTOR, 2 << 24)
    guest.pin(4, LEVEL | VECTOR, 2 << 24)
    guest.pin(5, VECTOR)
    guest.pin(4, VECTOR)
    assert guest.routes == [[(4, ADDRESS | 2 << 12, ASSERTED | VECTOR)], [(4, ADDRESS, ASSERTED | VECTOR)], []]


@pytest.mark.parametrize("pin", [-1, PINS, 1 << 40])
def test_no_such_pin(pin: int) -> None:
    with pytest.raises(ValueError, match=f"0 to 23, not {pin}"):
        Guest().ioapic.set_line(pin, True)


ACCESSES = st.one_of(
    st.tuples(st.just("write"), st.sampled_from([IOREGSEL, IOWIN, EOI, 1, 0x44, 0xFF]), st.binary(max_size=8)),
    st.tuples(st.just("register"), st.integers(0, 0x50), st.integers(0, 0x1FFFF)),
    st.tuples(st.just("line"), st.integers(0, PINS - 1), st.booleans()),
    st.tuples(st.just("eoi"), st.integers(0, 255), st.none()),
    st.tuples(st.just("read"), st.integers(0, 0xFF), st.sampled_from([1, 2, 4, 8])),
)


@given(st.lists(ACCESSES, max_size=60))
def test_whatever_a_guest_writes(accesses: Sequence[tuple[str, int, object]]) -> None:
    """Nothing raises; an access sends at most a message per pin; an active, unmasked level pin is being served."""
    guest = Guest()
    active = [False] * PINS
    for kind, where, what in accesses:
        guest.taken()
        if kind == "write":
            assert isinstance(what, bytes)
            guest.ioapic.write(where, what)
        elif kind == "register":
            assert isinstance(what, int)
            guest.put(where, what)
        elif kind == "line":
            active[where] = bool(what)
            guest.ioapic.set_line(where, active[where])
        elif kind == "eoi":
            guest.ioapic.eoi(where)
        else:
            assert isinstance(what, int)
            assert len(guest.ioapic.read(where, what)) == what
        assert len(guest.messages) <= PINS
        assert all(data < 0x1_0000 and address >> 20 == 0xFEE for address, data in guest.messages)
    entries = [guest.get(TABLE + 2 * pin) for pin in range(PINS)]
    levels = [pin for pin, entry in enumerate(entries) if entry & LEVEL and not entry & 0x600]
    assert [route[0] for route in (guest.routes[-1] if guest.routes else [])] == levels
    for pin, entry in enumerate(entries):
        assert pin in levels or not entry & REMOTE_IRR
        if pin in levels and active[pin] and not entry & MASKED:
            assert entry & REMOTE_IRR


def test_lines_from_many_threads() -> None:
    """Each edge of each pin is one message, whatever the other threads do."""
    guest = Guest()
    edges = 500
    for pin in range(8):
        guest.pin(pin, 0x40 + pin)

    def drive(pin: int) -> None:
        for _ in range(edges):
            guest.ioapic.set_line(pin, True)
            guest.ioapic.set_line(pin, False)

    threads = [threading.Thread(target=drive, args=(pin,)) for pin in range(8)]
    random.shuffle(threads)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    data = guest.taken()
    assert [data.count(0x40 + pin) for pin in range(8)] == [edges] * 8
