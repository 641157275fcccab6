"""SYSCALL, SYSRET, SYSENTER and SYSEXIT."""

from __future__ import annotations

from .exceptions import GP, UD, Fault
from .interp import IF, M16, M32, M64, RF, VM, get_flags
from .interrupts import protect_ranges
from .paging import canonical
from .segments import (
    CS_,
    SS_,
)  # fmt: skip

TYPE_CHECKING = False

if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn


# Fast system calls.
def flat(cpu: Cpu, number: int, selector: int, code: bool, dpl: int, long_code: bool) -> None:
    """Load CS or SS with the fixed flat contents that SYSCALL and SYSENTER give them."""
    segment = type(cpu.segs[0])()
    segment.selector = selector
    segment.limit, segment.g, segment.present, segment.s, segment.dpl = M32, 1, 1, 1, dpl
    segment.type = 11 if code else 3
    segment.l, segment.db = (1, 0) if code and long_code else (0, 1)
    protect_ranges(cpu, segment)
    if code:
        segment.write_high = -1
    cpu.segs[number] = segment
    cpu.mode_key = None


def syscall(cpu: Cpu, i: Insn) -> None:
    """SYSCALL."""
    if not cpu.efer & 1 or not cpu.cr0 & 1 or (cpu.vendor_intel and cpu.bits != 64):
        raise Fault(UD)
    star = cpu.msr.get(0xC0000081, 0)
    flags = get_flags(cpu)
    selector = star >> 32 & 0xFFFC
    if cpu.long:
        cpu.regs[1] = cpu.rip
        cpu.regs[11] = flags & ~RF
        target = cpu.msr.get(0xC0000082 if cpu.bits == 64 else 0xC0000083, 0)
        cpu.flags = flags & ~(cpu.msr.get(0xC0000084, 0) | RF) | 2
        flat(cpu, CS_, selector, True, 0, True)
    else:
        cpu.regs[1] = cpu.rip
        target = star & M32
        cpu.flags = flags & ~(IF | VM | RF)
        flat(cpu, CS_, selector, True, 0, False)
    flat(cpu, SS_, selector + 8 & M16, False, 0, False)
    cpu.cpl = 0
    cpu.rip = target
    cpu.update_mode()


def sysret(cpu: Cpu, i: Insn) -> None:
    """SYSRET."""
    if not cpu.efer & 1 or (cpu.vendor_intel and cpu.bits != 64):
        raise Fault(UD)
    if not cpu.protected or cpu.cpl:
        raise Fault(GP, 0)
    selector = cpu.msr.get(0xC0000081, 0) >> 48
    target = cpu.regs[1]
    if cpu.long:
        if i.size == 8:
            if not canonical(cpu, target):
                raise Fault(GP, 0)
            selector += 16
        else:
            target &= M32
        cpu.flags = cpu.regs[11] & 0x3C7FD7 | 2
        cpu.fw = 0
        flat(cpu, CS_, (selector | 3) & M16, True, 3, i.size == 8)
        stack = (cpu.msr.get(0xC0000081, 0) >> 48) + 8
    else:
        cpu.flags = get_flags(cpu) | IF
        target &= M32
        flat(cpu, CS_, (selector | 3) & M16, True, 3, False)
        stack = selector + 8
    flat(cpu, SS_, (stack | 3) & M16, False, 3, False)
    cpu.cpl = 3
    cpu.rip = target
    cpu.update_mode()
    cpu.window()


def sysenter(cpu: Cpu, i: Insn) -> None:
    """SYSENTER."""
    selector = cpu.msr.get(0x174, 0)
    if not cpu.cr0 & 1 or not selector & 0xFFFC:
        raise Fault(GP, 0)
    mask = M64 if cpu.long else M32
    cpu.flags = get_flags(cpu) & ~(VM | IF | RF)
    flat(cpu, CS_, selector & 0xFFFC, True, 0, bool(cpu.long))
    flat(cpu, SS_, (selector & 0xFFFC) + 8 & M16, False, 0, False)
    cpu.cpl = 0
    cpu.regs[4] = cpu.msr.get(0x175, 0) & mask
    cpu.rip = cpu.msr.get(0x176, 0) & mask
    cpu.update_mode()


def sysexit(cpu: Cpu, i: Insn) -> None:
    """SYSEXIT."""
    selector = cpu.msr.get(0x174, 0)
    if not cpu.protected or not selector & 0xFFFC or cpu.cpl:
        raise Fault(GP, 0)
    wide = i.size == 8
    target, sp = cpu.regs[2], cpu.regs[1]
    if wide:
        if not canonical(cpu, target) or not canonical(cpu, sp):
            raise Fault(GP, 0)
    else:
        target, sp = target & M32, sp & M32
    base = selector + (32 if wide else 16)
    flat(cpu, CS_, (base | 3) & M16, True, 3, wide)
    flat(cpu, SS_, (base + 8 | 3) & M16, False, 3, False)
    cpu.cpl = 3
    cpu.rip, cpu.regs[4] = target, sp
    cpu.update_mode()
