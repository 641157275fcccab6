"""`python -m pyvcpu` as a user or a script meets it: statuses, streams, signals, and one line for each mistake.

Terminals are the subject of test_console.py.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kvm.support import GUESTS, IMAGES, LONG, SPIN, boot, command, environment
from tests.threads import DEADLINE, until

HELLO = IMAGES / "hello.bin"
ECHO = GUESTS / "echo.bin"
YES = bytes.fromhex(
    "b4 0a"  # mov $'\n',%ah
    "b0 79"  # 1: mov $'y',%al
    "e6 e9"  # out %al,$0xe9
    "88 e0"  # mov %ah,%al
    "e6 e9"  # out %al,$0xe9
    "eb f6"  # jmp 1b
)
READY = bytes.fromhex(
    "b0 52"  # mov $'R',%al
    "e6 e9"  # out %al,$0xe9
    "eb fe"  # jmp .
)


def hello(count: int) -> list[str]:
    return [f"hello from vCPU {index} of {count}" for index in range(count)]


def check_one_line(stderr: bytes) -> str:
    """Check that standard error holds one line of ours and no traceback; return it."""
    text = stderr.decode()
    assert "Traceback" not in text
    assert text.startswith("pyvcpu")
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    return text


@contextmanager
def running(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start `pyvcpu boot` with its streams in pipes; it is gone afterwards whatever it does."""
    settings: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "cwd": "/",
        "env": environment(),
    }
    process = subprocess.Popen(command("boot", *arguments), **{**settings, **options})
    try:
        yield process
    finally:
        process.kill()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        process.wait()


