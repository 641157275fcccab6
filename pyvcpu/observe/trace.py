"""Trace: notes each step in the life of the vCPUs, each exit and each ioctl, for a timeline and for an explanation."""

from __future__ import annotations

import threading
from time import perf_counter_ns

from ..kvm.abi.layout import EXIT_REASON, REASON_KEY_BYTE_RING
from ..kvm.kernel import Kernel, LinuxKernel
from ..vcpu import current_cpu
from .stats import BY_ADDRESS, IO_EXIT, OTHERS, Kind, Stats, name_of
from .timeline import DATA, EXIT_RECORD, MMIO_TAIL, RUN, Event, told_of

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from mmap import mmap as Mapping
    from typing import TypeVar

    from ..vcpu import Vcpu
    from ..vcpu.context import Find, Run, Serve
    from .explain import Explain
    from .timeline import Timeline

    T = TypeVar("T")

THREAD_START, WAIT_CREATED = "thread start", "wait for created"
# Commands of the state machine that have another name there.
MOMENTS = {
    "created": "created signalled",
    "gone": "destroyed signalled",
    "failed": "init_vcpu failed",
}


class Trace(Stats):
    """Notes every step: `explain` hears of it when it begins, `timeline` keeps it when it is over. Either may be None.

    On the thread that takes the step, perhaps with the machine's lock held. Exits are counted as by Stats. `kernel` is
    a door to the kernel that notes each ioctl, save the KVM_RUN of cpu_exec: open the Kvm with it.
    """

    def __init__(self, timeline: Timeline | None = None, explain: Explain | None = None) -> None:
        super().__init__()
        self._timeline = timeline
        self._explain = explain
        self._thread_starts: dict[int, int] = {}

    @property
    def kernel(self) -> Kernel:
        """A new one, through which one gets at the real kernel."""
        return self.see(LinuxKernel())

    def see(self, kernel: Kernel) -> Kernel:
        """Return one that notes each ioctl on its way to `kernel`."""
        return TracedKernel(kernel, self._happened)

    def _happened(self, event: Event) -> None:
        if self._explain is not None:
            self._explain.tell(event)
        self._keep(event)

    def _keep(self, event: Event) -> None:
        if self._timeline is not None:
            self._timeline.keep(event)

    def step(self, index: int, name: str, function: Callable[[], T]) -> T:
        """Take the step, and note it."""
        about = f"vCPU {index}"
        start, track = perf_counter_ns(), _track()
        if self._explain is not None:
            self._explain.tell(Event(track, name, start, None, about))
        if name == THREAD_START:
            self._thread_starts[index] = start
            return function()  # it is over when the thread takes its first step
        if name == "init_vcpu":
            begun = self._thread_starts.pop(index, start)
            self._keep(Event(index, THREAD_START, begun, start - begun))
        try:
            return function()
        finally:
            # A vCPU without a thread does nothing else meanwhile: the step is in its life, whoever takes it.
            whose, told = (track, about) if name == WAIT_CREATED else (index, "")
            self._keep(Event(whose, name, start, perf_counter_ns() - start, told))

    def moment(self, index: int, command: str, before: str, after: str) -> None:
        """Note a change of state."""
        name = MOMENTS.get(str(command), str(command))
        self._happened(Event(index, name, perf_counter_ns(), None, f"{before} -> {after}"))

    def kick(self, index: int, how: str) -> None:
        """Note a kick."""
        self._happened(Event(index, "kick", perf_counter_ns(), None, how))

    def loop(self, vcpu: Vcpu, run: Run, find: Find, serve: Serve) -> tuple[Run, Find, Serve]:
        """Note each KVM_RUN and each exit, and count them."""
        seen = TracedLoop(self, vcpu, run, find, serve, self._timeline, self._explain)
        return seen.run, seen.find, seen.serve


