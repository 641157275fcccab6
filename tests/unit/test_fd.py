"""Who owns a file descriptor: it is closed once, whatever interrupts, and a dropped object says so."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pyvcpu.kvm import Kvm, KvmError, Registration, VcpuFd, VmFd
from pyvcpu.kvm.abi import basic as abi
from pyvcpu.kvm.abi.base import IO
from pyvcpu.kvm.abi.device import kvm_create_device
from pyvcpu.kvm.abi.ioevent import KVM_UNREGISTER_COALESCED_MMIO, kvm_coalesced_mmio_zone
from pyvcpu.kvm.fd import Fd
from tests.fake_kernel import FakeKernel

ROOT = Path(__file__).resolve().parents[2]
NUMBER = 200  # of a file descriptor that nobody else has


class CKernel:
    """A kernel whose functions are C's, as LinuxKernel's are: close() notes the number, ioctl() dups a file."""

    def __init__(self) -> None:
        self.closed: list[int] = []
        self.close: Callable[[int], object] = self.closed.append
        self.ioctl: Callable[[int, int, Any], int] = os.dup2  # "request" NUMBER on fd: a copy of fd, numbered NUMBER
        self.errno: Callable[[], int] = int


class Interrupts:
    """Raise KeyboardInterrupt before the bytecode of this package with the number `at`, counted from the start."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __enter__(self) -> Interrupts:
        sys._getframe().f_trace_opcodes = True  # Python 3.12.1 gives no such events unless some frame wants them before
        sys.settrace(self.trace)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(None)

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if "/pyvcpu/" not in frame.f_code.co_filename or frame.f_code.co_name == "__del__":
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.trace


def interrupted_everywhere(make: Callable[[], Any], act: Callable[[Any], object]) -> Iterator[tuple[Any, bool]]:
    """Do `act(make())` again and again, interrupted one bytecode later each time; yield what was made, and whether."""
    for at in range(10_000):
        made, interrupted = make(), False
        try:
            with Interrupts(at):
                act(made)
        except KeyboardInterrupt:
            interrupted = True  # and the exception is gone, with what its traceback holds
        yield made, interrupted
        if not interrupted:
            assert at > 5, "there was something to interrupt"
            return


def fd_of(kernel: Any, number: int = NUMBER, kind: type[Fd] = Fd) -> Fd:
    return kind(kernel, number, "a test")


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_closed_once_whatever_interrupts() -> None:
    kernel = CKernel()
    count = 0
    for fd, _ in interrupted_everywhere(lambda: fd_of(kernel), Fd.close):
        assert kernel.closed in ([], [NUMBER])
        fd.close()
        fd.close()
        assert kernel.closed == [NUMBER]
        assert fd.fileno() == -1
        kernel.closed.clear()
        count += 1
    assert count > 5


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_new_fd_has_an_owner_whatever_interrupts() -> None:
    """KVM_CREATE_VM is interrupted before it is made, or its fd is closed with the object that nobody got."""
    request = IO("KVM_CREATE_VM", 1)
    request.number = NUMBER
    with open(os.devnull, "rb") as file:

        class Kernel(CKernel):
            def __init__(self) -> None:
                super().__init__()
                self.close = os.close

        system = Fd(Kernel(), -1)  # type: ignore[arg-type]  # no more than it needs
        system.fd = file.fileno()
        made: list[Fd] = []
        opened = 0
        for _, interrupted in interrupted_everywhere(
            lambda: system, lambda system: made.append(system.create(Fd, request))
        ):
            if interrupted:
                assert not is_open(NUMBER), "nobody owns it"
            else:
                opened = made[0].fd
        assert opened == NUMBER
        made[0].close()
        assert not is_open(NUMBER)
        system.fd = -1


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_new_device_has_an_owner(interrupted: bool) -> None:
    """Its fd comes in the structure of the request, not as the answer: a Ctrl-C can come right behind the request."""
    file = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    kernel = CKernel()
    kernel.close = os.close

    def ioctl(fd: int, number: int, argument: int) -> int:
        device = kvm_create_device.from_address(argument)
        if not device.flags:
            device.fd = os.dup2(file, NUMBER)
        if interrupted:
            raise KeyboardInterrupt
        return 0

    kernel.ioctl = ioctl
    vm = VmFd(kernel, -1)  # type: ignore[arg-type]  # no more than it needs
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            vm.create_device(4)
        gc.collect()
    else:
        made = vm.create_device(4)
        assert made is not None
        assert made.fd == NUMBER
        made.close()
        assert vm.create_device(4, test=True) is None
    assert not is_open(NUMBER)
    os.close(file)


