"""Timeline: what the vCPUs of a machine do, step by step, kept for Perfetto."""

from __future__ import annotations

import os
import threading
from collections import deque
from operator import itemgetter
from struct import Struct

from ..kvm.abi.layout import EXIT_UNION, PIO_DATA
from .stats import BY_ADDRESS, IO_EXIT, access_of, name_of

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable, Iterator

MOST_EVENTS = 400_000  # half of them the first, half the last: 50 MB of memory, 75 MB of JSON
RUN = "KVM_RUN"

# An exit and the KVM_RUN before it: vCPU, reason, begin of KVM_RUN, its end, end of the handling, the first quadword of
# the union in kvm_run, and 16 bytes: the data of a port access, or of MMIO with length and direction.
EXIT_RECORD = Struct("<IIQQQQ16s")
TRACK, START = Struct("<I"), Struct("<8xQ")
MOST_REMEMBERED = 4096
DATA, MMIO_TAIL = slice(PIO_DATA, PIO_DATA + 16), slice(EXIT_UNION + 8, EXIT_UNION + 24)
MMIO = Struct("<8sIB3x")


class Event:
    """A step: `track` is a vCPU's index, or for other threads below 0; `took` in ns, None for a moment."""

    __slots__ = ("name", "start", "told", "took", "track")

    def __init__(self, track: int, name: str, start: int, took: int | None = None, told: str = "") -> None:
        self.track = track
        self.name = name
        self.start = start
        self.took = took
        self.told = told


def told_of(reason: int, key: int, data: bytes, *, before: bool = False) -> str:
    """Return port or address of an exit, and the value that was written or, unless it is `before` that, read."""
    if reason not in BY_ADDRESS:
        return ""
    told = access_of(reason, key)
    if reason == IO_EXIT:
        write, size, count = key & 0xFF, key >> 8 & 0xFF, key >> 32
        data = data[: size * count]
    else:
        content, size, write = MMIO.unpack(data)
        data, count = content[:size], 1
        told = f"{'write' if write else 'read'} {told}" + (f" ({size} bytes)" if size > 1 else "")
    if before and not write:
        return told
    if count == 1:
        return f"{told} = {int.from_bytes(data, 'little'):#x}"
    return f"{told} = {data.hex(' ')}" + (" ..." if size * count > len(data) else "")


class Timeline:
    """Keeps what happened, and writes it as Chrome trace-event JSON, which Perfetto opens.

    It keeps the first and the last half of MOST_EVENTS: how all began, and what led to the end. `dropped` says how many
    were between. `_lock` guards it all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.half = MOST_EVENTS // 2
        self._first: list[Event | bytes] = []
        self._last: deque[Event | bytes] = deque(maxlen=self.half)
        self._count = 0
        self._threads: dict[int, str] = {}

    @property
    def dropped(self) -> int:
        """How many are left out."""
        return self._count - len(self._first) - len(self._last)

    def keep(self, event: Event | bytes) -> None:
        """Keep a step, or an exit as an EXIT_RECORD. Any thread."""
        with self._lock:
            self._count += 1
            if self._count <= self.half:
                self._first.append(event)
            else:
                self._last.append(event)
            if type(event) is Event and event.track < 0:
                self._threads[event.track] = threading.current_thread().name

    def lines(self) -> Iterator[str]:
        """Yield the JSON text, an event to a line, those of each track in their order. Once all threads have ended."""
        from heapq import merge

        events = sorted([*self._first, *self._last], key=_start)
        exits = sorted((event for event in events if isinstance(event, bytes)), key=_exit_start)
        yield '{"displayTimeUnit": "ns", "traceEvents": ['
        yield from self._heads(events)
        # An exit comes before what was done while it was served: it is around that.
        writer = Writer(_start(events[0]) if events else 0)
        for _, line in merge(map(writer.exit, exits), map(writer.step_or_run, events), key=itemgetter(0)):
            yield line
        if self.dropped:
            yield writer.gap(_start(self._last[0]), self.dropped)
        yield _head(0, "process_name", name="pyvcpu").rstrip(",")
        yield "]}"

    def _heads(self, events: Iterable[Event | bytes]) -> Iterator[str]:
        """Yield the names of the tracks."""
        for track in sorted(
            {event.track if isinstance(event, Event) else TRACK.unpack_from(event)[0] for event in events}
        ):
            yield _head(track, "thread_name", name=f"CPU {track}/KVM" if track >= 0 else self._threads[track])
            yield _head(track, "thread_sort_index", sort_index=_tid(track))


class Writer:
    """Makes lines of JSON, with times in microseconds since `origin`. All that it is given is free of quotes."""

    def __init__(self, origin: int) -> None:
        self._origin = origin
        self._exits: dict[tuple[int, int, bytes], str] = {}  # most exits are like others

    def exit(self, record: bytes) -> tuple[int, str]:
        """Return when the handling of an exit began, and its line."""
        index, reason, _, start, end, key, data = EXIT_RECORD.unpack(record)
        what = self._exits.get((reason, key, data))
        if what is None:
            if len(self._exits) >= MOST_REMEMBERED:
                self._exits.clear()
            what = self._exits[reason, key, data] = _what(name_of(reason), told_of(reason, key, data))
        return start, self._span(index, what, start, end - start)

    def step_or_run(self, event: Event | bytes) -> tuple[int, str]:
        """Return when a step, or the KVM_RUN before an exit, began, and its line."""
        if isinstance(event, bytes):
            index, _, start, end, *_ = EXIT_RECORD.unpack(event)
            return start, self._span(index, _RUN, start, end - start)
        what = _what(event.name, event.told)
        if event.took is not None:
            return event.start, self._span(event.track, what, event.start, event.took)
        return event.start, f'{{"ph":"i","s":"t",{self._place(event.track, event.start)},{what}}},'

    def gap(self, when: int, dropped: int) -> str:
        """Return the line that says where something is left out."""
        what = _what(f"{dropped} events before this are left out", "")
        return f'{{"ph":"i","s":"g","pid":{_PID},"tid":0,"ts":{_microseconds(when - self._origin)},{what}}},'

    def _span(self, track: int, what: str, start: int, took: int) -> str:
        return f'{{"ph":"X",{self._place(track, start)},"dur":{_microseconds(took)},{what}}},'

    def _place(self, track: int, when: int) -> str:
        return f'"pid":{_PID},"tid":{_tid(track)},"ts":{_microseconds(when - self._origin)}'


def _what(name: str, told: str) -> str:
    return f'"name":"{name}","args":{{"what":"{told}"}}' if told else f'"name":"{name}"'


def _head(track: int, kind: str, /, **args: object) -> str:
    from json import dumps

    return dumps({"ph": "M", "pid": _PID, "tid": _tid(track), "name": kind, "args": args}) + ","


def _microseconds(ns: int) -> str:
    return f"{ns // 1000}.{ns % 1000:03}"


def _tid(track: int) -> int:
    """Return the number of a track in the file; those of real threads are away from those of vCPUs."""
    return track + 1 if track >= 0 else 1_000_000 - track


def _start(event: Event | bytes) -> int:
    return event.start if isinstance(event, Event) else START.unpack_from(event)[0]


def _exit_start(record: bytes) -> int:
    when: int = EXIT_RECORD.unpack(record)[3]
    return when


_PID = _tid(-os.getpid())
_RUN = _what(RUN, "")
