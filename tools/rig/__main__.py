"""Run a command, or the tests, on the kvm_amd of the rig (docs/rig.md).

python -m tools.rig run [--mmu shadow] [--add DIR] 'python3 -m pyvcpu info'
python -m tools.rig test
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time

from .image import RigError, find_image, say
from .run import CPUS, STATUS_DIED, STATUS_PIPE, run

PYTEST = "python3 -m pytest -p no:cacheprovider -o timeout=300 --durations=10"
# With shadow paging, only where guest memory or KVM itself is the subject: all of it twice would take too long.
TESTS = {
    "nested": "tests/kvm tests/amd",
    "shadow": "tests/amd tests/kvm/api tests/kvm/test_boot.py tests/kvm/test_loaders.py tests/kvm/test_examples.py",
}
TEST_TIMEOUT = 1800.0  # seconds for one kind of paging, on a machine that has other work, too


def main() -> int:
    """Return the exit status."""
    arguments = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        if arguments.what == "build":
            print(find_image())
            return 0
        if arguments.what == "test":
            return run_tests(arguments.mmu or list(CPUS), arguments.arguments, arguments.timeout)
        return run(
            arguments.command if arguments.command is not None else os.environ.get("RIG_COMMAND", ""),
            mmu=arguments.mmu,
            add=arguments.add,
            memory=arguments.memory,
            smp=arguments.smp,
            timeout=arguments.timeout,
            console=arguments.console,
        )
    except RigError as error:
        say(str(error))
        return STATUS_DIED
    except BrokenPipeError:  # nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_PIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def run_tests(kinds: list[str], arguments: list[str], timeout: float) -> int:
    """Run tests and examples with each kind of paging; return 1 when any failed."""
    results = {}
    for mmu in kinds:
        say(f"kvm_amd with {mmu} paging")
        started = time.monotonic()
        status = run(f"{PYTEST} {shlex.join(arguments)} {TESTS[mmu]}", mmu=mmu, timeout=timeout)
        results[mmu] = "passed" if status == 0 else f"failed with status {status}"
        results[mmu] += f" in {time.monotonic() - started:.0f} s"
    for mmu, result in results.items():
        say(f"{mmu} paging: {result}")
    return int(not all(result.startswith("passed") for result in results.values()))


def parser() -> argparse.ArgumentParser:
    """Return the reader of the command line."""
    top = argparse.ArgumentParser(prog="python -m tools.rig", description="Commands and tests on an emulated AMD KVM.")
    what = top.add_subparsers(dest="what", required=True)
    one = what.add_parser("run", help="run a shell command inside, and end with its status")
    one.add_argument("command", nargs="?", help="the command; $RIG_COMMAND when not given")
    one.add_argument("--mmu", choices=CPUS, default="nested", help="the kind of paging (%(default)s)")
    one.add_argument("--add", metavar="DIR", help="a folder that is /add inside")
    one.add_argument("--memory", default="2G", metavar="SIZE", help="memory of the rig (%(default)s)")
    one.add_argument("--smp", type=int, default=2, metavar="N", help="its processors (%(default)s)")
    one.add_argument("--timeout", type=float, metavar="S", help="end it after this many seconds, with status 124")
    one.add_argument("--console", metavar="FILE", help="write here what the rig's kernel says")
    tests = what.add_parser("test", help="run tests/kvm (which has the examples, too) and tests/amd inside")
    tests.add_argument("--mmu", choices=CPUS, action="append", help="only this kind of paging")
    tests.add_argument("--timeout", type=float, default=TEST_TIMEOUT, metavar="S", help="for each kind (%(default)s)")
    tests.add_argument("arguments", nargs="*", metavar="ARG", help="goes to pytest")
    what.add_parser("build", help="build the image unless it is cached, and print where it is")
    return top


if __name__ == "__main__":
    sys.exit(main())
