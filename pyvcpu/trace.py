"""What the vCPUs of a machine do, step by step: as a timeline for Perfetto, or in words while it happens."""

from __future__ import annotations

import threading
from time import perf_counter_ns

from .vcpu import current_cpu
from .vcpu.execute import EXIT, EXIT_REASON, IO_EXIT, KVM_RUN, MMIO, PIO_DATA, refused, serve
from .vcpu.observe import BY_ADDRESS, Kind, Stats, access_of, name_of

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from .kvm.kernel import Kernel
    from .vcpu import Vcpu
    from .vcpu.states import Command

CALLERS = -1  # the track of the threads that are no vCPU's
MOST_EVENTS = 1_000_000
RUN = "KVM_RUN"

# Methods of a Vcpu that are steps of its life, and what QEMU calls them.
STEPS = {
    "realize": "realize",
    "start_thread": "start_vcpu: thread start",
    "init_vcpu": "init_vcpu",
    "wait_created": "start_vcpu: wait for created",
    "handle_guest_debug": "handle_guest_debug",
    "destroy_vcpu": "destroy_vcpu",
}
# Commands of the state machine that have another name there.
MOMENTS = {
    "start": "start",
    "created": "created signalled",
    "gone": "destroyed signalled",
    "failed": "init_vcpu failed",
}


class Event:
    """A step: `track` is a vCPU's index or CALLERS; `start` and `took` in ns, None for a moment; `told` for people."""

    __slots__ = ("name", "start", "told", "took", "track")

    def __init__(self, track: int, name: str, start: int, took: int | None = None, told: str = "") -> None:
        self.track = track
        self.name = name
        self.start = start
        self.took = took
        self.told = told


class Trace(Stats):
    """Tells each of `listeners` of every step, on the thread that takes it, perhaps with the machine's lock held.

    A listener must not block, and is called by several threads at once. Exits are counted as by Stats.
    """

    def __init__(self, *listeners: Callable[[Event], object]) -> None:
        super().__init__()
        self._listeners = listeners

    def note(self, track: int, name: str, start: int, took: int | None = None, told: str = "") -> None:
        """Tell the listeners."""
        event = Event(track, name, start, took, told)
        for listener in self._listeners:
            listener(event)

    def attach(self, vcpus: Sequence[Vcpu]) -> None:
        """Put a note around each step: the methods in STEPS, commands, kicks, ioctls."""
        super().attach(vcpus)
        for vcpu in vcpus:
            for method, name in STEPS.items():
                setattr(vcpu, method, self._step(vcpu.index, name, getattr(vcpu, method)))
            inner = {"_apply": self._moment(vcpu, vcpu._apply), "_kick": self._kick(vcpu, vcpu._kick)}
            for method, noted in inner.items():
                setattr(vcpu, method, noted)
        if vcpus:
            self._ioctls(vcpus[0].accel.kvm.kernel)

    def _step(self, index: int, name: str, method: Callable[[], object]) -> Callable[[], object]:
        def step() -> object:
            start = perf_counter_ns()
            track = index if current_cpu() is not None else CALLERS
            self.note(track, name, start, None, f"vCPU {index}")
            try:
                return method()
            finally:
                self.note(index, name, start, perf_counter_ns() - start)

        return step

    def _moment(self, vcpu: Vcpu, apply: Callable[[Command], None]) -> Callable[[Command], None]:
        def moment(command: Command) -> None:
            before = vcpu.state
            apply(command)
            name = MOMENTS.get(str(command), str(command))
            self.note(vcpu.index, name, perf_counter_ns(), None, f"{before} -> {vcpu.state}")

        return moment

    def _kick(self, vcpu: Vcpu, kick: Callable[[], None]) -> Callable[[], None]:
        def noted() -> None:
            if vcpu.created and not vcpu._kicked:
                self.note(vcpu.index, "kick", perf_counter_ns())
            kick()

        return noted

    def _ioctls(self, kernel: Kernel) -> None:
        names, ioctl = ioctl_names(), kernel.ioctl

        def noted(fd: int, number: int, argument: int) -> int:
            start = perf_counter_ns()
            result = ioctl(fd, number, argument)  # nothing after it may touch errno
            took = perf_counter_ns() - start
            vcpu = current_cpu()
            told = "" if result >= 0 else "refused"
            self.note(CALLERS if vcpu is None else vcpu.index, names.get(number, hex(number)), start, took, told)
            return result

        kernel.ioctl = noted

    def cpu_exec(self, vcpu: Vcpu) -> str:
        """Do what execute.cpu_exec() does, and note each KVM_RUN and each exit."""
        kinds = self.kinds[vcpu.index]
        run, fd, kvm_run, now = vcpu.run, vcpu.fd.fd, vcpu.fd.kernel.request, perf_counter_ns
        while True:
            start = now()
            code = 0
            try:
                kvm_run(fd, KVM_RUN)
            except OSError as error:
                code = error.errno or 0
            end = now()
            self.note(vcpu.index, RUN, start, end - start, "interrupted" if code else "")
            if code:
                why = refused(vcpu, code)
            else:
                reason, key, _, first, last = EXIT.unpack_from(run, EXIT_REASON)
                told = _told(run, reason, key)
                if first != last:
                    vcpu.accel.drain(vcpu)
                try:
                    why = serve(vcpu, reason, key)
                finally:
                    took = now() - end
                    self.note(vcpu.index, name_of(reason), end, took, told)
                kind = kinds.get(reason) or kinds.setdefault(reason, Kind())
                kind.add(key if reason in BY_ADDRESS else 0, took)
            if why is not None:
                return why


