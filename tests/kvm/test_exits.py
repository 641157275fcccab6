"""Every kind of exit, caused by a guest that is shown: what comes out, in which order, and how the machine ends."""

from __future__ import annotations

import itertools
import struct
import threading
from pathlib import Path

import pytest

from pyvcpu import ConfigError, State, Vcpu
from pyvcpu.exits import ExitEvent, Halt, InternalFailure, MmioRead, MmioWrite, PortIn, PortOut, Shutdown
from tests.kvm.support import GUESTS, HLT, SPIN, accesses, machine, record
from tests.threads import DEADLINE, Caller, until

MMIO = 0xD0000000


# Ports.


def test_port_accesses_of_every_size() -> None:
    """tests/guests/pio_sizes.S, whose numbered list this is."""
    stream = itertools.count(1)
    with machine(GUESTS / "pio_sizes.bin", mode="long") as made:
        events = record(made)
        made.on_port(0x608, read=lambda vcpu, size: b"\xa1\xa2\xa3\xa4"[:size])
        made.on_port(0x618, read=lambda vcpu, size: bytes(next(stream) for _ in range(size)))
        assert made.run(DEADLINE).reason == "halted"

    def outs(port: int, *elements: bytes) -> list[ExitEvent]:
        return [PortOut(port, element, len(element)) for element in elements]

    def stored(first: int, size: int, count: int) -> list[bytes]:
        return [bytes(range(at, at + size)) for at in range(first, first + size * count, size)]

    assert accesses(events) == [
        *outs(0x600, b"\x11"),
        *outs(0x602, b"\x11\x22"),
        *outs(0x604, b"\x11\x22\x33\x44"),
        PortIn(0x608, 1),
        *outs(0x60C, b"\xa1\x22\x33\x44"),
        PortIn(0x608, 2),
        *outs(0x60C, b"\xa1\xa2\x33\x44"),
        PortIn(0x608, 4),
        *outs(0x60C, b"\xa1\xa2\xa3\xa4", bytes(4)),
        *outs(0x60F, b"\xfe"),
        *outs(0x610, b"a", b"b", b"c", b"d"),
        *outs(0x612, b"ab", b"cd"),
        *outs(0x614, b"abcd", b"efgh"),
        *outs(0x610, b"d", b"c", b"b", b"a"),
        *[PortIn(0x618, 1)] * 6,
        *outs(0x61C, *stored(1, 1, 6)),
        *[PortIn(0x618, 2)] * 3,
        *outs(0x61C, *stored(7, 2, 3)),
        *[PortIn(0x618, 4)] * 2,
        *outs(0x61C, *stored(13, 4, 2)),
        *[PortIn(0x618, 1)] * 4,
        *outs(0x61C, *reversed(stored(21, 1, 4))),
        *outs(0x61D, b"\0"),
        Halt(),
    ]


def test_a_string_input_larger_than_one_exit() -> None:
    """KVM hands out at most a page per exit: the whole arrives, in order."""
    code = bytes.fromhex(
        "bf 00 80"  # mov $0x8000,%di
        "b9 00 14"  # mov $0x1400,%cx
        "ba 50 00"  # mov $0x50,%dx
        "fc"  # cld
        "f3 6d"  # rep insw
        "f4"  # hlt
    )
    numbers = itertools.count()
    with machine(code) as made:
        made.on_port(0x50, read=lambda vcpu, size: next(numbers))
        assert made.run(DEADLINE).reason == "halted"
        assert made.memory.view(0x8000, 2 * 0x1400).cast("H").tolist() == list(range(0x1400))


