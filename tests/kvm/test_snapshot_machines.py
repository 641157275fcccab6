"""Snapshots: what is taken can be put back, in this machine, in another, and from a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyvcpu import Machine
from pyvcpu.snapshot import Snapshot, SnapshotError
from tests.kvm.support import (
    DEVICE,
    LONG,
    ROOT,
    SOFTWARE,
    TICKER,
    check_counting,
    counter,
    environment,
    machine,
    started,
)
from tests.threads import DEADLINE

pytestmark = pytest.mark.kvm

# 1: incw 0x8000; mov 0x8000,%ax; out %ax,$0xf4; jmp 1b - the status counts
EXITS = bytes.fromhex("ff060080 a10080 e7f4 ebf5")


def status_of(number: int) -> int:
    return (number << 1 | 1) & 0xFF


@pytest.mark.parametrize("irqchip", ["none", "kernel", "split"])
def test_a_run_begins_again_where_the_snapshot_was_taken(irqchip: str) -> None:
    with machine(EXITS, memory="2M", irqchip=irqchip) as made:
        assert made.run(DEADLINE).status == status_of(1)
        snapshot = made.snapshot()
        for _ in range(20):
            assert [made.run(DEADLINE).status for _ in range(2)] == [status_of(2), status_of(3)]
            made.restore(snapshot)


def test_what_is_put_into_memory_after_a_restore_counts() -> None:
    with machine(EXITS, memory="2M") as made:
        made.run(DEADLINE)
        snapshot = made.snapshot()
        for number in range(50):
            made.restore(snapshot)
            made.memory.write_int(0x8000, number, 2)
            assert made.run(DEADLINE).status == status_of(number + 1)


@pytest.mark.parametrize("irqchip", ["none", "kernel"])
def test_several_vcpus_go_on_in_another_machine(irqchip: str, tmp_path: Path) -> None:
    with started(TICKER, 4) as made:
        check_counting(made, 3)
        with made.paused():
            snapshot = made.snapshot()
            before = [counter(made, index) for index in range(4)]
        snapshot.save(tmp_path / "four.snap")
    with Machine.from_snapshot(tmp_path / "four.snap", kvm=None if SOFTWARE else DEVICE) as other:
        assert [counter(other, index) for index in range(4)] == before
        other.resume()
        for index in range(4):
            check_counting(other, index)


def test_another_process_goes_on_from_the_file(tmp_path: Path) -> None:
    with machine(EXITS, memory="2M") as made:
        made.run(DEADLINE)
        made.snapshot().save(tmp_path / "one.snap")
    options = "" if SOFTWARE else f", kvm={DEVICE!r}"
    code = (
        "from pyvcpu import Machine\n"
        f"with Machine.from_snapshot('one.snap'{options}) as machine:\n"
        f"    print(machine.run(timeout={DEADLINE}).status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LONG,
        check=True,
    )
    assert done.stdout == f"{status_of(2)}\n"


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with machine(EXITS, memory="2M") as made:
        made.run(DEADLINE)
        made.snapshot().save(tmp_path / "one.snap")
    whole = (tmp_path / "one.snap").read_bytes()
    for wrong in (b"", b"x" * 5000, whole[:100], whole[: len(whole) // 2], whole[:60] + b"\xff" + whole[61:]):
        (tmp_path / "wrong.snap").write_bytes(wrong)
        with pytest.raises(SnapshotError):
            Snapshot.load(tmp_path / "wrong.snap")
