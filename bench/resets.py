"""Resets per second: the library, C with the same requests and copies, and a fresh machine each time.

python -m bench.resets [SECONDS [ROUNDS]] prints the figures as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from pyvcpu import Machine

ROOT = Path(__file__).resolve().parent.parent
# mov $0x1000,%ax; mov %ax,%ds; mov $8,%cx; 1: mov %cl,0; add $0x100,%ax; mov %ax,%ds; dec %cx; jnz 1b; out %al,$0xf4
EIGHT_PAGES = bytes.fromhex("b80010 8ed8 b90800 880e0000 050001 8ed8 49 75f4 e6f4 f4")
ONE_PAGE = bytes.fromhex("a20080 e6f4 f4")  # mov %al,0x8000; out %al,$0xf4
GUESTS = {"8 pages": EIGHT_PAGES, "1 page": ONE_PAGE}


def silent(data: bytes) -> None:
    """Take output."""


def resets(code: bytes, seconds: float, all_pieces: bool) -> tuple[float, float]:
    """Return how many resets and runs there are in a second, and how long one takes, the median, in us."""
    clock = time.perf_counter
    with Machine("64M", output=silent) as machine:
        machine.load(code, format="flat")
        machine.start()
        snapshot = machine.snapshot()
        machine.restore(snapshot)
        times: list[float] = []
        begin = end = clock()
        while end < begin + seconds:
            before = end
            machine.restore(snapshot, all_pieces=all_pieces)
            outcome = machine.run()
            end = clock()
            times.append(end - before)
        assert outcome.reason == "exit"
    return len(times) / (end - begin), median(times) * 1e6


def fresh(code: bytes, seconds: float) -> float:
    """Return how many machines can be made, run and closed in a second."""
    begin = end = time.perf_counter()
    count = 0
    while end < begin + seconds:
        with Machine("64M", output=silent) as machine:
            machine.load(code, format="flat")
            machine.run()
        count += 1
        end = time.perf_counter()
    return count / (end - begin)


def clones(count: int = 50, touched: int = 32 << 20) -> float:
    """Return the proportional set size of `count` clones of a guest that has touched so much, in those of one."""
    with Machine("64M", output=silent) as machine:
        machine.load(ONE_PAGE, format="flat")
        for at in range(1 << 20, (1 << 20) + touched, 4096):
            machine.memory.write(at, b"\1" * 4096)
        machine.start()
        base = proportional()
        snapshot = machine.snapshot()
        one = touched + machine.memory.size // 512
    before = proportional()
    made = [Machine.from_snapshot(snapshot, output=silent) for _ in range(count)]
    for clone in made:
        clone.run()
        clone.memory.read(1 << 20, touched)  # each looks at all of it
    total = proportional() - before + (before - base if before > base else 0)
    for clone in made:
        clone.close()
    return total / one


def proportional() -> int:
    """Return the proportional set size of this process in bytes."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(text.split("\nPss:")[1].split()[0]) * 1024


def measure(seconds: float, rounds: int) -> dict[str, float]:
    """Return all figures, each the median of the rounds; both sides of a comparison run in turn."""
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory() as work:
        peer = Path(work) / "reset"
        subprocess.run(["gcc", "-O2", "-o", peer, ROOT / "bench" / "reset.c"], check=True)
        for _ in range(rounds):
            for guest, code in GUESTS.items():
                image = Path(work) / "image"
                image.write_bytes(code)
                for whole, what in ((True, "whole state"), (False, "registers")):
                    line = [str(peer), str(image), str(seconds), str(int(whole))]
                    done = subprocess.run(line, check=True, capture_output=True, text=True)
                    theirs, their_us = map(float, done.stdout.split())
                    ours, our_us = resets(code, seconds, whole)
                    name = f"resets, {guest}, {what}"
                    note(f"{name}, /s", ours)
                    note(f"C: {name}, /s", theirs)
                    note(f"{name} / C", their_us / our_us)
                    note(f"{name}: us over C", our_us - their_us)
            note("fresh machines, /s", fresh(EIGHT_PAGES, seconds))
    figures = {name: median(values) for name, values in found.items()}
    figures["resets / fresh machines"] = figures["resets, 8 pages, whole state, /s"] / figures["fresh machines, /s"]
    figures["PSS of 50 clones / one"] = clones()
    return figures


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    print(json.dumps(measure(seconds, rounds), indent=1))


if __name__ == "__main__":
    main()