def test_nobody_answers() -> None:
    """Reads of what nobody claims give all ones, writes are dropped."""
    code = bytes.fromhex(
        "e5 50"  # in $0x50,%eax
        "a3 00 00 00 d0 00 00 00 00"  # mov %eax,0xd0000000
        "48 a1 08 00 00 d0 00 00 00 00"  # mov 0xd0000008,%rax
        "48 a3 00 00 00 d0 00 00 00 00"  # mov %rax,0xd0000000
        "f4"  # hlt
    )
    with machine(code, mode="long") as made:
        events = record(made)
        assert made.run(DEADLINE).reason == "halted"
    assert events == [
        PortIn(0x50, 4),
        MmioWrite(MMIO, b"\xff" * 4),
        MmioRead(MMIO + 8, 8),
        MmioWrite(MMIO, b"\xff" * 8),
        Halt(),
    ]


def test_a_handler_of_one_direction_leaves_the_other_to_nobody() -> None:
    code = bytes.fromhex(
        "e4 50"  # in $0x50,%al
        "e6 51"  # out %al,$0x51
        "f4"  # hlt
    )
    with machine(code) as made:
        events = record(made)
        made.on_port(0x50, write=lambda vcpu, data: None)
        made.on_port(0x51, read=lambda vcpu, size: 0)
        made.run(DEADLINE)
    assert events == [PortIn(0x50), PortOut(0x51, b"\xff"), Halt()]


def test_ports_are_claimed_once() -> None:
    with machine(HLT) as made:
        made.on_port(0x500, name="mine")
        with pytest.raises(ConfigError, match=r"overlaps 0x500-0x500 \(mine\)"):
            made.on_port(0x500)
        for taken in (0xE9, 0xF4, 0x3F8, 0x3FF, 0xCF9, 0x64, 0x60):
            with pytest.raises(ConfigError, match="overlaps"):
                made.on_port(taken)


def test_output_comes_in_the_order_in_which_it_is_written() -> None:
    """COM1 and the debug console share one output."""
    code = bytes.fromhex(
        "ba f8 03"  # mov $0x3f8,%dx
        "b0 61"  # mov $'a',%al
        "e6 e9"  # out %al,$0xe9
        "fe c0"  # inc %al
        "ee"  # out %al,%dx
        "fe c0"  # inc %al
        "e6 e9"  # out %al,$0xe9
        "b8 64 65"  # mov $0x6564,%ax
        "e7 e9"  # out %ax,$0xe9
        "f4"  # hlt
    )
    said: list[bytes] = []
    with machine(code, output=said.append) as made:
        made.run(DEADLINE)
    assert b"".join(said) == b"abcde"


# MMIO.


def test_memory_mapped_accesses_of_every_size() -> None:
    """tests/guests/mmio_sizes.S, whose numbered list this is."""
    with machine(GUESTS / "mmio_sizes.bin", mode="long") as made:
        events = record(made)
        made.on_mmio(MMIO, 0x2000, read=lambda vcpu, offset, size: bytes(0xA0 + offset + i for i in range(size)))
        assert made.run(DEADLINE).reason == "halted"

    def write(offset: int, data: str) -> MmioWrite:
        return MmioWrite(MMIO + offset, bytes.fromhex(data))

    assert events == [
        write(0x00, "11"),
        write(0x08, "11 22"),
        write(0x10, "11 22 33 44"),
        write(0x18, "11 22 33 44 55 66 77 88"),
        write(0x20, "78 56 34 12"),
        write(0x28, "fe ff ff ff ff ff ff ff"),
        MmioRead(MMIO + 0x30, 1),
        write(0x80, "d0 22 33 44 55 66 77 88"),
        MmioRead(MMIO + 0x32, 2),
        write(0x80, "d2 d3 33 44 55 66 77 88"),
        MmioRead(MMIO + 0x34, 4),
        write(0x80, "d4 d5 d6 d7 00 00 00 00"),
        MmioRead(MMIO + 0x38, 8),
        write(0x80, "d8 d9 da db dc dd de df"),
        MmioRead(MMIO + 0x40, 1),
        write(0x80, "e0 00 00 00 00 00 00 00"),
        MmioRead(MMIO + 0x41, 1),
        write(0x80, "e1 ff ff ff ff ff ff ff"),
        MmioRead(MMIO + 0x48, 4),
        write(0x48, "e9 e9 ea eb"),
        write(0xFFE, "11 22"),
        write(0x1000, "33 44"),
        Halt(),
    ]


