"""A machine on a KVM in Python: what the real one does seldom or never, and every way in which it can refuse."""

from __future__ import annotations

import ctypes
import errno
import itertools
import struct
import threading
from collections.abc import Generator

import pytest

from pyvcpu import ConfigError, KvmError, Machine, Outcome, State
from pyvcpu.exits import Debug, ExitEvent, FailEntry, InternalFailure, Other, PortOut, Shutdown, System
from pyvcpu.kvm import Kvm
from pyvcpu.kvm.abi import basic as abi
from pyvcpu.kvm.abi.exits import Exit
from pyvcpu.vcpu import Vcpu
from tests.fake_kernel import FakeKernel, FakeVcpu, Guest, halts, machine_on
from tests.threads import DEADLINE

Play = Generator[None, None, None]


def run(guest: Guest, smp: int = 1) -> Outcome:
    """Run `guest` on every vCPU to the machine's end."""
    with machine_on(FakeKernel(guest), smp) as machine:
        return machine.run(DEADLINE)


def exits_with(reason: int, union: bytes = b"") -> Guest:
    """Return a guest whose every KVM_RUN gives this exit."""

    def guest(vcpu: FakeVcpu) -> Play:
        while True:
            vcpu.exit(reason, union)
            yield

    return guest


# Opening, and what a machine asks of KVM.


def test_another_api_version_is_refused() -> None:
    kernel = FakeKernel()
    kernel.api_version = 11
    with pytest.raises(KvmError, match=r"fake: KVM_GET_API_VERSION: version must be 12, not 11"):
        Kvm("fake", kernel)
    assert kernel.log == ["open", "KVM_GET_API_VERSION", "close"]


@pytest.mark.parametrize("code", [errno.ENOTTY, errno.EINVAL])
def test_what_is_no_kvm_device_is_closed_again(code: int) -> None:
    kernel = FakeKernel()
    kernel.refuse("KVM_GET_API_VERSION", code)
    with pytest.raises(KvmError, match="not a KVM device; the usual one is /dev/kvm") as error:
        Kvm("fake", kernel)
    assert error.value.errno == code
    assert kernel.log[-1] == "close"


def test_create_vm_is_made_again_when_a_signal_interrupts_it() -> None:
    kernel = FakeKernel()
    for nth in (1, 2, 3):
        kernel.refuse("KVM_CREATE_VM", errno.EINTR, nth)
    with Kvm("fake", kernel) as kvm, kvm.create_vm():
        assert kernel.count("KVM_CREATE_VM") == 4
    kernel.refuse("KVM_CREATE_VM", errno.ENOMEM)
    with Kvm("fake", kernel) as kvm, pytest.raises(KvmError, match="another VM"):
        kvm.create_vm()


