"""Starting states: the registers with which a vCPU takes its first step.

Pure functions over the structures of the KVM ABI. The states are those that the loaders promise to guests.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Mapping
    from typing import Literal

    from ..kvm.abi.basic import kvm_regs, kvm_segment, kvm_sregs

    Mode = Literal["real", "protected", "long"]

RFLAGS_RESERVED = 1 << 1  # bit 1 always reads as 1; IF is clear: interrupts off

# Selectors in the table that gdt() makes.
CODE32, DATA, CODE64 = 0x08, 0x10, 0x18
# Selectors in the table that linux_gdt() makes: __BOOT_CS and __BOOT_DS (Linux, arch/x86/include/asm/segment.h).
LINUX_CODE, LINUX_DATA = 0x10, 0x18
# Descriptor types (SDM vol. 3A tables 3-1 and 3-2).
CODE_READ_ACCESSED, DATA_WRITE_ACCESSED, BUSY_TSS = 0xB, 0x3, 0xB
TSS_LIMIT = 0x67  # the smallest task state segment


class StartState:
    """Where and how one vCPU starts.

    `mode`: real, protected (32-bit, flat 4 GiB segments, paging off) or long (64-bit, CPL0).
    `entry`: linear address of the first instruction. `stack`: linear address just above the stack, 0 for none.
    `stack_base`: in real mode, what SS points to. `code_base`: in real mode, what CS points to, None for the 64 KiB
    that hold the entry, to which the others point. `gdt`: where the descriptor table of gdt() or linux_gdt() is, 0 for
    none. `page_table`: what CR3 gets in long mode. `selectors`: what CS and the others get, None for those of gdt().
    `registers`: general registers by their names in kvm_regs.
    """

    __slots__ = ("code_base", "entry", "gdt", "mode", "page_table", "registers", "selectors", "stack", "stack_base")

    def __init__(
        self,
        mode: Mode,
        entry: int,
        *,
        stack: int = 0,
        stack_base: int = 0,
        code_base: int | None = None,
        gdt: int = 0,
        page_table: int = 0,
        selectors: tuple[int, int] | None = None,
        registers: Mapping[str, int] | None = None,
    ) -> None:
        self.mode = mode
        self.entry = entry
        self.stack = stack
        self.stack_base = stack_base
        self.code_base = code_base
        self.gdt = gdt
        self.page_table = page_table
        self.selectors = selectors
        self.registers = dict(registers or {})


# Segment descriptors (SDM vol. 3A section 3.4.5), all present, with base 0 and limit 0xFFFFF in pages.
_FLAT = 0x000F_0000_0000_FFFF
_CODE32 = _FLAT | 0x00C0_9B00_0000_0000  # granular, 32-bit; code, readable, accessed
_DATA = _FLAT | 0x00C0_9300_0000_0000  # granular, 32-bit; data, writable, accessed
_CODE64 = _FLAT | 0x00A0_9B00_0000_0000  # granular, 64-bit; code, readable, accessed


def gdt() -> bytes:
    """Return a descriptor table: null, CODE32, DATA, CODE64, all flat 4 GiB."""
    return _table(0, _CODE32, _DATA, _CODE64)


def linux_gdt(mode: str = "long") -> bytes:
    """Return a descriptor table for Linux's 64-bit entry or its 32-bit one: code at LINUX_CODE, data at LINUX_DATA."""
    return _table(0, 0, _CODE64 if mode == "long" else _CODE32, _DATA)


def _table(*descriptors: int) -> bytes:
    return b"".join(descriptor.to_bytes(8, "little") for descriptor in descriptors)


def set_start(start: StartState, regs: kvm_regs, sregs: kvm_sregs) -> None:
    """Turn `regs` and `sregs`, which hold the state after reset, into the starting state `start`."""
    regs.rflags = RFLAGS_RESERVED
    for name, value in start.registers.items():
        setattr(regs, name, value)
    {"real": _real, "protected": _protected, "long": _long}[start.mode](start, regs, sregs)


def _real(start: StartState, regs: kvm_regs, sregs: kvm_sregs) -> None:
    # The offset is the low half of the linear address, so that code linked at its address below 64 KiB finds itself.
    base = start.entry & ~0xFFFF
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs):
        _real_segment(segment, base)
    _real_segment(sregs.cs, base if start.code_base is None else start.code_base)
    _real_segment(sregs.ss, start.stack_base)
    regs.rip = start.entry - sregs.cs.base
    regs.rsp = start.stack - start.stack_base


def _real_segment(segment: kvm_segment, base: int) -> None:
    segment.base = base
    segment.selector = base >> 4
    segment.limit = 0xFFFF


def _protected(start: StartState, regs: kvm_regs, sregs: kvm_sregs) -> None:
    from .flags import CR0

    sregs.cr0 = CR0.PE | CR0.ET  # PVH wants every other bit clear; reset leaves the caches off (CD, NW)
    _flat_mode(start, regs, sregs, CODE32)
    sregs.cs.db, sregs.cs.l = 1, 0


def _long(start: StartState, regs: kvm_regs, sregs: kvm_sregs) -> None:
    from .flags import CR0, CR4, EFER

    sregs.cr3 = start.page_table
    sregs.cr4 |= CR4.PAE
    sregs.cr0 = CR0.PE | CR0.ET | CR0.PG
    sregs.efer |= EFER.LME | EFER.LMA
    _flat_mode(start, regs, sregs, CODE64)
    sregs.cs.db, sregs.cs.l = 0, 1


def _flat_mode(start: StartState, regs: kvm_regs, sregs: kvm_sregs, code: int) -> None:
    code, data = start.selectors or (code, DATA)
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        _flat(segment, data, DATA_WRITE_ACCESSED)
    _flat(sregs.cs, code, CODE_READ_ACCESSED)
    task = sregs.tr  # none, but the processor wants a valid one
    task.base, task.limit, task.selector, task.type, task.present, task.s, task.g = 0, TSS_LIMIT, 0, BUSY_TSS, 1, 0, 0
    sregs.gdt.base, sregs.gdt.limit = start.gdt, len(gdt()) - 1 if start.gdt else 0
    sregs.idt.base, sregs.idt.limit = 0, 0  # no handlers: any exception is a triple fault
    regs.rip = start.entry
    regs.rsp = start.stack


def _flat(segment: kvm_segment, selector: int, kind: int) -> None:
    segment.base = 0
    segment.limit = 0xFFFF_FFFF
    segment.selector = selector
    segment.type = kind
    segment.present = segment.db = segment.s = segment.g = 1
    segment.dpl = segment.l = segment.unusable = 0
