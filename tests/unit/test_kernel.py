"""The contract of the door to the kernel, and the ways through it."""

from __future__ import annotations

import ctypes
import errno
import inspect
import subprocess
import sys
from collections.abc import Callable
from mmap import mmap as Mapping
from pathlib import Path

import pytest

from pyvcpu.kvm import Kernel, LinuxKernel
from pyvcpu.kvm.kernel import request_again, request_by
from tests.fake_kernel import FakeKernel

ROOT = Path(__file__).resolve().parents[2]
METHODS = {"open", "ioctl", "errno", "request", "mmap", "mmap_at", "close", "catch"}


def conforms(kernel: Kernel) -> Kernel:
    """For mypy: what is given here has what the contract asks for."""
    return kernel


class Stranger:
    """A kernel that derives from nothing, with plain methods."""

    def open(self, path: str) -> int:
        raise FileNotFoundError(errno.ENOENT, "none")

    def ioctl(self, fd: int, number: int, argument: int) -> int:
        return -1

    def errno(self) -> int:
        return errno.ENOSYS

    def request(self, fd: int, number: int) -> None:
        raise OSError(errno.ENOSYS, "none")

    def mmap(self, fd: int, length: int) -> Mapping:
        raise OSError(errno.ENOSYS, "none")

    def mmap_at(self, fd: int, length: int, offset: int) -> Mapping:
        raise OSError(errno.ENOSYS, "none")

    def close(self, fd: int) -> None:
        pass

    def catch(self, number: int) -> None:
        pass


def test_the_contract_is_written_down() -> None:
    public = {name for name in vars(Kernel) if not name.startswith("_")}
    assert public == METHODS
    assert inspect.getdoc(Kernel)
    assert all(inspect.getdoc(getattr(Kernel, name)) for name in METHODS)


@pytest.mark.parametrize("make", [LinuxKernel, FakeKernel, Stranger])
def test_who_keeps_it(make: Callable[[], Kernel]) -> None:
    kernel = conforms(make())
    assert all(callable(getattr(kernel, name)) for name in METHODS)


def test_typing_is_not_loaded_for_it() -> None:
    code = "import sys; sys.path.insert(0, '.'); import pyvcpu.kvm.kernel; print('typing' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


# The ways to make a KVM_RUN.


class Calls:
    """Functions of the shape of ioctl that give what they were told to, in turn, and note who was called."""

    def __init__(self, **answers: list[int]) -> None:
        self.answers = answers
        self.log: list[str] = []

    def named(self, name: str) -> Callable[[int, int, int], int]:
        def ioctl(fd: int, number: int, argument: int) -> int:
            assert (fd, number, argument) == (7, 0xAE80, 0)
            self.log.append(name)
            return self.answers[name].pop(0)

        return ioctl


def test_each_request_is_made_once() -> None:
    calls = Calls(ioctl=[0, -1])
    request = request_by(calls.named("ioctl"), lambda: errno.EINTR)
    request(7, 0xAE80)
    with pytest.raises(InterruptedError) as error:
        request(7, 0xAE80)
    assert error.value.errno == errno.EINTR
    assert calls.log == ["ioctl", "ioctl"]


@pytest.mark.parametrize(
    ("fast", "careful", "log", "raises"),
    [
        ([0], [], ["fast"], False),
        ([-1], [-1], ["fast", "careful"], True),
        ([-1], [0], ["fast", "careful"], False),  # the reason is gone: the guest ran on
    ],
)
def test_a_request_that_failed_is_made_again_to_learn_why(
    fast: list[int], careful: list[int], log: list[str], raises: bool
) -> None:
    calls = Calls(fast=fast, careful=careful)
    request = request_again(calls.named("fast"), calls.named("careful"), lambda: errno.EFAULT)
    if raises:
        with pytest.raises(OSError, match="ioctl") as error:
            request(7, 0xAE80)
        assert error.value.errno == errno.EFAULT
    else:
        request(7, 0xAE80)
    assert calls.log == log


def test_this_python_s_way_does_not_repeat_what_a_signal_interrupted() -> None:
    """fcntl.ioctl does from 3.14 on; so it is not used there."""
    name = getattr(LinuxKernel().request, "__name__", "")
    assert name == ("request" if sys.version_info >= (3, 14) else "ioctl")


def test_an_fd_that_is_not_open() -> None:
    kernel = LinuxKernel()
    assert kernel.ioctl(-1, 0xAE80, 0) == -1
    assert kernel.errno() == errno.EBADF
    for request in (
        kernel.request,
        request_by(kernel.ioctl, kernel.errno),
        request_again(ctypes.CDLL(None).ioctl, kernel.ioctl, kernel.errno),
    ):
        with pytest.raises(OSError, match=r"Bad file descriptor|ioctl") as error:
            request(1 << 20, 0xAE80)
        assert error.value.errno == errno.EBADF
    with pytest.raises(OSError, match="Bad file descriptor"):
        kernel.close(1 << 20)
