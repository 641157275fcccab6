"""What the decoder asks for: the instructions of x87, MMX and SSE, and the CPUID features they amount to."""

from __future__ import annotations

from .x87ctl import wait
from .x87ops import X87

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .cpu import Cpu
    from .decode import Insn

    Operation = Callable[[Cpu, Insn], None]

__all__ = ["EMMS", "FEATURES", "SSE", "WAIT", "X87"]

WAIT = wait
# By (mandatory prefix, opcode map, opcode): the operation, and whether an imm8 follows.
SSE: dict[tuple[int, int, int], tuple[Operation, bool]] = {}
# CPUID bits of what is built here, by the names of pyvcpu.x86.features.
FEATURES = ("fpu",)


def EMMS(cpu: Cpu, i: Insn) -> None:
    """EMMS."""
    from .fpu import check_mmx

    check_mmx(cpu)
    cpu.fpu.valid = 0
    cpu.fpu.top = 0
