"""Handlers: what they raise, what they may do, and the registers that they see."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable

import pytest

from pyvcpu import Machine, State, StateError, Vcpu
from pyvcpu.exits import ExitEvent, Halt, PortOut
from pyvcpu.kvm.abi.exits import Exit
from pyvcpu.vcpu.registers import RegisterError
from tests.kvm.support import GUESTS, HLT, SPIN, machine
from tests.threads import DEADLINE, until

OUT_COUNT = bytes.fromhex(
    "e6 50"  # 1: out %al,$0x50
    "ff 06 00 80"  # incw 0x8000
    "eb f8"  # jmp 1b
)


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_what_a_handler_raises_comes_out_of_run(kind: type[BaseException]) -> None:
    with machine(OUT_COUNT, 4) as made:

        def fail_here(vcpu: Vcpu, data: bytes) -> None:
            if vcpu.index == 2 and made.memory.read_int(0x8000, 2) > 100:
                raise kind("on purpose")

        made.on_port(0x50, write=fail_here)
        for _ in range(3):  # and it can be run on, to the next one
            with pytest.raises(kind, match="on purpose") as error:
                made.run(DEADLINE)
            assert "fail_here" in "".join(traceback.format_tb(error.value.__traceback__))
            assert {vcpu.state for vcpu in made.vcpus} == {State.PAUSED}
            count = made.memory.read_int(0x8000, 2)
            assert {vcpu.registers.rip for vcpu in made.vcpus} <= {0x1000, 0x1002, 0x1006}
            assert made.vcpus[2].registers.rip == 0x1002, "the access is complete, and the guest went no further"
            assert made.memory.read_int(0x8000, 2) == count, "nobody runs"


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (None, TypeError, "did it forget to return?"),
        ("a", TypeError, "must return 1 bytes or an int, not str"),
        (b"ab", ValueError, "must return 1 bytes or an int, not 2 bytes"),
    ],
)
def test_a_handler_that_returns_nonsense(value: object, error: type[Exception], words: str) -> None:
    code = bytes.fromhex(
        "e4 50"  # in $0x50,%al
        "f4"  # hlt
    )
    with machine(code) as made:
        made.on_port(0x50, read=lambda vcpu, size: value, name="odd one")  # type: ignore[arg-type, return-value]
        with pytest.raises(error, match=r"0x50-0x50 \(odd one\)") as raised:
            made.run(DEADLINE)
        assert words in str(raised.value)
        assert made.run(DEADLINE).reason == "halted"


def test_a_handler_that_raises_amid_a_string_input() -> None:
    code = bytes.fromhex(
        "bf 00 80"  # mov $0x8000,%di
        "b9 06 00"  # mov $6,%cx
        "ba 50 00"  # mov $0x50,%dx
        "fc"  # cld
        "f3 6c"  # rep insb
        "f4"  # hlt
    )
    numbers = itertools.count(1)

    def read(vcpu: Vcpu, size: int) -> int:
        number = next(numbers)
        if number == 3:
            raise ZeroDivisionError
        return number

    with machine(code) as made:
        made.on_port(0x50, read=read)
        with pytest.raises(ZeroDivisionError):
            made.run(DEADLINE)
        assert made.run(DEADLINE).reason == "halted"
        assert made.memory.read(0x8000, 2) == b"\x01\x02"
        assert made.vcpus[0].registers.rcx & 0xFFFF == 0


@pytest.mark.parametrize("method", ["run", "wait", "close"])
def test_what_would_wait_for_itself_is_refused_in_a_handler(method: str) -> None:
    with machine(OUT_COUNT) as made:
        made.on_port(0x50, write=lambda vcpu, data: getattr(made, method)())
        with pytest.raises(StateError, match=rf"{method}\(\) would wait for the vCPU whose handler calls it"):
            made.run(DEADLINE)


def test_a_machine_closes_after_a_failure_that_nobody_asked_for() -> None:
    def fail(vcpu: Vcpu, data: bytes) -> None:
        raise ZeroDivisionError

    with machine(OUT_COUNT, 2) as made:
        made.on_port(0x50, write=fail)
        made.start()
        made.resume()
        until(lambda: all(vcpu.state is State.PAUSED for vcpu in made.vcpus))


# Exit handlers.


def test_exit_handlers_come_first_and_may_take_the_exit() -> None:
    code = bytes.fromhex(
        "f4"  # hlt
        "e6 50"  # out %al,$0x50
        "e6 51"  # out %al,$0x51
        "f4"  # hlt
    )
    taken: list[ExitEvent] = []
    written: list[int] = []
    with machine(code) as made:

        def on_halt(vcpu: Vcpu, event: ExitEvent) -> bool:
            taken.append(event)
            return len(taken) == 1

        made.on_exit(Exit.HLT, on_halt)
        made.on_exit(Exit.IO, lambda vcpu, event: event == PortOut(0x50, b"\0"))
        made.on_port(0x50, write=lambda vcpu, data: written.append(0x50))
        made.on_port(0x51, write=lambda vcpu, data: written.append(0x51))
        assert made.run(DEADLINE).reason == "halted"
    assert taken == [Halt(), Halt()]
    assert written == [0x51], "the exit of port 0x50 was dealt with"


def test_exit_handlers_see_a_crash_and_may_end_it_otherwise() -> None:
    """tests/guests/triplefault.S"""
    with machine(GUESTS / "triplefault.bin", mode="protected") as made:

        def on_shutdown(vcpu: Vcpu, event: ExitEvent) -> bool:
            made.stop("as planned")
            return True

        made.on_exit(Exit.SHUTDOWN, on_shutdown)
        assert made.run(DEADLINE).reason == "as planned"


def test_exit_handlers_that_raise() -> None:
    def fail(vcpu: Vcpu, event: ExitEvent) -> None:
        raise ZeroDivisionError

    with machine(HLT) as made:
        made.on_exit(Exit.HLT, fail)
        with pytest.raises(ZeroDivisionError):
            made.run(DEADLINE)


def test_exit_handlers_and_images_come_before_the_start() -> None:
    with machine(SPIN) as made:
        made.start()
        with pytest.raises(StateError, match="before start"):
            made.on_exit(Exit.HLT, lambda vcpu, event: True)
        with pytest.raises(StateError, match="before start"):
            made.load(HLT)


def test_nothing_to_run() -> None:
    with machine(HLT) as made:
        empty = Machine("1M", kvm=made.kvm)
        with empty, pytest.raises(StateError, match=r"load\(\) an image first"):
            empty.run()


# Registers.

SHOW = bytes.fromhex(
    "e6 50"  # out %al,$0x50
    "e6 51"  # out %al,$0x51
    "f4"  # hlt
)


def test_registers_in_a_handler() -> None:
    shown: list[bytes] = []

    def change(vcpu: Vcpu, data: bytes) -> None:
        assert vcpu.registers.rdi == 0
        assert vcpu.sregs.cs.base == 0
        vcpu.registers.rax = 0x42
        assert vcpu.registers.rax == 0x42

    with machine(SHOW) as made:
        made.on_port(0x50, write=change)
        made.on_port(0x51, write=lambda vcpu, data: shown.append(data))
        made.run(DEADLINE)
        assert made.vcpus[0].registers.rax == 0x42
        assert shown == [b"\x42"]


def test_registers_from_another_thread() -> None:
    """Of a vCPU that is paused, and of one that runs and goes on running."""
    with machine(SPIN) as made:
        vcpu = made.vcpus[0]
        made.start()
        vcpu.registers.rbx = 0x1234
        made.resume()
        assert vcpu.registers.rbx == 0x1234
        vcpu.registers.rcx = 0x5678
        assert (vcpu.registers.copy().rcx, vcpu.registers.rip) == (0x5678, 0x1000)
        segment = vcpu.sregs.fs
        segment.base, segment.selector = 0x12340, 0x1234
        vcpu.sregs.fs = segment
        assert vcpu.sregs.copy().fs.base == 0x12340
        assert vcpu.state is State.RUNNING


@pytest.mark.parametrize("touch", [lambda vcpu: vcpu.registers.raxx, lambda vcpu: setattr(vcpu.registers, "raxx", 1)])
def test_a_register_that_there_is_not(touch: Callable[[Vcpu], object]) -> None:
    with machine(HLT) as made:
        made.start()
        with pytest.raises(RegisterError, match="no register 'raxx'; did you mean rax"):
            touch(made.vcpus[0])
        assert "rax" in dir(made.vcpus[0].registers)
        assert not hasattr(made.vcpus[0].sregs, "rax")


def test_register_values_are_checked_before_they_are_cut() -> None:
    with machine(HLT) as made:
        made.start()
        vcpu = made.vcpus[0]
        for value in (-1, 1 << 64):
            with pytest.raises(ValueError, match="rax must be from 0 to 0xffffffffffffffff"):
                vcpu.registers.rax = value
        assert vcpu.registers.rax == 0


def test_registers_need_a_thread() -> None:
    with machine(HLT) as made:
        with pytest.raises(StateError, match="no thread"):
            _ = made.vcpus[0].registers.rax
        made.run(DEADLINE)
        made.unplug(0)
        with pytest.raises(StateError, match="no thread"):
            _ = made.vcpus[0].registers.rax
