"""--trace and --explain: the steps of a vCPU's life are there, under their names and in their order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyvcpu.trace import Event, Explain, Timeline, Trace
from tests.kvm.support import HLT, IMAGES, SPIN, boot, machine

pytestmark = pytest.mark.kvm

OUT_A = bytes.fromhex("b041 e650")  # mov $'A',%al; out %al,$0x50

LIFE = [
    "realize",
    "start_vcpu: thread start",
    "init_vcpu",
    "KVM_CREATE_VCPU",
    "KVM_SET_CPUID2",
    "created signalled",
    "resume",
    "KVM_RUN",
    "IO",
    "HLT",
    "pause",
    "unplug",
    "destroy_vcpu",
]


def in_order(wanted: list[str], found: list[str]) -> bool:
    rest = iter(found)
    return all(name in rest for name in wanted)


def test_the_timeline_has_the_life_of_each_vcpu(tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    assert boot(IMAGES / "hello.bin", "--smp", 2, "--trace", file).returncode == 0
    events = json.loads(file.read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert names == {0: "callers", 1: "CPU 0/KVM", 2: "CPU 1/KVM"}
    for track in (1, 2):
        mine = [event for event in events if event.get("tid") == track and event["ph"] != "M"]
        assert [event["ts"] for event in mine] == sorted(event["ts"] for event in mine)
        assert in_order(LIFE, [event["name"] for event in mine])
        assert any(event["args"].get("what") == "out 0xe9 = 68" for event in mine)  # h
    spans = [event for event in events if event["ph"] == "X"]
    assert all(event["dur"] >= 0 for event in spans)


def test_a_kick_is_seen() -> None:
    events: list[Event] = []
    with machine(SPIN) as made:
        made.observe(Trace(events.append))
        made.start()
        made.resume()
        made.pause()
    names = [event.name for event in events]
    assert in_order(["resume", "kick", "pause", "destroy_vcpu"], names)


def test_explain_tells_the_first_exit_of_a_kind() -> None:
    lines: list[str] = []
    with machine(OUT_A * 3 + HLT) as made:
        made.on_port(0x50, write=lambda vcpu, data: None)
        made.observe(Trace(Explain(lines.append)))
        made.run(timeout=20)
    assert sum("out 0x50 = 41" in line for line in lines) == 1
    assert sum(" KVM_RUN: " in line for line in lines) == 1
    assert any("init_vcpu: in its thread" in line for line in lines)


def test_explain_on_the_command_line_leaves_standard_output_alone() -> None:
    done = boot(IMAGES / "hello.bin", "--explain")
    assert done.stdout == b"hello from vCPU 0 of 1\n"
    assert b"created signalled" in done.stderr
    assert b"destroy_vcpu" in done.stderr


def test_a_timeline_that_cannot_be_written_is_said_before_the_boot(tmp_path: Path) -> None:
    done = boot(IMAGES / "hello.bin", "--trace", tmp_path / "no" / "where")
    assert done.returncode == 2
    assert done.stdout == b""
    assert b"No such file or directory" in done.stderr


def test_a_full_timeline_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvcpu.trace.MOST_EVENTS", 2)
    timeline = Timeline()
    for name in "abc":
        timeline(Event(0, name, 1, 1))
    assert timeline.dropped == 1
    assert len(json.loads("".join(timeline.lines()))["traceEvents"]) == 4  # with the names of track and process
