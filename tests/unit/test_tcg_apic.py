"""The interrupt controllers and timers of the software KVM, with a clock that somebody sets."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.kvm import abi
from pyvcpu.tcg.clock import NEVER, Clock, Timer, Timers
from pyvcpu.tcg.kernel import TcgKernel
from pyvcpu.tcg.lapic import (
    DFR,
    EOI,
    ICR,
    ICR2,
    ID,
    IRR,
    LDR,
    LVT_LINT0,
    LVT_TIMER,
    PPR,
    SELF_IPI,
    SVR,
    TDCR,
    TMCCT,
    TMICT,
    TPR,
    Lapic,
)  # fmt: skip
from pyvcpu.tcg.pit import Pit
from pyvcpu.tcg.routes import USER
from pyvcpu.tcg.vcpu import Vcpu
from pyvcpu.tcg.vm import Vm
from tests.tcg_kvm import Rig, rig
from tests.threads import Caller

VECTOR = 0x31
US = 1000


class Still(Clock):
    """A clock that somebody sets."""

    __slots__ = ("time",)

    def __init__(self) -> None:
        super().__init__()
        self.time = 0

    def now(self) -> int:
        """Return what was set."""
        return self.time


class Board:
    """A VM without fds, with `smp` vCPUs and kernel or split controllers."""

    def __init__(self, smp: int, split: bool = False, wide: bool = False) -> None:
        self.clock = Still()
        self.vm = vm = Vm(TcgKernel())
        vm.clock = vm.timers.clock = self.clock
        vm.timers.poke = int
        vm.born = 0
        if split:
            vm.irqs.mode, vm.irqs.reserved_pins = "split", 24
        else:
            vm.irqs.create()
        vm.irqs.wide_ids = wide
        for number in range(smp):
            vcpu = Vcpu(vm, number)
            fd = vcpu.file()
            os.close(fd)
            vm.vcpus[number] = vcpu
            assert vcpu.lapic is not None
            vcpu.lapic.has_deadline = True
        self.apics = [vcpu.lapic for vcpu in vm.vcpus.values() if vcpu.lapic is not None]

    def enable(self) -> None:
        """Enable all local APICs, with logical ids 1, 2, 4 ..."""
        for at, apic in enumerate(self.apics):
            apic.write(SVR, 0x1FF)
            apic.write(LDR, 1 << at << 24)

    def waiting(self, vector: int = VECTOR) -> list[int]:
        """Return the numbers of the vCPUs at which a vector waits, and take it away."""
        found = [at for at, apic in enumerate(self.apics) if apic.irr >> vector & 1]
        for apic in self.apics:
            apic.irr &= ~(1 << vector)
        return found

    def after(self, nanoseconds: int) -> None:
        """Let time pass."""
        self.clock.time += nanoseconds
        self.vm.timers.run()


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board(4)
    made.enable()
    yield made
    made.vm.released()


@pytest.fixture
def apic(board: Board) -> Lapic:
    return board.apics[0]


def ipi(apic: Lapic, low: int, destination: int = 0) -> None:
    apic.write(ICR2, destination << 24)
    apic.write(ICR, low)


# Priorities.


def test_the_highest_vector_comes_first_and_blocks_its_class(apic: Lapic) -> None:
    for vector in (0x41, 0x52, 0x45):
        apic.accept(0, vector, False)
    assert apic.acknowledge() == 0x52
    assert (apic.read(PPR), apic.acknowledge()) == (0x50, None)
    apic.write(EOI, 0)
    assert apic.acknowledge() == 0x45
    assert apic.acknowledge() is None  # 0x41 is of the same class
    apic.write(EOI, 0)
    assert apic.acknowledge() == 0x41


def test_the_task_priority_holds_interrupts_back(apic: Lapic) -> None:
    apic.write(TPR, 0x40)
    apic.accept(0, 0x4F, False)
    assert (apic.ready(), apic.get_cr8()) == (False, 4)
    apic.set_cr8(3)
    assert apic.acknowledge() == 0x4F
    assert apic.read(TPR) == 0x30


@given(
    st.integers(0, 255),
    st.sets(st.integers(16, 255), max_size=6),
    st.sets(st.integers(16, 255), max_size=4),
)
def test_priorities_are_those_of_the_manual(tpr: int, irr: set[int], isr: set[int]) -> None:
    """SDM vol. 3A, 11.8.3.1: PPR is the higher class of TPR and ISRV; what is delivered must be above it."""
    one = PRIORITIES.apics[0]
    one.regs[TPR >> 4] = tpr
    one.irr, one.isr = sum(1 << v for v in irr), sum(1 << v for v in isr)
    top = max(isr, default=0)
    ppr = tpr if tpr >> 4 >= top >> 4 else top & 0xF0
    assert one.priority() == ppr
    best = max(irr, default=0)
    assert one.acknowledge() == (best if best >> 4 > ppr >> 4 else None)


PRIORITIES = Board(1)
PRIORITIES.enable()


def test_a_disabled_apic_takes_nothing_and_masks_its_lvts(apic: Lapic) -> None:
    apic.write(LVT_TIMER, VECTOR)
    apic.write(SVR, 0xFF)
    assert apic.read(LVT_TIMER) == 0x10000 | VECTOR
    assert not apic.accept(0, VECTOR, False)
    apic.write(LVT_TIMER, VECTOR)
    assert apic.read(LVT_TIMER) == 0x10000 | VECTOR


# Messages.


@pytest.mark.parametrize(
    ("low", "destination", "who"),
    [
        (VECTOR, 2, [2]), (VECTOR, 0xFF, [0, 1, 2, 3]), (VECTOR, 9, []),
        (VECTOR | 1 << 11, 0b0101, [0, 2]), (VECTOR | 1 << 11, 0xF0, []), (VECTOR | 1 << 11, 0xFF, [0, 1, 2, 3]),
        (VECTOR | 1 << 18, 0, [1]), (VECTOR | 2 << 18, 0, [0, 1, 2, 3]), (VECTOR | 3 << 18, 0, [0, 2, 3]),
    ],
)  # fmt: skip
def test_destinations(board: Board, low: int, destination: int, who: list[int]) -> None:
    ipi(board.apics[1], low, destination)
    assert board.waiting() == who


def test_clusters(board: Board) -> None:
    """Cluster 1 has the APICs 0 and 1, cluster 2 the others."""
    for at, apic in enumerate(board.apics):
        apic.write(DFR, 0x0FFFFFFF)
        apic.write(LDR, (1 + at // 2) << 28 | 1 << at % 2 << 24)
    ipi(board.apics[0], VECTOR | 1 << 11, 0x13)
    assert board.waiting() == [0, 1]
    ipi(board.apics[0], VECTOR | 1 << 11, 0x22)
    assert board.waiting() == [3]
    ipi(board.apics[0], VECTOR | 1 << 11, 0x31)
    assert board.waiting() == []


def test_the_lowest_priority_is_one_of_them_in_turn(board: Board) -> None:
    found = []
    for _ in range(4):
        ipi(board.apics[0], VECTOR | 1 << 8 | 1 << 11, 0xF)
        found += board.waiting()
    assert sorted(found) == [0, 1, 2, 3]


def test_init_and_sipi(board: Board) -> None:
    vcpu = board.vm.vcpus[2]
    assert vcpu.mp_state == abi.KVM_MP_STATE_UNINITIALIZED
    ipi(board.apics[0], 0x4500, 2)
    ipi(board.apics[0], 0x4608, 2)
    vcpu.accept_init_sipi()
    assert (vcpu.mp_state, vcpu.cpu.segs[1].base, vcpu.cpu.segs[1].selector, vcpu.cpu.rip) == (0, 0x8000, 0x800, 0)
    ipi(board.apics[0], 0x4609, 2)  # another SIPI does nothing to one that runs
    vcpu.accept_init_sipi()
    assert vcpu.cpu.segs[1].base == 0x8000
    ipi(board.apics[0], 0x8500, 2)  # INIT level de-assert is no INIT
    assert not vcpu.init_pending


def test_nmi(board: Board) -> None:
    ipi(board.apics[0], 0x400 | 3 << 18)
    assert [vcpu.cpu.nmi_pending for vcpu in board.vm.vcpus.values()] == [False, True, True, True]


def test_x2apic(board: Board) -> None:
    """Registers are MSRs, ids are 32 bits wide, the logical id follows from the id."""
    for vcpu in board.vm.vcpus.values():
        assert vcpu.set_apic_base(vcpu.apic_base | 1 << 10, True)
    one = board.apics[1]
    assert one.read_msr(0x802, False) == 1
    assert one.read_msr(0x80D, False) == 2
    assert one.read_msr(0x80E, False) is None
    assert not one.write_msr(0x802, 5, False)
    assert one.write_msr(0x83F, VECTOR, False)
    assert board.waiting() == [1]
    assert one.write_msr(0x830, 3 << 32 | VECTOR, False)
    assert board.waiting() == [3]
    assert one.write_msr(0x830, 0xFFFFFFFF << 32 | VECTOR, False)
    assert board.waiting() == [0, 1, 2, 3]
    assert one.write_msr(0x830, 0b1010 << 32 | 1 << 11 | VECTOR, False)
    assert board.waiting() == [1, 3]
    assert one.mmio_read(ID, 4) == b"\xff" * 4
    assert not one.write_msr(0x80B, 1, False)


def test_a_guest_cannot_leave_x2apic_mode_the_short_way(board: Board) -> None:
    vcpu = board.vm.vcpus[0]
    vcpu.set_apic_base(vcpu.apic_base | 1 << 10, True)
    assert not vcpu.set_apic_base(vcpu.apic_base & ~(1 << 10), False)
    assert not vcpu.set_apic_base(0xFEE00400, True)
    assert vcpu.set_apic_base(0xFEE00100, False)


def test_memory_accesses(apic: Lapic) -> None:
    assert apic.mmio_read(0x30, 4) == bytes([0x14, 0, 5, 0])
    assert apic.mmio_read(0x32, 1) == b"\x05"
    apic.mmio_write(TPR, b"\x20\0")  # not 32 bits: nothing
    assert apic.read(TPR) == 0
    apic.mmio_write(TPR, b"\x20\0\0\0")
    assert apic.mmio_read(TPR, 4) == b"\x20\0\0\0"
    assert apic.mmio_read(SELF_IPI, 4) == bytes(4)


# Its timer.


def test_one_shot(board: Board, apic: Lapic) -> None:
    apic.write(TDCR, 0b1011)  # by 1
    apic.write(LVT_TIMER, VECTOR)
    apic.write(TMICT, 50_000)
    board.after(20_000)
    assert (apic.read(TMCCT), board.waiting()) == (30_000, [])
    board.after(30_000)
    assert (apic.read(TMCCT), board.waiting()) == (0, [0])
    board.after(10_000_000)
    assert board.waiting() == []


def test_periodic_with_a_divider(board: Board, apic: Lapic) -> None:
    apic.write(TDCR, 0b0011)  # by 16
    apic.write(LVT_TIMER, VECTOR | 1 << 17)
    apic.write(TMICT, 100_000)
    seen = []
    for _ in range(5):
        board.after(1_000_000)
        seen.append(board.waiting())
    assert seen == [[], [0], [], [0], [0]]  # every 1.6 ms
    apic.write(TMICT, 0)
    board.after(10_000_000)
    assert board.waiting() == []


def test_a_timer_that_is_late_keeps_its_phase(board: Board, apic: Lapic) -> None:
    apic.write(TDCR, 0b1011)
    apic.write(LVT_TIMER, VECTOR | 1 << 17)
    apic.write(TMICT, 1_000_000)
    board.after(3_500_000)
    assert board.waiting() == [0]
    board.after(499_999)
    assert board.waiting() == []
    board.after(1)
    assert board.waiting() == [0]


def test_tsc_deadline(board: Board, apic: Lapic) -> None:
    apic.write(LVT_TIMER, VECTOR | 2 << 17)
    now = apic.vcpu.tsc()
    apic.set_tsc_deadline(now + 5_000)
    assert apic.tsc_deadline_value() == now + 5_000
    board.after(4_999)
    assert board.waiting() == []
    board.after(1)
    assert (board.waiting(), apic.tsc_deadline_value()) == ([0], 0)
    apic.set_tsc_deadline(1)  # long past
    assert board.waiting() == [0]
    apic.set_tsc_deadline(now + 1_000_000)
    apic.set_tsc_deadline(0)
    board.after(10_000_000)
    assert board.waiting() == []


def test_the_state_of_a_running_timer_comes_back(board: Board, apic: Lapic) -> None:
    apic.write(TDCR, 0b1011)
    apic.write(LVT_TIMER, VECTOR)
    apic.write(TMICT, 500_000)
    apic.accept(0, 0x77, False)
    board.after(100_000)
    state = apic.get()
    assert struct.unpack_from("<I", state, TMCCT) == (400_000,)
    assert struct.unpack_from("<I", state, IRR + 0x30) == (1 << 0x77 % 32,)
    apic.reset(False)
    apic.set(state)
    board.after(399_999)
    assert board.waiting() == []
    board.after(1)
    assert (board.waiting(), board.waiting(0x77)) == ([0], [0])


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


# With guests.


def test_a_halted_guest_is_woken_by_its_timer() -> None:
    """LVT timer at 0x31, count 100 us; sti; hlt; then out."""
    with rig(1, "kernel") as made:
        apic_on(made)
        made.handler(VECTOR)
        code = write_apic(LVT_TIMER, VECTOR) + write_apic(TDCR, 0xB) + write_apic(TMICT, 100_000)
        made.start(code + b"\xfb\xf4\xb0.\xe6\xe9\xf4")
        assert made.out(2) == b"I."


def apic_on(made: Rig) -> None:
    """Enable the first vCPU's local APIC, and point FS at its page."""
    sregs = made.vcpu.get_sregs()
    sregs.fs.base = 0xFEE00000
    made.vcpu.set_sregs(sregs)
    registers = bytearray(made.vcpu.get_lapic())
    registers[SVR : SVR + 4] = (0x1FF).to_bytes(4, "little")
    made.vcpu.set_lapic(bytes(registers))


