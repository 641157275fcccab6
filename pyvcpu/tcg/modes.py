"""What mode the processor is in, and what follows from it for code, memory and the TLB."""

from __future__ import annotations

from . import mmu, paging, segments
from .interp import ACF, M16, M32, M64, VM
from .paging import SUPERVISOR, SUPERVISOR_AC, USER

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .blocks import Key
    from .cpu import Cpu


ES, CS, SS, DS = range(4)
PE, AM, PG = 1, 1 << 18, 1 << 31


def cpuid_changed(cpu: Cpu) -> None:
    """Take from CPUID what paging and CR4 depend on."""
    cpuid = cpu.platform.cpuid
    highest = cpuid(0x80000000, 0)[0]
    cpu.phys_bits = (cpuid(0x80000008, 0)[0] & 0xFF or 36) if highest >= 0x80000008 else 36
    cpu.gigabyte_pages = bool(highest >= 0x80000001 and cpuid(0x80000001, 0)[3] & 1 << 26)
    largest, ebx, _, _ = cpuid(0, 0)
    cpu.vendor_intel = ebx == 0x756E6547
    cpu.reserved = (1 << 52) - (1 << cpu.phys_bits)
    ecx = cpuid(1, 0)[2]
    _, ebx7, ecx7, _ = cpuid(7, 0) if largest >= 7 else (0, 0, 0, 0)
    allowed = -1
    for bit, there in (
        (16, ebx7 & 1), (17, ecx & 1 << 17), (18, ecx & 1 << 26), (20, ebx7 & 1 << 7), (21, ebx7 & 1 << 20),
        (11, ecx7 & 4), (12, ecx7 & 1 << 16),
    ):  # fmt: skip
        if not there:
            allowed &= ~(1 << bit)
    cpu.cr4_allowed = allowed


def state_changed(cpu: Cpu) -> None:
    """Work out the mode anew and flush the TLB: to call after registers were set from outside."""
    cpu.cpuid_changed()
    cpu.mode_key = None
    protected = bool(cpu.cr0 & PE)
    if cpu.flags & VM and protected:
        cpu.cpl = 3
    else:
        cpu.cpl = cpu.segs[SS].dpl if protected else 0
    cpu.update_mode()
    if cpu.cr0 & PG and cpu.cr4 & paging.PAE and not cpu.long:
        from .interp_system import load_pdptrs

        load_pdptrs(cpu, cpu.cr3, False)
    for segment in cpu.segs:
        segments.ranges(cpu, segment)
    mmu.flush(cpu)
    cpu.update_breakpoints()
    cpu.wake = 1


def update_mode(cpu: Cpu) -> None:
    """Work out what follows from CR0, EFER, CS, SS, the privilege level and RFLAGS."""
    cr0, flags = cpu.cr0, cpu.flags
    cs, ss = cpu.segs[CS], cpu.segs[SS]
    key = (cr0, cpu.cr4, cpu.efer, flags & (VM | ACF), cpu.cpl, cs.l, cs.db, cs.base, cs.limit, ss.db)
    if key == cpu.mode_key:
        segments.ranges(cpu, cs)
        return
    cpu.long = bool(cpu.efer & paging.LMA)
    protected = bool(cr0 & PE)
    cpu.v86 = protected and bool(flags & VM) and not cpu.long
    was = cpu.protected
    cpu.protected = protected and not cpu.v86
    if not protected:
        cpu.cpl = 0
    cpu.mode_key = (*key[:4], cpu.cpl, *key[5:])
    bits = 64 if cpu.long and cs.l else 32 if cs.db else 16
    if bits != cpu.bits:
        if (bits == 64) != (cpu.bits == 64):
            cpu.forget_pages()
        if bits != 64:
            cpu.regs[:8] = [value & M32 for value in cpu.regs[:8]]
        cpu.bits = bits
    cpu.stack_mask = M64 if bits == 64 else M32 if ss.db else M16
    cpu.canonical_bits = 56 if cpu.cr4 & paging.LA57 else 47
    ac = flags & ACF
    cpu.accessor = USER if cpu.cpl == 3 else SUPERVISOR_AC if ac and cpu.cr4 & paging.SMAP else SUPERVISOR
    cpu.align_check = bool(cpu.cpl == 3 and ac and cr0 & AM)
    if cpu.align_check:
        cpu.read_tlb, cpu.write_tlb, cpu.mixed = {}, {}, {}
    else:
        cpu.read_tlb, cpu.write_tlb = cpu.tlb[cpu.accessor], cpu.tlb[3 + cpu.accessor]
        cpu.mixed = cpu.mixed_tlb[cpu.accessor]
    if was != cpu.protected:
        for segment in cpu.segs:
            segments.ranges(cpu, segment)
    else:
        segments.ranges(cpu, cs)
    cpu.select_code_map()


def select_code_map(cpu: Cpu) -> None:
    """Choose the map of blocks for the current mode."""
    cs = cpu.segs[CS]
    if cpu.bits == 64:
        key: Key = (64, tuple(cpu.break_rips)) if cpu.break_rips else (64,)
    else:
        flat = 0
        for number in (ES, SS, DS):
            segment = cpu.segs[number]
            if segment.base == 0 and segment.write_low == 0 and segment.write_high == M32 == segment.read_high:
                flat |= 1 << number
        key = (cpu.bits, cpu.stack_mask, flat, cs.base, cs.limit, *cpu.break_rips)
    cpu.code_key = key
    code_map = cpu.code_maps.get(key)
    if code_map is None:
        code_map = cpu.code_maps[key] = {}
    cpu.code_map = code_map
