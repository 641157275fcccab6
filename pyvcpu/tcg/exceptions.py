"""What ends an instruction early: faults of the guest, exits to the host, and accesses that need the slow way."""

from __future__ import annotations

DE, DB, NMI, BP, OF, BR, UD, NM, DF = range(9)
TS, NP, SS, GP, PF = 10, 11, 12, 13, 14
MF, AC, MC, XM = 16, 17, 18, 19


class Fault(Exception):
    """An exception of the processor: its vector, and the error code where it has one.

    `trap` tells that the instruction is complete, so that the saved rip is the one behind it.
    """

    def __init__(self, vector: int, error: int | None = None, trap: bool = False) -> None:
        self.vector, self.error, self.trap = vector, error, trap

    def __str__(self) -> str:
        return f"#{self.vector}" if self.error is None else f"#{self.vector}({self.error:#x})"


class Exit(Exception):
    """Leave execute() with an exit code (EXIT_*). `done`: the instruction is complete."""

    def __init__(self, code: int, done: bool = False) -> None:
        self.code, self.done = code, done


class Slow(Exception):
    """An access that translated code leaves to the cold tier: not in the TLB, a device, a page with code, a fault."""


class Missing(Slow):
    """An access that is going to fault, most likely once: the page is not there yet, or not writable."""
