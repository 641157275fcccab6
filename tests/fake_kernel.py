"""Kernels for tests: the real one under watch, and one that is not there at all.

`WatchedKernel` passes every request on to the real kernel, counts it, and on demand refuses it or holds it up.
`FakeKernel` does the same for a KVM in Python, whose guests are generators: what the real one does seldom or never.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import struct
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

from pyvcpu import Machine
from pyvcpu.kvm import Kvm, LinuxKernel
from pyvcpu.kvm import abi as every
from pyvcpu.kvm.abi import basic as abi
from pyvcpu.kvm.abi.base import Ioctl
from pyvcpu.kvm.kernel import request_by

REQUESTS = {value.number: value for name in dir(every) if isinstance(value := getattr(every, name), Ioctl)}
PAGE = 4096
RUN_SIZE = 3 * PAGE  # kvm_run, the data of port I/O, the coalesced ring
DATA_OFFSET = PAGE
IMMEDIATE_EXIT, EXIT_REASON, UNION = 1, 8, 32  # offsets in struct kvm_run (linux/kvm.h)
ENTRY = ctypes.sizeof(abi.kvm_cpuid_entry2)

# A guest of the fake: called with its page at the first KVM_RUN. Each `yield` is an exit, which it has written into
# the page; the next KVM_RUN goes on behind the `yield`. At its end it spins until it is kicked.
Guest = Callable[["FakeVcpu"], Generator[None, None, None]]


def name_of(number: int) -> str:
    """Return the kernel's name of an ioctl number."""
    return REQUESTS[number].name if number in REQUESTS else hex(number)


class WatchedKernel(LinuxKernel):
    """The real kernel, with a log, refusals and hold-ups. `_lock` guards the log; hooks run without it."""

    def __init__(self) -> None:
        super().__init__()
        self._real_ioctl = self.ioctl
        self.ioctl = self._ioctl
        self.errno = self._errno
        self.request = request_by(self.ioctl, self.errno)
        self._errors = threading.local()
        self._lock = threading.Lock()
        self._refused: dict[tuple[str, int | None, int], int] = {}
        self._hooks: dict[str, Callable[[int], object]] = {}
        self._counts: Counter[tuple[str, int | None]] = Counter()  # by request, and whose: a vCPU's or anyone's
        self._ids: dict[int, int] = {}  # vCPU ids by fd
        self.log: list[str] = []  # every request but KVM_RUN and KVM_CHECK_EXTENSION, and open, mmap, close

    def refuse(self, request: str, code: int, nth: int = 1, vcpu: int | None = None) -> None:
        """Answer the `nth` call of `request` from now on with errno `code`; `request` may also be "mmap".

        With `vcpu`, only calls for the vCPU of that id count.
        """
        with self._lock:
            self._refused[request, vcpu, self._counts[request, vcpu] + nth] = code

    def before(self, request: str, hook: Callable[[int], object]) -> None:
        """Call `hook(argument)` before each `request`, in the thread that makes it."""
        self._hooks[request] = hook

    def count(self, request: str) -> int:
        """Return how often `request` was made."""
        with self._lock:
            return self._counts[request, None]

    def forget(self) -> None:
        """Empty the log."""
        with self._lock:
            self.log.clear()

    def _note(self, request: str, vcpu: int | None = None, argument: int = 0) -> int:
        """Write `request` down, and return the errno with which to refuse it, else 0."""
        refusal = 0
        with self._lock:
            for whose in {None, vcpu}:
                self._counts[request, whose] += 1
                refusal |= self._refused.get((request, whose, self._counts[request, whose]), 0)
            if request not in ("KVM_RUN", "KVM_CHECK_EXTENSION"):
                self.log.append(request)
            hook = self._hooks.get(request)
        if hook is not None:
            hook(argument)
        return refusal

    def _ioctl(self, fd: int, number: int, argument: int) -> int:
        request = name_of(number)
        creates = request == "KVM_CREATE_VCPU"
        refusal = self._note(request, argument if creates else self._ids.get(fd), argument)
        result = -refusal if refusal else self.answer(fd, number, argument)
        if creates and result >= 0:
            with self._lock:
                self._ids[result] = argument
        self._errors.code = max(-result, 0)
        return max(result, -1)

    def _errno(self) -> int:
        return int(self._errors.code)

    def answer(self, fd: int, number: int, argument: int) -> int:
        """Return the request's result, or a negative errno."""
        result = self._real_ioctl(fd, number, argument)
        return result if result >= 0 else -ctypes.get_errno()

    def open(self, path: str) -> int:
        self._note("open")
        return super().open(path)

    def mmap(self, fd: int, length: int) -> mmap.mmap:
        refusal = self._note("mmap", self._ids.get(fd))
        if refusal:
            raise OSError(refusal, os.strerror(refusal))
        return super().mmap(fd, length)

    def close(self, fd: int) -> None:
        self._note("close")
        super().close(fd)


