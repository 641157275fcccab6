"""Bits of the control registers, and who may use what they govern."""

from __future__ import annotations

from .exceptions import GP, Fault
from .paging import PAE

TYPE_CHECKING = False

if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu


PE, MP, EM, TS_, ET, NE, WP, AM, NW, CD, PG = (1 << bit for bit in (0, 1, 2, 3, 4, 5, 16, 18, 29, 30, 31))


CR0_BITS = PE | MP | EM | TS_ | ET | NE | WP | AM | NW | CD | PG


VME, TSD, DE_, PSE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT, UMIP, LA57 = 1, 4, 8, 16, 64, 128, 256, 512, 1024, 2048, 4096


FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP = 1 << 16, 1 << 17, 1 << 18, 1 << 20, 1 << 21


CR4_BITS = (
    TSD | DE_ | PSE | PAE | MCE | PGE | PCE | OSFXSR | OSXMMEXCPT | UMIP | LA57 | FSGSBASE | PCIDE | OSXSAVE | SMEP
    | SMAP
)  # fmt: skip


SCE, LME, LMA = 1, 1 << 8, 1 << 10


def privileged(cpu: Cpu) -> None:
    """Raise #GP(0) above ring 0."""
    if cpu.cpl:
        raise Fault(GP, 0)
