"""The FPU's state in the structures of KVM: kvm_fpu and kvm_xsave. The formats themselves are tcg.xsave's."""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu

FPU_SIZE, XSAVE_SIZE = 416, 4096


def get_fpu(cpu: Cpu) -> bytes:
    """Return kvm_fpu."""
    from . import xsave

    return xsave.get_fpu(cpu.fpu)


def set_fpu(cpu: Cpu, data: bytes) -> None:
    """Take kvm_fpu. Raise OSError EINVAL for MXCSR bits that there are not."""
    from . import xsave

    try:
        xsave.set_fpu(cpu.fpu, data)
    except ValueError:
        raise OSError(errno.EINVAL, "MXCSR") from None


def get_xsave(cpu: Cpu) -> bytes:
    """Return kvm_xsave, all of it valid."""
    from . import xsave

    return xsave.get_xsave(cpu.fpu, 3)


def set_xsave(cpu: Cpu, data: bytes) -> None:
    """Take kvm_xsave. Raise OSError EINVAL for parts or MXCSR bits that there are not."""
    from . import xsave

    if not data[512] & 6:  # without SSE or AVX in XSTATE_BV nobody looks at MXCSR
        data = data[:24] + b"\x80\x1f\0\0" + data[28:]
    try:
        xsave.set_xsave(cpu.fpu, data)
    except ValueError:
        raise OSError(errno.EINVAL, "XSAVE") from None
