"""The life of a vCPU on the real KVM: its thread, its states, plug and unplug."""

from __future__ import annotations

import errno
import os
import signal
import threading
from functools import partial
from pathlib import Path

import pytest

from pyvcpu import KvmError, Machine, PyvcpuError, State, StateError
from pyvcpu.kvm import Kvm
from pyvcpu.kvm.abi import basic as abi
from tests.fake_kernel import WatchedKernel
from tests.kvm.support import (
    DEVICE,
    HLT,
    OUT_COUNT,
    TICKER,
    check_counting,
    check_standing,
    counter,
    machine,
    started,
    state_of,
)
from tests.threads import DEADLINE, until

HALT_THEN_OUT = bytes.fromhex(
    "f4"  # hlt
    "e6 50"  # out %al,$0x50
    "eb fe"  # jmp .
)


def comms() -> dict[int, str]:
    """Return the names of this process's vCPU threads by thread id, as the kernel has them."""
    names = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text().rstrip("\n")
        except OSError:  # it has just ended
            continue
        if name.endswith("/KVM"):
            names[int(task.name)] = name
    return names


# Threads.


def test_threads_have_names_and_ids() -> None:
    with machine(TICKER, 4) as made:
        assert comms() == {}
        assert [vcpu.thread_id for vcpu in made.vcpus] == [0] * 4
        made.start()
        assert comms() == {vcpu.thread_id: f"CPU {vcpu.index}/KVM" for vcpu in made.vcpus}
        assert {thread.name for thread in threading.enumerate()} >= set(comms().values())
        made.unplug(2)
        until(lambda: sorted(comms().values()) == ["CPU 0/KVM", "CPU 1/KVM", "CPU 3/KVM"])
        made.plug(2)
        assert comms()[made.vcpus[2].thread_id] == "CPU 2/KVM"
    until(lambda: comms() == {})


def test_threads_leave_signals_to_others() -> None:
    with started(TICKER) as made:
        status = Path(f"/proc/self/task/{made.vcpus[0].thread_id}/status").read_text()
        blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM, signal.SIGCHLD):
            assert blocked >> (number - 1) & 1
        assert not blocked >> (signal.SIGSEGV - 1) & 1


