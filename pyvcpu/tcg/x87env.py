"""x87 instructions: the environment and the whole state in memory (SDM vol. 1 section 8.1.10)."""

from __future__ import annotations

from .fpu import present, waiting
from .x87ops import X87

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn

VM = 1 << 17  # RFLAGS


def real_format(cpu: Cpu) -> bool:
    """Tell whether the environment has the format of real and virtual-8086 mode."""
    return not cpu.cr0 & 1 or bool(cpu.get_rflags() & VM)


def environment(cpu: Cpu, wide: bool) -> bytes:
    """Return the 14 or 28 bytes of FNSTENV (SDM vol. 1 figures 8-9 to 8-12)."""
    fpu = cpu.fpu
    words = [fpu.cw, fpu.status(), fpu.tags()]
    high: tuple[int | None, ...] = (None,) * 4
    if real_format(cpu):
        ip = (fpu.fcs << 4) + fpu.fip & 0xFFFFFFFF
        dp = (fpu.fds << 4) + fpu.fdp & 0xFFFFFFFF
        pointers = [ip & 0xFFFF, ip >> 16 << 12 | fpu.fop, dp & 0xFFFF, dp >> 16 << 12]
        high = (0xFFFF, None, 0xFFFF, None)
    else:
        pointers = [fpu.fip & 0xFFFFFFFF, fpu.fcs | fpu.fop << 16, fpu.fdp & 0xFFFFFFFF, fpu.fds | 0xFFFF << 16]
        if not wide:
            pointers[1] &= 0xFFFF
    if not wide:
        return b"".join((word & 0xFFFF).to_bytes(2, "little") for word in words + pointers)
    words = [word | 0xFFFF0000 for word in words]
    pointers = [p if h is None else p | h << 16 for p, h in zip(pointers, high, strict=True)]
    return b"".join((word & 0xFFFFFFFF).to_bytes(4, "little") for word in words + pointers)


def set_environment(cpu: Cpu, data: bytes, wide: bool) -> None:
    """Take the environment of FLDENV."""
    fpu = cpu.fpu
    size = 4 if wide else 2
    cw, sw, tags, ip, cs, dp, ds = (int.from_bytes(data[n : n + size], "little") for n in range(0, 7 * size, size))
    if real_format(cpu):
        fpu.fop = cs & 0x7FF
        fpu.fip, fpu.fcs = ip & 0xFFFF | cs >> 12 << 16, 0
        fpu.fdp, fpu.fds = dp & 0xFFFF | ds >> 12 << 16, 0
    else:
        fpu.fip, fpu.fcs, fpu.fdp, fpu.fds = ip, cs & 0xFFFF, dp, ds & 0xFFFF
        fpu.fop = cs >> 16 & 0x7FF
    fpu.cw = cw & 0x1F7F | 0x40
    fpu.set_status(sw)
    fpu.set_tags(tags & 0xFFFF)


def fnstenv(cpu: Cpu, i: Insn) -> None:
    """FNSTENV: store the environment, then mask all exceptions."""
    present(cpu)
    cpu.store_bytes(i.seg, i.ea(cpu), environment(cpu, i.size != 2))
    cpu.fpu.set_control(cpu.fpu.cw | 0x3F)


def fldenv(cpu: Cpu, i: Insn) -> None:
    """FLDENV."""
    waiting(cpu)
    wide = i.size != 2
    set_environment(cpu, cpu.load_bytes(i.seg, i.ea(cpu), 28 if wide else 14), wide)


def fnsave(cpu: Cpu, i: Insn) -> None:
    """FNSAVE: store environment and registers, then FNINIT."""
    present(cpu)
    fpu = cpu.fpu
    registers = b"".join(fpu.st(place).to_bytes(10, "little") for place in range(8))
    cpu.store_bytes(i.seg, i.ea(cpu), environment(cpu, i.size != 2) + registers)
    fpu.init()


def frstor(cpu: Cpu, i: Insn) -> None:
    """FRSTOR."""
    waiting(cpu)
    wide = i.size != 2
    size = 28 if wide else 14
    data = cpu.load_bytes(i.seg, i.ea(cpu), size + 80)
    set_environment(cpu, data, wide)
    fpu = cpu.fpu
    for place in range(8):
        at = size + place * 10
        fpu.r[fpu.top + place & 7] = int.from_bytes(data[at : at + 10], "little")


X87.update({0x104: fldenv, 0x106: fnstenv, 0x504: frstor, 0x506: fnsave})
