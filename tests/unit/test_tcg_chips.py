"""The PICs, the IOAPIC, the PIT and the timers of the software KVM, with a clock that somebody sets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvcpu.kvm import abi
from pyvcpu.tcg.apic_timer import EOI, LVT_LINT0
from pyvcpu.tcg.clock import NEVER, Timer, Timers
from pyvcpu.tcg.pit import Pit
from pyvcpu.tcg.routes import USER
from tests.tcg_board import VECTOR, Board, Still


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board(4)
    made.enable()
    yield made
    made.vm.released()


# PICs.


def program(board: Board, auto_eoi: bool = False) -> None:
    """Set both PICs up at vectors 0x20 and 0x28, nothing masked."""
    pic = board.vm.irqs.pic
    assert pic is not None
    for port, base in ((0x20, 0x20), (0xA0, 0x28)):
        pic.port_write(port, 1, 0x11)
        for value in (base, 4 if port == 0x20 else 2, 1 | 2 * auto_eoi, 0):
            pic.port_write(port + 1, 1, value)


def line(board: Board, gsi: int, level: bool) -> int:
    return board.vm.irqs.set_line(USER, gsi, level)


def test_lines_of_both_pics_in_their_order(board: Board) -> None:
    program(board)
    pic = board.vm.irqs.pic
    assert pic is not None
    for gsi in (12, 4, 1):
        line(board, gsi, True)
    assert (pic.acknowledge(), pic.output) == (0x21, False)
    pic.port_write(0x20, 1, 0x20)
    assert pic.acknowledge() == 0x2C  # the slave is at line 2, before line 4
    pic.port_write(0xA0, 1, 0x20)
    pic.port_write(0x20, 1, 0x20)
    assert pic.acknowledge() == 0x24
    assert not pic.output


def test_a_higher_line_interrupts_a_lower_one(board: Board) -> None:
    program(board)
    pic = board.vm.irqs.pic
    assert pic is not None
    line(board, 5, True)
    assert pic.acknowledge() == 0x25
    line(board, 6, True)
    assert not pic.output
    line(board, 3, True)
    assert pic.acknowledge() == 0x23
    pic.port_write(0x20, 1, 0x0B)  # read ISR
    assert pic.port_read(0x20, 1) == 0b101000
    pic.port_write(0x20, 1, 0x0A)
    assert pic.port_read(0x20, 1) == 0b1000000


def test_masks_and_edges(board: Board) -> None:
    program(board, auto_eoi=True)
    pic = board.vm.irqs.pic
    assert pic is not None
    pic.port_write(0x21, 1, 0x10)
    assert line(board, 4, True) == -1
    assert not pic.output
    pic.port_write(0x21, 1, 0)
    assert pic.acknowledge() == 0x24
    line(board, 4, True)
    assert not pic.output  # no edge
    line(board, 4, False)
    line(board, 4, True)
    assert pic.output


def test_level_triggered_lines_come_again(board: Board) -> None:
    program(board)
    pic = board.vm.irqs.pic
    assert pic is not None
    pic.port_write(0x4D1, 1, 0xFF)
    assert pic.port_read(0x4D1, 1) == 0xDE
    line(board, 11, True)
    assert pic.acknowledge() == 0x2B
    pic.port_write(0xA0, 1, 0x20)
    pic.port_write(0x20, 1, 0x20)
    assert pic.output
    line(board, 11, False)
    assert pic.acknowledge() == 0x2F  # spurious: the first PIC has latched it
    assert not pic.output


def test_the_state_of_a_pic_comes_back(board: Board) -> None:
    program(board)
    pic = board.vm.irqs.pic
    assert pic is not None
    line(board, 3, True)
    state = [pic.get(0), pic.get(1)]
    pic.acknowledge()
    for number in (0, 1):
        pic.set(number, state[number])
    assert pic.acknowledge() == 0x23


def test_lint0_takes_what_the_pic_has(board: Board) -> None:
    """After RESET the boot processor has virtual wire mode; masked, nobody takes it."""
    vcpu = board.vm.vcpus[0]
    program(board)
    line(board, 1, True)
    assert vcpu.has_interrupt()
    assert not board.vm.vcpus[1].has_interrupt()
    board.apics[0].write(LVT_LINT0, 0x10700)
    assert not vcpu.has_interrupt()
    board.apics[0].write(LVT_LINT0, 0x700)
    assert vcpu.interrupt() == 0x21


# IOAPIC.


def entry(board: Board, pin: int, value: int) -> None:
    ioapic = board.vm.irqs.ioapic
    assert ioapic is not None
    for at, half in enumerate((value & 0xFFFFFFFF, value >> 32)):
        ioapic.write(0, 0x10 + 2 * pin + at)
        ioapic.write(0x10, half)


def read_entry(board: Board, pin: int) -> int:
    ioapic = board.vm.irqs.ioapic
    assert ioapic is not None
    value = 0
    for at in (0, 1):
        ioapic.write(0, 0x10 + 2 * pin + at)
        value |= ioapic.read(0x10) << 32 * at
    return value


def test_an_edge_of_the_ioapic(board: Board) -> None:
    entry(board, 20, VECTOR | 3 << 56)
    assert line(board, 20, True) == 1
    assert board.waiting() == [3]
    assert line(board, 20, True) == 0
    line(board, 20, False)
    line(board, 20, True)
    assert board.waiting() == [3]


def test_a_level_of_the_ioapic_waits_for_its_end(board: Board) -> None:
    entry(board, 20, VECTOR | 1 << 15 | 2 << 56)
    line(board, 20, True)
    apic = board.apics[2]
    assert read_entry(board, 20) >> 14 & 1 == 1
    assert line(board, 20, True) == -1
    assert apic.acknowledge() == VECTOR
    apic.write(EOI, 0)
    assert apic.acknowledge() == VECTOR  # the line is still active
    line(board, 20, False)
    apic.write(EOI, 0)
    assert (read_entry(board, 20) >> 14 & 1, apic.acknowledge()) == (0, None)


def test_a_masked_level_comes_when_it_is_unmasked(board: Board) -> None:
    entry(board, 20, VECTOR | 1 << 15 | 1 << 16)
    assert line(board, 20, True) == -1
    entry(board, 20, VECTOR | 1 << 15)
    assert board.waiting() == [0]


def test_several_sources_of_one_line(board: Board) -> None:
    """It is active as long as one of them says so."""
    entry(board, 20, VECTOR | 1 << 15)
    irqs = board.vm.irqs
    irqs.set_line(1, 20, True)
    irqs.set_line(2, 20, True)
    irqs.set_line(1, 20, False)
    assert irqs.ioapic is not None
    assert irqs.ioapic.irr == 1 << 20
    irqs.set_line(2, 20, False)
    assert irqs.ioapic.irr == 0


def test_messages_of_msi(board: Board) -> None:
    irqs = board.vm.irqs
    assert irqs.message(0xFEE00000 | 2 << 12, VECTOR) == 1
    assert board.waiting() == [2]
    assert irqs.message(0xFEE00004 | 0b1010 << 12, VECTOR) == 2
    assert board.waiting() == [1, 3]
    assert irqs.message(0xFEE00000 | 77 << 12, VECTOR) == -1


def test_split_controllers_tell_of_the_end() -> None:
    board = Board(1, split=True)
    board.enable()
    board.vm.irqs.routes[5] = [(2, 0xFEE00000, 1 << 15 | VECTOR)]
    vcpu, apic = board.vm.vcpus[0], board.apics[0]
    board.vm.irqs.set_line(USER, 5, True)
    assert apic.acknowledge() == VECTOR
    apic.write(EOI, 0)
    assert vcpu.want_exit is not None
    leave, vcpu.want_exit = vcpu.want_exit, None
    leave(vcpu)
    assert (vcpu.page[8], vcpu.page[32]) == (abi.Exit.IOAPIC_EOI, VECTOR)
    board.vm.released()


# PIT.


@pytest.fixture
def pit(board: Board) -> Pit:
    program(board, auto_eoi=True)
    made = board.vm.pit = Pit(board.vm, True)
    return made


def load(pit: Pit, control: int, count: int, port: int = 0x40) -> None:
    pit.port_write(0x43, 1, control)
    pit.port_write(port, 1, count & 0xFF)
    pit.port_write(port, 1, count >> 8)


def served(board: Board) -> int:
    """Acknowledge IRQ 0 as often as it comes; returns how often."""
    pic, count = board.vm.irqs.pic, 0
    assert pic is not None
    while pic.output:
        assert pic.acknowledge() == 0x20
        count += 1
    return count


def test_a_periodic_pit_makes_up_for_what_was_late(board: Board, pit: Pit) -> None:
    load(pit, 0x34, 1193)  # mode 2: about 1 ms
    counts = []
    for _ in range(4):
        board.after(1_000_000)
        counts.append(served(board))
    assert counts == [1, 1, 1, 1]
    board.after(5_000_000)
    assert served(board) == 5


def test_a_pit_in_mode_0_interrupts_once(board: Board, pit: Pit) -> None:
    load(pit, 0x30, 11932)
    board.after(9_999_000)
    assert served(board) == 0
    board.after(10_000)
    assert served(board) == 1
    board.after(100_000_000)
    assert served(board) == 0


def test_counts_latches_and_status(board: Board, pit: Pit) -> None:
    load(pit, 0x34, 0x1000)
    board.after(1_000_000)  # 1193 cycles
    pit.port_write(0x43, 1, 0x00)
    board.after(1_000_000)
    assert pit.port_read(0x40, 1) | pit.port_read(0x40, 1) << 8 == 0x1000 - 1193
    assert pit.port_read(0x40, 1) | pit.port_read(0x40, 1) << 8 == 0x1000 - 2386
    pit.port_write(0x43, 1, 0xE2)  # read back the status of counter 0
    assert pit.port_read(0x40, 1) == 0xB4


def test_the_speaker_port(board: Board, pit: Pit) -> None:
    """Counter 2 in mode 0 as Linux calibrates with: the output rises at the end."""
    pit.port_write(0x61, 1, 1)
    load(pit, 0xB0, 1193, 0x42)
    assert pit.port_read(0x61, 1) & 0x21 == 1
    board.after(1_100_000)
    assert pit.port_read(0x61, 1) & 0x21 == 0x21


# Anything.

NUMBERS = st.one_of(st.integers(0, 255), st.integers(0, (1 << 32) - 1), st.sampled_from([0xFF, 0xFFFFFFFF, 1 << 31]))
PORTS = [*range(0x40, 0x44), 0x61, 0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1]
MSRS = [
    *range(0x800, 0x840),
    0x1B,
    0x6E0,
    0x10,
    0x3B,
    0x2FF,
    0x250,
    0x200,
    0x201,
    0x400,
    0x401,
    0x17A,
    0x17B,
    0x4B564D01,
]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["in", "out", "read", "write", "rdmsr", "wrmsr", "line", "interrupt", "time", "state"]),
        st.integers(0, 4095), NUMBERS, st.sampled_from([1, 2, 4]),
    ),
    max_size=60,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_nothing_that_a_guest_does_raises_anything(steps: list[tuple[str, int, int, int]]) -> None:
    """Ports, registers and MSRs of all controllers; state that is read can always be written back."""
    board = ANYTHING
    vcpu = board.vm.vcpus[1]
    apic = board.apics[1]
    for step, where, value, size in steps:
        port, data = PORTS[where % len(PORTS)], (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        if step == "in":
            found = vcpu.port_read(port, size)
            assert found is not None
            assert 0 <= found < 256
        elif step == "out":
            assert vcpu.port_write(port, size, value & (1 << 8 * size) - 1)
        elif step == "read":
            for base in (0xFEE00000, 0xFEC00000):
                answer = vcpu.mmio_read(base + where % 0x100 * (16 if base == 0xFEE00000 else 1), size)
                assert answer is None or len(answer) == size
        elif step == "write":
            vcpu.mmio_write(0xFEE00000 + (where & ~15 if size == 4 else where), data)
            vcpu.mmio_write(0xFEC00000 + where % 0x40, data)
        elif step == "rdmsr":
            found = vcpu.read_msr(MSRS[where % len(MSRS)])
            assert found is None or 0 <= found < 1 << 64
        elif step == "wrmsr":
            assert vcpu.write_msr(MSRS[where % len(MSRS)], value << 32 * (size == 4) | value) in (True, False)
        elif step == "line":
            board.vm.irqs.set_line(USER, where % 30, bool(value & 1))
        elif step == "interrupt":
            vector = vcpu.interrupt()
            assert vector is None or 0 <= vector < 256
        elif step == "time":
            board.after(where * value % 10_000_000)
        else:
            state = apic.get()
            apic.set(state)
            assert len(state) == 1024
            for number in (0, 1):
                assert board.vm.irqs.pic is not None
                board.vm.irqs.pic.set(number, board.vm.irqs.pic.get(number))


ANYTHING = Board(3)
ANYTHING.enable()
ANYTHING.vm.pit = Pit(ANYTHING.vm, True)


# Timers.


def test_timers_run_in_order_and_once() -> None:
    clock = Still()
    timers, seen = Timers(clock), []
    poked: list[int] = []
    timers.poke = lambda: poked.append(timers.next)

    def note(timer: Timer) -> None:
        seen.append(timer.deadline)

    second = timers.arm(20, note)
    timers.arm(10, note)
    timers.arm(30, note)
    timers.cancel(second)
    assert poked == [20, 10]
    clock.time = 10
    assert (timers.run(), seen) == (30, [10])
    clock.time = 100
    assert (timers.run(), seen) == (NEVER, [10, 30])


def test_cancelled_timers_take_no_room() -> None:
    timers = Timers(Still())
    for _ in range(10_000):
        timers.cancel(timers.arm(1 << 40, id))
    assert len(timers._heap) < 200
