"""Each example runs as it stands, from another directory, and prints what it is there to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kvm.support import LONG, ROOT

EXAMPLES = ROOT / "examples"

# What each prints, as a regular expression for the whole of it: addresses and orders differ from run to run.
PRINTED = {
    "01_raw_kvm": r"""
KVM API version 12: <Kvm fd=\d+> made <VmFd fd=\d+>
after reset: CS base 0xffff0000, RIP 0xfff0
written by the guest, one exit per byte
41 exits later: halted, RIP 0x100d
""",
    "02_hello": r"""
hello from vCPU 0 of 1
halted, with exit status 0
exit, with exit status 85 = \(42 << 1\) \| 1
RIP 0x1004, RAX 42, CR0 0x[0-9a-f]+
""",
    "03_four_vcpus": r"""
<vCPU 0 paused>: host thread 'CPU 0/KVM', EDI 0, ESP 0x[0-9a-f]+
<vCPU 1 paused>: host thread 'CPU 1/KVM', EDI 1, ESP 0x[0-9a-f]+
<vCPU 2 paused>: host thread 'CPU 2/KVM', EDI 2, ESP 0x[0-9a-f]+
<vCPU 3 paused>: host thread 'CPU 3/KVM', EDI 3, ESP 0x[0-9a-f]+
halted: the machine ends when the last vCPU has halted
they finished in the order \[[0-3], [0-3], [0-3], [0-3]\]; the counter is 4000
""",
    "04_python_device": r"""
(\d+ takes \d+ steps
){6}halted; the answers, by vCPU:
(  vCPU [0-3]: \d+ takes \d+ steps
){6}""",
    "05_long_mode": r"""
CR0     0x[8ae]0000011  PE ET( NW)?( CD)? PG
CR4           0x20  PAE
EFER         0x500  LME LMA
CS            0x18  DPL 0, 64-bit code
SS            0x10  DPL 0, data

where RIP 0x1000 leads, from CR3 0x[0-9a-f]+:
  PML4            entry at 0x[0-9a-f]+: +0x[0-9a-f]+  <PTE.P\|RW: 3>
  PDPT            entry at 0x[0-9a-f]+: +0x[0-9a-f]+  <PTE.P\|RW: 3>
  page directory  entry at 0x[0-9a-f]+: +0x83  <PTE.P\|RW\|PS: 131>
KVM_TRANSLATE says 0x1000; the code there: b9 e8 03 00 00 f0 48 ff

long mode: vCPU 0 of 1 added 1000
long mode: 1000 in all
halted at RIP 0x[0-9a-f]+
""",
    "06_pause_and_plug": r"""
started            0: paused    \+0        1: paused    \+0        2: paused    \+0 *
all resumed        0: running   \+\d+ +1: running   \+\d+ +2: running   \+\d+ *
vCPU 1 paused      0: running   \+\d+ +1: paused    \+0        2: running   \+\d+ *
                   vCPU 1 stopped at RIP 0x10[0-9a-f]+
vCPU 1 resumed     0: running   \+\d+ +1: running   \+\d+ +2: running   \+\d+ *
vCPU 1 unplugged   0: running   \+\d+ +1: unplugged \+0        2: running   \+\d+ *
vCPU 1 plugged     0: running   \+\d+ +1: running   \+\d+ +2: running   \+\d+ *
all paused         0: paused    \+0        1: paused    \+0        2: paused    \+0 *
""",
    "07_mmio_and_exits": r"""
  RIP 0x[0-9a-f]+: MmioRead\(address=0xd0000000, size=4\)
  RIP 0x[0-9a-f]+: MmioWrite\(address=0xd0000004, data=b'\\xa5\\x00'\)
  RIP 0x100f: Halt\(\) number 1, thermostat 165
  RIP 0x[0-9a-f]+: MmioWrite\(address=0xd0000004, data=b'\\x00'\)
  RIP 0x1014: Halt\(\) number 2, thermostat 0
halted; the thermostat says 0
""",
    "08_interrupts": r"""
one interrupt for each letter
31 interrupts; exit, with exit status 1
""",
    "09_loaders": r"""
a multiboot image, which wants irqchip='kernel'
  0x100000    51 bytes
   0xffff0     7 bytes
     0x400    21 bytes
  0xfff000    20 bytes
   0x9f000   \d+ bytes
  vCPU 0: protected mode at 0x100020
  vCPU 1: waits for a SIPI
hello from a module
halted
""",
    "10_processors": r"""
vCPU 0: APIC id 0, package 0, core 0, thread 0
vCPU 1: APIC id 1, package 0, core 0, thread 1
vCPU 2: APIC id 2, package 1, core 0, thread 0
vCPU 3: APIC id 3, package 1, core 0, thread 1
vCPU 5: APIC id 5, package 2, core 0, thread 1
""",
    "11_fuzz": r"""
1 of 4 places reached by b'b\w\w\w'
2 of 4 places reached by b'bo\w\w'
3 of 4 places reached by b'boo\w'
4 of 4 places reached by b'boom'
it fails at b'boom'; fewer than 1,000 tries
""",
    "12_clones": r"""
16 MiB of memory in the snapshot
squares: 0 1 4 9 16 25 36 49 \.\.\. 2401
each has: much that all of them share
pages that a clone has changed: 2
""",
    "13_breakpoints": r"""
the first instructions: start start\+0x4 start\+0xb start\+0x12 double double\+0x2 start\+0x17
(note: the breakpoint at 0x101e works by single steps, .*
)?  the guest writes 2
start\+0x17 asks for twice of 2
  the guest writes 6
<Outcome halted by vCPU 0, status 0> after 1 times
(note: the watchpoint at 0x2000 works by single steps, .*
)?  the guest writes 2
  the guest writes 4
<Outcome debug by vCPU 0, status 0> at start\+0xb
the next step leads to start\+0x12 with EAX 3
""",
    "14_testdev": r"""
the register gave 0x78 back
""",
}


def test_every_example_is_known() -> None:
    assert [path.stem for path in sorted(EXAMPLES.glob("*.py"))] == list(PRINTED)
    listed = re.findall(r"\[(\w+)\.py\]", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert listed == list(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_example(name: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(PRINTED[name].removeprefix("\n"), done.stdout), done.stdout


def test_the_counter_and_the_order() -> None:
    """Nothing that the pattern above lets through: each vCPU finished once."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "03_four_vcpus.py")], capture_output=True, text=True, timeout=LONG, check=True
    )
    order = re.search(r"order \[(.*)\]", done.stdout)
    assert order is not None
    assert sorted(order[1].split(", ")) == ["0", "1", "2", "3"]
