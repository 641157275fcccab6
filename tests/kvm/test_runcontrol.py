"""A run ends once, its end cannot get lost, and the world can stand still."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial

import pytest

from pyvcpu import Machine, State, StateError, Vcpu
from pyvcpu.devices.virtio_rng import VirtioRng
from pyvcpu.kvm import abi
from pyvcpu.machine.outcome import Outcome
from tests.kvm.support import HLT, SPIN, TICKER, check_counting, check_standing, counter, machine, started
from tests.threads import DEADLINE, Caller, Hold, until

pytestmark = pytest.mark.kvm

# Of the storms: 20,000 in the long run, few where the host is emulated.
RUNS = int(os.environ.get("PYVCPU_RUNS") or (20 if os.environ.get("PYVCPU_HOST") else 300))
OUT_50_FOREVER = bytes.fromhex("e650 ebfc")  # 1: out %al,$0x50; jmp 1b
# 1: incw 0x8000; mov 0x8000,%ax; out %ax,$0xf4; jmp 1b - the status counts
EXITS = bytes.fromhex("ff060080 a10080 e7f4 ebf5")


def status_of(number: int) -> int:
    return (number << 1 | 1) & 0xFF


# The end of a run.


@pytest.mark.parametrize("delay", [None, 0, 0.0005, 0.001, 0.002, 0.005])
def test_a_stop_before_during_or_after_the_start_counts(delay: float | None) -> None:
    with machine(SPIN, 8) as made:
        if delay is None:
            made.stop("mine")
        else:
            timer = threading.Timer(delay, made.stop, ("mine",))
            timer.start()
        assert made.run(DEADLINE).reason == "mine"


def test_a_stop_between_two_runs_ends_the_next() -> None:
    with machine(EXITS) as made:
        assert made.run(DEADLINE).status == status_of(1)
        made.stop("between")
        assert made.run(DEADLINE).reason == "between"
        assert made.run(DEADLINE).status == status_of(2)


def test_a_stop_after_an_end_that_nobody_has_seen_is_too_late() -> None:
    with machine(EXITS) as made:
        made.start()
        made.resume()
        until(lambda: made.vcpus[0].state is State.PAUSED and made.memory.read_int(0x8000, 2))
        made.stop("late")
        assert made.run(DEADLINE).status == status_of(1)
        assert made.run(DEADLINE).status == status_of(2)


def test_a_stop_from_a_signal_handler_of_the_main_thread_counts() -> None:
    with machine(SPIN, 2) as made:
        before = signal.signal(signal.SIGALRM, lambda number, frame: made.stop("alarm"))
        try:
            for round in range(50):
                signal.setitimer(signal.ITIMER_REAL, 0.0001 + 0.0002 * (round % 10))
                assert made.run(DEADLINE).reason == "alarm"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def test_resume_is_one_step() -> None:
    """An end that comes between a pause and a resume is not taken back by that."""
    with machine(SPIN, 2) as made:
        made.start()
        made.resume()
        made.pause()
        made.stop("first")
        made.resume()
        made.stop("second")
        assert made.wait(DEADLINE) == made.wait(0)
        assert made.run(0.01).reason == "timeout", "the first end is seen: this is another run"


def test_an_end_that_nobody_has_seen_is_returned_by_the_next_run() -> None:
    with machine(EXITS) as made:
        made.start()
        made.resume()
        until(lambda: made.memory.read_int(0x8000, 2) == 1)
        until(lambda: made.vcpus[0].state is State.PAUSED)
        made.resume()
        assert made.memory.read_int(0x8000, 2) == 1
        assert made.run(DEADLINE).status == status_of(1)
        assert made.run(DEADLINE).status == status_of(2)


def test_every_waiter_gets_the_outcome() -> None:
    with machine(SPIN) as made:
        made.start()
        made.resume()
        waiting = [Caller(made.wait) for _ in range(8)]
        until(lambda: len(made.control.cond._waiting) == 8)
        made.stop("once")
        assert all(waiter.done() for waiter in waiting)
        assert len({id(waiter.result) for waiter in waiting}) == 1
        assert [outcome.reason for waiter in waiting if isinstance(outcome := waiter.result, Outcome)] == ["once"] * 8


def test_every_waiter_gets_the_exception() -> None:
    error = ValueError("mine")
    hold = Hold()

    def fail(vcpu: Vcpu, data: bytes) -> None:
        hold()
        raise error

    with machine(OUT_50_FOREVER) as made:
        made.on_port(0x50, write=fail)
        made.start()
        made.resume()
        waiting = [Caller(made.wait) for _ in range(8)]
        until(lambda: len(made.control.cond._waiting) == 8)
        hold.release()
        assert all(waiter.done() for waiter in waiting)
        assert [waiter.error for waiter in waiting] == [error] * 8


def test_an_exception_after_anothers_stop_comes_out_of_run() -> None:
    last = Hold()

    def handler(vcpu: Vcpu, data: bytes) -> None:
        if vcpu.index == 0:
            last.wait()
            made.stop("x")
            last.release()
        else:
            last()
            raise ValueError("important")

    with machine(OUT_50_FOREVER, 2) as made:
        made.on_port(0x50, write=handler)
        with pytest.raises(ValueError, match="important"):
            made.run(DEADLINE)


def test_of_two_exceptions_each_comes_out_once() -> None:
    both = threading.Barrier(2)

    def handler(vcpu: Vcpu, data: bytes) -> None:
        both.wait(DEADLINE)
        raise ValueError(vcpu.index)

    with machine(OUT_50_FOREVER, 2) as made:
        made.on_port(0x50, write=handler)
        raised = []
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^[01]$") as caught:
                made.run(DEADLINE)
            raised.append(caught.value.args[0])
        assert sorted(raised) == [0, 1]


def test_what_nobody_waited_for_comes_out_of_close() -> None:
    made = machine(OUT_50_FOREVER)
    made.on_port(0x50, write=lambda vcpu, data: 1 // 0)
    made.start()
    made.resume()
    until(lambda: made.control.run.failures)
    with pytest.raises(ZeroDivisionError):
        made.close()
    made.close()
    assert made.control.closed


@pytest.mark.smp
def test_two_threads_pause_and_resume_beside_runs_of_a_guest_that_exits() -> None:
    """Each run has its own end, none is lost and none is early."""
    with machine(EXITS) as made:
        over = threading.Event()

        def disturb(seed: int) -> None:
            chance = random.Random(seed)
            while not over.is_set():
                made.pause()
                if chance.random() < 0.3:
                    time.sleep(chance.random() / 5000)
                made.resume()

        disturbers = [Caller(partial(disturb, seed)) for seed in range(2)]
        try:
            for number in range(1, RUNS + 1):
                assert made.run(DEADLINE).status == status_of(number)
        finally:
            over.set()
        assert all(disturber.done() and disturber.error is None for disturber in disturbers)


@pytest.mark.smp
def test_a_stop_at_a_random_moment_is_never_lost() -> None:
    chance = random.Random(1)
    with machine(SPIN, 2) as made:

        def stop_later() -> None:
            time.sleep(chance.random() / 2000)
            made.stop("mine")

        for _ in range(RUNS):
            stopper = Caller(stop_later)
            assert made.run(DEADLINE).reason == "mine"
            assert stopper.done()


@pytest.mark.smp
def test_handlers_that_raise_at_any_moment_beside_stops() -> None:
    """Each exception is seen exactly once."""
    raised: list[int] = []
    seen: list[int] = []
    lock = threading.Lock()

    def handler(vcpu: Vcpu, data: bytes) -> None:
        if random.random() < 0.3:
            with lock:
                raised.append(len(raised))
                number = raised[-1]
            raise ValueError(number)
        made.stop()

    with machine(OUT_50_FOREVER, 3) as made:
        made.on_port(0x50, write=handler)
        for _ in range(RUNS):
            try:
                made.run(DEADLINE)
            except ValueError as error:
                seen.append(error.args[0])
        for _ in range(4):
            try:
                made.run(0)
            except ValueError as error:
                seen.append(error.args[0])
    assert sorted(seen) == raised
    assert len(seen) > RUNS / 10


# Standing still.


def test_the_world_stands_still_until_the_last_holder_lets_go() -> None:
    with started(TICKER, 2) as made:
        with made.paused("outer"):
            check_standing(made, 0)
            with made.paused():
                assert made.holders == ("MainThread (outer)", "MainThread")
                check_standing(made, 1)
            check_standing(made, 0)
            made.resume()
            made.vcpus[1].resume()
            check_standing(made, 1)
        check_counting(made, 0)
        check_counting(made, 1)
        assert not made.holders


def test_what_was_paused_before_stays_so() -> None:
    with started(TICKER, 3) as made:
        made.vcpus[0].pause()
        with made.paused():
            made.vcpus[1].pause()
        check_standing(made, 0)
        check_standing(made, 1)
        check_counting(made, 2)
        made.pause()
        with made.paused():
            pass
        check_standing(made, 2)
        made.resume()
        check_counting(made, 2)


@pytest.mark.smp
def test_several_threads_hold_and_release() -> None:
    with started(TICKER, 2) as made:

        def hold(times: int) -> None:
            for _ in range(times):
                with made.paused():
                    before = [counter(made, 0), counter(made, 1)]
                    assert [counter(made, 0), counter(made, 1)] == before

        holders = [Caller(partial(hold, 50)) for _ in range(3)]
        assert all(holder.done() for holder in holders)
        assert [holder.error for holder in holders] == [None] * 3
        check_counting(made, 0)


def test_a_hold_that_takes_too_long_is_taken_back() -> None:
    hold = Hold()
    with machine(OUT_50_FOREVER, 2) as made:
        made.on_port(0x50, write=lambda vcpu, data: hold() if vcpu.index == 0 else None)
        made.start()
        made.resume()
        hold.wait()
        with pytest.raises(TimeoutError, match="vCPU 0 is running"), made.paused(timeout=0.05):
            pytest.fail("it is in a handler")
        assert made.holders == ()
        hold.release()
        with made.paused(timeout=DEADLINE):
            pass


def test_a_handler_cannot_hold_the_world() -> None:
    with machine(OUT_50_FOREVER) as made:

        def handler(vcpu: Vcpu, data: bytes) -> None:
            with made.paused():
                pass

        made.on_port(0x50, write=handler)
        with pytest.raises(StateError, match="whose handler calls it"):
            made.run(DEADLINE)


def test_an_end_while_the_world_is_held_counts() -> None:
    with started(TICKER) as made:
        with made.paused():
            made.stop("held")
        assert made.wait(DEADLINE) is not None
        check_standing(made, 0)


def test_inside_a_hold_nothing_changes_and_afterwards_nothing_is_lost() -> None:
    """Input, a line and requests of a device are under way."""
    # 1: in 0x3fd; test $1; jz 1b; in 0x3f8; mov %al,0x8004; incw 0x8000; jmp 1b
    echo = bytes.fromhex("bafd03 ec a801 74f8 baf803 ec a20480 ff060080 ebeb")
    with machine(echo) as made:
        made.board.add_virtio(VirtioRng())
        made.start()
        made.resume()
        data = bytes(range(256)) * 2

        def feed() -> None:
            left = data
            while left:
                left = left[made.com1.receive(left) :]
                made.com1.wait_room(DEADLINE)

        feeder = Caller(feed)
        over = threading.Event()

        def shake() -> None:
            level = False
            while not over.is_set():
                level = not level
                made.set_line(5, level)

        shaker = Caller(shake)
        until(lambda: made.memory.read_int(0x8000, 2) > 16)
        for _ in range(3):
            with made.paused():
                before = hashlib.sha256(made.memory.read(0, made.memory.size)).digest(), made.com1.state()
                time.sleep(0.1)  # time to be wrong in
                assert (hashlib.sha256(made.memory.read(0, made.memory.size)).digest(), made.com1.state()) == before
        over.set()
        assert shaker.done()
        assert feeder.done()
        until(lambda: made.memory.read_int(0x8000, 2) == len(data))


# One deadline, work that was given up, commands that fail.


def test_a_timeout_is_one_deadline_for_all() -> None:
    hold = Hold()
    with machine(OUT_50_FOREVER, 6) as made:
        made.on_port(0x50, write=hold)
        made.start()
        made.resume()
        hold.wait()
        start = time.monotonic()
        assert made.pause(0.2) is False
        assert time.monotonic() - start < 1
        hold.release()


def test_work_that_was_given_up_is_not_done() -> None:
    hold, done = Hold(), list[int]()
    with machine(OUT_50_FOREVER) as made:
        made.on_port(0x50, write=hold)
        made.start()
        made.resume()
        hold.wait()
        with pytest.raises(TimeoutError, match="did not get to it"):
            made.vcpus[0].run_on_cpu(lambda vcpu: done.append(1), timeout=0.01)
        hold.release()
        made.vcpus[0].run_on_cpu(lambda vcpu: done.append(2))
    assert done == [2]


@pytest.mark.smp
def test_reset_beside_plug_and_unplug_is_whole() -> None:
    with started(TICKER, 3) as made:
        over = threading.Event()

        def plugs() -> None:
            while not over.is_set():
                made.unplug(1)
                made.plug(1)

        plugger = Caller(plugs)
        try:
            for _ in range(40):
                made.reset()
                check_counting(made, 0)
        finally:
            over.set()
        assert plugger.done()
        assert plugger.error is None


# Other machines, other threads, other processes.


def test_a_handler_may_use_another_machine() -> None:
    found: list[object] = []
    with machine(SPIN, 4) as other, machine(OUT_50_FOREVER) as made:

        def handler(vcpu: Vcpu, data: bytes) -> None:
            other.start()
            other.resume()
            until(lambda: all(one.state is State.RUNNING for one in other.vcpus))
            found.append(other.pause(DEADLINE))
            found.append([one.state for one in other.vcpus])
            found.append(other.run(0.01).reason)
            with other.paused():
                pass
            other.resume()
            other.stop("by the handler")
            outcome = other.wait(DEADLINE)
            assert outcome is not None
            found.append((outcome.reason, outcome.vcpu))
            made.stop()

        made.on_port(0x50, write=handler)
        assert made.run(DEADLINE).reason == "stopped"
    assert found == [True, [State.PAUSED] * 4, "timeout", ("by the handler", None)]


@pytest.mark.parametrize("blocked", [{signal.SIGURG}, signal.valid_signals()], ids=["SIGURG", "all"])
def test_a_starter_with_signals_blocked_has_no_say(blocked: set[int]) -> None:
    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        with machine(SPIN) as made:
            assert made.run(0.05).reason == "timeout"

    runner = Caller(run)
    assert runner.done()
    assert runner.error is None


def test_a_program_may_reset_the_kicks_handler() -> None:
    async def add_and_remove() -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGURG, bool)
        loop.remove_signal_handler(signal.SIGURG)

    with started(SPIN, 2) as made:
        assert made.pause(DEADLINE)
        made.resume()
        asyncio.run(add_and_remove())
        assert made.pause(DEADLINE)


def test_several_may_close() -> None:
    for _ in range(20):
        made = started(SPIN, 2)
        together = threading.Barrier(3)

        def close(made: Machine = made, together: threading.Barrier = together) -> None:
            together.wait(DEADLINE)
            made.close()
            assert made.vcpus[0].thread is None

        closers = [Caller(close) for _ in range(3)]
        assert all(closer.done() for closer in closers)
        assert [closer.error for closer in closers] == [None] * 3


NOT_IN_A_CHILD: list[Callable[[Machine], object]] = [
    Machine.run,
    Machine.wait,
    Machine.resume,
    Machine.pause,
    Machine.paused,
    Machine.stop,
    Machine.reset,
    Machine.snapshot,
    lambda made: made.plug(1),
    lambda made: made.unplug(1),
    lambda made: made.set_line(4, True),
    lambda made: made.vcpus[0].registers.rip,
    lambda made: made.vcpus[0].pause(),
    lambda made: made.vcpus[0].kick(),
    lambda made: made.vcpus[0].nmi(),
]


def test_a_forked_child_closes_its_copies_and_ends() -> None:
    with started(TICKER, 2) as made:
        made.board.add_virtio(VirtioRng())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads, from Python 3.12 on
            child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                for use in NOT_IN_A_CHILD:
                    with pytest.raises(StateError, match="belongs to the process that made it"):
                        use(made)
                made.close()
                made.close()
                status = 0
            os._exit(status)
        until(lambda: os.waitpid(child, os.WNOHANG) == (child, 0), "the child does not end, or failed")
        check_counting(made, 0)


@pytest.mark.parametrize("use", [Machine.start, Machine.run], ids=["started", "run"])
def test_a_dropped_machine_says_so_and_leaves_nothing(use: Callable[[Machine], object]) -> None:
    files = len(os.listdir("/proc/self/fd"))
    made = machine(HLT, 2)
    made.on_port(0x50, write=lambda vcpu, data: None)
    use(made)
    threads = [vcpu.thread for vcpu in made.vcpus]
    with pytest.warns(ResourceWarning, match="dropped without close"):  # noqa: PT031 - the name must go first
        del made
        gc.collect()
    assert not any(thread is not None and thread.is_alive() for thread in threads)
    assert len(os.listdir("/proc/self/fd")) == files


# Halted vCPUs without interrupt controllers.

# sti; hlt; out %al,$0x50; hlt. At 0x1010, for vector 0x20: out %al,$0x51; iret
INTERRUPTED = bytes.fromhex("fb f4 e650 f4").ljust(0x10, b"\x90") + bytes.fromhex("e651 cf")


def halted(ports: list[int]) -> Machine:
    made = machine(INTERRUPTED)
    for vector in (2, 0x20):
        made.memory.write(4 * vector, bytes.fromhex("10100000"))
    for port in (0x50, 0x51):
        made.on_port(port, write=lambda vcpu, data, port=port: ports.append(port))
    assert made.run(DEADLINE).reason == "halted"
    return made


@pytest.mark.parametrize(
    ("how", "ports"),
    [
        (lambda vcpu: vcpu.interrupt(0x20), [0x51, 0x50]),
        (lambda vcpu: vcpu.nmi(), [0x51, 0x50]),
        (lambda vcpu: vcpu.run_on_cpu(lambda vcpu: vcpu.fd.interrupt(0x20)), [0x51, 0x50]),
        (lambda vcpu: vcpu.wake(), [0x50]),
    ],
    ids=["interrupt", "nmi", "KVM_INTERRUPT", "wake"],
)
def test_a_halted_vcpu_is_woken(how: Callable[[Vcpu], None], ports: list[int]) -> None:
    served: list[int] = []
    with halted(served) as made:
        how(made.vcpus[0])
        assert made.run(DEADLINE).reason == "halted"
        assert served == ports


def test_interrupts_wait_until_the_guest_lets_them_in() -> None:
    # cli; out %al,$0x52; out %al,$0x52; sti; nop; nop; 1: hlt; jmp 1b
    served: list[int] = []
    with machine(
        bytes.fromhex("fa e652 e652 fb 90 90 f4 ebfd").ljust(0x10, b"\x90") + bytes.fromhex("e651 cf")
    ) as made:
        made.memory.write(0x80, bytes.fromhex("10100000"))
        made.on_port(0x51, write=lambda vcpu, data: served.append(0x51))

        def twice(vcpu: Vcpu, data: bytes) -> None:
            served.append(0x52)
            vcpu.interrupt(0x20)

        made.on_port(0x52, write=twice)
        assert made.run(DEADLINE).reason == "halted"
        assert served == [0x52, 0x52, 0x51, 0x51]


def test_interrupts_are_for_machines_without_controllers() -> None:
    with machine(SPIN, irqchip="kernel") as made:
        made.start()
        with pytest.raises(StateError, match="set_line"):
            made.vcpus[0].interrupt(0x20)
        with pytest.raises(ValueError, match="from 0 to 0xff"):
            made.vcpus[0].interrupt(256)


# Guest debug is part of the state.


@pytest.mark.parametrize("again", [lambda made: made.reset(), lambda made: (made.unplug(0), made.plug(0))])
def test_guest_debug_does_not_outlive_a_reset_or_plug(again: Callable[[Machine], object]) -> None:
    with machine(bytes.fromhex("40 40 40 40 ebfa")) as made:
        made.start()
        step = abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_SINGLESTEP
        made.vcpus[0].run_on_cpu(lambda vcpu: vcpu.fd.set_guest_debug(step))
        assert made.run(DEADLINE).reason == "debug"
        again(made)
        assert made.run(0.05).reason == "timeout"