def _told(run: Any, reason: int, key: int) -> str:
    """Return port or address of an exit, and what is written."""
    if reason not in BY_ADDRESS:
        return ""
    told = access_of(reason, key)
    if reason == IO_EXIT:
        length = (key >> 8 & 0xFF) * (key >> 32)
        return f"{told} = {run[PIO_DATA : PIO_DATA + min(length, 16)].hex(' ')}" if key & 0xFF else told
    _, _, data, length, is_write = MMIO.unpack_from(run, EXIT_REASON)
    return f"write {told} = {data[:length].hex(' ')}" if is_write else f"read {told}"


def ioctl_names() -> dict[int, str]:
    """Return the kernel's names of all ioctls, by number."""
    from .kvm import abi as every
    from .kvm.abi.base import Ioctl

    values = (getattr(every, name) for name in dir(every) if name.startswith("KVM_"))
    return {value.number: value.name for value in values if isinstance(value, Ioctl)}


class Timeline:
    """A listener that keeps the events, and writes them as Chrome trace-event JSON, which Perfetto opens.

    `_lock` guards the list; of more than MOST_EVENTS the rest is dropped, and `dropped` says how many.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self.dropped = 0

    def __call__(self, event: Event) -> None:
        if event.took is None and event.name in STEPS.values():
            return  # its span follows
        with self._lock:
            if len(self._events) < MOST_EVENTS:
                self._events.append(event)
            else:
                self.dropped += 1

    def lines(self) -> Iterator[str]:
        """Yield the JSON text, an event to a line."""
        from json import dumps

        with self._lock:
            events = sorted(self._events, key=lambda event: event.start)
        origin = events[0].start if events else 0
        yield '{"displayTimeUnit": "ns", "traceEvents": ['
        for track in sorted({event.track for event in events}):
            name = "callers" if track == CALLERS else f"CPU {track}/KVM"
            head = {"ph": "M", "pid": 1, "tid": track + 1, "name": "thread_name", "args": {"name": name}}
            yield dumps(head) + ","
        for event in events:
            entry: dict[str, object] = {
                "name": event.name,
                "pid": 1,
                "tid": event.track + 1,
                "ts": (event.start - origin) / 1000,
                "args": {"what": event.told} if event.told else {},
            }
            entry |= {"ph": "i", "s": "t"} if event.took is None else {"ph": "X", "dur": event.took / 1000}
            yield dumps(entry) + ","
        yield dumps({"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "pyvcpu"}})
        yield "]}"


class Explain:
    """A listener that makes a readable line of each step of a vCPU's life, for `say`, which must not block.

    Of exits of one kind it tells the first only. `_lock` guards what was told.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._lock = threading.Lock()
        self._told: set[tuple[int, str]] = set()
        self._origin = perf_counter_ns()

    def __call__(self, event: Event) -> None:
        line = self._line(event)
        if line:
            who = "callers" if event.track == CALLERS else f"vCPU {event.track}"
            self._say(f"{(event.start - self._origin) / 1e6:9.3f} ms  {who:<8} {line}")

    def _line(self, event: Event) -> str:
        meaning = MEANINGS.get(event.name, "")
        if event.name in STEPS.values():
            if event.took is not None:
                return ""  # told at its start
            return f"{event.name} ({event.told}): {meaning}" if event.track == CALLERS else f"{event.name}: {meaning}"
        if event.took is None or (event.name.startswith("KVM_") and event.name != RUN):
            told = f" ({event.told})" if event.told else ""
            return f"{event.name}{told}{': ' if meaning else ''}{meaning}"
        kind = event.told.partition(" =")[0]
        with self._lock:
            key = (event.track, f"{event.name} {kind}")
            if key in self._told or len(self._told) > 1000:
                return ""
            self._told.add(key)
        if event.name == RUN:
            return f"{RUN}: {MEANINGS[RUN]}; told once" if not event.told else ""
        return f"exit {event.name} {event.told}: the guest is out, we serve it, and enter again; the first of its kind"


MEANINGS = {
    "realize": "make up its features and CPUID leaves; there is no thread yet",
    "start_vcpu: thread start": "make the thread that is this vCPU's life",
    "start_vcpu: wait for created": "sleep until the vCPU says that it is created",
    "init_vcpu": "in its thread: get the fd, map struct kvm_run, tell KVM what it is, get ready for kicks",
    "created signalled": "whoever started it may go on; it waits in wait_io_event to be resumed",
    "resume": "it may run: from wait_io_event to cpu_exec",
    "pause": "it is out of KVM_RUN and stays out",
    "halt": "the guest executed HLT and nothing in the kernel can wake it",
    "kick": "a signal gets it out of KVM_RUN, to look at its inbox",
    "unplug": "it is to leave the machine",
    "destroy_vcpu": "unmap kvm_run and park the fd: KVM never creates the same id twice",
    "destroyed signalled": "the thread ends",
    RUN: "enter the guest; it runs on this thread until something has to be done for it",
    "KVM_CREATE_VCPU": "a new vCPU in the kernel, and an fd for it",
    "KVM_SET_CPUID2": "what the guest's CPUID instruction will show",
    "KVM_SET_SREGS": "segments, control registers: the mode that it starts in",
    "KVM_SET_REGS": "general registers, and where it starts",
}
