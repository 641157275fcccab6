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
# Descriptor types (SDM vol. 3A table 3-1).
CODE_READ_ACCESSED, DATA_WRITE_ACCESSED = 0xB, 0x3


class StartState:
    """Where and how one vCPU starts.

    `mode`: real, protected (32-bit, flat 4 GiB segments, paging off) or long (64-bit, CPL0).
    `entry`: linear address of the first instruction. `stack`: linear address just above the stack, 0 for none.
    `stack_base`: in real mode, what SS points to. `gdt`: where the descriptor table of gdt() is, 0 for none.
    `page_table`: what CR3 gets in long mode. `registers`: general registers by their names in kvm_regs.
    """

    __slots__ = ("entry", "gdt", "mode", "page_table", "registers", "stack", "stack_base")

    def __init__(
        self,
        mode: Mode,
        entry: int,
        *,
        stack: int = 0,
        stack_base: int = 0,
        gdt: int = 0,
        page_table: int = 0,
        registers: Mapping[str, int] | None = None,
    ) -> None:
        self.mode = mode
        self.entry = entry
        self.stack = stack
        self.stack_base = stack_base
        self.gdt = gdt
        self.page_table = page_table
        self.registers = dict(registers or {})


def gdt() -> bytes:
    """Return a descriptor table: null, CODE32, DATA (both flat 4 GiB), CODE64 (SDM vol. 3A section 3.4.5)."""
    flat = 0x000F_0000_0000_FFFF  # base 0, limit 0xFFFFF
    code32 = flat | 0x00C0_9B00_0000_0000  # granular, 32-bit; present, code, readable, accessed
    data = flat | 0x00C0_9300_0000_0000  # granular, 32-bit; present, data, writable, accessed
    code64 = flat | 0x00A0_9B00_0000_0000  # granular, 64-bit; present, code, readable, accessed
    return b"".join(d.to_bytes(8, "little") for d in (0, code32, data, code64))


def set_start(start: StartState, regs: kvm_regs, sregs: kvm_sregs) -> None:
    """Turn `regs` and `sregs`, which hold the state after reset, into the starting state `start`."""
    regs.rflags = RFLAGS_RESERVED
    for name, value in start.registers.items():
        setattr(regs, name, value)
    {"real": _real, "protected": _protected, "long": _long}[start.mode](start, regs, sregs)


def _real(start: StartState, regs: kvm_regs, sregs: kvm_sregs) -> None:
    # The offset is the low half of the linear address, so that code linked at its address below 64 KiB finds itself.
    base = start.entry & ~0xFFFF
    for segment in (sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs):
        _real_segment(segment, base)
    _real_segment(sregs.ss, start.stack_base)
    regs.rip = start.entry - base
    regs.rsp = start.stack - start.stack_base


def _real_segment(segment: kvm_segment, base: int) -> None:
    segment.base = base
    segment.selector = base >> 4
    segment.limit = 0xFFFF


def _protected(start: StartState, regs: kvm_regs, sregs: kvm_sregs) -> None:
    from .flags import CR0

    sregs.cr0 |= CR0.PE
    _segments(sregs, CODE32, long=False)
    _tables(start, sregs)
    regs.rip = start.entry
    regs.rsp = start.stack


def _long(start: StartState, regs: kvm_regs, sregs: kvm_sregs) -> None:
    from .flags import CR0, CR4, EFER

    sregs.cr3 = start.page_table
    sregs.cr4 |= CR4.PAE
    sregs.cr0 |= CR0.PE | CR0.PG
    sregs.efer |= EFER.LME | EFER.LMA
    _segments(sregs, CODE64, long=True)
    _tables(start, sregs)
    regs.rip = start.entry
    regs.rsp = start.stack


def _tables(start: StartState, sregs: kvm_sregs) -> None:
    sregs.gdt.base, sregs.gdt.limit = start.gdt, len(gdt()) - 1 if start.gdt else 0
    sregs.idt.base, sregs.idt.limit = 0, 0  # no handlers: any exception is a triple fault


def _segments(sregs: kvm_sregs, code: int, *, long: bool) -> None:
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        _flat(segment, DATA, DATA_WRITE_ACCESSED)
    _flat(sregs.cs, code, CODE_READ_ACCESSED)
    sregs.cs.l, sregs.cs.db = long, not long


def _flat(segment: kvm_segment, selector: int, kind: int) -> None:
    segment.base = 0
    segment.limit = 0xFFFF_FFFF
    segment.selector = selector
    segment.type = kind
    segment.present = segment.db = segment.s = segment.g = 1
    segment.dpl = segment.l = segment.unusable = 0
