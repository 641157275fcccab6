"""Outcome: how a run of a machine ended."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from ..exits import ExitEvent
    from ..vcpu import Vcpu

# Exit statuses of our own are even; a debug exit of v gives (v << 1) | 1.
STATUS = {
    "halted": 0,
    "power-off": 0,
    "reset": 0,
    "stopped": 0,
    "crashed": 6,
    "panicked": 6,
    "timeout": 124,
    "interrupted": 130,
}


class Outcome:
    """Why the machine stopped.

    `reason`: halted (all vCPUs, for good), power-off, reset, exit (the debug-exit port), crashed (triple fault, KVM
    internal error, failed entry), panicked (the guest's kernel says so), timeout, interrupted, or what
    Machine.stop() was given.
    `status`: the exit status that the command line ends with, 0 to 255.
    `vcpu`: the vCPU that caused it, or None. `exit`: the exit behind a crash, or None.
    `report`: for a crash, what is known of it in lines for people; else "".
    """

    __slots__ = ("exit", "reason", "report", "status", "vcpu")

    def __init__(
        self,
        reason: str,
        status: int | None = None,
        vcpu: Vcpu | None = None,
        exit: ExitEvent | None = None,
        report: str = "",
    ) -> None:
        self.reason = reason
        self.status = (STATUS.get(reason, 0) if status is None else status) & 0xFF
        self.vcpu = vcpu
        self.exit = exit
        self.report = report

    def __repr__(self) -> str:
        who = "" if self.vcpu is None else f" by vCPU {self.vcpu.index}"
        return f"<Outcome {self.reason}{who}, status {self.status}>"
