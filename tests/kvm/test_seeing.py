"""docs/seeing.md shows what the command prints; times, and what KVM counts, are another host's."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pyvcpu.observe.stats import MOST_KEYS
from pyvcpu.observe.timeline import MOST_EVENTS
from pyvcpu.observe.trace import MOMENTS, THREAD_START, WAIT_CREATED
from tests.kvm.support import LONG, ROOT, environment
from tests.trace_events import in_order

pytestmark = pytest.mark.kvm

TEXT = (ROOT / "docs/seeing.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
STATS, TRACE, EXPLAIN = [block.strip() for kind, block in BLOCKS if kind == "sh"]
SHOWN_STATS, SHOWN_EXPLAIN, _ = [block.splitlines() for kind, block in BLOCKS if kind == "text"]


def run(line: str, folder: Path = ROOT) -> list[str]:
    python, *arguments = shlex.split(line)
    assert python == "python3"
    arguments = [str(ROOT / word) if word.startswith("examples/") else word for word in arguments]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=True,
    )
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


def masked(line: str) -> str:
    """Return the line without what differs from run to run, and from host to host."""
    line = re.sub(r"counted by KVM: .*", "counted by KVM: ...", line)
    line = re.sub(r"<?\d+\.\d+ (us|ms)", r"T \1", line)
    return re.sub(r" +", " ", line)


def test_stats() -> None:
    assert sorted(map(masked, run(STATS))) == sorted(map(masked, SHOWN_STATS))


def test_explain() -> None:
    printed = list(map(masked, run(EXPLAIN)))
    assert in_order([masked(line) for line in SHOWN_EXPLAIN if "vCPU 0  " in line], printed)
    assert set(map(masked, SHOWN_EXPLAIN)) <= set(printed)


def test_trace(tmp_path: Path) -> None:
    run(TRACE, tmp_path)
    assert (tmp_path / "trace.json").stat().st_size > 0
    steps = ("realize", THREAD_START, WAIT_CREATED, "init_vcpu", "init_cpu_signals", "wait_io_event", "destroy_vcpu")
    for name in (*steps, MOMENTS["created"], MOMENTS["gone"]):
        assert f"`{name}`" in TEXT


def test_limits() -> None:
    assert f"{MOST_EVENTS:,} events" in TEXT
    assert f"last {MOST_EVENTS // 2:,} are kept" in TEXT
    assert f"{MOST_KEYS} are counted apart" in TEXT
