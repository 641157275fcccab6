"""The debug console, the debug exit, and the two reset ports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.bus import PORTS_SIZE, Bus
from pyvcpu.devices.debug import CONSOLE_PORT, EXIT_PORT, After, DebugConsole, DebugExit
from pyvcpu.devices.reset import COMMAND_PORT, DATA_PORT, RESET_CONTROL_PORT, KeyboardController, ResetControl
from tests.threads import Caller

# Debug console


@pytest.mark.parametrize("data", [b"A", b"AB", b"ABCD"])
def test_console_emits_every_byte_in_one_piece(data: bytes) -> None:
    written: list[bytes] = []
    DebugConsole(written.append).write(0, data)
    assert written == [data]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_console_says_that_it_is_there(size: int) -> None:
    assert DebugConsole(print).read(0, size) == b"\xe9" * size


def test_the_first_writes_are_counted_and_then_something_is_done_once() -> None:
    calls: list[str] = []
    console = DebugConsole(After(lambda data: calls.append(data.decode()), 3, lambda: calls.append("then")))
    for byte in b"abcde":
        console.write(0, bytes((byte,)))
    console.reset()
    console.write(0, b"f")
    assert calls == ["a", "b", "then", "c", "d", "e", "f"]


@pytest.mark.parametrize("which", ["out", "then"])
def test_either_callable_may_wait_for_another_thread_that_writes(which: str) -> None:
    written: list[bytes] = []

    def wait(*_: object) -> None:
        if not written:
            written.append(b"")
            assert Caller(lambda: console.write(0, b"other")).done()

    def out(data: bytes) -> None:
        if which == "out":
            wait()
        written.append(data)

    console = DebugConsole(After(out, 1, wait if which == "then" else lambda: None))
    console.write(0, b"one")
    assert written == [b"", b"other", b"one"]


# Debug exit


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x00", 1),
        (b"\x01", 3),
        (b"\x7f", 255),
        (b"\x80", 1),
        (b"\xff", 255),
        (b"\x10\x00", 33),
        (b"\x10\x00\x00\x00", 33),
        (b"\x00\x01", 1),  # only the low 8 bits of (v << 1) | 1 remain
        (b"\xff\xff\xff\xff", 255),
    ],
)
@pytest.mark.parametrize("offset", range(DebugExit.LENGTH))
def test_exit_status_is_odd_and_has_8_bits(offset: int, data: bytes, status: int) -> None:
    statuses: list[int] = []
    DebugExit(statuses.append).write(offset, data)
    assert statuses == [status]


def test_exit_reads_zeros() -> None:
    assert DebugExit(print).read(0, 1) == b"\x00"
    assert DebugExit(print).read(2, 4) == bytes(4)


# Keyboard controller


class Pc:
    """A port bus with both reset devices, which counts resets."""

    def __init__(self) -> None:
        self.resets = 0
        self.bus = Bus("port", PORTS_SIZE)
        self.regions = KeyboardController(self.reset).attach_to(self.bus)
        self.bus.attach(RESET_CONTROL_PORT, ResetControl.LENGTH, ResetControl(self.reset))

    def reset(self) -> None:
        self.resets += 1

    def outb(self, port: int, value: int) -> None:
        self.bus.write(None, port, bytes((value,)))

    def inb(self, port: int) -> int:
        return self.bus.read(None, port, 1)[0]


@pytest.fixture
def pc() -> Pc:
    return Pc()


def test_keyboard_controller_leaves_the_ports_between_alone(pc: Pc) -> None:
    assert [(region.start, region.length) for region in pc.regions] == [(0x60, 1), (0x64, 1)]
    assert pc.bus.lookup(0x61) is None


@pytest.mark.parametrize("command", range(0xF0, 0x100))
def test_pulse_of_output_bit_0_resets(pc: Pc, command: int) -> None:
    pc.outb(COMMAND_PORT, command)
    assert pc.resets == (1 if command % 2 == 0 else 0)


def test_only_pulses_reset(pc: Pc) -> None:
    for command in range(0xF0):
        pc.outb(COMMAND_PORT, command)
    assert pc.resets == 0


def test_reset_does_not_come_from_the_data_port(pc: Pc) -> None:
    pc.outb(DATA_PORT, 0xFE)
    assert pc.resets == 0


def test_buffers_are_empty_from_the_start(pc: Pc) -> None:
    """What `wait: in $0x64, %al; test $3, %al; jnz wait` needs."""
    assert pc.inb(COMMAND_PORT) & 0x03 == 0
    assert pc.inb(DATA_PORT) == 0


def test_answers_wait_in_the_output_buffer_until_read(pc: Pc) -> None:
    for command, answer in ((0xAA, 0x55), (0xAB, 0x01), (0xD0, 0xCF), (0x20, 0x04)):
        pc.outb(COMMAND_PORT, command)
        assert pc.inb(COMMAND_PORT) & 0x03 == 0x01
        assert pc.inb(DATA_PORT) == answer
        assert pc.inb(COMMAND_PORT) & 0x03 == 0


def test_opening_a20_does_not_reset(pc: Pc) -> None:
    """What boot sectors do: read the output port, set bit 1, write it back."""
    pc.outb(COMMAND_PORT, 0xD0)
    value = pc.inb(DATA_PORT)
    pc.outb(COMMAND_PORT, 0xD1)
    pc.outb(DATA_PORT, value | 0x02)
    assert pc.resets == 0


def test_writing_the_output_port_with_bit_0_clear_resets(pc: Pc) -> None:
    pc.outb(COMMAND_PORT, 0xD1)
    pc.outb(DATA_PORT, 0xFE)
    assert pc.resets == 1
    pc.outb(DATA_PORT, 0xFE)  # a data byte belongs to one command only
    assert pc.resets == 1


def test_command_byte_can_be_written(pc: Pc) -> None:
    pc.outb(COMMAND_PORT, 0x60)
    pc.outb(DATA_PORT, 0x45)
    pc.outb(DATA_PORT, 0x99)
    pc.outb(COMMAND_PORT, 0x20)
    assert pc.inb(DATA_PORT) == 0x45


# Reset control register


def test_rising_edge_of_bit_2_resets(pc: Pc) -> None:
    pc.outb(RESET_CONTROL_PORT, 0x02)
    assert (pc.resets, pc.inb(RESET_CONTROL_PORT)) == (0, 0x02)
    pc.outb(RESET_CONTROL_PORT, 0x06)
    assert (pc.resets, pc.inb(RESET_CONTROL_PORT)) == (1, 0x06)
    pc.outb(RESET_CONTROL_PORT, 0x06)  # high already
    assert pc.resets == 1
    pc.outb(RESET_CONTROL_PORT, 0x00)
    pc.outb(RESET_CONTROL_PORT, 0x04)
    assert pc.resets == 2


def test_reserved_bits_of_reset_control_read_as_zero(pc: Pc) -> None:
    pc.outb(RESET_CONTROL_PORT, 0xFB)
    assert (pc.resets, pc.inb(RESET_CONTROL_PORT)) == (0, 0x0A)


# All of them, as a hostile guest uses them

PORTS = (CONSOLE_PORT, EXIT_PORT, EXIT_PORT + 3, DATA_PORT, COMMAND_PORT, RESET_CONTROL_PORT)
sizes = st.sampled_from([1, 2, 4, 8])
accesses = st.lists(
    st.tuples(st.sampled_from(PORTS), st.one_of(sizes, sizes.flatmap(lambda n: st.binary(min_size=n, max_size=n))))
)


@given(accesses)
def test_no_access_raises_and_reads_have_the_right_size(steps: list[tuple[int, int | bytes]]) -> None:
    written = bytearray()
    statuses: list[int] = []
    pc = Pc()
    pc.bus.attach(CONSOLE_PORT, DebugConsole.LENGTH, DebugConsole(written.extend))
    pc.bus.attach(EXIT_PORT, DebugExit.LENGTH, DebugExit(statuses.append))
    for port, access in steps:
        if isinstance(access, bytes):
            pc.bus.write(None, port, access)
        else:
            assert len(pc.bus.read(None, port, access)) == access
    console = [access for port, access in steps if port == CONSOLE_PORT and isinstance(access, bytes)]
    assert bytes(written) == b"".join(console)
    assert all(status % 2 == 1 and status < 256 for status in statuses)
