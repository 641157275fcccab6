"""Commands and work for a vCPU, at every point of its life: each takes effect, and is answered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest

from pyvcpu import Machine, State, StateError, Vcpu
from pyvcpu.vcpu import Command
from tests.kvm.support import (
    HLT,
    OUT_COUNT,
    SPIN,
    TICKER,
    check_counting,
    check_standing,
    machine,
    started,
    state_of,
)
from tests.threads import DEADLINE, Caller, Hold, until

# Work for a vCPU's thread.


def with_thread_id(number: int, vcpu: Vcpu) -> tuple[int, int]:
    return number, threading.get_native_id()


@pytest.mark.parametrize("state", ["running", "paused", "halted"])
def test_work_runs_on_the_vcpus_thread(state: str) -> None:
    with started(HLT if state == "halted" else SPIN, 2) as made:
        vcpu = made.vcpus[1]
        if state == "paused":
            made.pause()
        for number in range(10):
            assert vcpu.run_on_cpu(partial(with_thread_id, number)) == (number, vcpu.thread_id)


def test_what_work_raises_is_raised_in_the_caller() -> None:
    with started(SPIN) as made:

        def fail(vcpu: Vcpu) -> None:
            raise ZeroDivisionError("of the work")

        for _ in range(3):
            with pytest.raises(ZeroDivisionError, match="of the work"):
                made.vcpus[0].run_on_cpu(fail)
        assert made.vcpus[0].state is State.RUNNING


def test_work_of_a_handler_for_its_own_and_for_another_vcpu() -> None:
    code = bytes.fromhex(
        "85 ff"  # test %di,%di
        "75 04"  # jnz 1f
        "e6 50"  # out %al,$0x50
        "eb fe"  # jmp .
        "eb fe"  # 1: jmp .
    )
    found: list[object] = []
    with machine(code, 2) as made:

        def write(vcpu: Vcpu, data: bytes) -> None:
            found.append(vcpu.run_on_cpu(lambda v: threading.get_native_id()))
            found.append(made.vcpus[1].run_on_cpu(lambda v: threading.get_native_id()))
            made.stop()

        made.on_port(0x50, write=write)
        assert made.run(DEADLINE).reason == "stopped"
        assert found == [vcpu.thread_id for vcpu in made.vcpus]


def test_timeouts_give_up_waiting_and_nothing_else() -> None:
    """The vCPU is held up in a handler: commands take effect when it returns, work that was given up is not done."""
    hold = Hold()
    done: list[int] = []
    with machine(OUT_COUNT) as made:
        made.on_port(0x50, write=hold)
        made.start()
        made.resume()
        hold.wait()
        vcpu = made.vcpus[0]
        with pytest.raises(TimeoutError, match="vCPU 0 did not get to it"):
            vcpu.run_on_cpu(lambda v: done.append(1), timeout=0.01)
        assert vcpu.pause(timeout=0.01) is False
        assert made.pause(timeout=0.01) is False
        assert vcpu.resume(timeout=0.01) is False
        assert vcpu.unplug(timeout=0.01) is False
        assert done == []
        hold.release()
        until(lambda: vcpu.state is State.UNPLUGGED)
        assert done == []


def test_work_is_done_in_the_order_in_which_it_came() -> None:
    hold = Hold()
    order: list[int] = []

    def note(number: int, vcpu: Vcpu) -> None:
        order.append(number)

    with started(SPIN) as made:
        vcpu = made.vcpus[0]
        callers = [Caller(lambda: vcpu.run_on_cpu(hold))]
        hold.wait()
        for number in range(20):
            posted = vcpu._posted
            callers.append(Caller(lambda number=number: vcpu.run_on_cpu(partial(note, number))))  # type: ignore[misc]
            until(lambda posted=posted: vcpu._posted > posted)  # type: ignore[misc]
        hold.release()
        assert all(caller.done() for caller in callers)
        assert vcpu.run_on_cpu(lambda v: len(order)) == 20
        assert order == list(range(20))


# Commands at known points.


def test_commands_before_the_start_take_effect_with_it() -> None:
    with machine(TICKER, 3) as made:
        running, paused, gone = made.vcpus
        assert running.resume()
        assert paused.resume()
        assert paused.pause()
        assert gone.unplug()
        made.start()
        check_counting(made, 0)
        until(lambda: paused.state is State.PAUSED)
        check_standing(made, 1)
        until(lambda: gone.state is State.UNPLUGGED)


def test_work_before_the_start_has_no_thread() -> None:
    with machine(TICKER) as made, pytest.raises(StateError, match="realized: it has no thread"):
        made.vcpus[0].run_on_cpu(lambda vcpu: None)


@pytest.mark.parametrize(("command", "state"), [(Command.PAUSE, State.PAUSED), (Command.UNPLUG, State.UNPLUGGED)])
def test_a_command_during_a_handler_takes_effect_before_the_next_instruction(command: Command, state: State) -> None:
    hold = Hold()
    with machine(OUT_COUNT) as made:
        made.on_port(0x50, write=hold)
        made.start()
        made.resume()
        hold.wait()
        vcpu = made.vcpus[0]
        with made.control.lock:
            ticket = vcpu.post_locked(command)
        hold.release()
        assert made.control.cond.wait_for(lambda: vcpu.is_done_locked(ticket), DEADLINE)
        until(lambda: vcpu.state is state)
        assert made.memory.read_int(0x8000, 2) == 0
        if state is State.PAUSED:
            assert vcpu.registers.rip == 0x1002, "the access is complete"


@pytest.mark.parametrize(
    ("action", "state"),
    [
        (lambda made, vcpu: vcpu.pause(), State.PAUSED),
        (lambda made, vcpu: vcpu.unplug(), State.UNPLUGGED),
        (lambda made, vcpu: made.pause(), State.PAUSED),
        (lambda made, vcpu: made.unplug(vcpu.index), State.UNPLUGGED),
        (lambda made, vcpu: (vcpu.pause(), vcpu.resume(), vcpu.kick(), vcpu.pause()), State.PAUSED),
        (lambda made, vcpu: made.stop(), State.PAUSED),
    ],
)
def test_a_handler_commands_its_own_vcpu(action: Callable[[Machine, Vcpu], object], state: State) -> None:
    """It does not wait for itself; the guest goes no further than the access."""
    with machine(OUT_COUNT) as made:
        made.on_port(0x50, write=lambda vcpu, data: action(made, vcpu))
        made.start()
        made.resume()
        until(lambda: made.vcpus[0].state is state)
        assert made.memory.read_int(0x8000, 2) == 0


def test_two_handlers_command_each_others_vcpu() -> None:
    """Nobody waits there, so nobody waits for ever."""
    both = threading.Barrier(2)
    with machine(OUT_COUNT, 2) as made:

        def write(vcpu: Vcpu, data: bytes) -> None:
            both.wait(DEADLINE)
            made.vcpus[1 - vcpu.index].pause()
            both.wait(DEADLINE)

        made.on_port(0x50, write=write)
        made.start()
        made.resume()
        until(lambda: all(vcpu.state is State.PAUSED for vcpu in made.vcpus))
        assert made.memory.read_int(0x8000, 2) == 0


@pytest.mark.parametrize("command", ["pause", "resume", "unplug"])
def test_commands_after_the_end_are_refused(command: str) -> None:
    with started(TICKER) as made:
        vcpu = made.vcpus[0]
        vcpu.unplug()
        with pytest.raises(StateError, match="vCPU 0 is unplugged: plug it first"):
            getattr(vcpu, command)()
        with pytest.raises(StateError, match="unplugged: it has no thread"):
            vcpu.run_on_cpu(lambda v: None)
        vcpu.kick()
        vcpu.plug()
        check_counting(made, 0)
    with pytest.raises(StateError, match="unplugged"):
        getattr(vcpu, command)()
    vcpu.kick()
    assert made.pause()


def test_close_waits_for_a_handler() -> None:
    hold = Hold()
    made = machine(OUT_COUNT, 2)
    made.on_port(0x50, write=hold)
    made.start()
    made.resume()
    hold.wait()
    closer = Caller(made.close)
    assert not closer.done(0.05)
    hold.release()
    assert closer.done()
    assert closer.error is None
    assert made.memory is not None
    made.close()


@pytest.mark.parametrize("method", ["run", "wait"])
def test_close_ends_the_wait_of_another_thread(method: str) -> None:
    """What it waits for will not come any more."""
    made = started(SPIN, 2)
    waiter = Caller(getattr(made, method))
    until(lambda: all(state_of(vcpu) is State.RUNNING for vcpu in made.vcpus))
    waiter.join(0.05)  # so that it does wait
    made.close()
    assert waiter.done(5), f"{method}() waits for ever"
