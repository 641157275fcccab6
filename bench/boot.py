"""How long a whole boot takes, from the start of the process to its end, beside an interpreter that does nothing.

    python bench/boot.py                        # with the interpreter that runs this
    python bench/boot.py --python python3.13    # with another one

The two run in turn, so that what else the host does hits both. The minimum tells most of the program, the median of the
host as it is; processor time suffers least from other jobs. Needs /dev/kvm.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
IMAGE = "examples/images/hello.bin"
NOTHING = ["-c", "pass"]
BOOT = ["-m", "pyvcpu", "boot", IMAGE, "--smp", "4"]
LEAST_ROUNDS = 21
# As most users have it: with compiled modules kept, and nothing that makes the interpreter do more or less than usual.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

# The command in the words of its own module, then what the kernel counted of the process.
MEMORY = """\
import sys
from pyvcpu.cli import main
status = main(sys.argv[1:]) if sys.argv[1:] else 0
with open("/proc/self/status") as file:
    sys.stderr.write(file.read())
sys.exit(status)
"""


def binary(python: str) -> str:
    """Return the interpreter itself: what the name stands for may be a script that looks for it."""
    told = [python, "-c", "import os, sys; print(os.path.realpath(sys.executable))"]
    return subprocess.run(told, check=True, capture_output=True, text=True).stdout.strip()


class Times(NamedTuple):
    """Milliseconds from start to end, and of processor time."""

    wall: float
    cpu: float


def measure(command: list[str], wanted: int = 0) -> Times:
    """Run `command`, which must end with status `wanted`, and return how long it took."""
    quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1)]
    start = time.perf_counter()
    process = os.posix_spawn(command[0], command, ENVIRONMENT, file_actions=quiet)
    _, status, usage = os.wait4(process, 0)
    took = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != wanted:
        sys.exit(f"status {os.waitstatus_to_exitcode(status)}: {' '.join(command)}")
    return Times(took * 1000, (usage.ru_utime + usage.ru_stime) * 1000)


def most_memory(python: str, arguments: list[str]) -> float:
    """Return the most memory that the process had resident, in MiB (VmHWM)."""
    command = [python, "-c", MEMORY, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    found = re.search(r"^VmHWM:\s+(\d+) kB$", done.stderr, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def row(times: list[Times]) -> list[float]:
    """Return minimum and median, of the wall clock and of processor time."""
    columns = [[each.wall for each in times], [each.cpu for each in times]]
    return [number for column in columns for number in (min(column), statistics.median(column))]


def show(name: str, numbers: list[float], digits: int) -> None:
    """Print a line of the table."""
    print(f"{name:<30}" + "".join(f"{number:>10.{digits}f}" for number in numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a whole boot beside an interpreter that does nothing.")
    parser.add_argument("--python", default=sys.executable, help="the interpreter (default: the one that runs this)")
    parser.add_argument("--rounds", type=int, default=41, help=f"how often, at least {LEAST_ROUNDS} (default 41)")
    options = parser.parse_args()
    os.chdir(ROOT)
    python = binary(options.python)
    nothing, boot = [python, *NOTHING], [python, *BOOT]
    for command in (nothing, boot):  # the first time, files are read from the disk and modules compiled
        measure(command)
    rounds = [(measure(nothing), measure(boot)) for _ in range(max(options.rounds, LEAST_ROUNDS))]

    print(f"{python}, {len(rounds)} rounds, in ms")
    print(f"{'':<30}{'wall min':>10}{'median':>10}{'CPU min':>10}{'median':>10}")
    both = [row([pair[i] for pair in rounds]) for i in (0, 1)]
    show(" ".join(NOTHING), both[0], 1)
    show(" ".join(BOOT[2:]).replace("examples/images/", ""), both[1], 1)
    show("the difference", [after - before for before, after in zip(*both, strict=True)], 1)
    show("the ratio", [after / before for before, after in zip(*both, strict=True)], 2)
    resident = most_memory(python, [*BOOT[2:], "--memory", "64M"])
    without = most_memory(python, [])
    print(f"most memory resident: {resident:.1f} MiB with a guest of 64 MiB, {without:.1f} MiB without one")


if __name__ == "__main__":
    main()