class FakeVcpu:
    """A vCPU of the fake: its page, the registers that were set, and its guest."""

    def __init__(self, vcpu_id: int, fd: int) -> None:
        self.id = vcpu_id
        self.page = mmap.mmap(fd, RUN_SIZE)
        self.state: dict[str, bytes] = {}
        self.guest: Generator[None, None, None] | None = None

    def exit(self, reason: int, union: bytes = b"") -> None:
        """Write an exit: its reason, and the bytes of the union that belongs to it."""
        self.page[EXIT_REASON : EXIT_REASON + 4] = struct.pack("<I", reason)
        self.page[UNION : UNION + len(union)] = union

    def port_io(self, out: bool, port: int, size: int, count: int = 1, data: bytes = b"") -> None:
        """Write a KVM_EXIT_IO, with what an OUT sends."""
        self.page[DATA_OFFSET : DATA_OFFSET + len(data)] = data
        self.exit(abi.KVM_EXIT_IO, struct.pack("<BBHIQ", out, size, port, count, DATA_OFFSET))

    def port_data(self, length: int) -> bytes:
        """Return what an IN got."""
        return self.page[DATA_OFFSET : DATA_OFFSET + length]

    def mmio(self, write: bool, address: int, length: int, data: bytes = b"") -> None:
        """Write a KVM_EXIT_MMIO."""
        self.exit(abi.KVM_EXIT_MMIO, struct.pack("<Q8sIB", address, data, length, write))

    def mmio_data(self, length: int) -> bytes:
        """Return what a read got."""
        return self.page[UNION + 8 : UNION + 8 + length]


def halts(vcpu: FakeVcpu) -> Generator[None, None, None]:
    """Be a guest that halts, also when it is run on."""
    while True:
        vcpu.exit(abi.KVM_EXIT_HLT)
        yield


def spins(vcpu: FakeVcpu) -> Generator[None, None, None]:
    """Be a guest that only a kick gets out of KVM_RUN."""
    yield from ()


