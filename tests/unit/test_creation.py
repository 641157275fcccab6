"""How a vCPU comes to be, on a KVM in Python: every step can fail, and commands can come at any of them."""

from __future__ import annotations

import errno
import os
import threading
import traceback
from collections.abc import Callable
from functools import partial

import pytest

from pyvcpu import KvmError, Machine, State, StateError
from pyvcpu.kvm import Kvm
from pyvcpu.vcpu.states import COMMANDS, Command
from tests.fake_kernel import FakeKernel, machine_on, spins
from tests.threads import DEADLINE, Caller, Hold, until

# In the order in which a vCPU's thread makes them.
INIT = [
    "KVM_CREATE_VCPU",
    "mmap",
    "KVM_GET_TSC_KHZ",
    "KVM_SET_CPUID2",
    "KVM_GET_SREGS",
    "KVM_SET_SREGS",
    "KVM_SET_REGS",
]


def vcpu_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.endswith("/KVM")}


def test_the_steps_of_a_vcpu_and_of_its_end() -> None:
    kernel = FakeKernel()
    with machine_on(kernel) as machine:
        kernel.forget()
        machine.start()
        steps = iter(kernel.log)
        assert [step for step in INIT if step not in steps] == [], f"in this order, among: {kernel.log}"
        assert kernel.count("KVM_RUN") == 0
        assert machine.run(DEADLINE).reason == "halted"
        kernel.forget()
    assert kernel.log == ["close", "close", "close"]  # vCPU, VM, /dev/kvm


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("request_", INIT)
def test_a_failed_creation_reaches_the_caller(request_: str, index: int) -> None:
    before = vcpu_threads()
    kernel = FakeKernel()
    with machine_on(kernel, 4) as machine:
        kernel.refuse(request_, errno.ENOSPC, vcpu=index)
        with pytest.raises(OSError, match="No space left") as error:
            machine.start()
        assert error.value.errno == errno.ENOSPC
        if isinstance(error.value, KvmError):
            assert error.value.ioctl == request_
            assert error.value.where == f"vCPU {index}"
        assert "init_vcpu" in "".join(traceback.format_tb(error.value.__traceback__))
        assert machine.vcpus[index].state is State.REALIZED
        assert machine.pause(DEADLINE)  # of those that were created
        until(lambda: f"CPU {index}/KVM" not in {thread.name for thread in vcpu_threads() - before})
    assert vcpu_threads() <= before


@pytest.mark.parametrize("request_", INIT)
def test_a_failed_creation_can_be_tried_again(request_: str) -> None:
    """What the first try left half done, such as a vCPU without CPUID, the second one makes good."""
    kernel = FakeKernel()
    with machine_on(kernel, 4) as machine:
        kernel.refuse(request_, errno.ENOSPC, vcpu=2)
        with pytest.raises(OSError, match="No space left"):
            machine.start()
        assert machine.run(DEADLINE).reason == "halted"
        assert [vcpu.state for vcpu in machine.vcpus] == [State.PAUSED_HALTED] * 4
        for vcpu in kernel.by_id.values():
            assert {"KVM_GET_CPUID2", "KVM_GET_SREGS", "KVM_GET_REGS"} <= set(vcpu.state)


def test_a_thread_that_the_host_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel()
    with machine_on(kernel, 2) as machine:

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(StateError, match="ulimit"):
                machine.start()
        assert [vcpu.state for vcpu in machine.vcpus] == [State.REALIZED] * 2
        assert machine.run(DEADLINE).reason == "halted"


# Commands at known points: a vCPU's thread is held up in a request of its creation.


def test_close_while_a_vcpu_is_being_created() -> None:
    before = vcpu_threads()
    kernel = FakeKernel()
    gate = Hold()
    kernel.before("KVM_SET_SREGS", gate)
    with machine_on(kernel, 2) as machine:
        starter = Caller(machine.start)
        gate.wait()
        closer = Caller(machine.close)
        closer.join(0.1)  # so that it posts first: then it is hard; in the other order this shows less
        gate.release()
        try:
            assert closer.done(10), "close() waits for a thread that nobody told to end"
        finally:
            for vcpu in machine.vcpus:
                if vcpu.state not in (State.REALIZED, State.UNPLUGGED):
                    vcpu.unplug(DEADLINE)
        assert starter.done()
    assert vcpu_threads() <= before