def test_handlers_get_offsets_and_their_vcpu() -> None:
    code = bytes.fromhex(
        "89 3c bd 10 00 00 d0"  # mov %edi,0xd0000010(,%edi,4)
        "f4"  # hlt
    )
    seen: list[tuple[int, bytes]] = []
    with machine(code, 4, mode="protected") as made:

        def write(vcpu: Vcpu, offset: int, data: bytes) -> None:
            assert threading.get_native_id() == vcpu.thread_id
            assert offset == 4 * vcpu.index
            seen.append((vcpu.index, data))

        made.on_mmio(MMIO + 0x10, 0x100, write=write)
        made.run(DEADLINE)
    assert sorted(seen) == [(index, bytes([index, 0, 0, 0])) for index in range(4)]


# How machines end.


def test_all_halted() -> None:
    with machine(HLT, 4) as made:
        outcome = made.run(DEADLINE)
        assert (outcome.reason, outcome.status, outcome.report, outcome.exit) == ("halted", 0, "", None)
        assert {vcpu.state for vcpu in made.vcpus} == {State.PAUSED_HALTED}


@pytest.mark.parametrize(
    ("guest", "status"),
    [("exit_0", 1), ("exit_127", 255), ("exit_255", 255), ("exit_outw", 11), ("exit_outl", 85)],
)
def test_debug_exit(guest: str, status: int) -> None:
    """tests/guests/exit_*.S write v: the status is (v << 1) | 1, of which a process keeps 8 bits."""
    with machine(GUESTS / f"{guest}.bin") as made:
        outcome = made.run(DEADLINE)
        assert (outcome.reason, outcome.status) == ("exit", status)
        assert outcome.vcpu is made.vcpus[0]


def test_debug_exit_stops_the_others() -> None:
    """tests/guests/exit_others_spin.S: the last of 4 exits, the others run for ever."""
    with machine(GUESTS / "exit_others_spin.bin", 4) as made:
        outcome = made.run(DEADLINE)
        assert (outcome.reason, outcome.status, outcome.vcpu) == ("exit", 7, made.vcpus[3])
        assert {vcpu.state for vcpu in made.vcpus} == {State.PAUSED}


@pytest.mark.parametrize(
    "code",
    [
        "b0 fe"  # mov $0xfe,%al
        "e6 64"  # out %al,$0x64   pulse the reset line
        "eb fe",  # jmp .
        "b0 d1"  # mov $0xd1,%al
        "e6 64"  # out %al,$0x64   write the output port
        "b0 fe"  # mov $0xfe,%al
        "e6 60"  # out %al,$0x60   with the reset line low
        "eb fe",  # jmp .
        "ba f9 0c"  # mov $0xcf9,%dx
        "b0 06"  # mov $0x06,%al
        "ee"  # out %al,%dx
        "eb fe",  # jmp .
    ],
    ids=["0x64", "0x64-0xd1", "0xcf9"],
)
def test_reset(code: str) -> None:
    with machine(bytes.fromhex(code), 2) as made:
        outcome = made.run(DEADLINE)
        assert (outcome.reason, outcome.status) == ("reset", 0)


def test_triple_fault() -> None:
    """tests/guests/triplefault.S: lidt of an empty table; ud2"""
    with machine(GUESTS / "triplefault.bin", mode="protected") as made:
        outcome = made.run(DEADLINE)
        assert (outcome.reason, outcome.status, outcome.exit) == ("crashed", 6, Shutdown())
        assert outcome.vcpu is made.vcpus[0]
        first, *registers = outcome.report.splitlines()
        assert first.startswith("vCPU 0: triple fault (KVM_EXIT_SHUTDOWN) at ")
        for name in ("EAX=", "EIP=", "CS =", "GDT=", "CR0="):
            assert any(name in line for line in registers)


