"""Run a command, or the tests, on the kvm_amd of the rig (docs/rig.md).

python -m tools.rig run [--mmu shadow] [--add DIR] 'python3 -m pyvcpu info'
python -m tools.rig test
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from subprocess import PIPE, STDOUT
from typing import BinaryIO

from .debian import RigError, say
from .image import DEFAULT_KERNEL, KERNELS, find_image
from .run import CPUS, ROOT, STATUS_DIED, STATUS_PIPE, STATUS_TIMEOUT, run

TIMEOUT = 300  # seconds for one test
# A hundred thousand characters, each with its interrupt: tests/amd pastes fewer, into Linux.
LONG = "tests/kvm/test_cli.py::test_100_kib_of_input_arrive_whole_and_in_order"
PYTEST = f"python3 -m pytest -o cache_dir=/tmp/pytest -o timeout={TIMEOUT} --durations=10 --deselect={LONG}"
NO_TESTS = 5  # pytest's status when nothing was selected
SILENCE = 400.0  # seconds after which the rig itself hangs: a test that does has been ended before
TRIES = 3
# Not there: what has nothing to do with the kind of KVM (arguments, terminals, words).
ELSEWHERE = ("cli_usage", "console", "doctests", "readme", "top")
# The checks of every change, with nested paging, which is what hardware has: all that tests/amd says of hardware, but
# Linux booted once (four CPUs on the split irqchip, which has most of the machine in it); then, with the irqchip of the
# kernel, the split one and none, how guests start, interrupts, processors that come and go. The rest of it,
# and shadow paging, is for `make test-amd`.
CHECKED_LINUX = "tests/amd/test_linux.py::test_two_sockets_and_the_split_irqchip"
CHECKS = ("boot", "interrupts", "plug")
# With shadow paging, only where guest memory, interrupts or KVM itself is the subject: all of it twice takes too long.
SHADOW = ("boot", "examples", "exits", "interrupts", "loaders")
TOGETHER = 6  # test files in one rig: a rig that stands still costs no more than these once more
# Seconds for one kind of paging: on a slow machine it takes 1500, and a rig or two may stand still.
TEST_TIMEOUT = 3000.0


def main() -> int:
    """Return the exit status."""
    arguments = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        if arguments.what == "build":
            print(find_image(arguments.kernel))
            return 0
        if arguments.what == "test":
            kinds = arguments.mmu or (["nested"] if arguments.checks else list(CPUS))
            return run_tests(kinds, arguments.arguments, Options.of(arguments))
        return run(
            arguments.command if arguments.command is not None else os.environ.get("RIG_COMMAND", ""),
            mmu=arguments.mmu,
            add=arguments.add,
            memory=arguments.memory,
            smp=arguments.smp,
            timeout=arguments.timeout,
            console=arguments.console,
            kernel=arguments.kernel,
            emulator=arguments.qemu,
        )
    except RigError as error:
        say(str(error))
        return STATUS_DIED
    except BrokenPipeError:  # nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_PIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


@dataclass(frozen=True)
class Options:
    """How tests are run, whatever the tests and the kind of paging."""

    timeout: float = TEST_TIMEOUT
    again: bool = False
    checks: bool = False
    kernel: str = DEFAULT_KERNEL
    qemu: str | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Options:
        """Take them from the command line."""
        return cls(arguments.timeout, arguments.again, arguments.checks, arguments.kernel, arguments.qemu)

    def words(self) -> list[str]:
        """Return them as the command line has them."""
        words = ["--timeout", str(self.timeout), "--kernel", self.kernel]
        words += ["--again"] * self.again + ["--checks"] * self.checks
        return words + (["--qemu", self.qemu] if self.qemu else [])


def run_tests(kinds: list[str], arguments: list[str], options: Options) -> int:
    """Run tests and examples with each kind of paging, all kinds at the same time; return 1 when any failed."""
    if len(kinds) == 1:
        return run_kind(kinds[0], arguments, options)
    find_image(options.kernel)  # once, for all
    command = [sys.executable, "-m", "tools.rig", "test", *options.words()]
    running = [
        (mmu, subprocess.Popen([*command, "--mmu", mmu, "--", *arguments], cwd=ROOT, stdout=PIPE, stderr=STDOUT))
        for mmu in kinds
    ]
    try:
        readers = [threading.Thread(target=hand_on, args=(mmu, job.stdout), daemon=True) for mmu, job in running]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return int(any(job.wait() for _, job in running))
    finally:
        for _, job in running:
            job.terminate()
            job.wait()


def hand_on(name: str, lines: BinaryIO) -> None:
    """Write each line to standard output behind `name`: several kinds have their say there."""
    with lines:
        for line in lines:
            sys.stdout.buffer.write(f"{name:<8}".encode() + line.rstrip(b"\n") + b"\n")
            sys.stdout.buffer.flush()


def groups(mmu: str, checks: bool = False) -> list[list[str]]:
    """Return what pytest is to run with one kind of paging, in one rig after the other; of the `checks` only these."""
    if checks:
        others = sorted(path.name for path in (ROOT / "tests/amd").glob("test_*.py") if path.name != "test_linux.py")
        return [
            [*(f"tests/amd/{name}" for name in others), CHECKED_LINUX],
            [f"tests/kvm/test_{name}.py" for name in CHECKS],
        ]
    if mmu == "shadow":
        files = [f"tests/kvm/test_{name}.py" for name in SHADOW]
        return [["tests/amd"], ["tests/kvm/api", "--deselect=tests/kvm/api/test_wild.py", *files]]
    unwanted = {f"test_{name}.py" for name in ELSEWHERE}
    names = sorted(path.name for path in (ROOT / "tests/kvm").glob("test_*.py") if path.name not in unwanted)
    files = [f"tests/kvm/{name}" for name in names]
    slices = (files[start : start + TOGETHER] for start in range(0, len(files), TOGETHER))
    return [["tests/amd"], ["tests/kvm/api"], *slices]


def run_kind(mmu: str, arguments: list[str], options: Options) -> int:
    """Run the tests with one kind of paging; return 0 or 1.

    A rig that dies, or stands still, has other tries. A failed test has one only with `again`, said aloud.
    """
    started = time.monotonic()
    statuses = []
    for group in groups(mmu, options.checks):
        say(f"kvm_amd with {mmu} paging: {' '.join(group)}")
        for _ in range(TRIES):
            status = run(
                pytest_command([*arguments, *group], options.again),
                mmu=mmu,
                timeout=options.timeout - (time.monotonic() - started),
                silence=SILENCE,
                kernel=options.kernel,
                emulator=options.qemu,
            )
            if status != STATUS_DIED:
                break
        statuses.append(status)
        if status == STATUS_TIMEOUT:
            break
    # The caller's arguments may leave nothing of a group, but must leave something of one.
    allowed = (0, NO_TESTS) if arguments and 0 in statuses else (0,)
    bad = [status for status in statuses if status not in allowed]
    result = f"failed with status {' and '.join(map(str, bad))}" if bad else "passed"
    say(f"{mmu} paging: {result} in {time.monotonic() - started:.0f} s")
    return int(bool(bad))


def pytest_command(arguments: list[str], again: bool) -> str:
    """Return the shell command that runs pytest, with `again` once more for what failed."""
    tests = f"{PYTEST} {shlex.join(arguments)}"
    if not again:
        return tests
    # pytest ends with 1 when tests failed, with other numbers when it could not do its work.
    once_more = f"echo '== THESE FAILED; once more'; {tests} --last-failed; status=$?"
    return f"{tests}; status=$?; if [ $status = 1 ]; then {once_more}; fi; (exit $status)"


def parser() -> argparse.ArgumentParser:
    """Return the reader of the command line."""
    top = argparse.ArgumentParser(prog="python -m tools.rig", description="Commands and tests on an emulated AMD KVM.")
    what = top.add_subparsers(dest="what", required=True)
    one = what.add_parser("run", help="run a shell command inside, and end with its status")
    one.add_argument("command", nargs="?", help="the command; $RIG_COMMAND when not given")
    add_versions(one)
    one.add_argument("--mmu", choices=CPUS, default="nested", help="the kind of paging (%(default)s)")
    one.add_argument("--add", metavar="DIR", help="a folder that is /add inside")
    one.add_argument("--memory", default="2G", metavar="SIZE", help="memory of the rig (%(default)s)")
    one.add_argument("--smp", type=int, default=2, metavar="N", help="its processors (%(default)s)")
    one.add_argument("--timeout", type=float, metavar="S", help="end it after this many seconds, with status 124")
    one.add_argument("--console", metavar="FILE", help="write here what the rig's kernel says")
    tests = what.add_parser("test", help="run tests/kvm (which has the examples, too) and tests/amd inside")
    add_versions(tests)
    tests.add_argument("--mmu", choices=CPUS, action="append", help="only this kind of paging")
    tests.add_argument("--timeout", type=float, default=TEST_TIMEOUT, metavar="S", help="for each kind (%(default)s)")
    tests.add_argument("--checks", action="store_true", help="run the selection for the checks, with nested paging")
    tests.add_argument("--again", action="store_true", help="give each test that fails one more try")
    tests.add_argument("arguments", nargs="*", metavar="ARG", help="goes to pytest")
    image = what.add_parser("build", help="build the image unless it is cached, and print where it is")
    add_versions(image)
    return top


def add_versions(command: argparse.ArgumentParser) -> None:
    """Add the choice of the kernel and of QEMU. An empty word is none: make passes it on."""
    kernels = ", ".join(KERNELS)
    command.add_argument(
        "--kernel",
        type=lambda word: word or DEFAULT_KERNEL,
        default=DEFAULT_KERNEL,
        metavar="VERSION",
        help=f"the rig's kernel: {kernels}, the version that Debian sid has, or sid (%(default)s)",
    )
    command.add_argument(
        "--qemu",
        type=lambda word: word or None,
        metavar="VERSION",
        help="QEMU: 7.2, 10.0, the version that Debian sid has, sid, system, or a path "
        "(10.0 for nested paging, 7.2 for shadow paging)",
    )


if __name__ == "__main__":
    sys.exit(main())