def test_many_threads_close_once() -> None:
    kernel = CKernel()
    for _ in range(200):
        fd = fd_of(kernel)
        barrier = threading.Barrier(4)

        def close(fd: Fd = fd, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            fd.close()

        threads = [threading.Thread(target=close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert kernel.closed == [NUMBER] * 200


def test_a_refused_request_owns_nothing() -> None:
    kernel = FakeKernel()
    with Kvm("fake", kernel) as kvm:
        kernel.refuse("KVM_CREATE_VM", errno.ENOSPC)
        with pytest.raises(KvmError) as error:
            kvm.create_vm()
        assert (error.value.ioctl, error.value.errno) == ("KVM_CREATE_VM", errno.ENOSPC)
        kernel.forget()
        del error
        gc.collect()
        assert kernel.log == []


# What was dropped.


@pytest.mark.parametrize("kind", [VmFd, VcpuFd], ids=["VM", "vCPU"])
def test_a_dropped_object_says_so_and_closes(kind: type[Fd]) -> None:
    kernel = CKernel()
    fd = fd_of(kernel, kind=kind)
    with pytest.warns(ResourceWarning, match=rf"^<{kind.__name__} fd=200 a test> was dropped without close\(\)$"):
        del fd
    assert kernel.closed == [NUMBER]


def test_a_kvm_that_is_dropped_says_so() -> None:
    kernel = FakeKernel()
    kvm = Kvm("fake", kernel)
    number = kvm.fd
    with pytest.warns(ResourceWarning, match="<Kvm fd="):
        del kvm
    assert kernel.log[-1] == "close"
    assert not is_open(number)


def test_what_was_closed_is_dropped_in_silence() -> None:
    kernel = CKernel()
    fd = fd_of(kernel)
    fd.close()
    del fd
    assert kernel.closed == [NUMBER]


def test_warnings_that_are_errors_do_not_keep_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = CKernel()
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    fd = fd_of(kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del fd
    assert kernel.closed == [NUMBER]
    assert [type(unraisable.exc_value) for unraisable in told] == [ResourceWarning]


def test_an_object_that_was_never_made_is_dropped_in_silence() -> None:
    for kind in (Fd, VmFd, VcpuFd, Kvm):
        kind.__new__(kind)
    with pytest.raises(TypeError):
        Kvm("fake", FakeKernel(), 3)  # type: ignore[call-arg]  # that is the point
    with pytest.raises(KvmError):
        Kvm("/nonexistent/kvm")
    gc.collect()


def test_the_end_of_the_interpreter(tmp_path: Path) -> None:
    """Objects that are still there then: one line each with -W, nothing without; and never a traceback."""
    script = tmp_path / "end.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.fake_kernel import FakeKernel\n"
        "from pyvcpu.kvm import Kvm\n"
        "kvm = Kvm('fake', FakeKernel())\n"
        "vm = kvm.create_vm()\n"
        "kept = [vm.create_vcpu(0)]\n"
        "kept.append(kept)\n",
        encoding="utf-8",
    )
    quiet, loud = (
        subprocess.run([sys.executable, *options, str(script), str(ROOT)], capture_output=True, text=True)
        for options in ([], ["-Wdefault::ResourceWarning"])
    )
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert loud.returncode == 0
    assert "Traceback" not in loud.stderr
    assert loud.stderr.count("was dropped without close()") == 3


# After a fork.


def in_child(act: Callable[[], object]) -> int:
    """Do `act` in a forked child; return its exit status, 1 when it raised."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_closes_its_copies_only() -> None:
    kernel = FakeKernel()
    with Kvm("fake", kernel) as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        numbers = [fd.fd for fd in (vcpu, vm, kvm)]

        def close_all() -> None:
            for fd in (vcpu, vm, kvm):
                fd.close()
            assert not any(is_open(number) for number in numbers)

        assert in_child(close_all) == 0
        assert [fd.fd for fd in (vcpu, vm, kvm)] == numbers
        assert all(is_open(number) for number in numbers)
        assert vm.check_extension(abi.KVM_CAP_SYNC_REGS) == 7


def test_a_lock_that_a_thread_of_the_parent_holds_is_none_of_the_child_s() -> None:
    kernel = FakeKernel()
    with Kvm("fake", kernel) as kvm, kvm.create_vm() as vm:
        with vm.slots_lock:
            assert in_child(vm.close) == 0
        assert is_open(vm.fd)


# What is registered.


def zone(vm: VmFd) -> Registration:
    return Registration("a zone", vm, KVM_UNREGISTER_COALESCED_MMIO, kvm_coalesced_mmio_zone(addr=0x1000, size=8))


def test_a_registration_is_taken_back_once() -> None:
    kernel = FakeKernel()
    with Kvm("fake", kernel) as kvm, kvm.create_vm() as vm:
        with zone(vm) as made:
            assert repr(made) == "<a zone>"
            assert in_child(made.close) == 0
        made.close()
        assert repr(made) == "<a zone, taken back>"
        assert kernel.count("KVM_UNREGISTER_COALESCED_MMIO") == 1


def test_a_registration_of_a_child_is_left_alone() -> None:
    kernel = FakeKernel()
    with Kvm("fake", kernel) as kvm, kvm.create_vm() as vm, zone(vm) as made:
        kernel.refuse("KVM_UNREGISTER_COALESCED_MMIO", errno.EIO)  # what Linux would answer
        assert in_child(made.close) == 0
        with pytest.raises(KvmError, match="KVM_UNREGISTER_COALESCED_MMIO"):
            made.close()


def test_a_registration_is_taken_back_once_whatever_interrupts() -> None:
    kernel = CKernel()
    asked: list[int] = []

    def ioctl(fd: int, number: int, argument: int) -> int:
        asked.append(number)
        return 0

    with_vm = fd_of(kernel)
    kernel.ioctl = ioctl
    for made, _ in interrupted_everywhere(lambda: zone(with_vm), Registration.close):  # type: ignore[arg-type]
        made.close()
        assert asked == [KVM_UNREGISTER_COALESCED_MMIO.number]
        asked.clear()
    with_vm.close()
