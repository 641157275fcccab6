"""--trace and --explain: the steps of a vCPU's life are there, under their names and in their order."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvcpu import Kvm, Machine, kvm
from pyvcpu.observe.explain import MOST_EXITS, Explain
from pyvcpu.observe.timeline import Timeline
from pyvcpu.observe.trace import Trace
from tests.kvm.support import (
    DEVICE,
    GUESTS,
    HLT,
    IMAGES,
    LONG,
    SPIN,
    TICKER,
    boot,
    check_counting,
    command,
    environment,
    machine,
)
from tests.trace_events import Track, in_order, read

pytestmark = pytest.mark.kvm


@contextmanager
def traced_machine(code: bytes | Path, trace: Trace, smp: int | str = 1) -> Iterator[Machine]:
    """Give a machine that `trace` sees, its ioctls included."""
    with Kvm(DEVICE, trace.kernel) as kvm, machine(code, smp, kvm=kvm) as made:
        made.observe(trace)
        yield made


OUT_A = bytes.fromhex("b041 e650")  # mov $'A',%al; out %al,$0x50
IN = bytes.fromhex("e451")  # in $0x51,%al
ALL_PORTS = bytes.fromhex("31d2 ee 42 ebfc")  # xor %dx,%dx; 1: out %al,%dx; inc %dx; jmp 1b
SAY_A_AND_RESET = bytes.fromhex("b041 e6e9 b0fe e664")  # mov $'A',%al; out %al,$0xe9; mov $0xfe,%al; out %al,$0x64
OUT_FOREVER = bytes.fromhex("e650 ebfc")  # 1: out %al,$0x50; jmp 1b

CREATION = [
    "realize",
    "thread start",
    "init_vcpu",
    "KVM_CREATE_VCPU",
    "KVM_SET_CPUID2",
    "KVM_SET_SREGS",
    "KVM_SET_REGS",
    "init_cpu_signals",
    "created signalled",
    "wait_io_event",
    "kick",
    "resume",
    "KVM_RUN",
]
MOST_THAT_EXIT = 10  # vCPUs that say hello in less than 256 bytes together
END = ["unplug", "destroy_vcpu", "destroyed signalled"]
LIFE = [*CREATION, "IO", "KVM_RUN", "HLT", "halt", "wait_io_event", "pause", *END]
OF_THE_MACHINE = ["KVM_GET_API_VERSION", "KVM_CREATE_VM", "KVM_SET_USER_MEMORY_REGION", "KVM_GET_SUPPORTED_CPUID"]


def traced(tmp_path: Path, image: Path, *arguments: object, status: int = 0) -> dict[str, Track]:
    """Boot with --trace, and return the tracks by name."""
    file = tmp_path / "trace.json"
    done = boot(image, "--trace", file, *arguments)
    assert done.returncode == status
    return read(file.read_text())


def tracks_of(timeline: Timeline) -> dict[str, Track]:
    return read("\n".join(timeline.lines()))


def cpu(index: int) -> str:
    return f"CPU {index}/KVM"


@pytest.mark.smp
@pytest.mark.parametrize("smp", [1, 4, 64])
def test_the_timeline_has_the_life_of_each_vcpu(tmp_path: Path, smp: int) -> None:
    tracks = traced(tmp_path, IMAGES / "hello.bin", "--smp", smp)
    assert set(tracks) == {"MainThread", *(cpu(index) for index in range(smp))}
    for index in range(smp):
        track = tracks[cpu(index)]
        if smp > MOST_THAT_EXIT:  # KVM collects what they write
            assert in_order([*CREATION, *END], track.names)
            continue
        assert in_order(LIFE, track.names)
        letters = [int(told.partition(" = ")[2], 16) for told in track.told("IO")]
        assert bytes(letters).decode() == f"hello from vCPU {index} of {smp}\n"
    assert in_order([*OF_THE_MACHINE, "wait for created"], tracks["MainThread"].names)
    assert tracks["MainThread"].told("wait for created") == [f"vCPU {index}" for index in range(smp)]


def test_each_ioctl_has_the_name_of_the_kernels_header(tmp_path: Path) -> None:
    tracks = traced(tmp_path, GUESTS / "irq_sipi.bin", "--smp", 2, status=3)
    names = {name for track in tracks.values() for name in track.names}
    ioctls = {name for name in names if name.startswith(("KVM_", "0x"))}
    assert {"KVM_CREATE_IRQCHIP", "KVM_CREATE_PIT2"} <= ioctls
    assert all(hasattr(kvm.abi, name) for name in ioctls)


def test_an_exit_has_port_and_value() -> None:
    timeline = Timeline()
    word_out = bytes.fromhex("b83412 e752")  # mov $0x1234,%ax; out %ax,$0x52
    mmio = bytes.fromhex("b8ffff 8ed8 a11000 a21400")  # mov $0xffff,%ax; mov %ax,%ds; mov 0x10,%ax; mov %al,0x14
    with traced_machine(OUT_A + IN + word_out + mmio + HLT, Trace(timeline)) as made:
        made.on_port(0x51, read=lambda vcpu, size: 0x5A)
        made.on_mmio(0x100000, 0x1000, read=lambda vcpu, offset, size: 0xBEEF, write=lambda vcpu, offset, data: None)
        made.run(timeout=20)
    track = tracks_of(timeline)[cpu(0)]
    assert track.told("IO") == ["out 0x50 = 0x41", "in 0x51 = 0x5a", "out 0x52 (2 bytes) = 0x1234"]
    assert track.told("MMIO") == ["read 0x100000 (2 bytes) = 0xbeef", "write 0x100004 = 0xef"]
    assert track.told("HLT") == [""]


@pytest.mark.smp
def test_kick_pause_plug_and_unplug() -> None:
    timeline = Timeline()
    with traced_machine(TICKER, Trace(timeline), 2) as made:
        made.start()
        made.resume()
        check_counting(made, 0)
        made.vcpus[0].run_on_cpu(lambda vcpu: vcpu.registers.rip)
        made.pause()
        made.unplug(1)
        made.plug(1)
    tracks = tracks_of(timeline)
    assert in_order([*CREATION, "kick", "pause", *END], tracks[cpu(0)].names)
    assert in_order([*CREATION[:10], *END, "realize", "thread start", "init_vcpu", *END], tracks[cpu(1)].names)
    assert "interrupted" in tracks[cpu(0)].told("KVM_RUN")
    assert {"bell", "signal"} == set(tracks[cpu(0)].told("kick"))


@pytest.mark.smp
def test_a_handlers_exception_is_within_its_exit() -> None:
    timeline = Timeline()
    with traced_machine(OUT_A, Trace(timeline)) as made:
        made.on_port(0x50, write=lambda vcpu, data: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            made.run(timeout=20)
    assert in_order(["IO", "pause", "unplug", "destroy_vcpu"], tracks_of(timeline)[cpu(0)].names)


@pytest.mark.smp
def test_other_threads_have_tracks_of_their_own() -> None:
    """A handler on the thread of vCPU 0 plugs vCPU 1: what it waits for is within the exit."""
    timeline = Timeline()
    with traced_machine(OUT_A + HLT, Trace(timeline), "1,maxcpus=2") as made:
        made.on_port(0x50, write=lambda vcpu, data: made.plug(1) if vcpu.index == 0 else None)
        made.run(timeout=20)
    tracks = tracks_of(timeline)
    assert in_order(["IO", "wait for created"], tracks[cpu(0)].names)
    assert in_order(["realize", "init_vcpu", "created signalled"], tracks[cpu(1)].names)


def test_a_crash_and_a_timeout_are_traced_to_their_end(tmp_path: Path, image: Callable[[bytes], Path]) -> None:
    crash = traced(tmp_path, GUESTS / "triplefault.bin", "--mode", "protected", status=6)
    assert in_order(["SHUTDOWN", "pause", *END], crash[cpu(0)].names)
    late = traced(tmp_path, image(SPIN), "--timeout", 0.2, status=124)
    assert in_order(["KVM_RUN", "pause", *END], late[cpu(0)].names)


def test_reboots_go_on_in_the_same_timeline_and_ctrl_c_ends_it(tmp_path: Path, image: Callable[[bytes], Path]) -> None:
    file = tmp_path / "trace.json"
    boots = command("boot", image(SAY_A_AND_RESET), "--reboot", "--trace", file)
    with subprocess.Popen(boots, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.read(3) == b"AAA"
        process.send_signal(signal.SIGINT)
        assert process.wait(LONG) == 130
    assert read(file.read_text())[cpu(0)].names.count("cpu_reset") >= 4, "its start, and a reset for each reboot"


def test_of_a_long_run_the_middle_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvcpu.observe.timeline.MOST_EVENTS", 200)
    timeline, served = Timeline(), 0

    def count(vcpu: object, data: bytes) -> None:
        nonlocal served
        served += 1
        if served == 1000:
            made.stop()

    with traced_machine(OUT_FOREVER, Trace(timeline)) as made:
        made.on_port(0x50, write=count)
        made.run(timeout=20)
    assert timeline.dropped > 700
    text = "\n".join(timeline.lines())
    track = read(text)[cpu(0)]
    assert in_order([*CREATION, "IO", "pause", *END], track.names)
    assert f"{timeline.dropped} events before this are left out" in text
    assert 200 <= len(track) <= 400  # an exit is kept with its KVM_RUN


# The command.


def test_a_timeline_that_cannot_be_written_is_said_before_the_boot(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "no" / "where", "No such file or directory"), (tmp_path, "Is a directory")):
        done = boot(IMAGES / "hello.bin", "--trace", path)
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr.decode() == f"pyvcpu: --trace {path}: {reason}\n"


def test_a_full_disk_is_said_and_nothing_else_is_lost(tmp_path: Path) -> None:
    done = boot(IMAGES / "hello.bin", "--trace", "/dev/full", "--stats")
    assert (done.returncode, done.stdout) == (2, b"hello from vCPU 0 of 1\n")
    *stats, last = done.stderr.decode().splitlines()
    assert last == "pyvcpu: --trace /dev/full: No space left on device"
    assert "out 0xe9: 23" in "".join(stats)
    crash = boot(GUESTS / "triplefault.bin", "--mode", "protected", "--trace", "/dev/full")
    assert crash.returncode == 2
    assert b"triple fault" in crash.stderr


def test_a_file_that_is_there_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text("{" * 100_000)
    assert cpu(0) in traced(tmp_path, IMAGES / "hello.bin")


def test_all_at_once(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    done = boot(IMAGES / "hello.bin", "--trace", file, "--stats", "--explain")
    assert (done.returncode, done.stdout) == (0, b"hello from vCPU 0 of 1\n")
    assert cpu(0) in read(file.read_text())
    lines = done.stderr.decode().splitlines()
    (head,) = [at for at, line in enumerate(lines) if "median" in line]
    assert all(" ms  " in line for line in lines[:head])
    assert not any(" ms  " in line for line in lines[head:])


# --explain.


def explained(code: bytes, **handlers: Callable[..., object]) -> list[str]:
    lines: list[str] = []
    with traced_machine(code, Trace(explain=Explain(lines.append))) as made:
        made.on_port(0x50, write=lambda vcpu, data: None)
        made.run(timeout=20)
    return lines


def test_explain_tells_the_first_exit_of_a_kind_before_it_is_served() -> None:
    lines = explained(OUT_A * 3 + IN + HLT)
    exits = [line for line in lines if " exit " in line]
    assert [line.partition(" exit ")[2].partition(":")[0] for line in exits] == [
        "IO out 0x50 = 0x41",
        "IO in 0x51",
        "HLT",
    ]
    assert sum(" KVM_RUN: " in line for line in lines) == 1
    assert in_order([exits[-1], *(line for line in lines if " halt " in line)], lines)


def test_explain_has_a_line_with_a_meaning_for_each_step() -> None:
    done = boot(IMAGES / "hello.bin", "--explain", "--smp", 2)
    assert sorted(done.stdout.splitlines()) == [b"hello from vCPU 0 of 2", b"hello from vCPU 1 of 2"]
    lines = done.stderr.decode().splitlines()
    shape = re.compile(r"pyvcpu: +(\d+\.\d{3}) ms  (MainThread|vCPU [01])  +([\w ]+)(?: \(.*\))?[^:]*: .{10,}")
    told = [shape.fullmatch(line) for line in lines]
    assert all(told), [line for line, match in zip(lines, told, strict=True) if not match]
    names = [match[3].strip() for match in told if match and match[2] == "vCPU 1"]
    assert in_order([*CREATION[2:], "exit IO out 0xe9 = 0x68".partition(" =")[0], "halt", *END], names)


def test_a_guest_cannot_make_explain_talk_without_end(image: Callable[[bytes], Path]) -> None:
    done = boot(image(ALL_PORTS), "--explain", "--timeout", 2)
    assert done.stderr.count(b" exit IO ") == MOST_EXITS + 1
    assert b"no more of its exits are told; --stats counts them" in done.stderr


def test_a_new_life_is_told_anew() -> None:
    lines: list[str] = []
    with traced_machine(SPIN, Trace(explain=Explain(lines.append))) as made:
        made.start()
        made.unplug(0)
        made.plug(0)
    assert sum(" KVM_SET_REGS: " in line for line in lines) == 2


def test_the_timeline_is_json_also_of_nothing() -> None:
    assert json.loads("\n".join(Timeline().lines()))