def write_apic(offset: int, value: int) -> bytes:
    """Return movl $value,%fs:offset in real mode."""
    return b"\x64\x66\xc7\x06" + struct.pack("<HI", offset, value)


def test_a_guest_starts_another_vcpu() -> None:
    """INIT and SIPI to vector 2: the other runs out %al,$0xe9 at 0x2000; KVM_RUN gives EAGAIN first."""
    with rig(2, "kernel") as made:
        apic_on(made)
        made.memory[0x2000:0x2005] = b"\xb0S\xe6\xe9\xf4"
        code = write_apic(ICR2, 1 << 24) + write_apic(ICR, 0x4500) + write_apic(ICR, 0x4602)
        made.start(code + b"\xe6\x50\xf4")
        other = Caller(lambda: made.out(1, 1))
        assert made.run().exit_reason == abi.Exit.IO
        assert other.done()
        assert (other.error, other.result) == (None, b"S")


def test_a_vcpu_wakes_another_by_ipi() -> None:
    with rig(2, "kernel") as made:
        apic_on(made)
        registers = bytearray(made.vcpus[1].get_lapic())
        registers[SVR : SVR + 4] = (0x1FF).to_bytes(4, "little")
        made.vcpus[1].set_lapic(bytes(registers))
        made.vcpus[1].set_mp_state(abi.KVM_MP_STATE_RUNNABLE)
        made.handler(VECTOR)
        made.start(b"\xfb\xf4\xb0.\xe6\xe9\xf4", 1, 0x2000)
        other = Caller(lambda: made.out(2, 1))
        made.start(write_apic(ICR2, 1 << 24) + write_apic(ICR, VECTOR) + b"\xe6\x50\xf4")
        assert made.run().exit_reason == abi.Exit.IO
        assert other.done()
        assert (other.error, other.result) == (None, b"I.")
