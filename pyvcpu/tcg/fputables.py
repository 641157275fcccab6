"""What the decoder asks for: the instructions of x87, MMX and SSE, and the CPUID features they amount to."""

from __future__ import annotations

from . import sse_convert, sse_crypto, sse_float, sse_int, sse_more, sse_state, sse_text, x87ctl, x87env, x87mem
from .fpu import check_mmx
from .sse import SSE
from .x87ops import X87

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn

__all__ = ["EMMS", "FEATURES", "SSE", "WAIT", "X87"]

WAIT = x87ctl.wait
# Each enters its instructions into SSE or X87 when it is imported.
PARTS = (sse_convert, sse_crypto, sse_float, sse_int, sse_more, sse_state, sse_text, x87ctl, x87env, x87mem)
# CPUID bits of what is built here, by the names of pyvcpu.x86.features.
FEATURES = (
    "fpu", "mmx", "fxsr", "sse", "sse2", "pni", "ssse3", "sse4_1", "sse4_2", "aes", "pclmulqdq",
    "xsave", "xsaveopt", "xsavec",
)  # fmt: skip


def EMMS(cpu: Cpu, i: Insn) -> None:
    """EMMS."""
    check_mmx(cpu)
    cpu.fpu.valid = 0
    cpu.fpu.top = 0
