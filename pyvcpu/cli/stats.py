"""`--stats`: what the exits were, in a table at the end."""

from __future__ import annotations

from ..kvm.errors import KvmError
from ..vcpu.observe import BY_ADDRESS, Stats, access_of, name_of

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterator

    from ..machine import Machine
    from ..vcpu.observe import Kind

KVM_CAP_BINARY_STATS_FD = 203
BUSIEST = 3
HEAD = f"{'vCPU':<5}{'exit':<16}{'count':>10}{'share':>8}{'median':>12}{'p99':>12}  busiest"


def table(stats: Stats) -> Iterator[str]:
    """Yield the lines of the table: a line per vCPU and exit reason, the most frequent first."""
    yield HEAD
    for index, kinds in enumerate(stats.kinds):
        counted = [(kind.times.count, reason, kind) for reason, kind in kinds.items() if kind.times.count]
        total = sum(count for count, _, _ in counted)
        for count, reason, kind in sorted(counted, key=lambda row: (-row[0], row[1])):
            times = (f"{kind.times.percentile(share) / 1000:.1f} us" for share in (0.5, 0.99))
            median, p99 = times
            line = f"{index:<5}{name_of(reason):<16}{count:>10}{count / total:>8.1%}{median:>12}{p99:>12}  "
            yield (line + _busiest(reason, kind)).rstrip()


def _busiest(reason: int, kind: Kind) -> str:
    if reason not in BY_ADDRESS:
        return ""
    counts = sorted(((-counter[0], key) for key, counter in list(kind.keys.items())))
    return ", ".join(f"{access_of(reason, key)}: {-count}" for count, key in counts[:BUSIEST])


def of_kvm(machine: Machine) -> Iterator[str]:
    """Yield what KVM itself has counted, a line per vCPU with all that is not zero; nothing where it does not tell."""
    if not machine.kvm.check_extension(KVM_CAP_BINARY_STATS_FD):
        return
    for vcpu in machine.vcpus:
        if not vcpu.created:
            continue
        try:
            with vcpu.fd.get_stats_fd() as counters:
                values = counters.read()
        except KvmError:
            continue  # a vCPU that has just gone
        told = (f"{name} {value}" for name, value in sorted(values.items()) if isinstance(value, int) and value)
        yield f"vCPU {vcpu.index}, counted by KVM: {', '.join(told)}"
