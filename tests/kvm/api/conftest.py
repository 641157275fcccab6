"""Fixtures of the tests of the KVM API, and the record of which request was tried on which kind of host.

With PYVCPU_RECORD=pvm (or amd, intel), a run writes into tests/kvm/api/hosts.json what KVM answered to each request:
"works" when it succeeded at least once, else the error it gave. docs/kvm-api.md is made from that.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvcpu.kvm import Kvm, KvmError, VcpuFd, VmFd, abi
from pyvcpu.kvm.abi.base import Ioctl
from pyvcpu.kvm.fd import Fd

DEVICE = os.environ.get("PYVCPU_KVM", "/dev/kvm")
HOSTS = Path(__file__).with_name("hosts.json")
PAGE = 4096
MEMORY = 64 * PAGE
CODE = 0x1000

answers: dict[str, str] = {}


def note(fd: Fd, request: str, answer: str) -> None:
    """Remember the best answer to `request` on this kind of fd."""
    key = f"{type(fd).__name__} {request}"
    if answers.get(key) != "works":
        answers[key] = answer


@pytest.fixture(autouse=True)
def record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch the requests of a test."""

    def watch(method: Callable[..., Any]) -> Callable[..., Any]:
        def watched(self: Fd, *arguments: Any, **named: Any) -> Any:
            request = next(argument for argument in arguments if isinstance(argument, Ioctl))
            try:
                result = method(self, *arguments, **named)
            except KvmError as error:
                note(self, request.name, errno.errorcode.get(error.errno or 0, "error"))
                raise
            note(self, request.name, "works")
            return result

        return watched

    run = VcpuFd.run

    def watched_run(self: VcpuFd) -> int:
        note(self, "KVM_RUN", "works")
        return run(self)

    monkeypatch.setattr(Fd, "ioctl", watch(Fd.ioctl))
    monkeypatch.setattr(Fd, "create", watch(Fd.create))
    monkeypatch.setattr(VcpuFd, "run", watched_run)


def pytest_sessionfinish() -> None:
    """Write the record, if the run is to."""
    host = os.environ.get("PYVCPU_RECORD")
    if host and answers:
        table = json.loads(HOSTS.read_text(encoding="utf-8")) if HOSTS.exists() else {}
        table[host] = {**table.get(host, {}), **answers}
        table[host] = {key: table[host][key] for key in sorted(table[host])}
        HOSTS.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    with Kvm(DEVICE) as kvm:
        yield kvm


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[VmFd]:
    with kvm.create_vm() as vm:
        vm.set_identity_map_addr(0xFEFFC000)  # Intel's KVM needs them for real mode
        vm.set_tss_addr(0xFEFFD000)
        yield vm


@pytest.fixture
def irq_vm(vm: VmFd) -> VmFd:
    """A VM with its interrupt controllers in the kernel."""
    vm.create_irqchip()
    return vm


@pytest.fixture
def vcpu(vm: VmFd) -> Iterator[VcpuFd]:
    with vm.create_vcpu(0) as vcpu:
        yield vcpu


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    mapping = mmap.mmap(-1, MEMORY)
    yield mapping
    mapping.close()


def address_of(memory: mmap.mmap) -> int:
    """Return where `memory` is, without pinning it."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Guest:
    """A vCPU in real mode with its memory and its kvm_run, for tests that run code of a few bytes at 0x1000."""

    def __init__(self, kvm: Kvm, vm: VmFd, memory: mmap.mmap, flags: int = 0) -> None:
        self.vm = vm
        self.memory = memory
        vm.set_user_memory_region(0, 0, MEMORY, address_of(memory), flags)
        self.vcpu = vm.create_vcpu(0)
        self.page = self.vcpu.map_run(kvm.get_vcpu_mmap_size())
        self.vcpu.set_cpuid2(kvm.get_supported_cpuid())
        sregs = self.vcpu.get_sregs()
        for segment in (sregs.cs, sregs.ds, sregs.es, sregs.ss):
            segment.base = segment.selector = 0
        self.vcpu.set_sregs(sregs)

    def start(self, code: bytes, **registers: int) -> None:
        """Put `code` at 0x1000 and the vCPU before it, with interrupts off."""
        self.memory[CODE : CODE + len(code)] = code
        regs = abi.kvm_regs(rip=CODE, rflags=2, rsp=0x8000)
        for name, value in registers.items():
            setattr(regs, name, value)
        self.vcpu.set_regs(regs)

    def run(self) -> Any:
        """Run to the next exit; return its kvm_run."""
        while True:
            code = self.vcpu.run()
            if code == 0:
                return abi.kvm_run.from_buffer_copy(self.page[: ctypes.sizeof(abi.kvm_run)])
            assert code == errno.EAGAIN, errno.errorcode[code]

    def close(self) -> None:
        self.page.close()
        self.vcpu.close()


@pytest.fixture
def guest(kvm: Kvm, vm: VmFd, memory: mmap.mmap) -> Iterator[Guest]:
    made = Guest(kvm, vm, memory)
    yield made
    made.close()


@pytest.fixture
def logged_guest(kvm: Kvm, vm: VmFd, memory: mmap.mmap) -> Iterator[Guest]:
    """A guest whose written pages are logged."""
    made = Guest(kvm, vm, memory, abi.KVM_MEM_LOG_DIRTY_PAGES)
    yield made
    made.close()


def lacks(fd: Kvm | VmFd, cap: abi.Cap, request: Callable[[], object]) -> bool:
    """Tell whether this host's KVM lacks `cap`; if so, `request` must fail and name it."""
    if fd.check_extension(cap):
        return False
    with pytest.raises(KvmError, match=f"KVM_CAP_{cap.name}"):
        request()
    return True


def attempt(request: Callable[[], object]) -> KvmError | None:
    """Make a request of which the host decides whether it works; return the error, if any."""
    try:
        request()
    except KvmError as error:
        return error
    return None


@pytest.fixture
def has(kvm: Kvm, vm: VmFd) -> Callable[[abi.Cap], int]:
    """Give a function that tells what this host's KVM says about a capability, for a VM."""
    return lambda cap: vm.check_extension(cap)


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def signals(fd: int) -> int:
    """Return how often an eventfd was signalled since last asked."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
