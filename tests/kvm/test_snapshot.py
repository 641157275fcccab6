"""Snapshots on a real KVM: what is restored goes on as if nothing had happened, in this process or another."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pyvcpu import Machine, State, Vcpu
from pyvcpu.errors import StateError
from pyvcpu.kvm.abi.basic import kvm_sregs
from pyvcpu.snapshot import Snapshot, SnapshotError
from pyvcpu.snapshot.plain import TIME_MSRS
from tests.kvm.support import DEVICE, GUESTS, ROOT, TICKER, check_counting, counter, machine
from tests.threads import DEADLINE, until

MOMENTS = int(os.environ.get("PYVCPU_SNAPSHOTS", "2"))  # of each kind of machine; 200 in the long run
RESETS = int(os.environ.get("PYVCPU_RESETS", "400"))
CHECKSUM, ROUNDS, SUMS = GUESTS / "checksum.bin", 0x8FF0, 0x9000
FEWEST_ROUNDS, LONG_ENOUGH = 12, 0.3  # seconds
FIRST_SUMS = [0x447BC6852DB0C496, 0x9DEDE5F80EA9CB42, 0xD431876DAC0E68FD, 0xEAAAE48ED7C09300]
MXCSR_MASK, XSTATE_BV = slice(28, 32), slice(512, 520)

# Loads the snapshot in argv[1], goes on to its end, and prints the outcome and the checksums.
GO_ON = f"""
import json, sys
from pyvcpu import Machine
with Machine.from_snapshot(sys.argv[1], kvm={DEVICE!r}, output=lambda data: None) as machine:
    outcome = machine.run({DEADLINE})
    sums = [machine.memory.read_int({SUMS} + 8 * i, 8) for i in range(len(machine.vcpus))]
    print(json.dumps([outcome.reason, sums]))
