"""Statistics: how many exits there were, of which kind, and how long it took to serve them."""

from __future__ import annotations

from time import perf_counter_ns

from ..kvm.abi import basic as abi

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import TypeVar

    from ..vcpu import Vcpu
    from ..vcpu.context import Find, Run, Serve

    T = TypeVar("T")

IO_EXIT = abi.KVM_EXIT_IO
FINE, SHIFT = 1024, 7  # buckets of 128 ns up to 131 us; above, one for each power of two
BUCKETS = FINE + 64
TIMED = 7  # one of so many accesses to a port is timed; a prime, so that a guest's loop does not keep step with it
MOST_KEYS = 1024  # ports and addresses that are counted apart; a guest must not fill our memory
OTHERS = -1
BY_ADDRESS = (abi.KVM_EXIT_IO, abi.KVM_EXIT_MMIO)


class Histogram:
    """How often something took how long: 128 ns fine up to 131 us. One thread writes it; others may read meanwhile."""

    __slots__ = ("buckets",)

    def __init__(self) -> None:
        self.buckets = [0] * BUCKETS

    def add(self, took: int) -> None:
        """Count one of `took` nanoseconds."""
        at = took >> SHIFT
        self.buckets[at if at < FINE else FINE + at.bit_length()] += 1

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.buckets)

    def percentile(self, share: float) -> int:
        """Return the nanoseconds that `share` (0 to 1) of them did not exceed, to the upper end of a bucket."""
        left = share * self.count
        for at, count in enumerate(self.buckets):
            left -= count
            if left <= 0 and count:
                return (at + 1 if at < FINE else 1 << at - FINE) << SHIFT
        return 0


class Kind:
    """The exits of one reason: the times of some, and how many there were by port access or address."""

    __slots__ = ("keys", "times")

    def __init__(self) -> None:
        self.times = Histogram()
        self.keys: dict[int, list[int]] = {}

    @property
    def count(self) -> int:
        """How many there were. Any thread."""
        return sum(counter[0] for counter in list(self.keys.values()))

    def add(self, key: int, took: int) -> None:
        """Count one of `took` nanoseconds."""
        self.times.add(took)
        counter = self.keys.get(key) or self.new(key)
        counter[0] += 1

    def new(self, key: int) -> list[int]:
        """Return a counter for `key`, the one of all others when there are many already."""
        if len(self.keys) >= MOST_KEYS:
            key = OTHERS
        return self.keys.setdefault(key, [0])


class Stats:
    """Counts exits, by vCPU and reason: a probe for Machine.observe().

    Each vCPU's thread writes its own; `kinds` may be read meanwhile. `kinds[index][reason]`. A vCPU that
    is plugged again goes on with its counts.
    """

    def __init__(self) -> None:
        self.kinds: list[dict[int, Kind]] = []

    def attach(self, vcpus: int) -> None:
        """Get ready for so many vCPUs; before any of them is started."""
        self.kinds += [{} for _ in range(vcpus - len(self.kinds))]

    def step(self, index: int, name: str, function: Callable[[], T]) -> T:
        """Take the step: what happens in a vCPU's life is not counted."""
        return function()

    def moment(self, index: int, command: str, before: str, after: str) -> None:
        """Do nothing."""

    def kick(self, index: int, how: str) -> None:
        """Do nothing."""

    def loop(self, vcpu: Vcpu, run: Run, find: Find, serve: Serve) -> tuple[Run, Find, Serve]:
        """Count what is served. A clock read twice costs more than the count: see TIMED."""
        kinds, now, timed = self.kinds[vcpu.index], perf_counter_ns, TIMED
        ports = kinds.setdefault(IO_EXIT, Kind())
        counters, times = ports.keys.get, ports.times.add

        def found(key: int) -> Callable[[Vcpu, bytes], object] | None:
            access = find(key)
            if access is None:
                return None
            counter = counters(key) or ports.new(key)
            counter[0] = count = counter[0] + 1
            return access if count % timed != 1 else lambda vcpu, byte: measured(access, vcpu, byte)

        def measured(access: Callable[[Vcpu, bytes], object], vcpu: Vcpu, byte: bytes) -> None:
            start = now()
            access(vcpu, byte)
            times(now() - start)

        def served(reason: int, key: int) -> str | None:
            start = now()
            why = serve(reason, key)
            kind = kinds.get(reason) or kinds.setdefault(reason, Kind())
            kind.add(key if reason in BY_ADDRESS else 0, now() - start)
            return why

        return run, found, served


def name_of(reason: int) -> str:
    """Return the name of an exit reason as in linux/kvm.h, without KVM_EXIT_."""
    from ..kvm.abi.exits import Exit

    try:
        return Exit(reason).name
    except ValueError:
        return f"unknown reason {reason}"


def access_of(reason: int, key: int) -> str:
    """Return what an exit's key says, in words: the port and what was done there, or the address."""
    if key == OTHERS:
        return "others"
    if reason == abi.KVM_EXIT_IO:
        size, count = key >> 8 & 0xFF, key >> 32
        text = f"{'out' if key & 0xFF else 'in'} {key >> 16 & 0xFFFF:#x}"
        return text + (f" ({size} bytes)" if size > 1 else "") + (f" x{count}" if count > 1 else "")
    return f"{key:#x}"
