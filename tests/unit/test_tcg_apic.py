"""The local APICs of the software KVM, with a clock that somebody sets, and with guests."""

from __future__ import annotations

import errno
import signal
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.kvm import abi
from pyvcpu.tcg.apic_timer import (
    DFR,
    EOI,
    ICR,
    ICR2,
    ID,
    IRR,
    LDR,
    LVT_TIMER,
    PPR,
    SELF_IPI,
    SVR,
    TDCR,
    TMCCT,
    TMICT,
    TPR,
)
from pyvcpu.tcg.lapic import Lapic
from tests.tcg_board import VECTOR, Board
from tests.tcg_kvm import Rig, rig
from tests.threads import Caller


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


# With guests.


def test_a_halted_guest_is_woken_by_its_timer() -> None:
    """LVT timer at 0x31, count 100 us; sti; hlt; then out."""
    with rig(1, "kernel") as made:
        apic_on(made)
        made.handler(VECTOR)
        code = write_apic(LVT_TIMER, VECTOR) + write_apic(TDCR, 0xB) + write_apic(TMICT, 100_000)
        made.start(code + b"\xfb\xf4\xb0.\xe6\xe9\xf4")
        assert made.out(2) == b"I."


def apic_on(made: Rig, index: int = 0) -> None:
    """Enable a vCPU's local APIC, and point FS at its page."""
    vcpu = made.vcpus[index]
    sregs = vcpu.get_sregs()
    sregs.fs.base = 0xFEE00000
    vcpu.set_sregs(sregs)
    registers = bytearray(vcpu.get_lapic())
    registers[SVR : SVR + 4] = (0x1FF).to_bytes(4, "little")
    vcpu.set_lapic(bytes(registers))


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


def test_no_wake_up_is_lost_between_two_vcpus() -> None:
    """Each sends the other an IPI and halts, 500 times; a lost one would leave both halted for good."""
    rounds = 500
    with rig(2, "kernel") as made:
        for index in (0, 1):
            apic_on(made, index)
        made.vcpus[1].set_mp_state(abi.KVM_MP_STATE_RUNNABLE)
        made.handler(VECTOR, write_apic(EOI, 0) + b"\xcf")

        def send(to: int) -> bytes:
            return write_apic(ICR2, to << 24) + write_apic(ICR, VECTOR)

        ping = send(1) + b"\xfb\xf4\xfa\x49"  # sti; hlt; cli; dec %cx
        made.start(ping + b"\x75" + bytes([-len(ping) - 2 & 0xFF]) + b"\xe6\x50\xf4", rcx=rounds)
        pong = b"\xfb\xf4\xfa" + send(0)
        made.start(pong + b"\xeb" + bytes([-len(pong) - 2 & 0xFF]), 1, 0x2000, rsp=0x7000)
        made.kernel.catch(signal.SIGURG)
        other = Caller(made.vcpus[1].run)
        assert made.run().io.port == 0x50
        made.pages[1][1] = 1
        signal.pthread_kill(made.inside(1).thread, signal.SIGURG)
        assert other.done()
        assert other.result == errno.EINTR
