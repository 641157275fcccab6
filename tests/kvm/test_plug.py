"""Processors that come and go while the machine runs, and machines that start over: each life starts clean."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from pyvcpu import ConfigError, Machine, State, StateError, Vcpu
from pyvcpu.kvm import VcpuFd
from pyvcpu.kvm.abi import basic as abi
from pyvcpu.kvm.msrs import MsrError
from pyvcpu.x86 import reset
from tests.kvm.support import GUESTS, HLT, SPIN, machine
from tests.threads import DEADLINE, until

COUNTERS = 0x8000
# Counts up in its own 32-bit word for ever. EDI is the index.
COUNT = bytes.fromhex(
    "66 c1 e7 02"  # shl $2,%edi
    "67 66 ff 87 00 80 00 00"  # 1: incl 0x8000(%edi)
    "eb f6"  # jmp 1b
)
IRQCHIPS = ("none", "kernel", "split")
CYCLES = int(os.environ.get("PYVCPU_PLUG_CYCLES", "1000"))


def counter(made: Machine, index: int) -> int:
    return made.memory.read_int(COUNTERS + 4 * index)


def counts(made: Machine, index: int) -> None:
    """Wait until vCPU `index` has taken a step."""
    before = counter(made, index)
    until(lambda: counter(made, index) != before, f"vCPU {index} does not run")


def state_of(fd: VcpuFd, indices: tuple[int, ...], irqchip: str) -> dict[str, Any]:
    """Return all that KVM tells of a vCPU, save time."""
    msrs: dict[int, int | None] = {}
    fpu = fd.get_fpu()
    fpu.mxcsr = fpu.mxcsr or reset.MXCSR  # some KVMs tell 0 while SSE is in its initial state
    for index in indices:
        try:
            msrs.update(fd.get_msrs([index]))
        except MsrError:
            continue
    return {
        "regs": bytes(fd.get_regs()),
        "sregs": bytes(fd.get_sregs()),
        "fpu": bytes(fpu),
        "xsave": fd.get_xsave()[:24] + fd.get_xsave()[32:],  # MXCSR_MASK comes with the first use of the area
        "xcrs": fd.get_xcrs(),
        "events": bytes(fd.get_vcpu_events()),
        "debugregs": bytes(fd.get_debugregs()),
        "msrs": msrs,
        "mp_state": fd.get_mp_state(),
        "lapic": fd.get_lapic() if irqchip != "none" else b"",
        "cpuid": bytes(fd.get_cpuid2()),
    }


def soil(fd: VcpuFd, irqchip: str) -> None:
    """Leave traces everywhere where a guest could."""
    from pyvcpu.kvm.abi import debug, events

    regs = fd.get_regs()
    for name in ("rax", "rbx", "rbp", "r8", "r15"):
        setattr(regs, name, 0x5A5A_5A5A)
    fd.set_regs(regs)
    fpu = fd.get_fpu()
    fpu.fcw, fpu.mxcsr = 0x27F, 0x1FA0
    fpu.xmm[3][0] = fpu.fpr[2][1] = 0x77
    fd.set_fpu(fpu)
    fd.set_debugregs(debug.kvm_debugregs(dr6=0xFFFF_0FF1, dr7=0x402))
    pending = events.kvm_vcpu_events(flags=events.KVM_VCPUEVENT_VALID_NMI_PENDING)
    pending.nmi.pending = pending.nmi.masked = 1
    fd.set_vcpu_events(pending)
    for index in (0x174, 0x175, 0x176, 0xC000_0082, 0xC000_0102, 0x277, 0x2FF, 0x200, 0x250, 0x17A, 0x401, 0x10):
        value = {0x277: 0, 0x2FF: 0xC00, 0x200: 6, 0x17A: 4, 0x10: 1 << 50}.get(index, 0x1000)
        try:
            fd.set_msrs([(index, value)])
        except MsrError:
            continue
    if irqchip != "none":
        page = bytearray(fd.get_lapic())
        page[0x80], page[0x320], page[0x350:0x353] = 0x20, 0x33, b"\x44\0\0"  # TPR, timer, LINT0
        fd.set_lapic(bytes(page))


def indices_of(made: Machine) -> tuple[int, ...]:
    skipped = {reset.IA32_TSC, 0x4000_0010, 0x4000_0020}  # clocks; Hyper-V's are the run time and the reference time
    listed = made.kvm.get_msr_index_list()
    return tuple(index for index in (*listed, *reset.MTRRS, *reset.machine_check_msrs(10)) if index not in skipped)


@pytest.mark.parametrize("start", ["all", "bsp"])
@pytest.mark.parametrize("irqchip", IRQCHIPS)
@pytest.mark.parametrize("index", [0, 1])
def test_nothing_of_a_former_life_is_left(irqchip: str, start: str, index: int) -> None:
    with machine(HLT, 2, irqchip=irqchip, start=start) as made:
        made.start()
        indices = indices_of(made)
        vcpu = made.vcpus[index]
        first = vcpu.run_on_cpu(lambda vcpu: state_of(vcpu.fd, indices, irqchip))
        for _ in range(2):
            vcpu.run_on_cpu(lambda vcpu: soil(vcpu.fd, irqchip))
            soiled = vcpu.run_on_cpu(lambda vcpu: state_of(vcpu.fd, indices, irqchip))
            assert {what for what in first if soiled[what] != first[what]} >= {"regs", "fpu", "debugregs", "msrs"}
            made.unplug(index)
            made.plug(index)
            again = vcpu.run_on_cpu(lambda vcpu: state_of(vcpu.fd, indices, irqchip))
            assert {what: again[what] for what in first if again[what] != first[what]} == {}
            vcpu.run_on_cpu(lambda vcpu: soil(vcpu.fd, irqchip))
            made.reset()
            again = vcpu.run_on_cpu(lambda vcpu: state_of(vcpu.fd, indices, irqchip))
            assert {what: again[what] for what in first if again[what] != first[what]} == {}


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_new_processor_is_as_the_manuals_say(irqchip: str) -> None:
    def check(vcpu: Vcpu) -> None:
        fd = vcpu.fd
        sregs, fpu, debugregs = fd.get_sregs(), fd.get_fpu(), fd.get_debugregs()
        assert (fpu.fcw, fpu.fsw, fpu.mxcsr or reset.MXCSR) == (reset.FCW, 0, reset.MXCSR)
        assert fd.get_xcrs().get(0, 1) == reset.XCR0
        assert (debugregs.dr6, debugregs.dr7, list(debugregs.db)) == (reset.DR6, reset.DR7, [0] * 4)
        assert dict(fd.get_msrs([0x277])) == {0x277: 0x0007_0406_0007_0406}, "PAT, SDM vol. 3A table 13-10"
        events = fd.get_vcpu_events()
        assert [events.exception.injected, events.interrupt.injected, events.nmi.pending] == [0, 0, 0]
        if irqchip != "none":
            assert sregs.apic_base == 0xFEE0_0800 | (vcpu.index == 0) << 8
            version = int.from_bytes(fd.get_lapic()[0x30:0x34], "little")
            assert fd.get_lapic() == reset.apic_page(vcpu.apic_id, version, vcpu.index == 0)

    def check_waiting(vcpu: Vcpu) -> None:
        regs, sregs = vcpu.fd.get_regs(), vcpu.fd.get_sregs()
        assert (regs.rip, regs.rflags, sregs.cs.selector, sregs.cs.base) == (0xFFF0, 2, 0xF000, 0xFFFF_0000)
        assert regs.rdx == vcpu.fd.get_cpuid2().find(1).eax  # type: ignore[union-attr]  # every processor has leaf 1
        assert sregs.cr0 == 0x6000_0010
        if irqchip != "none":
            assert vcpu.fd.get_mp_state() == abi.KVM_MP_STATE_UNINITIALIZED

    with machine(HLT, 2, irqchip=irqchip, start="bsp") as made:
        made.start()
        for vcpu in made.vcpus:
            vcpu.run_on_cpu(check)
        made.vcpus[1].run_on_cpu(check_waiting)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_processors_beyond_the_first_are_plugged(irqchip: str) -> None:
    with machine(COUNT, "2,maxcpus=4", irqchip=irqchip, start="all") as made:
        made.start()
        made.resume()
        counts(made, 1)
        assert [vcpu.state for vcpu in made.vcpus[2:]] == [State.UNPLUGGED] * 2
        made.plug(3)
        counts(made, 3)
        assert counter(made, 2) == 0
        made.pause()
        assert made.vcpus[3].registers.rsi == 2, "as many as there were at the start"
        made.unplug(3)
        with pytest.raises(StateError, match="unplugged"):
            made.unplug(3)
        with pytest.raises(StateError, match="paused"):
            made.plug(1)


def test_a_plugged_processor_waits_for_a_sipi_where_only_the_first_starts() -> None:
    with machine(COUNT, "2,maxcpus=3", irqchip="kernel", start="bsp") as made:
        made.start()
        made.resume()
        counts(made, 0)
        made.plug(2)
        assert made.vcpus[2].run_on_cpu(lambda vcpu: vcpu.fd.get_mp_state()) == abi.KVM_MP_STATE_UNINITIALIZED
        assert [counter(made, 1), counter(made, 2)] == [0, 0]


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
@pytest.mark.parametrize(
    ("smp", "index", "apic_id"),
    [("1,maxcpus=2", 1, 1), ("2", 1, 1), ("1,sockets=2,cores=129,maxcpus=258", 129, 256)],
)
def test_a_plugged_processor_starts_when_the_guest_has_it_start(
    smp: str, index: int, apic_id: int, irqchip: str
) -> None:
    """Not before, in each of its lives, and also when its id is beyond 8 bits."""
    with machine(GUESTS / "plug_sipi.bin", smp, mode="long", memory="8M", irqchip=irqchip, start="bsp") as made:
        told: list[int] = []
        targets: list[int] = []
        asked = threading.Event()

        def whom(vcpu: Any, size: int) -> int:
            asked.set()
            return targets.pop() if targets else 0

        made.on_port(0x52, read=whom)
        made.on_port(0x53, write=lambda vcpu, data: told.append(int.from_bytes(data, "little")))
        made.start()
        made.resume()
        assert asked.wait(DEADLINE), "the first processor has its APIC as it will stay"
        vcpu = made.vcpus[index]
        for life in range(1, 4):
            if not vcpu.created:
                made.plug(index)
            waits_for_sipi = vcpu.run_on_cpu(lambda vcpu: vcpu.fd.get_mp_state())
            assert (waits_for_sipi, len(told)) == (abi.KVM_MP_STATE_UNINITIALIZED, life - 1)
            targets.append(apic_id)
            until(lambda: len(told) == life)  # noqa: B023  # it is waited for here
            made.unplug(index)
        assert told == [apic_id] * 3


def test_what_cannot_be_plugged() -> None:
    with machine(SPIN, "1,maxcpus=2") as made:
        with pytest.raises(StateError, match="once the machine is started"):
            made.plug(1)
        made.start()
        with pytest.raises(ConfigError, match=r"room for vCPUs 0 to 1, not for 2; more need maxcpus="):
            made.plug(2)
        with pytest.raises(ConfigError, match=r"not for -1$"):
            made.unplug(-1)


def test_an_unplug_from_a_handler_leaves_no_half_done_access() -> None:
    """The `in` under way when the vCPU goes must not be completed in its next life."""
    code = bytes.fromhex(
        "e6 51"  # out %al,$0x51: tells AL of the new life, which is 0
        "b0 11"  # mov $0x11,%al
        "e4 50"  # in $0x50,%al
        "eb fe"  # jmp .
    )
    with machine(code, 2) as made:
        told: list[bytes] = []
        made.on_port(0x51, write=lambda vcpu, data: told.append(data) if vcpu.index else None)

        def read(vcpu: Any, size: int) -> int:
            if vcpu.index:
                vcpu.unplug()
            return 0x99

        made.on_port(0x50, read=read)
        made.start()
        made.resume()
        for life in range(1, 4):
            until(lambda: made.vcpus[1].state is State.UNPLUGGED)
            assert told == [b"\0"] * life
            made.plug(1)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_machine_starts_over(irqchip: str) -> None:
    code = bytes.fromhex(
        "ff 06 00 80"  # incw 0x8000
        "a1 00 80"  # mov 0x8000,%ax
        "e7 50"  # out %ax,$0x50
        "f4"  # hlt
        "eb fd"
    )
    with machine(code, 1, irqchip=irqchip) as made:
        told: list[int] = []
        made.on_port(0x50, write=lambda vcpu, data: told.append(int.from_bytes(data, "little")))
        with pytest.raises(StateError, match="nothing to reset"):
            made.reset()
        made.start()
        made.resume()
        until(lambda: told == [1])
        made.reset()
        made.resume()
        until(lambda: told == [1, 2])
        made.memory.write(0x1000, SPIN)  # a guest that spoils its own code
        made.reset(reload=True)
        made.resume()
        until(lambda: told == [1, 2, 1])


# A thousand lives.


def kept() -> dict[str, int]:
    """Return how much of what a leak would leave behind this process has."""
    return {
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "mapped vCPUs": Path("/proc/self/maps").read_text().count("kvm-vcpu"),
    }


def resident() -> int:
    """Return this process's memory, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def waits(thread_id: int) -> int:
    """Return how often a thread has gone to sleep to wait for something; not, how often the host took its processor."""
    status = Path(f"/proc/self/task/{thread_id}/status").read_text()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])


