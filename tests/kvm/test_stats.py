"""--stats: exits are counted as they are, and the machine does the same with it as without.

Real-mode guests.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from pyvcpu.kvm.abi.exits import Exit
from pyvcpu.observe.stats import MOST_KEYS, Stats
from tests.kvm.support import HLT, IMAGES, LONG, SPIN, boot, command, environment, machine

pytestmark = pytest.mark.kvm

# mov $10,%cl; 1: out %al,$0x50; dec %cl; jnz 1b; in $0x51,%al
TEN_OUT_ONE_IN = bytes.fromhex("b10a e650 fec9 75fa e451")
MMIO_WRITE = bytes.fromhex("b8ffff 8ed8 a21000")  # mov $0xffff,%ax; mov %ax,%ds; mov %al,0x10


def test_exits_are_counted_by_reason_and_port() -> None:
    stats = Stats()
    with machine(TEN_OUT_ONE_IN + MMIO_WRITE + HLT) as made:
        made.observe(stats)
        seen: list[bytes] = []
        made.on_port(0x50, write=lambda vcpu, data: seen.append(data))
        made.on_mmio(0x100000, 0x1000, write=lambda vcpu, offset, data: seen.append(data))
        assert made.run(timeout=20).reason == "halted"
    assert len(seen) == 11
    (kinds,) = stats.kinds
    ports = {(key >> 16 & 0xFFFF, key & 1): count for key, (count,) in kinds[Exit.IO].keys.items()}
    assert ports == {(0x50, 1): 10, (0x51, 0): 1}
    assert {key: count for key, (count,) in kinds[Exit.MMIO].keys.items()} == {0x100000: 1}
    assert {reason: kind.count for reason, kind in kinds.items()} == {Exit.IO: 11, Exit.MMIO: 1, Exit.HLT: 1}
    # Of port 0x50 the first and the eighth, of port 0x51 the only one.
    assert {reason: kind.times.count for reason, kind in kinds.items()} == {Exit.IO: 3, Exit.MMIO: 1, Exit.HLT: 1}


def test_a_handlers_exception_still_comes_out() -> None:
    with machine(TEN_OUT_ONE_IN + HLT) as made:
        made.observe(Stats())
        made.on_port(0x50, write=lambda vcpu, data: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            made.run(timeout=20)


def test_the_command_prints_a_table_at_the_end() -> None:
    done = boot(IMAGES / "hello.bin", "--smp", 2, "--stats")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
    lines = done.stderr.decode().splitlines()
    assert "median" in lines[0]
    rows = [line.split()[1:5] for line in lines[1:5]]
    assert rows == [
        ["0", "IO", "23", "95.8%"],
        ["0", "HLT", "1", "4.2%"],
        *[["1", "IO", "23", "95.8%"], ["1", "HLT", "1", "4.2%"]],
    ]
    assert sum(line.endswith("out 0xe9: 23") for line in lines) == 2


def test_a_table_is_printed_also_at_a_timeout(tmp_path: Path) -> None:
    image = tmp_path / "spin.bin"
    image.write_bytes(bytes.fromhex("b041 e650") + SPIN)  # mov $'A',%al; out %al,$0x50
    done = boot(image, "--stats", "--timeout", 0.3)
    assert done.returncode == 124
    assert b"out 0x50: 1" in done.stderr


@pytest.mark.parametrize("option", ["--stats", "--trace"])
def test_known_counts_per_port_are_exactly_these(tmp_path: Path, option: str) -> None:
    """0x60 times port 0x50, 0x30 times 0x51, once 0x52; counted by the plain loop and by the one that traces."""
    image = tmp_path / "counts.bin"
    loops = [f"b1{count:02x} e6{port:02x} fec9 75fa" for count, port in ((0x60, 0x50), (0x30, 0x51), (1, 0x52))]
    image.write_bytes(bytes.fromhex("".join(loops)) + HLT)  # mov $count,%cl; 1: out %al,$port; dec %cl; jnz 1b
    more = ["--trace", tmp_path / "trace.json"] if option == "--trace" else []
    done = boot(image, "--stats", *more)
    row = done.stderr.decode().splitlines()[1]
    assert row.split()[2:5] == ["IO", "145", "99.3%"]
    assert row.endswith("out 0x50: 96, out 0x51: 48, out 0x52: 1")


def test_kvms_own_count_stands_beside_ours() -> None:
    done = boot(IMAGES / "hello.bin", "--stats")
    lines = [line for line in done.stderr.decode().splitlines() if "counted by KVM" in line]
    assert [line.partition(",")[0] for line in lines] == ["pyvcpu: machine", "pyvcpu: vCPU 0"]
    exits = re.search(r"\bexits (\d+)", lines[1])
    assert exits
    assert int(exits[1]) >= 24


def test_a_guest_that_uses_many_ports_is_counted_to_the_last(tmp_path: Path) -> None:
    """From 0x1000 to 0x1fff: those that are too many to be counted apart are counted together."""
    image = tmp_path / "ports.bin"
    image.write_bytes(bytes.fromhex("ba0010 ee 42 81fa0020 75f8") + HLT)
    done = boot(image, "--stats")
    row = done.stderr.decode().splitlines()[1]
    assert row.split()[3] == "4096"
    assert f"others: {4096 - MOST_KEYS}, out 0x1000: 1" in row


def test_ctrl_c_and_no_exits(tmp_path: Path) -> None:
    image = tmp_path / "spin.bin"
    image.write_bytes(SPIN)
    done = boot(image, "--stats", "--timeout", 0.2)
    assert (done.returncode, done.stderr.decode().splitlines()[0]) == (124, "pyvcpu: no exits")
    image.write_bytes(bytes.fromhex("b041 e6e9 e650 ebfc"))  # mov $'A',%al; out %al,$0xe9; 1: out %al,$0x50; jmp 1b
    with subprocess.Popen(
        command("boot", image, "--stats"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == b"A"
        process.send_signal(signal.SIGINT)
        assert process.wait(LONG) == 130
        assert b"out 0x50: " in process.stderr.read()


@pytest.mark.parametrize("option", ["--stats", "--explain"])
def test_nobody_has_to_read_what_is_said(option: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        for stderr in (writer, full):
            done = boot(IMAGES / "hello.bin", option, stderr=stderr)
            assert (done.returncode, done.stdout) == (0, b"hello from vCPU 0 of 1\n")
    finally:
        os.close(writer)
        os.close(full)
