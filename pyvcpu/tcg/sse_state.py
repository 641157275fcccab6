"""FXSAVE, XSAVE and theirs, LDMXCSR and STMXCSR: 0F AE and 0F C7 (SDM vol. 1 section 13.7 and on)."""

from __future__ import annotations

from . import xsave
from .exceptions import GP, NM, UD, Fault
from .fpu import EM, MXCSR_MASK, MXCSR_RESET, TS
from .sse import M64, add, aligned_offset, ready
from .xsave import AREA, LEGACY, SSE, X87

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn

OSXSAVE = 1 << 18
COMPACT = 1 << 63


def register_count(cpu: Cpu) -> int:
    """Return the number of XMM registers that the mode shows."""
    return 16 if cpu.efer & 0x400 and cpu.segs[1].l else 8


def fxsave(cpu: Cpu, i: Insn) -> None:
    """FXSAVE."""
    if cpu.cr0 & (EM | TS):
        raise Fault(NM)
    data = xsave.legacy(cpu.fpu, i.size == 8, register_count(cpu))
    cpu.store_bytes(i.seg, aligned_offset(cpu, i), data)


def fxrstor(cpu: Cpu, i: Insn) -> None:
    """FXRSTOR."""
    if cpu.cr0 & (EM | TS):
        raise Fault(NM)
    data = cpu.load_bytes(i.seg, aligned_offset(cpu, i), LEGACY)
    try:
        xsave.set_legacy(cpu.fpu, data, i.size == 8, register_count(cpu))
    except ValueError:
        raise Fault(GP, 0) from None


def ldmxcsr(cpu: Cpu, i: Insn) -> None:
    """LDMXCSR."""
    ready(cpu)
    value = cpu.load(i.seg, i.ea(cpu), 4)
    if value & ~MXCSR_MASK:
        raise Fault(GP, 0)
    cpu.fpu.mxcsr = value


def stmxcsr(cpu: Cpu, i: Insn) -> None:
    """STMXCSR."""
    ready(cpu)
    cpu.store(i.seg, i.ea(cpu), 4, cpu.fpu.mxcsr)


def prepare(cpu: Cpu, i: Insn) -> tuple[int, int]:
    """Check what XSAVE and XRSTOR check first. Returns the offset and the requested components (RFBM)."""
    if not cpu.cr4 & OSXSAVE:
        raise Fault(UD)
    if cpu.cr0 & TS:
        raise Fault(NM)
    offset = aligned_offset(cpu, i, 64)
    return offset, (cpu.regs[2] << 32 | cpu.regs[0] & 0xFFFFFFFF) & cpu.xcr0 & M64


def save(cpu: Cpu, i: Insn, optimized: bool, compact: bool) -> None:
    """XSAVE, XSAVEOPT (`optimized`: components in their initial state are not written), XSAVEC.

    A page fault between the parts leaves some written: the instruction is run again then.
    """
    offset, requested = prepare(cpu, i)
    fpu = cpu.fpu
    used = xsave.in_use(fpu)
    if compact and fpu.mxcsr != MXCSR_RESET:
        used |= SSE
    written = requested & used if optimized or compact else requested
    legacy = xsave.legacy(fpu, i.size == 8, register_count(cpu))
    parts = []
    if written & X87:
        parts += [(0, 24), (32, 160)]
    if written & SSE:
        parts.append((160, len(legacy)))
    if written & SSE or (requested & ~X87 and not compact):
        parts.append((24, 32))
    for start, end in parts:
        cpu.store_bytes(i.seg, offset + start, legacy[start:end])
    if compact:
        header = (requested & used).to_bytes(8, "little") + (requested | COMPACT).to_bytes(8, "little")
    else:
        before = int.from_bytes(cpu.load_bytes(i.seg, offset + LEGACY, 8), "little")
        header = (before & ~requested | requested & used).to_bytes(8, "little")
    cpu.store_bytes(i.seg, offset + LEGACY, header)


def xrstor(cpu: Cpu, i: Insn) -> None:
    """XRSTOR, of both formats."""
    offset, requested = prepare(cpu, i)
    fpu = cpu.fpu
    area = cpu.load_bytes(i.seg, offset, AREA)
    state, layout = (int.from_bytes(area[at : at + 8], "little") for at in (LEGACY, LEGACY + 8))
    compact = bool(layout & COMPACT)
    if compact:
        if (layout & ~COMPACT) & ~cpu.xcr0 or state & ~layout or any(area[LEGACY + 16 :]):
            raise Fault(GP, 0)
    elif state & ~cpu.xcr0 or layout or any(area[LEGACY + 16 : LEGACY + 24]):
        raise Fault(GP, 0)
    mxcsr = int.from_bytes(area[24:28], "little")
    if compact and requested & SSE and not state & SSE:
        mxcsr = MXCSR_RESET
    loads = bool(requested & (SSE if compact else ~X87))
    if loads and mxcsr & ~MXCSR_MASK:
        raise Fault(GP, 0)
    xsave.restore(fpu, area, requested, state, i.size == 8, register_count(cpu))
    if loads:
        fpu.mxcsr = mxcsr


def group_ae(cpu: Cpu, i: Insn) -> None:
    """0F AE with a memory operand, /0 to /6."""
    if i.mod == 3 or i.prefix:
        raise Fault(UD)
    reg = i.reg & 7
    if reg == 4 or reg == 6:
        save(cpu, i, reg == 6, False)
    elif reg < 6:
        (fxsave, fxrstor, ldmxcsr, stmxcsr, fxsave, xrstor)[reg](cpu, i)
    else:
        raise Fault(UD)


def group_c7(cpu: Cpu, i: Insn) -> None:
    """0F C7 /4: XSAVEC."""
    if i.mod == 3 or i.prefix or i.reg & 7 != 4:
        raise Fault(UD)
    save(cpu, i, False, True)


add(0, 0xAE, group_ae)
add(0, 0xC7, group_c7)
