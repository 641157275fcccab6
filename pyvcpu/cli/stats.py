"""`--stats`: what the exits were, in a table at the end."""

from __future__ import annotations

from ..errors import StateError
from ..kvm.abi.capabilities import KVM_CAP_BINARY_STATS_FD
from ..kvm.errors import KvmError
from ..observe.stats import BY_ADDRESS, FINE, SHIFT, Stats, access_of, name_of

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterator

    from ..kvm.vcpu import VcpuFd
    from ..kvm.vm import VmFd
    from ..machine import Machine
    from ..observe.stats import Kind

GRACE = 1.0  # seconds for a vCPU to tell
BUSIEST = 3
HEAD = f"{'vCPU':<5}{'exit':<16}{'count':>10}{'share':>8}{'median':>12}{'p99':>12}  busiest"


def table(stats: Stats) -> Iterator[str]:
    """Yield the lines of the table: a line per vCPU and exit reason, the most frequent first."""
    yield HEAD if any(kind.count for kinds in stats.kinds for kind in list(kinds.values())) else "no exits"
    for index, kinds in enumerate(stats.kinds):
        counted = [(kind.count, reason, kind) for reason, kind in list(kinds.items())]
        counted = [row for row in counted if row[0]]
        total = sum(count for count, _, _ in counted)
        for count, reason, kind in sorted(counted, key=lambda row: (-row[0], row[1])):
            median, p99 = (_time(kind.times.percentile(share)) for share in (0.5, 0.99))
            line = f"{index:<5}{name_of(reason):<16}{count:>10}{count / total:>8.1%}{median:>12}{p99:>12}  "
            yield (line + _busiest(reason, kind)).rstrip()


def _time(ns: int) -> str:
    """Return a bucket's upper end in microseconds; coarse ones say that the time was less."""
    return f"{'<' if ns > FINE << SHIFT else ''}{ns / 1000:.1f} us"


def _busiest(reason: int, kind: Kind) -> str:
    if reason not in BY_ADDRESS:
        return ""
    counts = sorted(((-counter[0], key) for key, counter in list(kind.keys.items())))
    return ", ".join(f"{access_of(reason, key)}: {-count}" for count, key in counts[:BUSIEST])


def of_kvm(machine: Machine) -> Iterator[str]:
    """Yield what KVM itself has counted: all that is not zero, of the machine and of each vCPU, where it tells."""
    if not machine.kvm.check_extension(KVM_CAP_BINARY_STATS_FD):
        return
    yield from _counted("machine", machine.vm)
    for vcpu in machine.vcpus:
        if vcpu.created:
            try:
                lines = vcpu.run_on_cpu(lambda vcpu: list(_counted(f"vCPU {vcpu.index}", vcpu.fd)), GRACE)
            except (StateError, TimeoutError):
                continue  # it has just gone, or its handler does not return
            yield from lines


def _counted(whose: str, fd: VmFd | VcpuFd) -> Iterator[str]:
    try:
        with fd.get_stats_fd() as counters:
            values = counters.read()
    except KvmError:
        return  # a vCPU that has just gone
    told = (f"{name} {value}" for name, value in sorted(values.items()) if isinstance(value, int) and value)
    yield f"{whose}, counted by KVM: {', '.join(told) or 'nothing'}"
