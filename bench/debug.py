"""Single steps beside C, and breakpoints with a condition in Python beside gdb's.

python -m bench.debug [SECONDS] prints JSON.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from pyvcpu import Machine
from pyvcpu.debug.target import MachineTarget
from pyvcpu.gdb.server import Server

ROOT = Path(__file__).resolve().parent.parent
# inc %ax; cmp $0,%bx; jmp: nothing of it makes an exit, and the condition on BX is never true.
LOOP = bytes.fromhex("40 83fb00 ebfa")
AT = 0x1001
TRACE = 20_000
GDB_HITS = 500


def steps(seconds: float) -> float:
    """Return how many single steps a second the library makes, each with its address kept."""
    with Machine("1M") as machine:
        machine.load(LOOP, format="flat")
        machine.trace_instructions(1000)
        start, made = time.perf_counter(), 0
        while (took := time.perf_counter() - start) < seconds:
            made += len(machine.trace_instructions(TRACE)) - 1
        return made / took


def peer_steps(work: Path, seconds: float) -> float:
    """Return the same for C."""
    image, stepper = work / "loop", work / "stepper"
    image.write_bytes(LOOP)
    subprocess.run(["gcc", "-O2", "-o", stepper, ROOT / "bench" / "stepper.c"], check=True)
    done = subprocess.run([stepper, image, str(seconds)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def predicates(seconds: float) -> float:
    """Return how often a second a breakpoint is hit whose condition, in Python, is not true."""
    with Machine("1M") as machine:
        machine.load(LOOP, format="flat")
        point = machine.break_at(AT, lambda vcpu: vcpu.registers.rbx != 1)
        machine.start()
        machine.resume()
        time.sleep(0.1)
        start, before = time.perf_counter(), point.hits
        time.sleep(seconds)
        return (point.hits - before) / (time.perf_counter() - start)


def gdb_conditions() -> float:
    """Return the same for a condition of gdb's; 0 where gdb is not installed."""
    if shutil.which("gdb") is None:
        return 0.0
    with Machine("1M") as machine:
        machine.load(LOOP, format="flat")
        target = MachineTarget(machine, wait=True)
        with Server(target, "localhost:0") as server:
            runner = threading.Thread(target=machine.run)
            runner.start()
            lines = [f"target remote {server.address}", f"hbreak *{AT:#x} if $ax == {GDB_HITS}"]
            lines += [
                "python import time; start = time.time()",
                "continue",
                "python print(time.time() - start)",
                "kill",
            ]
            arguments = [part for line in ["set confirm off", *lines] for part in ("-ex", line)]
            command = ["gdb", "-nx", "-q", "-batch", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
            runner.join()
            target.close()
    took = next(float(line) for line in done.stdout.splitlines() if line.replace(".", "").isdigit())
    return GDB_HITS / took


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    with tempfile.TemporaryDirectory() as work:
        ours, theirs = steps(seconds), peer_steps(Path(work), seconds)
    hits, gdbs = predicates(seconds), gdb_conditions()
    figures = {
        "single steps a second": ours,
        "C: single steps a second": theirs,
        "single steps / C": ours / theirs,
        "predicates a second": hits,
        "gdb: conditions a second": gdbs,
    }
    if gdbs:
        figures["predicates / gdb"] = hits / gdbs
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