def test_emulation_failure() -> None:
    """KVM's emulator has no x87 arithmetic, and MMIO is emulated on every host."""
    code = bytes.fromhex(
        "bb 78 56 34 12"  # mov $0x12345678,%ebx
        "db 05 00 00 00 d0"  # fildl 0xd0000000
        "f4"  # hlt
    )
    with machine(code, 2, mode="protected", start="bsp") as made:
        outcome = made.run(DEADLINE)
        assert (outcome.reason, outcome.status) == ("crashed", 6)
        assert isinstance(outcome.exit, InternalFailure)
        assert outcome.exit.suberror == 1
        report = outcome.report.splitlines()
        assert "KVM could not emulate an instruction: suberror 1 EMULATION" in report[0]
        assert "KVM_EXIT_INTERNAL_ERROR" in report[0]
        assert report[0].endswith(":0x1005")
        assert "EBX=12345678" in report[1]
        assert any(line.startswith("code db 05 00 00 00 d0 f4 00") for line in report)
        assert report[-1] in ("vCPU 1: halted", "vCPU 1: paused while halted")
        if outcome.exit.instruction:  # since Linux 5.14
            assert outcome.exit.instruction.startswith(bytes.fromhex("db 05 00 00 00 d0 f4"))
        # The evidence stays.
        assert made.vcpus[0].registers.rip == 0x1005


def hardware() -> bool:
    """Tell whether this KVM runs guests by the processor's own virtualization."""
    return any(Path(f"/sys/module/{name}/refcnt").exists() for name in ("kvm_intel", "kvm_amd"))


def test_an_instruction_that_only_hardware_runs() -> None:
    """A KVM that interprets CPL0 has no x87 arithmetic; with VMX or SVM the guest does it itself."""
    code = bytes.fromhex(
        "d9 e8"  # fld1
        "d9 1c 25 00 80 00 00"  # fstps 0x8000
        "8b 04 25 00 80 00 00"  # mov 0x8000,%eax
        "e7 50"  # out %eax,$0x50
        "f4"  # hlt
    )
    with machine(code, mode="long") as made:
        events = record(made)
        outcome = made.run(DEADLINE)
        if hardware():
            assert events == [PortOut(0x50, struct.pack("<f", 1.0), 4), Halt()]
        else:
            assert isinstance(outcome.exit, InternalFailure)
            assert events == [outcome.exit]
            assert made.vcpus[0].registers.rip == 0x1000


def test_timeout_and_on() -> None:
    """The guest counts at 0x8000 and never exits; each run() lets it go on."""
    code = bytes.fromhex(
        "66 ff 06 00 80"  # 1: incl 0x8000
        "eb f9"  # jmp 1b
    )
    with machine(code) as made:
        counts = [0]
        for _ in range(3):
            outcome = made.run(timeout=0.1)
            assert (outcome.reason, outcome.status) == ("timeout", 124)
            counts.append(made.memory.read_int(0x8000))
            assert made.memory.read_int(0x8000) == counts[-1], "it is paused"
        assert counts == sorted(set(counts)), "it went on each time"


def test_stop_from_a_handler() -> None:
    code = bytes.fromhex(
        "e6 50"  # out %al,$0x50
        "eb fe"  # jmp .
    )
    with machine(code, 2) as made:
        made.on_port(0x50, write=lambda vcpu, data: made.stop("enough", 42) if vcpu.index else None)
        outcome = made.run(DEADLINE)
        assert (outcome.reason, outcome.status, outcome.vcpu) == ("enough", 42, made.vcpus[1])


def test_stop_from_another_thread() -> None:
    with machine(SPIN, 2) as made:
        caller = Caller(made.run)
        until(lambda: all(vcpu.state is State.RUNNING for vcpu in made.vcpus))
        made.stop()
        assert caller.done()
        assert repr(caller.result) == "<Outcome stopped, status 0>"