@pytest.mark.parametrize(
    ("cap", "name"),
    [
        (abi.KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"),
        (abi.KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"),
        (abi.KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"),
        (abi.KVM_CAP_SYNC_REGS, "KVM_CAP_SYNC_REGS"),
    ],
)
def test_a_kvm_without_a_capability_is_refused_in_words(cap: int, name: str) -> None:
    kernel = FakeKernel()
    kernel.caps[cap] = 0
    with Kvm("fake", kernel) as kvm, pytest.raises(KvmError, match=rf"lacks {name}, which came with Linux \d"):
        Machine(kvm=kvm)


@pytest.mark.parametrize(
    ("caps", "limit"),
    [
        ({abi.KVM_CAP_MAX_VCPUS: 16, abi.KVM_CAP_NR_VCPUS: 2}, 16),
        ({abi.KVM_CAP_MAX_VCPUS: 0, abi.KVM_CAP_NR_VCPUS: 2}, 2),  # api.rst 4.7: what to take then
        ({abi.KVM_CAP_MAX_VCPUS: 0, abi.KVM_CAP_NR_VCPUS: 0}, 4),
    ],
)
def test_how_many_vcpus_it_may_be(caps: dict[int, int], limit: int) -> None:
    kernel = FakeKernel()
    kernel.caps.update(caps)
    with Kvm("fake", kernel) as kvm:
        Machine(smp=limit, kvm=kvm).close()
        with pytest.raises(ConfigError, match=f"at most {limit} vCPUs.* not {limit + 1}"):
            Machine(smp=limit + 1, kvm=kvm)


def test_cpuid_is_asked_again_with_more_room() -> None:
    kernel = FakeKernel()
    kernel.cpuid = [abi.kvm_cpuid_entry2(function=0x4000_0000 + i, eax=i) for i in range(300)]
    with Kvm("fake", kernel) as kvm:
        table = kvm.get_supported_cpuid()
    assert [entry.eax for entry in table] == list(range(300))
    assert kernel.count("KVM_GET_SUPPORTED_CPUID") == 2


def test_cpuid_that_never_fits_ends_in_an_error() -> None:
    kernel = FakeKernel()
    for nth in range(1, 100):
        kernel.refuse("KVM_GET_SUPPORTED_CPUID", errno.E2BIG, nth)
    with Kvm("fake", kernel) as kvm, pytest.raises(KvmError, match="KVM_GET_SUPPORTED_CPUID"):
        kvm.get_supported_cpuid()


def test_each_vcpu_gets_its_own_apic_id() -> None:
    kernel = FakeKernel()
    kernel.cpuid = [abi.kvm_cpuid_entry2(function=leaf, ebx=0xAA0000BB, edx=0xCC) for leaf in (0, 1, 0xB, 0x1F)]
    with machine_on(kernel, 3) as machine:
        machine.start()
        for index, vcpu in enumerate(machine._threads):
            leaves = {entry.function: entry for entry in vcpu.cpuid}
            assert leaves[0].ebx == 0xAA0000BB
            assert leaves[1].ebx == index << 24 | 4 << 16 | 0xBB, "a package takes up four ids"
            assert (leaves[0].edx, leaves[0xB].edx, leaves[0x1F].edx) == (0xCC, index, index)
    assert sorted(kernel.by_id) == [0, 1, 2]


# Exits that only a broken or another KVM gives.


def test_a_guest_that_halts() -> None:
    outcome = run(halts, 3)
    assert (outcome.reason, outcome.status, outcome.report) == ("halted", 0, "")


@pytest.mark.parametrize(
    ("reason", "union", "event", "words"),
    [
        (99, b"", Other(99), "exit reason 99"),
        (Exit.HYPERV, b"", Other(Exit.HYPERV), "HYPERV"),
        (Exit.UNKNOWN, struct.pack("<Q", 0x77), Other(0, 0x77), "0x77"),
        (Exit.SHUTDOWN, b"", Shutdown(), "triple fault"),
        (Exit.FAIL_ENTRY, struct.pack("<QI", 0x80000021, 1), FailEntry(0x80000021, 1), "0x80000021"),
        (Exit.INTERNAL_ERROR, struct.pack("<IIQ", 3, 1, 0xB0E), InternalFailure(3, (0xB0E,)), "DELIVERY_EV"),
        (Exit.SYSTEM_EVENT, struct.pack("<II", 3, 0), System(3), "CRASH"),
        (0xFFFFFFFF, b"\xff" * 256, Other(0xFFFFFFFF), "4294967295"),
    ],
)
def test_exits_that_nobody_can_go_on_from(reason: int, union: bytes, event: ExitEvent, words: str) -> None:
    outcome = run(exits_with(reason, union))
    assert (outcome.reason, outcome.status, outcome.exit) == ("crashed", 6, event)
    assert outcome.vcpu is not None
    first, *registers = outcome.report.splitlines()
    assert first.startswith("vCPU 0: ")
    assert words in first
    assert any("EIP=00001000" in line for line in registers)
    assert "code f4" + " 00" * 15 in registers


def test_a_crash_without_registers_is_told_all_the_same() -> None:
    kernel = FakeKernel(exits_with(Exit.SHUTDOWN))
    with machine_on(kernel) as machine:
        kernel.refuse("KVM_GET_REGS", errno.EIO)
        outcome = machine.run(DEADLINE)
    assert outcome.status == 6
    assert "triple fault" in outcome.report
    assert "KVM_GET_REGS" in outcome.report


@pytest.mark.parametrize(("kind", "reason"), [(1, "power-off"), (2, "reset")])
def test_system_events_that_end_it_well(kind: int, reason: str) -> None:
    outcome = run(exits_with(Exit.SYSTEM_EVENT, struct.pack("<II", kind, 0)))
    assert (outcome.reason, outcome.status, outcome.exit) == (reason, 0, System(kind))


def test_a_debug_exit_that_nobody_handles_stops_the_machine() -> None:
    outcome = run(exits_with(Exit.DEBUG, struct.pack("<IIQQQ", 1, 0, 0x1000, 0x4000, 0x400)))
    assert (outcome.reason, outcome.exit) == ("debug", Debug(1, 0x1000, 0x4000, 0x400))


def test_exits_that_only_say_go_on() -> None:
    def guest(vcpu: FakeVcpu) -> Play:
        for reason in (Exit.IRQ_WINDOW_OPEN, Exit.INTR, Exit.IRQ_WINDOW_OPEN):
            vcpu.exit(reason)
            yield
        yield from halts(vcpu)

    assert run(guest).reason == "halted"


def test_the_arrival_of_a_sipi_makes_kvm_run_again() -> None:
    kernel = FakeKernel()
    for nth in (1, 2):
        kernel.refuse("KVM_RUN", errno.EAGAIN, nth)
    with machine_on(kernel) as machine:
        assert machine.run(DEADLINE).reason == "halted"
    assert kernel.count("KVM_RUN") >= 3


@pytest.mark.parametrize("code", [errno.EFAULT, errno.ENOEXEC, errno.EIO])
def test_a_kvm_run_that_fails_comes_out_of_run(code: int) -> None:
    kernel = FakeKernel()
    with machine_on(kernel, 2) as machine:
        kernel.refuse("KVM_RUN", code, 2)
        with pytest.raises(KvmError, match=r"vCPU \d: KVM_RUN") as error:
            machine.run(DEADLINE)
        assert error.value.errno == code
        assert {vcpu.state for vcpu in machine.vcpus} <= {State.PAUSED, State.PAUSED_HALTED}


def test_a_stale_exit_reason_is_not_looked_at() -> None:
    """After EINTR the page still says what it said before: the port must not be written again."""
    spinning = threading.Event()

    def guest(vcpu: FakeVcpu) -> Play:
        vcpu.port_io(True, 0x50, 1, data=b"x")
        yield
        spinning.set()

    kernel = FakeKernel(guest)
    written: list[bytes] = []
    with machine_on(kernel) as machine:
        machine.on_port(0x50, write=lambda vcpu, data: written.append(data))
        machine.start()
        machine.resume()
        assert spinning.wait(DEADLINE)
        for _ in range(5):
            machine.vcpus[0].run_on_cpu(lambda vcpu: None, DEADLINE)
            machine.pause(DEADLINE)
            machine.resume()
        assert written == [b"x"]


# Port and memory accesses, as large as they come.


def test_string_output_is_served_element_by_element() -> None:
    def guest(vcpu: FakeVcpu) -> Play:
        vcpu.port_io(True, 0x50, 2, 3, b"aabbcc")
        yield
        yield from halts(vcpu)

    written: list[bytes] = []
    events: list[ExitEvent] = []
    with machine_on(FakeKernel(guest)) as machine:
        machine.on_port(0x50, write=lambda vcpu, data: written.append(data))
        machine.on_exit(Exit.IO, lambda vcpu, event: events.append(event))
        machine.run(DEADLINE)
    assert written == [b"aa", b"bb", b"cc"]
    assert events == [PortOut(0x50, b"aabbcc", 2)]


def test_string_input_is_served_element_by_element() -> None:
    got: list[bytes] = []

    def guest(vcpu: FakeVcpu) -> Play:
        vcpu.port_io(False, 0x50, 4, 2)
        yield
        got.append(vcpu.port_data(8))
        vcpu.port_io(False, 0x51, 2, 1024)  # nobody there
        yield
        got.append(vcpu.port_data(2048))
        yield from halts(vcpu)

    numbers = itertools.count(0x01020304)
    with machine_on(FakeKernel(guest)) as machine:
        machine.on_port(0x50, read=lambda vcpu, size: next(numbers))
        machine.run(DEADLINE)
    assert got == [bytes([4, 3, 2, 1, 5, 3, 2, 1]), b"\xff" * 2048]


def test_memory_mapped_accesses() -> None:
    got: list[bytes] = []

    def guest(vcpu: FakeVcpu) -> Play:
        for length in range(1, 9):
            vcpu.mmio(True, 0xD0000000 + length, length, bytes(range(8)))
            yield
            vcpu.mmio(False, 0xD0000000 + length, length)
            yield
            got.append(vcpu.mmio_data(length))
        vcpu.mmio(False, 0xE0000000, 8)  # nobody there
        yield
        got.append(vcpu.mmio_data(8))
        yield from halts(vcpu)

    written: list[tuple[int, bytes]] = []
    with machine_on(FakeKernel(guest)) as machine:
        machine.on_mmio(
            0xD0000000,
            0x1000,
            read=lambda vcpu, offset, size: bytes([offset] * size),
            write=lambda vcpu, offset, data: written.append((offset, data)),
        )
        machine.run(DEADLINE)
    assert written == [(length, bytes(range(length))) for length in range(1, 9)]
    assert got == [*(bytes([length] * length) for length in range(1, 9)), b"\xff" * 8]


def test_an_access_is_finished_before_an_exception_comes_out() -> None:
    """KVM completes an access at the next KVM_RUN: with immediate_exit, so that the guest goes no further."""
    runs: list[int] = []

    def guest(vcpu: FakeVcpu) -> Play:
        vcpu.port_io(True, 0x50, 1, data=b"x")
        yield
        pytest.fail("the guest was run on")

    kernel = FakeKernel(guest)
    with machine_on(kernel) as machine:
        kernel.before("KVM_RUN", lambda argument: runs.append(kernel.by_id[0].page[1]))

        def fail(vcpu: Vcpu, data: bytes) -> None:
            raise ZeroDivisionError

        machine.on_port(0x50, write=fail)
        with pytest.raises(ZeroDivisionError):
            machine.run(DEADLINE)
        assert runs[0] == 0
        assert runs[1:]
        assert set(runs[1:]) == {1}


def test_a_kernel_that_does_not_say_how_many_leaves_it_gave() -> None:
    """Linux 6.1: KVM_GET_CPUID2 leaves the count as it was when it succeeds."""
    raw = bytes(abi.kvm_cpuid_entry2(function=0, eax=1)) + bytes(abi.kvm_cpuid_entry2(function=7, index=0))

    class Silent(FakeKernel):
        def answer(self, fd: int, number: int, argument: int) -> int:
            if number != abi.KVM_GET_CPUID2.number:
                return super().answer(fd, number, argument)
            ctypes.memmove(argument + ctypes.sizeof(abi.kvm_cpuid2), raw, len(raw))
            return 0

    with Kvm("fake", Silent()) as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        table = vcpu.get_cpuid2()
        assert [entry.function for entry in table] == [0, 7]
        assert abi.kvm_cpuid2.from_buffer(table.buffer).nent == 2  # as a KVM_SET_CPUID2 will take it
