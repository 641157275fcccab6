"""Outcome: how a run of a machine ended. Run: one run, with its outcome and what handlers raised in it."""

from __future__ import annotations

from _thread import get_ident

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

    def __reduce__(self) -> tuple[type[Outcome], tuple[str, int, None, ExitEvent | None, str]]:
        """Be copied and sent to other processes without the vCPU, which belongs to this one."""
        return type(self), (self.reason, self.status, None, self.exit, self.report)

    def __repr__(self) -> str:
        who = "" if self.vcpu is None else f" by vCPU {self.vcpu.index}"
        return f"<Outcome {self.reason}{who}, status {self.status}>"


class Run:
    """One run: from the end of the one before to its own. All of it under the machine's lock."""

    __slots__ = ("_seen", "failures", "outcome", "seen")

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self.failures: list[BaseException] = []
        self.seen = False  # somebody has got the outcome
        self._seen: dict[int, int] = {}  # how many of the failures each thread has got

    @property
    def is_over(self) -> bool:
        """Whether it has ended, and somebody knows all of it."""
        return self.outcome is not None and self.seen and max(self._seen.values(), default=0) >= len(self.failures)

    def tell(self) -> Outcome | None:
        """Return the outcome, or raise the first failure that this thread has not got yet."""
        thread = get_ident()
        at = self._seen.get(thread, 0)
        if at < len(self.failures):
            self._seen[thread] = at + 1
            self.seen = True
            raise self.failures[at]
        self.seen |= self.outcome is not None
        return self.outcome

    def unseen(self) -> BaseException | None:
        """Return the first failure that nobody has got."""
        at = max(self._seen.values(), default=0)
        return self.failures[at] if at < len(self.failures) else None