def test_ctrl_c_comes_out_of_run_and_pauses() -> None:
    with machine(OUT_COUNT, 2) as made:
        made.on_port(0x50, write=lambda vcpu, data: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            made.run(DEADLINE)
        # Several may have been on their way.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            made.pause()
            assert {vcpu.state for vcpu in made.vcpus} == {State.PAUSED}
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def test_pinning() -> None:
    cpu = min(os.sched_getaffinity(0))
    with started(TICKER, 2) as made:
        vcpu, other = made.vcpus
        vcpu.pin([cpu])
        assert os.sched_getaffinity(vcpu.thread_id) == {cpu}
        assert os.sched_getaffinity(other.thread_id) == os.sched_getaffinity(0)
        with pytest.raises(OSError, match="Invalid argument"):
            vcpu.pin([])
        vcpu.unplug()
        vcpu.plug()
        assert os.sched_getaffinity(vcpu.thread_id) == {cpu}
        check_counting(made, 0)


def test_pinning_before_the_start() -> None:
    cpu = max(os.sched_getaffinity(0))
    with machine(TICKER) as made:
        made.vcpus[0].pin({cpu})
        made.start()
        assert os.sched_getaffinity(made.vcpus[0].thread_id) == {cpu}


# States.


def test_states_from_beginning_to_end() -> None:
    with machine(TICKER) as made:
        vcpu = made.vcpus[0]
        assert repr(vcpu) == "<vCPU 0 realized>"
        made.start()
        assert repr(vcpu) == "<vCPU 0 paused>"
        check_standing(made, 0)
        assert vcpu.resume()
        assert repr(vcpu) == "<vCPU 0 running>"
        check_counting(made, 0)
        assert vcpu.pause()
        assert repr(vcpu) == "<vCPU 0 paused>"
        check_standing(made, 0)
        assert vcpu.unplug()
        assert (repr(vcpu), vcpu.thread) == ("<vCPU 0 unplugged>", None)
        vcpu.plug()
        assert state_of(vcpu) is State.PAUSED, "the machine does not run"
        made.resume()
        check_counting(made, 0)
    assert repr(vcpu) == "<vCPU 0 unplugged>"


def test_one_is_paused_and_the_others_go_on() -> None:
    with started(TICKER, 4) as made:
        for index in range(4):
            assert made.vcpus[index].pause()
            check_standing(made, index)
            for other in {0, 1, 2, 3} - {index}:
                check_counting(made, other)
            assert made.vcpus[index].resume()
            check_counting(made, index)


def test_the_whole_machine_is_paused_and_resumed() -> None:
    with started(TICKER, 4) as made:
        for _ in range(5):
            assert made.pause()
            for index in range(4):
                check_standing(made, index)
            made.resume()
            for index in range(4):
                check_counting(made, index)


def test_a_halted_vcpu_stays_so_over_a_pause() -> None:
    code = bytes.fromhex(
        "85 ff"  # test %di,%di
        "74 02"  # jz 1f
        "eb fe"  # jmp .          vCPU 1 keeps the machine going
        "f4"  # 1: hlt
        "e6 50"  # out %al,$0x50
        "eb fb"  # jmp 1b
    )
    written: list[bytes] = []
    with machine(code, 2) as made:
        made.on_port(0x50, write=lambda vcpu, data: written.append(data))
        made.start()
        made.resume()
        halted, spinning = made.vcpus
        until(lambda: halted.state is State.HALTED)
        for _ in range(20):
            assert halted.pause()
            assert state_of(halted) is State.PAUSED_HALTED
            assert halted.resume()
            assert state_of(halted) is State.HALTED
            assert halted.registers.rip == 0x1007
        halted.kick()
        assert state_of(halted) is State.HALTED
        assert state_of(spinning) is State.RUNNING
        assert written == []
        assert spinning.unplug()
        outcome = made.wait(DEADLINE)
        assert outcome is not None
        assert outcome.reason == "halted"


def test_a_machine_of_halted_vcpus_is_at_its_end_again_at_once() -> None:
    with machine(HALT_THEN_OUT, 3) as made:
        for _ in range(3):
            assert made.run(DEADLINE).reason == "halted"
            assert {vcpu.state for vcpu in made.vcpus} == {State.PAUSED_HALTED}
            assert {vcpu.registers.rip for vcpu in made.vcpus} == {0x1001}


def test_starting_what_is_started() -> None:
    with started(TICKER) as made:
        with pytest.raises(StateError, match="vCPU 0 is running: it cannot start now"):
            made.plug(0)
        made.start()  # nobody is left to start
        check_counting(made, 0)


# Creation that fails; tests/unit/test_creation.py has every step of it.


@pytest.mark.parametrize("request_", ["KVM_CREATE_VCPU", "mmap", "KVM_SET_CPUID2", "KVM_SET_SREGS"])
def test_a_failed_creation_can_be_tried_again(request_: str) -> None:
    """The third of four. The second try makes a whole processor of it, with CPUID: without it all leaves are 0."""
    code = bytes.fromhex(
        "66 b8 01 00 00 00"  # mov $1,%eax
        "0f a2"  # cpuid
        "66 c1 eb 18"  # shr $24,%ebx
        "88 d8"  # mov %bl,%al
        "e6 50"  # out %al,$0x50     APIC id
        "66 31 c0"  # xor %eax,%eax
        "0f a2"  # cpuid
        "66 89 d8"  # mov %ebx,%eax
        "66 e7 51"  # out %eax,$0x51   start of the vendor's name
        "f4"  # hlt
    )
    kernel = WatchedKernel()
    seen: list[tuple[int, int]] = []
    vendors: set[bytes] = set()
    with Kvm(DEVICE, kernel) as kvm, machine(code, 4, kvm=kvm) as made:
        made.on_port(0x50, write=lambda vcpu, data: seen.append((vcpu.index, data[0])))
        made.on_port(0x51, write=lambda vcpu, data: vendors.add(data))
        kernel.refuse(request_, errno.ENOSPC, vcpu=2)
        with pytest.raises(OSError, match="No space left") as error:
            made.start()
        if isinstance(error.value, KvmError):
            assert (error.value.ioctl, error.value.where) == (request_, "vCPU 2")
        assert made.vcpus[2].state is State.REALIZED
        until(lambda: "CPU 2/KVM" not in comms().values())
        assert made.run(DEADLINE).reason == "halted"
    assert sorted(seen) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert len(vendors) == 1
    assert vendors.pop() in (b"Genu", b"Auth", b"Hygo", b"Cent")


# Plug and unplug.


def seen_times(reached: list[int], times: dict[int, int]) -> bool:
    """Tell whether each vCPU is in the list so often."""
    return all(reached.count(index) == count for index, count in times.items())


def test_a_plugged_vcpu_is_the_parked_one_from_its_starting_state() -> None:
    code = bytes.fromhex(
        "bb 34 12"  # mov $0x1234,%bx
        "8e db"  # mov %bx,%ds
        "bc 78 56"  # mov $0x5678,%sp
        "e6 50"  # out %al,$0x50
        "eb fe"  # jmp .
    )
    kernel = WatchedKernel()
    with Kvm(DEVICE, kernel) as kvm, machine(code, 2, kvm=kvm) as made:
        reached: list[int] = []
        made.on_port(0x50, write=lambda vcpu, data: reached.append(vcpu.index))
        made.start()
        vcpu = made.vcpus[1]
        first = bytes(vcpu.registers.copy()), bytes(vcpu.sregs.copy())
        for times in range(1, 4):
            made.resume()
            until(partial(seen_times, reached, {0: 1, 1: times}))
            made.pause()
            assert vcpu.registers.rbx == 0x1234
            assert vcpu.sregs.ds.base == 0x12340
            made.unplug(1)
            made.plug(1)
            assert (bytes(vcpu.registers.copy()), bytes(vcpu.sregs.copy())) == first
        assert reached.count(0) == 1, "the other one was left alone"
        assert kernel.count("KVM_CREATE_VCPU") == 2 + 1, "and one that is asked what MSRs hold after reset"


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_a_vcpu_that_halts_in_the_kernel_is_plugged_to_run(irqchip: str) -> None:
    code = bytes.fromhex(
        "e6 50"  # out %al,$0x50
        "fa"  # cli
        "f4"  # 1: hlt
        "eb fd"  # jmp 1b
    )
    with machine(code, 2, irqchip=irqchip) as made:
        reached: list[int] = []
        made.on_port(0x50, write=lambda vcpu, data: reached.append(vcpu.index))
        made.start()
        made.resume()
        vcpu = made.vcpus[1]
        for times in range(1, 4):
            until(partial(seen_times, reached, {1: times}))
            until(lambda: vcpu.run_on_cpu(lambda v: v.fd.get_mp_state()) == abi.KVM_MP_STATE_HALTED)
            vcpu.unplug()
            vcpu.plug()
        until(lambda: reached.count(1) == 4)


def test_a_vcpu_that_waits_for_a_sipi_waits_again_when_it_is_plugged() -> None:
    with machine(TICKER, 2, irqchip="kernel", start="bsp") as made:
        made.start()
        made.resume()
        ap = made.vcpus[1]
        for _ in range(2):
            assert ap.run_on_cpu(lambda v: v.fd.get_mp_state()) == abi.KVM_MP_STATE_UNINITIALIZED
            check_counting(made, 0)
            check_standing(made, 1)
            ap.unplug()
            ap.plug()


def test_a_halted_vcpu_that_is_plugged_anew_runs() -> None:
    code = bytes.fromhex(
        "ff 06 00 80"  # incw 0x8000
        "f4"  # hlt
    )
    with machine(code) as made:
        for times in range(1, 4):
            assert made.run(DEADLINE).reason == "halted"
            assert made.memory.read_int(0x8000, 2) == times
            made.unplug(0)
            made.plug(0)


def test_plug_before_the_start() -> None:
    """There is nothing to plug: it says so, or does what start() would have done."""
    with machine(TICKER) as made:
        try:
            made.plug(0)
        except StateError:
            assert made.vcpus[0].state is State.REALIZED
        made.start()
        made.resume()
        check_counting(made, 0)


def test_a_closed_machine_stays_closed() -> None:
    with started(TICKER) as made:
        pass
    for call in (made.vcpus[0].plug, made.start, made.run, lambda: made.load(HLT)):
        with pytest.raises((PyvcpuError, ValueError)):
            call()
    assert made.vcpus[0].thread is None


@pytest.mark.timeout(300)  # 14 s where nobody else is: 4 vCPUs spin on 2 processors
def test_200_cycles_of_each_of_4_running_vcpus() -> None:
    """No command is lost, no thread or file is left, every counter goes on, and KVM_CREATE_VCPU is made 4 times."""
    kernel = WatchedKernel()
    with Kvm(DEVICE, kernel) as kvm, machine(TICKER, 4, kvm=kvm) as made:
        made.start()
        made.resume()
        files = len(os.listdir("/proc/self/fd"))
        for cycle in range(200):
            for index in range(4):
                turn(made, index)
                if cycle % 20 == 0:
                    assert str(state_of(made.vcpus[index])) == "running"
                    check_counting(made, index)
        for index in range(4):
            check_counting(made, index)
        until(lambda: len(comms()) == 4)
        assert kernel.count("KVM_CREATE_VCPU") == 4 + 1, "and one that is asked what MSRs hold after reset"
        assert len(os.listdir("/proc/self/fd")) == files


def turn(made: Machine, index: int) -> None:
    """Pause, resume, unplug and plug one vCPU, and see that each has taken effect."""
    vcpu = made.vcpus[index]
    assert vcpu.pause(DEADLINE)
    assert str(vcpu.state) == "paused"
    before = counter(made, index)
    assert counter(made, index) == before
    assert vcpu.resume(DEADLINE)
    assert str(vcpu.state) == "running"
    assert vcpu.unplug(DEADLINE)
    assert str(vcpu.state) == "unplugged"
    vcpu.plug()
