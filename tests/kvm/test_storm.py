"""Commands from several threads at once, at random and many: none is lost, and the guest goes on.

A seed that fails is in the test's name: it is run again with `-k`, and `--repeat` gives other interleavings.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pyvcpu import Machine, State, StateError, Vcpu
from pyvcpu.kvm import Kvm
from tests.fake_kernel import WatchedKernel
from tests.kvm.support import DEVICE, SPIN, TICKER, counter, machine
from tests.threads import DEADLINE, Caller, until

OUT_COUNT = bytes.fromhex(
    "89 fb"  # mov %di,%bx
    "c1 e3 02"  # shl $2,%bx
    "e6 50"  # 1: out %al,$0x50
    "66 ff 87 00 80"  # incl 0x8000(%bx)
    "eb f7"  # jmp 1b
)
KICKS = 10_000


def check_alive(made: Machine) -> None:
    """Bring every vCPU back to a run, and see it count."""
    for vcpu in made.vcpus:
        if vcpu.state is State.UNPLUGGED:
            vcpu.plug()
    made.resume()
    for vcpu in made.vcpus:
        assert vcpu.run_on_cpu(lambda vcpu: vcpu.state, DEADLINE) is State.RUNNING
        before = counter(made, vcpu.index)
        until(partial(has_moved, made, vcpu.index, before), f"vCPU {vcpu.index} does not run")


def has_moved(made: Machine, index: int, before: int) -> bool:
    return counter(made, index) != before


@pytest.mark.smp
def test_no_kick_is_lost() -> None:
    """Each is given as soon as the thread is about to enter KVM_RUN: some come before the guest runs, most while."""
    kernel = WatchedKernel()
    with Kvm(DEVICE, kernel) as kvm, machine(TICKER, kvm=kvm) as made:
        entered = threading.Semaphore(0)
        kernel.before("KVM_RUN", lambda argument: entered.release())
        made.start()
        made.resume()
        assert entered.acquire(timeout=DEADLINE)
        for number in range(KICKS):
            made.vcpus[0].kick()
            assert entered.acquire(timeout=DEADLINE), f"kick {number} had no effect"
        assert made.pause(DEADLINE)


@pytest.mark.smp
@pytest.mark.parametrize("threads", [1, 3])
def test_no_work_is_lost(threads: int) -> None:
    """Work needs a kick to be seen: 10,000 pieces, by one thread or by several at once."""
    with machine(TICKER) as made:
        made.start()
        made.resume()
        done = [0] * threads

        def work(number: int, vcpu: Vcpu) -> None:
            done[number] += 1  # always on the one thread of the vCPU

        def post(number: int) -> None:
            for _ in range(KICKS // threads):
                made.vcpus[0].run_on_cpu(partial(work, number), DEADLINE)

        callers = [Caller(partial(post, number)) for number in range(threads)]
        assert all(caller.done() for caller in callers)
        assert [caller.error for caller in callers] == [None] * threads
        assert done == [KICKS // threads] * threads
        check_alive(made)


class Storm:
    """Commands vCPUs at random until it has given so many; the errors that the rules allow are none."""

    def __init__(self, made: Machine, seed: int, count: int) -> None:
        self.made = made
        self.random = random.Random(seed)
        self.count = count

    def __call__(self) -> None:
        for _ in range(self.count):
            self.command(self.random.choice(self.made.vcpus))

    def command(self, vcpu: Vcpu) -> None:
        name = self.random.choice(["pause", "resume", "kick", "work", "unplug", "plug", "plug", "registers"])
        try:
            match name:
                case "kick":
                    vcpu.kick()
                case "plug":
                    vcpu.plug()
                case "work":
                    index = vcpu.run_on_cpu(lambda v: v.index, DEADLINE)
                    assert index == vcpu.index
                case "registers":
                    assert vcpu.registers.rsi == len(self.made.vcpus)
                case _:
                    assert getattr(vcpu, name)(DEADLINE), f"{name} was lost"
        except StateError:
            pass  # another thread has unplugged or plugged it


@pytest.mark.smp
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("guest", "smp"), [("ticker", 1), ("ticker", 3), ("ports", 2)])
def test_two_threads_command_the_same_vcpus_at_random(guest: str, smp: int, seed: int) -> None:
    kernel = WatchedKernel()
    with Kvm(DEVICE, kernel) as kvm, machine(TICKER if guest == "ticker" else OUT_COUNT, smp, kvm=kvm) as made:
        made.on_port(0x50, write=lambda vcpu, data: vcpu.registers.rdi)
        made.start()
        made.resume()
        files = len(os.listdir("/proc/self/fd"))
        callers = [Caller(Storm(made, 2 * seed + i, 150)) for i in (0, 1)]
        assert all(caller.done() for caller in callers), "a command was lost"
        for caller in callers:
            if caller.error is not None:
                raise caller.error
        check_alive(made)
        assert len(os.listdir("/proc/self/fd")) == files
        # Each of the two may have asked a processor of its own what MSRs hold after reset.
        assert smp <= kernel.count("KVM_CREATE_VCPU") <= smp + 2
        assert made.pause(DEADLINE)


@pytest.mark.smp
def test_commands_of_handlers_and_of_others_at_once() -> None:
    """Each handler kicks and pauses its neighbour; the main thread resumes everybody; nobody waits for ever."""
    quiet = threading.Event()
    with machine(OUT_COUNT, 4) as made:

        def write(vcpu: Vcpu, data: bytes) -> None:
            neighbour = made.vcpus[(vcpu.index + 1) % 4]
            neighbour.kick()
            if counter(made, vcpu.index) % 16 == 0 and not quiet.is_set():
                neighbour.pause()

        made.on_port(0x50, write=write)
        made.start()
        for _ in range(100):
            made.resume()
            for vcpu in made.vcpus:
                vcpu.run_on_cpu(lambda v: None, DEADLINE)
        assert made.pause(DEADLINE)
        quiet.set()
        check_alive(made)
        assert made.pause(DEADLINE)


@pytest.mark.smp
def test_every_run_gets_the_outcome_of_its_own_stop() -> None:
    """Four vCPUs stop the machine at the same moment, again and again: one of them it was, and run() comes back."""
    with machine(OUT_COUNT, 4) as made:
        made.on_port(0x50, write=lambda vcpu, data: made.stop(f"of {vcpu.index}", vcpu.index))
        for _ in range(200):
            outcome = made.run(DEADLINE)
            assert outcome.vcpu is made.vcpus[outcome.status]
            assert outcome.reason == f"of {outcome.status}"
            assert {vcpu.state for vcpu in made.vcpus} == {State.PAUSED}


@pytest.mark.smp
@pytest.mark.parametrize("seed", range(10))
def test_close_while_another_thread_commands(seed: int) -> None:
    """It gets errors from then on, and can no longer bring a vCPU to life."""
    made = machine(OUT_COUNT, 3)
    made.on_port(0x50, write=lambda vcpu, data: None)
    made.start()
    made.resume()
    caller = Caller(Storm(made, seed, 500))
    until(lambda: counter(made, 0) > 0)
    try:
        made.close()
        assert caller.done(), "a command waits for a machine that is closed"
        left = [vcpu for vcpu in made.vcpus if vcpu.thread is not None]
    finally:
        for vcpu in made.vcpus:
            if vcpu.thread is not None:
                vcpu.unplug(DEADLINE)
    assert left == []


@pytest.mark.smp
def test_ctrl_c_at_any_moment_of_a_wait() -> None:
    """Others contend for the lock meanwhile; it is in good order afterwards."""
    rounds = 100
    go, stop = threading.Semaphore(0), threading.Event()
    with machine(SPIN, 4) as made:
        made.start()

        def interrupt() -> None:
            for number in range(rounds):
                assert go.acquire(timeout=DEADLINE)
                time.sleep(number % 10 / 5000)  # not to wait for anything: to come at another moment each time
                os.kill(os.getpid(), signal.SIGINT)

        def contend(vcpu: Vcpu) -> None:
            while not stop.is_set():
                vcpu.run_on_cpu(lambda v: None, DEADLINE)

        def run() -> None:
            go.release()
            made.run(DEADLINE)

        callers = [Caller(interrupt), *(Caller(partial(contend, vcpu)) for vcpu in made.vcpus)]
        for _ in range(rounds):
            with pytest.raises(KeyboardInterrupt):
                run()
        stop.set()
        assert all(caller.done() for caller in callers)
        assert [caller.error for caller in callers] == [None] * len(callers)


class Life(RuleBasedStateMachine):
    """One thread's commands against a model of the states: what must be, once each command has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.made = machine(TICKER, 2)

    @initialize()
    def start(self) -> None:
        self.made.start()
        self.running = False
        self.model = ["paused", "paused"]

    indices = st.integers(0, 1)

    @rule()
    def resume_all(self) -> None:
        self.made.resume()
        self.running = True
        self.model = ["unplugged" if state == "unplugged" else "running" for state in self.model]

    @rule()
    def pause_all(self) -> None:
        assert self.made.pause(DEADLINE)
        self.running = False
        self.model = ["unplugged" if state == "unplugged" else "paused" for state in self.model]

    @rule(index=indices, name=st.sampled_from(["pause", "resume", "unplug"]))
    def command(self, index: int, name: str) -> None:
        method = getattr(self.made.vcpus[index], name)
        if self.model[index] == "unplugged":
            with pytest.raises(StateError):
                method(DEADLINE)
            return
        assert method(DEADLINE)
        self.model[index] = {"pause": "paused", "resume": "running", "unplug": "unplugged"}[name]

    @rule(index=indices)
    def plug(self, index: int) -> None:
        if self.model[index] != "unplugged":
            with pytest.raises(StateError):
                self.made.plug(index)
            return
        self.made.plug(index)
        self.model[index] = "running" if self.running else "paused"

    @rule(index=indices)
    def kick(self, index: int) -> None:
        self.made.vcpus[index].kick()

    @invariant()
    def states(self) -> None:
        for vcpu, state in zip(self.made.vcpus, self.model, strict=True):
            found = vcpu.state if state == "unplugged" else vcpu.run_on_cpu(lambda v: v.state, DEADLINE)
            assert str(found) == state

    @invariant()
    def counters(self) -> None:
        before = [counter(self.made, index) for index in (0, 1)]
        for index, state in enumerate(self.model):
            if state == "running":
                until(partial(has_moved, self.made, index, before[index]))
            else:
                assert counter(self.made, index) == before[index]

    def teardown(self) -> None:
        self.made.close()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