def through(wrapper: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command line `arguments` by a Python script that gets it as sys.argv[1:]."""
    settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "env": environment(), "cwd": "/"}
    line = [sys.executable, "-c", wrapper, *map(str, arguments)]
    return subprocess.run(line, timeout=LONG, check=False, **{**settings, **options})


# How it ends.


def test_hello() -> None:
    """examples/images/hello.S"""
    done = boot(HELLO, "--smp", 4)
    assert sorted(done.stdout.decode().splitlines()) == hello(4)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("guest", "status"),
    [("exit_0", 1), ("exit_127", 255), ("exit_255", 255), ("exit_outw", 11), ("exit_outl", 85)],
)
def test_debug_exit(guest: str, status: int) -> None:
    """tests/guests/exit_*.S"""
    done = boot(GUESTS / f"{guest}.bin")
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


def test_debug_exit_of_3() -> None:
    """examples/images/exit3.S, and with others that run for ever: tests/guests/exit_others_spin.S"""
    assert boot(IMAGES / "exit3.bin").returncode == 7
    done = boot(GUESTS / "exit_others_spin.bin", "--smp", 4)
    assert (done.returncode, done.stderr) == (7, b"")


def test_triple_fault() -> None:
    """tests/guests/triplefault.S: the reason and the registers on standard error, each line marked as ours."""
    done = boot(GUESTS / "triplefault.bin", "--mode", "protected")
    assert (done.returncode, done.stdout) == (6, b"")
    lines = done.stderr.decode().splitlines()
    assert "vCPU 0: triple fault (KVM_EXIT_SHUTDOWN)" in lines[0]
    assert all(line.startswith("pyvcpu: ") for line in lines)
    for name in ("EAX=", "ESP=", "EIP=", "EFL=", "CS =", "GDT=", "CR0=", "code "):
        assert any(name in line for line in lines), name


@pytest.mark.parametrize("smp", [1, 4])
def test_timeout(image: Callable[[bytes], Path], smp: int) -> None:
    start = time.monotonic()
    done = boot(image(SPIN), "--timeout", 1, "--smp", smp)
    assert (done.returncode, done.stdout, done.stderr) == (124, b"", b"")
    assert 1 <= time.monotonic() - start < 10


def test_a_timeout_that_is_not_reached() -> None:
    assert boot(HELLO, "--timeout", "30").returncode == 0


# Signals.


@pytest.mark.parametrize("smp", [1, 4])
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP)],
)
def test_signals(image: Callable[[bytes], Path], number: int, status: int, smp: int) -> None:
    with running(image(READY), "--smp", smp) as process:
        assert process.stdout is not None
        assert process.stdout.read(smp) == b"R" * smp
        process.send_signal(number)
        assert process.communicate(timeout=DEADLINE) == (b"", b"")
        assert process.returncode == status


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_impatient_signals(image: Callable[[bytes], Path], number: int, status: int) -> None:
    """The first one ends it; those that hit the tidying up change nothing."""
    with running(image(READY), "--smp", 64) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"R"
        while process.poll() is None:
            process.send_signal(number)
        _, stderr = process.communicate(timeout=DEADLINE)
        assert (process.returncode, stderr) == (status, b"")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_signals_while_it_starts(image: Callable[[bytes], Path], number: int, status: int) -> None:
    with running(image(SPIN), "--smp", 255) as process:
        until(lambda: process.poll() is not None or "CPU 0/KVM" in comms(process.pid))
        process.send_signal(number)
        assert process.communicate(timeout=DEADLINE) == (b"", b"")
        assert process.returncode == status


def comms(pid: int) -> list[str]:
    """Return the names of a process's threads."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            found.append(Path(f"/proc/{pid}/task/{task}/comm").read_text().rstrip("\n"))
        except OSError:  # it has just ended
            continue
    return found


def test_ignored_signals_stay_ignored(image: Callable[[bytes], Path]) -> None:
    """As under nohup, or in the background of a script."""
    ignoring = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""
    line = [sys.executable, "-c", ignoring, *command("boot", image(READY), "--timeout", "0.5")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"R"
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            process.send_signal(number)
        assert process.communicate(timeout=DEADLINE) == (b"", b"")
        assert process.returncode == 124


def test_threads_are_seen_by_name_from_outside() -> None:
    """examples/images/ticker.S"""
    with running(IMAGES / "ticker.bin", "--smp", 4) as process:
        names = [f"CPU {index}/KVM" for index in range(4)]
        until(lambda: sorted(name for name in comms(process.pid) if name.endswith("/KVM")) == names)


# Standard output: the guest's bytes and nothing else, whoever reads them.


def test_output_into_a_file(tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as out:
        assert boot(HELLO, stdout=out).returncode == 0
    assert (tmp_path / "out").read_text() == "hello from vCPU 0 of 1\n"


@pytest.mark.parametrize("endless", [True, False])
def test_a_reader_that_leaves(image: Callable[[bytes], Path], endless: bool) -> None:
    """`| head -1`"""
    with running(image(YES) if endless else HELLO, "--smp", 4) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline().decode().strip()  # "y" and line ends of four vCPUs come in any order
        assert not line.strip("y") or line in hello(4)
        process.stdout.close()
        assert process.wait(DEADLINE) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize("endless", [True, False])
def test_a_reader_that_has_left_before(image: Callable[[bytes], Path], endless: bool) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = boot(image(YES) if endless else HELLO, "--smp", 4, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk(image: Callable[[bytes], Path]) -> None:
    for guest in (HELLO, image(YES)):
        with open("/dev/full", "wb") as full:
            done = boot(guest, "--smp", 4, stdout=full)
        assert done.returncode == 2
        assert check_one_line(done.stderr) == "pyvcpu: standard output: No space left on device\n"


@pytest.mark.parametrize(
    ("ending", "status"), [("timeout", 124), (signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_a_reader_that_never_reads(image: Callable[[bytes], Path], ending: Any, status: int) -> None:
    """What it leaves unread stops the guest, and does not hold up the end."""
    timeout = 1 if ending == "timeout" else 60
    with running(image(YES), "--smp", 4, "--timeout", timeout) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if ending != "timeout":
            assert select.select([process.stdout], [], [], DEADLINE)[0], "the guest runs"
            process.send_signal(ending)
        assert process.wait(DEADLINE) == status
        assert process.stderr.read() == b""
        assert process.stdout.read().startswith(b"y")


# Standard input.


def test_100_kib_of_input_arrive_whole_and_in_order(image: Callable[[bytes], Path]) -> None:
    """The guest lets the receiver fill: a character costs it less than in tests/guests/echo.S."""
    guest = bytes.fromhex(
        "ba fa 03"  # mov $0x3fa,%dx
        "b0 01"  # mov $1,%al
        "ee"  # out %al,%dx         FIFO on
        "ba fd 03"  # 1: mov $0x3fd,%dx
        "ec"  # in %dx,%al
        "a8 01"  # test $1,%al      data ready?
        "75 07"  # jnz 3f
        "b9 c8 00"  # mov $200,%cx
        "e2 fe"  # 2: loop 2b
        "eb f1"  # jmp 1b
        "ba f8 03"  # 3: mov $0x3f8,%dx
        "ec"  # in %dx,%al
        "3c 04"  # cmp $4,%al
        "74 04"  # je 4f
        "e6 e9"  # out %al,$0xe9
        "eb e5"  # jmp 1b
        "e6 f4"  # 4: out %al,$0xf4
    )
    sent = bytes(byte for byte in range(256) if byte != 4) * 402
    assert len(sent) > 100 << 10
    done = boot(image(guest), input=sent + b"\x04")
    assert (done.returncode, done.stdout == sent, done.stderr) == (9, True, b"")


def test_input_that_nobody_takes_does_no_harm(image: Callable[[bytes], Path]) -> None:
    assert boot(HELLO, input=b"x" * 100_000).returncode == 0
    assert boot(image(SPIN), "--timeout", "0.2", input=b"x" * 100_000).returncode == 124


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(closed: str) -> None:
    """No file of ours may get the number, and with it what is meant for a stream."""

    def run(*arguments: object) -> subprocess.CompletedProcess[bytes]:
        line = ["sh", "-c", f'exec "$@" {closed}', "sh", *command("boot", *arguments)]
        return subprocess.run(line, capture_output=True, env=environment(), timeout=LONG, check=False)

    said, bad = run(HELLO), run("/nonexistent")
    assert (said.returncode, said.stderr) == (0, b"")
    assert said.stdout.decode().splitlines() == ([] if ">&-" in closed.split() else hello(1))
    assert (bad.returncode, bad.stdout) == (2, b"")
    assert bool(bad.stderr) == ("2>&-" not in closed)
    assert run(IMAGES / "exit3.bin").returncode == 7
    assert run(GUESTS / "triplefault.bin", "--mode", "protected").returncode == 6


def test_a_closed_input_is_an_end_of_input() -> None:
    """tests/guests/echo.S: it goes on listening."""
    line = ["sh", "-c", 'exec "$@" <&-', "sh", *command("boot", ECHO, "--timeout", "0.2")]
    done = subprocess.run(line, capture_output=True, env=environment(), timeout=LONG, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (124, b"", b"")


# What it takes.


@pytest.mark.parametrize(
    "arguments", [[HELLO], [HELLO, "--smp", 4], [GUESTS / "indices_long.bin", "--mode", "long", "--smp", 64]]
)
def test_resident_memory_for_a_guest_of_64_mib(arguments: list[object]) -> None:
    """A process starts with its parent's peak: hence one in between that is small itself."""
    measure = """
import os, sys
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    done = through(measure, *command("boot", *arguments, "--memory", "64M"))
    assert done.returncode == 0
    assert int(done.stderr) <= 25 << 10, "KiB"
