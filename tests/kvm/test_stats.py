"""--stats: exits are counted as they are, and the machine does the same with it as without.

Real-mode guests.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvcpu.kvm.abi.exits import Exit
from pyvcpu.vcpu.observe import Stats
from tests.kvm.support import HLT, IMAGES, SPIN, boot, machine

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
    assert {reason: kind.times.count for reason, kind in kinds.items()} == {Exit.IO: 11, Exit.MMIO: 1, Exit.HLT: 1}


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
    assert sum("out 0xe9: 23" in line for line in lines) == 2


def test_a_table_is_printed_also_at_a_timeout(tmp_path: Path) -> None:
    image = tmp_path / "spin.bin"
    image.write_bytes(bytes.fromhex("b041 e650") + SPIN)  # mov $'A',%al; out %al,$0x50
    done = boot(image, "--stats", "--timeout", 0.3)
    assert done.returncode == 124
    assert b"out 0x50: 1" in done.stderr
