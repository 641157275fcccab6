"""What every test run decides once: is KVM usable, are the tools there, how often do the races run?

| variable | meaning |
|---|---|
| PYVCPU_KVM | the device to open instead of /dev/kvm |
| PYVCPU_ACCEL=tcg | what needs KVM runs on the software one, pyvcpu.tcg (also --accel tcg) |
| PYVCPU_REQUIRE_KVM=1 | a test that needs KVM and has none fails; it is skipped otherwise |
| PYVCPU_REQUIRE_TOOLS=1 | a test that needs a program and has none fails; it is skipped otherwise |
| PYVCPU_REPEAT=N | run each test marked `smp` N times (also --repeat N); 1 when not given |
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest

from tests.not_for_tcg import not_for_tcg

KVM_TESTS = Path(__file__).parent / "kvm"
KVM_GET_API_VERSION = 0xAE00  # as a bare number: this must not depend on the code under test
KVM_API_VERSION = 12
VCPU_THREAD = re.compile(r"CPU \d+/KVM")

# A loaded machine is slow, and that is no failure: pytest-timeout catches what hangs.
hypothesis.settings.register_profile("pyvcpu", deadline=None)
hypothesis.settings.load_profile("pyvcpu")


def accel() -> str:
    """Return which accelerator the tests that need KVM run on: kvm or tcg."""
    return os.environ.get("PYVCPU_ACCEL") or "kvm"


def pytest_configure(config: pytest.Config) -> None:
    """Choose the accelerator, and take signals as a shell leaves them."""
    chosen = config.getoption("accel")
    if chosen:
        os.environ["PYVCPU_ACCEL"] = chosen
    if accel() == "tcg":
        os.environ.pop("PYVCPU_KVM", None)
        use_software()
    take_signals()


def use_software() -> None:
    """Have every Kvm() of this process go to the software KVM."""
    from pyvcpu.kvm import system
    from pyvcpu.tcg.kernel import TcgKernel

    vars(system)["LinuxKernel"] = TcgKernel  # the one place at which the real one is chosen


def take_signals() -> None:
    """Take signals as a shell in a terminal leaves them: jobs in the background and nohup have some ignored.

    What is ignored here would be in every program that a test starts.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def required(what: str) -> bool:
    """Tell whether PYVCPU_REQUIRE_<what> turns a skip into a failure."""
    return os.environ.get(f"PYVCPU_REQUIRE_{what}", "0") not in ("", "0")


def unavailable(what: str, reason: str) -> NoReturn:
    """Skip the test, or fail it when the run requires `what`."""
    if required(what):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@functools.cache
def kvm_problem() -> str | None:
    """Return why KVM cannot be used, None when it can. Asks the kernel once per session."""
    if accel() == "tcg":
        return None
    path = os.environ.get("PYVCPU_KVM", "/dev/kvm")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"{path} cannot be opened: {error.strerror}"
    try:
        version = fcntl.ioctl(fd, KVM_GET_API_VERSION, 0)
    except OSError as error:
        return f"{path} is not KVM: KVM_GET_API_VERSION: {error.strerror}"
    finally:
        os.close(fd)
    return None if version == KVM_API_VERSION else f"{path} speaks KVM API {version}, not {KVM_API_VERSION}"


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """Give a function from a program's name to its path; it skips or fails where there is no such program."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            unavailable("TOOLS", f"{name} is not installed")
        return path

    return find


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a KVM test that leaves a vCPU thread or an open file behind. Set up first, so torn down last."""
    if request.node.get_closest_marker("kvm") is None:
        yield
        return
    files_before, threads_before = open_files(), vcpu_threads()
    yield
    threads = vcpu_threads() - threads_before
    assert not threads, f"vCPU threads still alive: {threads}"
    files = {fd: target for fd, target in open_files().items() if files_before.get(fd) != target}
    assert not files, f"files still open: {files}"


def vcpu_threads() -> set[threading.Thread]:
    """Return the threads that are vCPUs by their name."""
    return {thread for thread in threading.enumerate() if VCPU_THREAD.fullmatch(thread.name)}


def open_files() -> dict[int, str]:
    """Return what each open file descriptor of this process refers to."""
    files = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            files[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that listed the directory
            continue
    return files


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --repeat and --accel."""
    parser.addoption("--accel", choices=("kvm", "tcg"), help="what tests that need KVM run on")
    default = int(os.environ.get("PYVCPU_REPEAT", "1"))
    parser.addoption("--repeat", type=int, default=default, help="run each test marked smp this many times")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Turn one `smp` test into as many as --repeat asks for."""
    times = metafunc.config.getoption("repeat")
    if times > 1 and metafunc.definition.get_closest_marker("smp"):
        metafunc.fixturenames.append("smp_round")
        metafunc.parametrize("smp_round", range(times), ids=lambda i: f"round{i}")


@pytest.hookimpl(tryfirst=True)  # before -m selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in tests/kvm."""
    for item in items:
        if item.path.is_relative_to(KVM_TESTS):
            item.add_marker(pytest.mark.kvm)


@pytest.hookimpl(tryfirst=True)  # before any fixture opens anything
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a test that needs KVM where there is none."""
    if item.get_closest_marker("kvm"):
        if problem := kvm_problem():
            unavailable("KVM", problem)
        if accel() == "tcg" and (reason := not_for_tcg(item.nodeid)):
            pytest.skip(reason)


ran = 0


def pytest_runtest_call() -> None:
    """Count what gets past its setup."""
    global ran
    ran += 1


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run in which everything was skipped, like one in which nothing was collected."""
    if exitstatus == pytest.ExitCode.OK and not ran and not session.config.option.collectonly:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def pytest_report_header() -> str:
    """Say which KVM the run has."""
    if accel() == "tcg":
        return "KVM: pyvcpu.tcg, in software"
    return f"KVM: {kvm_problem() or os.environ.get('PYVCPU_KVM', '/dev/kvm')}"