"""
# mov $0x1000,%ax; mov %ax,%ds; mov $8,%cx; 1: mov %cl,0; add $0x100,%ax; mov %ax,%ds; dec %cx; jnz 1b;
# xor %ax,%ax; mov %ax,%ds; incw 0x9000; mov 0x9000,%al; out %al,$0xf4; hlt: eight pages and one are written.
WRITER = bytes.fromhex("b80010 8ed8 b90800 880e0000 050001 8ed8 49 75f4 31c0 8ed8 ff060090 a00090 e6f4 f4")


def go_on(path: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", GO_ON, str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def without_time(snapshot: Snapshot) -> dict[str, Any]:
    """Return the data but for what docs/snapshots.md names as different each time."""
    data = {key: value for key, value in snapshot.data.items() if key not in ("created", "clock")}
    data["devices"] = {
        name: {key: value for key, value in state.items() if key not in ("clock", "timer")}
        for name, state in data["devices"].items()
    }
    data["vcpus"] = [None if vcpu is None else _timeless(vcpu) for vcpu in data["vcpus"]]
    if "pit" in data["devices"].get("irqchip", {}):
        pit = bytearray(data["devices"]["irqchip"]["pit"])
        for channel in range(3):
            pit[24 * channel + 16 : 24 * channel + 24] = bytes(8)  # count_load_time
        data["devices"]["irqchip"]["pit"] = bytes(pit)
    return data


def _timeless(vcpu: dict[str, Any]) -> dict[str, Any]:
    state = dict(vcpu["state"])
    msrs = state["msrs"]
    pairs = [msrs[at : at + 16] for at in range(0, len(msrs), 16)]
    state["msrs"] = b"".join(pair for pair in pairs if int.from_bytes(pair[:8], "little") not in TIME_MSRS)
    area = bytearray(state["xsave"])
    area[MXCSR_MASK], area[XSTATE_BV] = bytes(4), bytes(8)
    state["xsave"] = bytes(area)
    return {**vcpu, "state": state}


def flat(code: bytes | Path = TICKER, smp: int | str = 1, **options: Any) -> Machine:
    return machine(code, smp, start="all", **options)


@pytest.mark.smp
@pytest.mark.parametrize("irqchip", ["kernel", "split"])
@pytest.mark.parametrize("smp", [1, 4])
def test_a_checksum_goes_on_in_another_process(irqchip: str, smp: int, tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    with flat(CHECKSUM, smp, mode="long", irqchip=irqchip) as made:
        made.start()
        with made.snapshot() as begin:

            def whole_run(rounds: int) -> float:
                made.restore(begin)
                made.memory.write_int(ROUNDS, rounds)
                start = time.perf_counter()
                assert made.run(DEADLINE).reason == "exit"
                return time.perf_counter() - start

            takes = whole_run(FEWEST_ROUNDS)
            assert [made.memory.read_int(SUMS + 8 * i, 8) for i in range(smp)] == FIRST_SUMS[:smp]
            rounds = max(int(FEWEST_ROUNDS * LONG_ENOUGH / takes), FEWEST_ROUNDS)
            if rounds > FEWEST_ROUNDS:
                takes = whole_run(rounds)
            sums = [made.memory.read_int(SUMS + 8 * i, 8) for i in range(smp)]
            done = 0
            while done < MOMENTS:
                made.restore(begin)
                made.memory.write_int(ROUNDS, rounds)
                if made.run(random.uniform(0, 0.9 * takes)).reason == "exit":
                    continue  # it was quicker this time
                with made.snapshot() as taken:
                    taken.save(path)
                assert go_on(path) == ["exit", sums]
                done += 1


@pytest.mark.parametrize("irqchip", ["none", "kernel", "split"])
def test_a_snapshot_after_a_restore_is_the_same(irqchip: str) -> None:
    with flat(smp=2, irqchip=irqchip) as made:
        made.start()
        made.resume()
        check_counting(made, 1)
        first = made.snapshot()
        check_counting(made, 0)
        made.pause()
        memory = counter(made, 0)
        made.restore(first)
        second = made.snapshot()
        assert without_time(second) == without_time(first)
        assert counter(made, 0) == int.from_bytes(first.image.page(8)[:4], "little") < memory
        assert (second.base, second.image.stored) == (first, 0)
        made.resume()
        check_counting(made, 0)
        check_counting(made, 1)


@pytest.mark.parametrize("irqchip", ["none", "kernel"])
def test_a_new_machine_is_the_same(irqchip: str, tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    with flat(smp="2,maxcpus=4", irqchip=irqchip) as made:
        made.run(0.05)
        first = made.snapshot()
        first.save(path)
    with Machine.from_snapshot(path, kvm=DEVICE, output=lambda data: None) as again:
        assert without_time(again.snapshot()) == without_time(first)
        assert [vcpu.state for vcpu in again.vcpus] == [State.PAUSED] * 2 + [State.UNPLUGGED] * 2
        again.resume()
        check_counting(again, 0)
        with pytest.raises(StateError, match="does not have the image"):
            again.reset(reload=True)


def test_plugged_and_unplugged() -> None:
    with flat(smp="2,maxcpus=3") as made:
        made.run(0.02)
        made.plug(2)
        made.unplug(0)
        snapshot = made.snapshot()
        made.plug(0)
        made.unplug(1)
        made.restore(snapshot)
        there = [vcpu.state is not State.UNPLUGGED for vcpu in made.vcpus]
        assert there == [False, True, True]
        made.resume()
        check_counting(made, 1)
        check_counting(made, 2)


def test_a_halted_vcpu_stays_halted() -> None:
    with machine(b"\x40\xf4\x40\xf4\xe6\xf4") as made:  # inc %ax; hlt; inc %ax; hlt; out
        assert made.run(DEADLINE).reason == "halted"
        snapshot = made.snapshot()
        made.vcpus[0].wake()
        assert made.run(DEADLINE).reason == "halted"
        assert made.vcpus[0].registers.rax == 2
        made.restore(snapshot)
        assert (made.vcpus[0].registers.rax, made.vcpus[0].state) == (1, State.PAUSED_HALTED)


# The loop of a fuzzer.


@pytest.mark.parametrize("irqchip", ["none", "kernel"])
@pytest.mark.parametrize("all_pieces", [True, False])
@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_reset_and_run(irqchip: str, all_pieces: bool, timeout: float | None) -> None:
    with machine(WRITER, irqchip=irqchip, memory="2M") as made:
        made.start()
        snapshot = made.snapshot()
        made.restore(snapshot)
        before = made.memory[0 : 2 << 20]
        for value in range(RESETS // 8):
            made.restore(snapshot, all_pieces=all_pieces)
            made.memory.write_int(0x9000, value % 128, 2)
            outcome = made.run(timeout)
            assert (outcome.reason, outcome.status) == ("exit", (value % 128 + 1) * 2 + 1)
            assert made.memory[0x10000] == 8
        made.restore(snapshot, all_pieces=all_pieces)
        assert made.memory[0 : 2 << 20] == before
        assert without_time(made.snapshot()) == without_time(snapshot)


def test_what_the_host_writes_is_put_back() -> None:
    with machine(WRITER) as made:
        made.start()
        snapshot = made.snapshot()
        made.restore(snapshot)
        view = made.memory.view(0x20000, 4)
        for _ in range(3):
            view[:] = b"view"
            made.memory[0x30000] = 1
            made.memory[0x31FFE:0x32002] = b"abcd"
            made.vcpus[0].registers.rbx = 7
            made.vcpus[0].sregs.cr2 = 9
            made.restore(snapshot)
            assert (bytes(view), made.memory[0x30000], made.memory[0x31FFE:0x32002]) == (bytes(4), 0, bytes(4))
            assert (made.vcpus[0].registers.rbx, made.vcpus[0].sregs.cr2) == (0, 0)
        made.memory.clear()
        made.restore(snapshot)
        assert made.memory[0x1000 : 0x1000 + len(WRITER)] == WRITER
        view.release()


def test_msrs_and_debug_registers_are_put_back() -> None:
    code = bytes.fromhex(  # wrmsr of KERNEL_GS_BASE = 1:2; mov %rax,%dr0; mov %rax,%cr2; out; hlt
        "b9020100c0 b801000000 ba02000000 0f30 0f23c0 0f22d0 e6f4 f4"
    )
    with machine(code, mode="long") as made:
        made.start()
        snapshot = made.snapshot()
        for _ in range(4):
            made.restore(snapshot)
            assert made.run(DEADLINE).reason == "exit"
            changed = made.snapshot()
            differing = {
                name
                for name, piece in _timeless(changed.data["vcpus"][0])["state"].items()
                if piece != _timeless(snapshot.data["vcpus"][0])["state"][name]
            }
            assert {"msrs", "debugregs", "sregs", "regs"} <= differing
        made.restore(snapshot)
        assert without_time(made.snapshot()) == without_time(snapshot)


def test_layers_and_back(tmp_path: Path) -> None:
    with machine(WRITER) as made:
        made.start()
        base = made.snapshot()
        made.restore(base)
        made.run(DEADLINE)
        child = made.snapshot()
        # 8 pages and the counter's
        assert (child.base, child.image.stored) == (base, 9)
        made.restore(child)
        made.memory.write(0x40000, b"x")
        grandchild = made.snapshot()
        assert (grandchild.base, grandchild.image.stored) == (child, 1)
        for snapshot, value, letter in ((base, 0, 0), (grandchild, 1, 120), (child, 1, 0), (base, 0, 0)) * 2:
            made.restore(snapshot)
            assert (made.memory[0x9000], made.memory[0x40000]) == (value, letter)
        for name, snapshot in (("a", base), ("b", child), ("c", grandchild)):
            snapshot.save(tmp_path / name)
        assert (tmp_path / "c").stat().st_size < 64 << 10
        with Machine.from_snapshot(tmp_path / "c", kvm=DEVICE) as again:
            assert (again.memory[0x9000], again.memory[0x40000]) == (1, 120)
        grandchild.save(tmp_path / "whole", whole=True)
        assert Snapshot.load(tmp_path / "whole", verify=True).base is None


def test_a_run_that_was_reset_can_be_stopped_from_outside() -> None:
    with machine(b"\xeb\xfe") as made:  # jmp .
        made.start()
        snapshot = made.snapshot()
        for _ in range(3):
            made.restore(snapshot)
            assert made.run(0.01).reason == "timeout"
            made.restore(snapshot)
            stop = threading.Timer(0.01, made.stop, ("enough", 3))
            stop.start()
            outcome = made.run(DEADLINE)
            stop.join()
            assert (outcome.reason, outcome.status) == ("enough", 3)
        made.restore(snapshot)
        seen: list[int] = []

        def look() -> None:
            seen.append(made.vcpus[0].registers.rip)
            made.stop("seen")

        ask = threading.Timer(0.01, look)
        ask.start()
        assert made.run(DEADLINE).reason == "seen"
        ask.join()
        assert seen == [0x1000]


def test_paused_and_resumed_by_others_while_it_runs_here() -> None:
    with flat() as made:
        made.start()
        snapshot = made.snapshot()
        made.restore(snapshot)
        counts: list[int] = []

        def disturb() -> None:
            until(lambda: counter(made, 0) > 0)
            with made.paused():
                counts.append(counter(made, 0))
            check_counting(made, 0)
            made.pause()
            made.resume()
            check_counting(made, 0)
            made.stop("done")

        thread = threading.Thread(target=disturb)
        thread.start()
        assert made.run(DEADLINE).reason == "done"
        thread.join()
        assert counts[0] > 0


def test_a_handler_that_raises_comes_out_of_run() -> None:
    with machine(bytes.fromhex("e650 e6f4")) as made:  # out %al,$0x50; out %al,$0xf4

        def refuse(vcpu: Vcpu, data: bytes) -> None:
            assert vcpu.registers.rip in (0x1000, 0x1002)
            raise KeyError("no")

        made.on_port(0x50, write=refuse)
        made.start()
        snapshot = made.snapshot()
        for _ in range(3):
            made.restore(snapshot)
            with pytest.raises(KeyError, match="no"):
                made.run(DEADLINE)
        made.restore(snapshot)
        assert made.vcpus[0].registers.rip == 0x1000
        snapshot.close()


def test_ctrl_c_ends_a_run_that_was_reset() -> None:
    with machine(b"\xeb\xfe") as made:
        made.start()
        snapshot = made.snapshot()
        made.restore(snapshot)
        main = threading.get_ident()
        timer = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            made.run(DEADLINE)
        timer.join()
        made.restore(snapshot)
        assert made.run(0.01).reason == "timeout"
        snapshot.close()


def test_resets_and_saves_leave_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    with machine(WRITER, memory="4M") as made:
        made.start()
        snapshot = made.snapshot()

        def cycle(times: int) -> None:
            for _ in range(times):
                made.restore(snapshot)
                made.run(DEADLINE)
            for _ in range(times // 10):
                with made.snapshot() as taken:
                    taken.save(path)
                Snapshot.load(path).close()

        cycle(40)
        before = (resident(), threading.active_count(), len(os.listdir("/proc/self/fd")))
        cycle(RESETS)
        after = (resident(), threading.active_count(), len(os.listdir("/proc/self/fd")))
        assert after[1:] == before[1:]
        assert after[0] - before[0] < 2 << 20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_clones_share_memory() -> None:
    """Ten in this process; bench has fifty. Each touches the page of its counter, and reads its code."""
    with flat(memory="32M") as made:
        made.start()
        made.memory.write(1 << 20, random.randbytes(16 << 20))
        snapshot = made.snapshot()
    clones = [Machine.from_snapshot(snapshot, kvm=DEVICE, output=lambda data: None) for _ in range(10)]
    try:
        before = resident()
        for clone in clones:
            clone.resume()
        for clone in clones:
            check_counting(clone, 0)
        assert clones[0].memory.read(1 << 20, 64) == clones[1].memory.read(1 << 20, 64) != bytes(64)
        clones[0].memory.write(1 << 20, b"mine")
        assert clones[1].memory.read(1 << 20, 4) == bytes(snapshot.image.page(256)[:4]) != b"mine"
        assert resident() - before < 8 << 20
    finally:
        for clone in clones:
            clone.close()


# What does not fit.


def test_another_kind_of_machine_is_refused() -> None:
    with flat(memory="1M") as made, flat(memory="2M") as larger, flat(smp=2) as wider:
        made.run(0.01)
        snapshot = made.snapshot()
        with pytest.raises(SnapshotError, match="1048576 bytes of memory, not of 2097152"):
            larger.restore(snapshot)
        with pytest.raises(SnapshotError, match="processors"):
            wider.restore(snapshot)
        with pytest.raises(SnapshotError, match="time must be"):
            made.restore(snapshot, time="backwards")
    with flat(irqchip="kernel") as other:
        other.start()
        with pytest.raises(SnapshotError, match="irqchip none, not kernel"):
            other.restore(snapshot)
    snapshot.close()


def test_a_feature_that_this_host_lacks_is_named() -> None:
    with flat() as made:
        made.start()
        snapshot = made.snapshot()
    state = snapshot.data["vcpus"][0]["state"]
    cpuid = bytearray(state["cpuid"])
    for at in range(0, len(cpuid), 40):
        if cpuid[at : at + 4] == (7).to_bytes(4, "little") and not any(cpuid[at + 4 : at + 8]):
            cpuid[at + 16 : at + 28] = b"\xff" * 12  # EBX, ECX, EDX: no processor has them all
    for name, piece, words in (
        ("msrs", state["msrs"] + (0x12345).to_bytes(8, "little") + (1).to_bytes(8, "little"), "MSR 0x12345"),
        ("moods", b"", "a state 'moods'"),
        ("debugregs", b"", "debug registers of 0 bytes"),
        ("regs", b"", "regs of a vCPU's state must be 144 bytes"),
        ("cpuid", b"1", "entries of 40 bytes"),
        ("cpuid", bytes(cpuid), "lacks the CPU features .*avx512er"),
        ("xcrs", bytes(16 * 99), "XCRS"),
        ("xsave", b"", "cannot be restored"),
    ):
        forged = {**state, name: piece}
        bad = Snapshot({**snapshot.data, "vcpus": [{"state": forged, "interrupts": []}]}, snapshot.image)
        with pytest.raises(SnapshotError, match=words):
            Machine.from_snapshot(bad, kvm=DEVICE)
    snapshot.close()


def test_a_disk_that_was_written_to_is_refused(tmp_path: Path) -> None:
    from pyvcpu.devices.virtio_blk import DiskFile, VirtioBlk

    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    fd = os.open(path, os.O_RDWR)
    try:
        with flat(irqchip="kernel") as made:
            disk = DiskFile(fd, "disk")
            made.board.add_virtio(VirtioBlk(disk))
            made.run(0.01)
            snapshot = made.snapshot()
            made.restore(snapshot)
            os.utime(path, ns=(1, 1))
            with pytest.raises(SnapshotError, match="written to since"):
                made.restore(snapshot)
            made.restore(snapshot, any_disk=True)
            with pytest.raises(SnapshotError, match="written to since"):
                made.restore(snapshot, time="frozen")
            made.restore(snapshot, any_disk=True, time="frozen")
        with pytest.raises(SnapshotError, match="has a device virtio0, which the machine lacks"):
            Machine.from_snapshot(snapshot, kvm=DEVICE)
        disk.close()
        snapshot.close()
    finally:
        os.close(fd)


def test_clocks_go_on_or_stand_still() -> None:
    with flat(irqchip="kernel") as made:
        made.run(0.01)
        snapshot = made.snapshot()
        clock = snapshot.data["clock"]["ns"]
        snapshot.data["clock"]["realtime"] -= 5_000_000_000  # as if it had been taken five seconds ago
        for how, least, most in (("frozen", 0, 4), ("continue", 5, 60)):
            with Machine.from_snapshot(snapshot, kvm=DEVICE, time=how) as again:
                passed = (again.vm.get_clock().clock - clock) / 1e9
                assert least <= passed < most


def test_a_snapshot_that_is_closed() -> None:
    with flat() as made, flat() as other:
        made.run(0.01)
        snapshot = made.snapshot()
        made.restore(snapshot)
        snapshot.close()
        made.resume()
        check_counting(made, 0)
        with pytest.raises(SnapshotError, match="closed"):
            other.restore(snapshot)
        with pytest.raises(SnapshotError, match="closed"):
            made.restore(snapshot)


def test_the_shared_page_is_right_after_a_reset() -> None:
    """Who has read registers through the page goes on to see those of the guest."""
    with machine(WRITER) as made:
        made.run(DEADLINE)
        assert made.vcpus[0].registers.rax == 1
        made.reset(reload=True)
        assert made.vcpus[0].registers.rip == 0x1000
        made.run(DEADLINE)
        assert made.vcpus[0].registers.rip > 0x1000


def test_sizes_of_structures() -> None:
    assert kvm_sregs.cr8.offset + 8 <= 312


# The command.


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pyvcpu", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=DEADLINE, check=False)


def test_boot_snapshot_resume(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    done = command("boot", TICKER, "--irqchip", "kernel", "--timeout", 1, "--snapshot-on-exit", first)
    assert (done.returncode, done.stderr) == (124, "")
    assert os.listdir(tmp_path) == ["first"]
    done = command("resume", first, "--timeout", 1, "--snapshot-on-exit", second)
    assert (done.returncode, done.stdout, done.stderr) == (124, "", "")
    with Snapshot.load(first) as before, Snapshot.load(second, verify=True) as after:
        assert bytes(before.image.page(8)[:4]) != bytes(4)
        assert before.image.page(8)[:4] != after.image.page(8)[:4]
        assert after.base is not None
        assert (after.base.id, sorted(after.image.places)) == (before.id, [8])
        after.base.close()
    facts = json.loads(command("snapshot", second, "--json", "--verify").stdout)
    assert (facts["memory"], facts["irqchip"], facts["vcpus"], facts["pages"]) == (64 << 20, "kernel", [0], 1)
    assert facts["bytes_on_disk"] < 1 << 20
    assert "irqchip: kernel" in command("snapshot", first).stdout


def test_sigusr1_takes_a_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "guest"
    line = [sys.executable, "-m", "pyvcpu", "boot", str(TICKER), "--snapshot", str(path)]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, cwd=ROOT) as running:
        try:
            status = f"/proc/{running.pid}/status"
            caught = 1 << signal.SIGUSR1 - 1
            until(lambda: int(Path(status).read_text().split("SigCgt:")[1].split()[0], 16) & caught)
            running.send_signal(signal.SIGUSR1)
            assert running.stderr is not None
            assert running.stderr.readline() == f"pyvcpu: snapshot in {path}\n"
        finally:
            running.send_signal(signal.SIGTERM)
            running.communicate(timeout=DEADLINE)
    assert command("resume", path, "--timeout", 0.05).returncode == 124


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["resume", ROOT / "README.md"], 2, "it is no snapshot"),
        (["resume", "/nowhere"], 2, "No such file"),
        (["snapshot", "/tmp"], 2, "it is no file"),
        (["boot", TICKER, "--snapshot-on-exit", "/nowhere/x"], 2, "cannot be written there"),
        (["boot", TICKER, "--snapshot", "/tmp"], 2, "cannot be written there"),
        (["resume", ROOT / "README.md", "--time", "never"], 2, "continue or frozen"),
    ],
)
def test_mistakes_in_one_line(arguments: list[object], status: int, words: str) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1)
    assert words in done.stderr