class TracedLoop:
    """What one vCPU's run loop calls in place of KVM_RUN and of what serves exits. For its thread."""

    def __init__(
        self,
        trace: Trace,
        vcpu: Vcpu,
        run: Run,
        find: Find,
        serve: Serve,
        timeline: Timeline | None,
        explain: Explain | None,
    ) -> None:
        self._vcpu, self._run, self._find, self._serve = vcpu, run, find, serve
        self._kinds = trace.kinds[vcpu.index]
        self._keep = timeline.keep if timeline is not None else _nothing
        self._explain = explain
        self._start = self._end = 0

    def run(self, fd: int, number: int) -> None:
        """Make a KVM_RUN, and note when it began and ended."""
        if self._explain is not None and not self._start:
            self._explain.tell(Event(self._vcpu.index, RUN, perf_counter_ns()))
        self._start = start = perf_counter_ns()
        try:
            self._run(fd, number)
        except OSError:
            self._keep(Event(self._vcpu.index, RUN, start, perf_counter_ns() - start, "interrupted"))
            raise
        self._end = perf_counter_ns()
        reason, key, *_ = REASON_KEY_BYTE_RING.unpack_from(self._page(), EXIT_REASON)
        kind = self._kinds.get(reason) or self._kinds.setdefault(reason, Kind())
        counted = key if reason in BY_ADDRESS else 0
        if self._explain is not None and counted not in kind.keys and OTHERS not in kind.keys:
            told = told_of(reason, key, self._page()[DATA if reason == IO_EXIT else MMIO_TAIL], before=True)
            self._explain.exit(Event(self._vcpu.index, name_of(reason), self._end, None, told))

    def find(self, key: int) -> Callable[[Vcpu, bytes], object] | None:
        """Return the short way to serve a port access, with a note around it."""
        access = self._find(key)
        if access is None:
            return None

        def noted(vcpu: Vcpu, byte: bytes) -> None:
            try:
                access(vcpu, byte)
            finally:
                self._note(IO_EXIT, key)

        return noted

    def serve(self, reason: int, key: int) -> str | None:
        """Serve an exit, and note it."""
        try:
            return self._serve(reason, key)
        finally:
            self._note(reason, key)

    def _page(self) -> bytes:
        return self._vcpu._page  # type: ignore[return-value]  # an mmap, which is there while the vCPU runs

    def _note(self, reason: int, key: int) -> None:
        done = perf_counter_ns()
        data = self._page()[DATA if reason == IO_EXIT else MMIO_TAIL]
        self._keep(EXIT_RECORD.pack(self._vcpu.index, reason, self._start, self._end, done, key, data))
        kind = self._kinds.get(reason) or self._kinds.setdefault(reason, Kind())
        kind.add(key if reason in BY_ADDRESS else 0, done - self._end)


class TracedKernel(Kernel):
    """Another door to the kernel, with a note of each ioctl; KVM_RUN goes by `request`, and without one."""

    __slots__ = ("_inner", "errno", "ioctl", "request")

    ioctl: Callable[[int, int, int], int]
    errno: Callable[[], int]
    request: Callable[[int, int], object]

    def __init__(self, inner: Kernel, happened: Callable[[Event], object]) -> None:
        self._inner = inner
        self.errno, self.request = inner.errno, inner.request
        ioctl, names = inner.ioctl, ioctl_names()

        def noted(fd: int, number: int, argument: int) -> int:
            start = perf_counter_ns()
            result = ioctl(fd, number, argument)  # nothing after it may touch errno
            took = perf_counter_ns() - start
            happened(Event(_track(), names.get(number, hex(number)), start, took, "" if result >= 0 else "refused"))
            return result

        self.ioctl = noted

    def open(self, path: str) -> int:
        """Open a device file."""
        return self._inner.open(path)

    def mmap(self, fd: int, length: int) -> Mapping:
        """Map `fd`."""
        return self._inner.mmap(fd, length)

    def mmap_at(self, fd: int, length: int, offset: int) -> Mapping:
        """Map `fd` from `offset` on."""
        return self._inner.mmap_at(fd, length, offset)

    def close(self, fd: int) -> None:
        """Close `fd`."""
        self._inner.close(fd)

    def catch(self, number: int) -> None:
        """Let a signal interrupt KVM_RUN."""
        self._inner.catch(number)


def _nothing(event: object) -> None:
    """Keep nothing."""


def _track() -> int:
    """Return whose track this thread's steps are on: a vCPU's, or for others one below 0."""
    vcpu = current_cpu()
    return vcpu.index if vcpu is not None else -threading.get_native_id()


def ioctl_names() -> dict[int, str]:
    """Return the kernel's names of all ioctls, by number."""
    from ..kvm import abi as every
    from ..kvm.abi.base import Ioctl

    values = (getattr(every, name) for name in dir(every) if name.startswith("KVM_"))
    return {value.number: value.name for value in values if isinstance(value, Ioctl)}