class FakeKernel(WatchedKernel):
    """A KVM in Python. `guest` is what every vCPU runs. Its fds are real ones, of memory files."""

    def __init__(self, guest: Guest = halts) -> None:
        super().__init__()
        self.guest = guest
        self.api_version = abi.KVM_API_VERSION
        self.caps = {
            abi.KVM_CAP_USER_MEMORY: 1,
            abi.KVM_CAP_EXT_CPUID: 1,
            abi.KVM_CAP_IMMEDIATE_EXIT: 1,
            abi.KVM_CAP_SYNC_REGS: 7,
            abi.KVM_CAP_NR_VCPUS: 4,
            abi.KVM_CAP_MAX_VCPUS: 16,
            abi.KVM_CAP_MAX_VCPU_ID: 16,
        }
        self.cpuid = [abi.kvm_cpuid_entry2(function=0, eax=1), abi.kvm_cpuid_entry2(function=1)]
        self.by_id: dict[int, FakeVcpu] = {}
        self._used: set[tuple[int, int]] = set()  # fds of VMs and the ids of their vCPUs
        self.slots: list[abi.kvm_userspace_memory_region] = []
        self._by_fd: dict[int, FakeVcpu] = {}
        self._kicks: set[int] = set()

    def open(self, path: str) -> int:
        self._note("open")
        return os.memfd_create(path, os.MFD_CLOEXEC)

    def answer(self, fd: int, number: int, argument: int) -> int:
        """Return the request's result, or a negative errno."""
        request = REQUESTS[number]
        special = SPECIAL.get(request.name)
        if special is not None:
            return special(self, fd, argument)
        vcpu = self._by_fd.get(fd)
        if vcpu is not None and request.argument is not None:
            self._get_or_set(vcpu, request, argument)
        return 0

    def _get_or_set(self, vcpu: FakeVcpu, request: Ioctl, address: int) -> None:
        """Keep what KVM_SET_x gives, for KVM_GET_x."""
        assert request.argument is not None
        size = ctypes.sizeof(request.argument)
        what = request.name.replace("_SET_", "_GET_")
        if what == request.name:
            ctypes.memmove(address, vcpu.state.get(what, bytes(size)), size)
        else:
            vcpu.state[what] = ctypes.string_at(address, size)

    def _api_version(self, fd: int, argument: int) -> int:
        return self.api_version

    def _create_vm(self, fd: int, argument: int) -> int:
        new = os.memfd_create("vm", os.MFD_CLOEXEC)
        with self._lock:
            self._used = {(vm, vcpu_id) for vm, vcpu_id in self._used if vm != new}
        return new

    def _check_extension(self, fd: int, argument: int) -> int:
        return self.caps.get(argument, 0)

    def _mmap_size(self, fd: int, argument: int) -> int:
        return RUN_SIZE

    def _create_vcpu(self, fd: int, vcpu_id: int) -> int:
        with self._lock:
            if (fd, vcpu_id) in self._used:  # also when its fd was closed
                return -errno.EEXIST
            self._used.add((fd, vcpu_id))
        new = os.memfd_create(f"vcpu {vcpu_id}", os.MFD_CLOEXEC)
        os.ftruncate(new, RUN_SIZE)
        with self._lock:
            self._by_fd[new] = FakeVcpu(vcpu_id, new)
            self.by_id.setdefault(vcpu_id, self._by_fd[new])
        return new

    def _supported_cpuid(self, fd: int, address: int) -> int:
        head = abi.kvm_cpuid2.from_address(address)
        room, head.nent = head.nent, len(self.cpuid)
        if room < len(self.cpuid):
            return -errno.E2BIG
        for i, entry in enumerate(self.cpuid):
            ctypes.memmove(address + ctypes.sizeof(head) + i * ENTRY, bytes(entry), ENTRY)
        return 0

    def _set_slot(self, fd: int, address: int) -> int:
        kind = abi.kvm_userspace_memory_region
        self.slots.append(kind.from_buffer_copy(ctypes.string_at(address, ctypes.sizeof(kind))))
        return 0

    def _translate(self, fd: int, address: int) -> int:
        """Say that every address is its own."""
        translation = abi.kvm_translation.from_address(address)
        translation.physical_address, translation.valid = translation.linear_address, 1
        return 0

    def catch(self, number: int) -> None:
        """Keep the number of the kick; it comes through in _run() alone, where it can be waited for."""
        super().catch(number)
        self._kicks.add(number)

    def _run(self, fd: int, argument: int) -> int:
        """Run the guest to its next exit; a kick or immediate_exit comes first, as in Linux."""
        vcpu = self._by_fd[fd]
        signal.pthread_sigmask(signal.SIG_BLOCK, self._kicks)
        if vcpu.page[IMMEDIATE_EXIT] or signal.sigtimedwait(self._kicks, 0):
            return -errno.EINTR
        if vcpu.guest is None:
            vcpu.guest = self.guest(vcpu)
        try:
            next(vcpu.guest)
        except StopIteration:
            signal.sigwait(self._kicks)
            return -errno.EINTR
        return 0


SPECIAL: dict[str, Callable[[FakeKernel, int, int], int]] = {
    "KVM_GET_API_VERSION": FakeKernel._api_version,
    "KVM_CREATE_VM": FakeKernel._create_vm,
    "KVM_CHECK_EXTENSION": FakeKernel._check_extension,
    "KVM_GET_VCPU_MMAP_SIZE": FakeKernel._mmap_size,
    "KVM_GET_SUPPORTED_CPUID": FakeKernel._supported_cpuid,
    "KVM_CREATE_VCPU": FakeKernel._create_vcpu,
    "KVM_SET_USER_MEMORY_REGION": FakeKernel._set_slot,
    "KVM_TRANSLATE": FakeKernel._translate,
    "KVM_RUN": FakeKernel._run,
}


@contextmanager
def machine_on(kernel: FakeKernel, smp: int = 1) -> Iterator[Machine]:
    """Make a machine on the fake. What is loaded does not matter: the guest is the kernel's."""
    with Kvm("fake", kernel) as kvm, Machine("1M", smp, kvm=kvm, output=lambda data: None) as machine:
        machine.load(b"\xf4")
        yield machine