@pytest.mark.parametrize("command", ["pause", "resume", "unplug", "run_on_cpu"])
def test_a_command_to_a_vcpu_whose_creation_fails_is_answered(command: str) -> None:
    kernel = FakeKernel()
    gate = Hold()
    kernel.before("KVM_SET_SREGS", gate)
    with machine_on(kernel) as machine:
        kernel.refuse("KVM_SET_SREGS", errno.ENOSPC)
        starter = Caller(machine.start)
        gate.wait()
        vcpu = machine.vcpus[0]
        calls: dict[str, Callable[[], object]] = {
            "pause": vcpu.pause,
            "resume": vcpu.resume,
            "unplug": vcpu.unplug,
            "run_on_cpu": lambda: vcpu.run_on_cpu(lambda vcpu: None),
        }
        caller = Caller(calls[command])
        caller.join(0.1)  # so that it comes before the failure
        gate.release()
        assert starter.done()
        assert isinstance(starter.error, KvmError)
        assert caller.done(10), f"{command} waits for an answer that never comes"
        assert caller.error is None or isinstance(caller.error, StateError)


@pytest.mark.parametrize(
    ("commands", "state"),
    [
        (["resume"], State.RUNNING),
        (["pause"], State.PAUSED),
        (["resume", "pause"], State.PAUSED),
        (["pause", "resume"], State.RUNNING),
        (["unplug"], State.UNPLUGGED),
    ],
)
def test_commands_while_it_is_being_created_take_effect_afterwards(commands: list[str], state: State) -> None:
    kernel = FakeKernel(spins)
    gate = Hold()
    kernel.before("KVM_SET_SREGS", gate)
    with machine_on(kernel) as machine:
        starter = Caller(machine.start)
        gate.wait()
        vcpu = machine.vcpus[0]
        with machine.control.lock:
            tickets = [vcpu.post_locked(COMMANDS[command.upper()]) for command in commands]
        gate.release()
        assert starter.done()
        assert starter.error is None
        assert machine.control.cond.wait_for(lambda: vcpu.is_done_locked(tickets[-1]), DEADLINE)
        if state is State.UNPLUGGED:
            assert vcpu.unplug(DEADLINE) if vcpu.state is State.LEAVING else True
        assert vcpu.state is state


def test_what_is_posted_after_an_unplug_is_answered() -> None:
    """Commands and work that come while it leaves: no caller waits for ever."""
    kernel = FakeKernel(spins)
    with machine_on(kernel) as machine:
        machine.start()
        machine.resume()
        vcpu = machine.vcpus[0]
        hold = Hold()
        holder = Caller(lambda: vcpu.run_on_cpu(hold))
        hold.wait()
        with machine.control.lock:
            vcpu.post_locked(Command.UNPLUG)
            tickets = [vcpu.post_locked(command) for command in (Command.RESUME, Command.PAUSE, Command.UNPLUG)]
        late = Caller(lambda: vcpu.run_on_cpu(lambda vcpu: pytest.fail("run after the unplug")))
        late.join(0.1)
        hold.release()
        assert holder.done()
        assert late.done()
        assert isinstance(late.error, StateError)
        assert machine.control.cond.wait_for(lambda: all(map(vcpu.is_done_locked, tickets)), DEADLINE)


def test_a_machine_that_never_started_closes() -> None:
    kernel = FakeKernel()
    with machine_on(kernel, 2):
        pass
    assert kernel.count("KVM_CREATE_VCPU") == 0


def test_closing_twice() -> None:
    kernel = FakeKernel()
    with Kvm("fake", kernel) as kvm:
        machine = Machine("1M", kvm=kvm)
        machine.close()
        machine.close()
        assert os.fstat(kvm.fileno())  # it is its maker's to close


def test_a_refused_memory_slot_leaves_nothing_open() -> None:
    kernel = FakeKernel()
    kernel.refuse("KVM_SET_USER_MEMORY_REGION", errno.EEXIST)
    with Kvm("fake", kernel) as kvm, pytest.raises(KvmError, match="overlaps another slot"):
        Machine("1M", kvm=kvm)
    assert kernel.count("close") == 2


def test_each_thread_is_told_of_its_own_vcpu() -> None:
    """Vcpu 1 is being created while 0 is refused."""
    kernel = FakeKernel()
    holds = [Hold(), Hold()]
    kernel.before("KVM_CREATE_VCPU", lambda index: holds[index]())
    for index in (0, 1):
        kernel.refuse("KVM_CREATE_VCPU", errno.ENOMEM, vcpu=index)
    with Kvm("fake", kernel) as kvm, kvm.create_vm() as vm:
        callers = []
        for index in (0, 1):
            callers.append(Caller(partial(vm.create_vcpu, index)))
            holds[index].wait()
        for hold, caller in zip(holds, callers, strict=True):
            hold.release()
            assert caller.done()
        assert [getattr(caller.error, "where", None) for caller in callers] == ["vCPU 0", "vCPU 1"]
        assert vm.where == ""