ROWS, NOTES, COLUMN = 17, 0x9000, 8  # where tests/guests/lives.S writes what
TSC_ROW = ROWS - 1


def written(made: Machine, index: int) -> list[int]:
    """Return what vCPU `index` found in its registers when it was born; bits 47-16 of the time-stamp counter last."""
    return [made.memory.read_int(COUNTERS + 0x40 * row + COLUMN * index) for row in range(ROWS)]


def noted(made: Machine, index: int) -> int:
    """Return what the time-stamp counter of vCPU `index` was lately: bits 47-16."""
    return made.memory.read_int(NOTES + COLUMN * index)


@pytest.mark.timeout(900)
def test_a_thousand_cycles_of_a_running_vcpu_among_four() -> None:
    """Every life starts clean, as the guest itself sees it; nothing grows; nobody else has to wait for anything.

    That the others lose no time otherwise is for bench/lives.py to show.
    """
    with machine(GUESTS / "lives.bin", 4, irqchip="none") as made:
        lives: list[list[int]] = []
        made.on_port(0x51, write=lambda vcpu, data: lives.append(written(made, 2)) if vcpu.index == 2 else None)
        made.start()
        made.resume()
        until(lambda: lives)
        others = [vcpu.thread_id for vcpu in made.vcpus if vcpu.index != 2]
        for index in range(4):
            notes_on(made, index)

        def cycle() -> int:
            """Return the counter of another vCPU, read before the new life."""
            count = len(lives)
            made.unplug(2)
            before = noted(made, 0)
            made.plug(2)
            until(lambda: len(lives) > count)
            return before

        for _ in range(50):  # what is made once has been made
            cycle()
        gc.collect()
        del lives[1:]
        before, memory, slept = kept(), resident(), [waits(thread_id) for thread_id in others]
        ticks = [cycle() for _ in range(CYCLES)]
        notes_on(made, 0)
        last = noted(made, 0)
        slept = [waits(thread_id) - past for thread_id, past in zip(others, slept, strict=True)]
        gc.collect()
        until(lambda: kept() == before, f"{kept()} is no longer {before}")
        assert resident() - memory < 2 << 20, "memory grows"
        assert max(slept) < CYCLES // 10, "the others waited for something"
    first = lives[0][:TSC_ROW]
    assert [life for life in lives if life[:TSC_ROW] != first] == []
    assert first == [0, 0, 0, 0, 4, 2, 0, first[7], 2, 0, 0x6000_0010, 0, 0, 0x400, 0, 0]
    # Its counter goes on with those of the others: it is never behind what one of them noted before, nor ahead of it.
    births = [since(ticks[0], life[TSC_ROW]) for life in lives[1:]]
    assert len(births) == CYCLES
    assert [i for i, tick in enumerate(ticks) if since(ticks[0], tick) > births[i]] == [], "behind the others"
    assert sorted(births) == births, "behind its former life"
    assert births[-1] <= since(ticks[0], last), "ahead of the others"


def since(start: int, tick: int) -> int:
    """Return how far a counter has come since `start`, both of 32 bits."""
    return (tick - start) % (1 << 32)


def notes_on(made: Machine, index: int) -> None:
    """Wait until vCPU `index` has noted its time-stamp counter anew."""
    before = made.memory.read_int(NOTES + COLUMN * index + 4)
    until(lambda: made.memory.read_int(NOTES + COLUMN * index + 4) > before + 1, f"vCPU {index} does not run")
