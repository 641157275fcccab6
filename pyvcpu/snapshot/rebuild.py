"""What a new machine is made of that takes the state of a snapshot."""

from __future__ import annotations

from ..boot.plan import Plan
from ..x86.start import StartState

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import Any

    from .data import Snapshot


def shape_of(snapshot: Snapshot) -> dict[str, Any]:
    """Return the arguments of Machine() that rule what the guest sees."""
    data = snapshot.data
    cpus, sockets, cores, threads, maxcpus = data["smp"]
    return {
        "memory": data["memory"],
        "smp": f"{cpus},sockets={sockets},cores={cores},threads={threads},maxcpus={maxcpus}",
        "cpu": data["cpu"],
        "irqchip": data["irqchip"],
    }


def plan_of(snapshot: Snapshot) -> Plan:
    """Return how the vCPUs start after a reset; the image itself is not there."""
    data = snapshot.data
    starts = [None if start is None else start_of(start) for start in data["starts"]]
    return Plan(data["format"], (), starts, data["irqchip"])


def start_of(values: dict[str, Any]) -> StartState:
    """Return the start state that plain data tells of."""
    fields = dict(values)
    mode, entry, selectors = fields.pop("mode"), fields.pop("entry"), fields.pop("selectors")
    return StartState(mode, entry, selectors=None if selectors is None else (selectors[0], selectors[1]), **fields)
