"""The library's side of a measurement, in a process of its own as the peer's is: prints one figure.

python -m bench.library KIND VCPUS SECONDS
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from subprocess import DEVNULL, PIPE

from pyvcpu import Machine
from pyvcpu.vcpu import Vcpu

from .guests import CONSOLE_LOOP, MMIO, MMIO_LOOP, PIO_LOOP, PORT

WARM_UP = 0.1  # seconds; the peer's is as long


class Counter:
    """Counts writes, of each vCPU apart: no two threads share a number. Those of nobody in particular come last."""

    def __init__(self, vcpus: int) -> None:
        self.counts = [0] * (vcpus + 1)

    def port(self, vcpu: Vcpu, data: bytes) -> None:
        self.counts[vcpu.index] += 1

    def mmio(self, vcpu: Vcpu, offset: int, data: bytes) -> None:
        self.counts[vcpu.index] += 1

    def collected(self, vcpu: Vcpu | None, data: bytes) -> None:
        self.counts[-1] += len(data)

    def collected_mmio(self, vcpu: Vcpu | None, offset: int, data: bytes) -> None:
        self.counts[-1] += len(data)


Prepare = Callable[[Machine, Counter], object]

PREPARE: dict[str, tuple[bytes, Prepare]] = {
    "pio": (PIO_LOOP, lambda machine, counter: machine.on_port(PORT, write=counter.port)),
    "mmio": (MMIO_LOOP, lambda machine, counter: machine.on_mmio(MMIO, 4096, write=counter.mmio)),
    "coalesced-pio": (
        PIO_LOOP,
        lambda machine, counter: machine.on_port(PORT, write=counter.collected, coalesce=True),
    ),
    "coalesced-mmio": (
        MMIO_LOOP,
        lambda machine, counter: machine.on_mmio(MMIO, 4096, write=counter.collected_mmio, coalesce=True),
    ),
}


def steady(machine: Machine, done: Callable[[], int], seconds: float) -> float:
    """Run the machine; return how much is done in a second, from when all of it is under way."""
    machine.start()
    machine.resume()
    time.sleep(WARM_UP)
    start, before = time.perf_counter(), done()
    if not before:
        sys.exit("the guest has not begun")
    time.sleep(seconds)
    return (done() - before) / (time.perf_counter() - start)


def rate(kind: str, vcpus: int, seconds: float) -> float:
    """Return writes per second, of all vCPUs."""
    observed, _, kind = kind.rpartition("+")
    code, prepare = PREPARE[kind]
    counter = Counter(vcpus)
    with Machine("1M", vcpus, output=lambda data: None) as machine:
        if observed == "stats":
            from pyvcpu.observe.stats import Stats

            machine.observe(Stats())
        elif observed == "trace":
            from pyvcpu.observe.timeline import Timeline
            from pyvcpu.observe.trace import Trace

            machine.observe(Trace(Timeline()))
        prepare(machine, counter)
        machine.load(code, format="flat")
        return steady(machine, lambda: sum(counter.counts), seconds)


def ioeventfd(vcpus: int, seconds: float) -> float:
    """Return writes per second that end in an eventfd, of which nobody but a counter takes notice."""
    with Machine("1M", vcpus, output=lambda data: None) as machine:
        fd = os.eventfd(0, os.EFD_CLOEXEC)
        machine.vm.ioeventfd(fd, PORT, 1, pio=True)
        machine.load(PIO_LOOP, format="flat")
        written = 0

        def done() -> int:
            nonlocal written
            written += os.eventfd_read(fd)
            return written

        return steady(machine, done, seconds)


def console(seconds: float) -> float:
    """Return bytes per second from the debug console through the command's Output to a `cat` that reads them."""
    from pyvcpu.cli.output import Output

    taken = 0

    def write(data: bytes) -> None:
        nonlocal taken
        output.write(data)
        taken += len(data)

    with subprocess.Popen(["cat"], stdin=PIPE, stdout=DEVNULL) as reader:
        assert reader.stdin is not None
        output = Output(reader.stdin.fileno())
        with Machine("1M", output=write) as machine:
            machine.load(CONSOLE_LOOP, format="flat")
            figure = steady(machine, lambda: taken, seconds)
        output.close()
        reader.stdin.close()
    return figure


def main() -> None:
    kind, vcpus, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    if kind == "ioeventfd":
        figure = ioeventfd(vcpus, seconds)
    elif kind == "console":
        figure = console(seconds)
    else:
        figure = rate(kind, vcpus, seconds)
    print(f"{figure:.0f}")


if __name__ == "__main__":
    main()
