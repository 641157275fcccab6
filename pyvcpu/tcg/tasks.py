"""Hardware task switches (SDM vol. 3A chapter 8): JMP, CALL, interrupts and IRET through TSS descriptors."""

from __future__ import annotations

from .exceptions import DB, GP, NP, SS, TS, Fault
from .interp import M16, M32, NT, VM, get_flags
from .interp_system import load_pdptrs
from .mmu import flush, read, write
from .paging import PAE, PG, SUPERVISOR
from .segments import (
    BUSY16,
    BUSY32,
    CS_,
    DS_,
    ES_,
    FS_,
    GS_,
    LDT,
    LDTR_,
    SS_,
    TR_,
    TSS16,
    TSS32,
    Descriptor,
    fetch_or,
    install,
    mark_accessed,
    ranges,
    set_busy,
    set_null,
    set_v86,
)  # fmt: skip

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu

SEGMENTS_32 = (ES_, CS_, SS_, DS_, FS_, GS_)
SEGMENTS_16 = (ES_, CS_, SS_, DS_)


def switch_by_gate(cpu: Cpu, selector: int, external: int, error: int | None, call: bool = True) -> None:
    """Switch to the task that a task gate names."""
    vector = GP
    if selector & 4 or not selector & 0xFFFC:
        raise Fault(vector, selector & 0xFFFC | external)
    found = fetch_or(cpu, selector, GP, external)
    segment = found.segment
    if segment.s or segment.type not in (TSS16, TSS32):
        raise Fault(GP, selector & 0xFFFC | external)
    if not segment.present:
        raise Fault(NP, selector & 0xFFFC | external)
    switch(cpu, found, "call" if call else "jmp", error, external)


def switch_back(cpu: Cpu) -> None:
    """IRET with NT set: return to the task in the back link."""
    task = cpu.segs[TR_]
    selector = read(cpu, task.base, 2, SUPERVISOR)
    if selector & 4 or not selector & 0xFFFC:
        raise Fault(TS, selector & 0xFFFC)
    found = fetch_or(cpu, selector, TS)
    segment = found.segment
    if segment.s or segment.type not in (BUSY16, BUSY32):
        raise Fault(TS, selector & 0xFFFC)
    if not segment.present:
        raise Fault(NP, selector & 0xFFFC)
    switch(cpu, found, "iret")


def switch(cpu: Cpu, found: Descriptor, reason: str, error: int | None = None, external: int = 0) -> None:
    """Save the running task in its TSS and load another. Faults after the switch belong to the new task."""
    new, old = found.segment, cpu.segs[TR_]
    wide = bool(new.type & 8)
    if new.limit < (103 if wide else 43):
        raise Fault(TS, new.selector & 0xFFFC | external)
    flags = get_flags(cpu)
    if reason == "iret":
        flags &= ~NT
    state = read_task(cpu, new.base, wide)
    save_task(cpu, flags)
    if reason in ("jmp", "iret"):
        old_entry = fetch_or(cpu, old.selector, TS)
        set_busy(cpu, old_entry, False)
    if reason == "call":
        write(cpu, new.base, 2, old.selector, SUPERVISOR)
    if reason != "iret":
        set_busy(cpu, found, True)
    new.type |= 2
    ranges(cpu, new)
    cpu.segs[TR_] = new
    cpu.cr0 |= 8
    try:
        load_task(cpu, state, wide, reason == "call")
    except Fault as fault:
        raise Fault(fault.vector, fault.error, True) from None  # the new task's, at its rip
    if error is not None:
        from .interp import push

        push(cpu, error, 4 if wide else 2)


def read_task(cpu: Cpu, base: int, wide: bool) -> dict[str, list[int]]:
    """Read what a task switch loads from a TSS."""
    if wide:
        words = [read(cpu, base + at & M32, 4, SUPERVISOR) for at in range(0, 104, 4)]
        return {
            "cr3": [words[7]], "ip": [words[8]], "flags": [words[9]], "regs": words[10:18],
            "segs": [word & M16 for word in words[18:24]], "ldt": [words[24] & M16], "trap": [words[25] & 1],
        }  # fmt: skip
    words = [read(cpu, base + at & M32, 2, SUPERVISOR) for at in range(0, 44, 2)]
    return {
        "cr3": [], "ip": [words[7]], "flags": [words[8]], "regs": words[9:17], "segs": words[17:21],
        "ldt": [words[21]], "trap": [0],
    }  # fmt: skip


def save_task(cpu: Cpu, flags: int) -> None:
    """Write the running task into its TSS."""
    old = cpu.segs[TR_]
    base = old.base
    if old.type & 8:
        values = [cpu.rip, flags, *(reg & M32 for reg in cpu.regs[:8])]
        for at, value in enumerate(values):
            write(cpu, base + 32 + at * 4 & M32, 4, value, SUPERVISOR)
        for at, number in enumerate(SEGMENTS_32):
            write(cpu, base + 72 + at * 4 & M32, 2, cpu.segs[number].selector, SUPERVISOR)
        return
    values = [cpu.rip & M16, flags & M16, *(reg & M16 for reg in cpu.regs[:8])]
    values += [cpu.segs[number].selector for number in SEGMENTS_16]
    for at, value in enumerate(values):
        write(cpu, base + 14 + at * 2 & M32, 2, value, SUPERVISOR)


def load_task(cpu: Cpu, state: dict[str, list[int]], wide: bool, nested: bool) -> None:
    """Load a task: registers first, then segments, with the faults of each."""
    if cpu.cr0 & PG and state["cr3"]:
        cpu.cr3 = state["cr3"][0]
        if cpu.cr4 & PAE:
            load_pdptrs(cpu, cpu.cr3)
        flush(cpu)
    cpu.rip = state["ip"][0]
    flags = state["flags"][0] & 0x3F7FD7 | 2
    cpu.flags, cpu.fw = flags | NT if nested else flags, 0
    for number, value in enumerate(state["regs"]):
        cpu.regs[number] = value if wide else cpu.regs[number] & 0xFFFF0000 | value
    cpu.dr[7] &= ~0x155
    order = SEGMENTS_32 if wide else SEGMENTS_16
    selectors = dict.fromkeys(SEGMENTS_32, 0) | dict(zip(order, state["segs"], strict=True))
    for number in SEGMENTS_32:  # until each is loaded it holds nothing that can be used
        segment = type(cpu.segs[0])()
        segment.selector = selectors[number]
        segment.unusable = 1
        segment.present = 0
        ranges(cpu, segment)
        cpu.segs[number] = segment
    cpu.mode_key = None
    if cpu.flags & VM and wide:
        for number, selector in selectors.items():
            segment = cpu.segs[number]
            segment.selector = selector
            set_v86(segment)
            segment.read_high = segment.write_high = M16
        cpu.cpl = 3
        load_ldt(cpu, state["ldt"][0])
    else:
        cpu.cpl = selectors[CS_] & 3
        cpu.segs[SS_].dpl = cpu.cpl
        cpu.update_mode()
        load_ldt(cpu, state["ldt"][0])
        load_code(cpu, selectors[CS_])
        load_stack(cpu, selectors[SS_])
        for number in (ES_, DS_, FS_, GS_):
            load_data(cpu, number, selectors[number])
    cpu.update_mode()
    cpu.update_breakpoints()
    if cpu.rip > cpu.segs[CS_].limit:
        raise Fault(GP, 0, True)
    if state["trap"][0]:
        cpu.dr[6] |= 0x8000
        raise Fault(DB, trap=True)
    cpu.window()


def load_ldt(cpu: Cpu, selector: int) -> None:
    """Load LDTR in a task switch."""
    set_null(cpu, LDTR_, selector)
    if not selector & 0xFFFC:
        return
    if selector & 4:
        raise Fault(TS, selector & 0xFFFC, True)
    found = fetch_or(cpu, selector, TS)
    segment = found.segment
    if segment.s or segment.type != LDT or not segment.present:
        raise Fault(TS, selector & 0xFFFC, True)
    install(cpu, LDTR_, segment)


def load_code(cpu: Cpu, selector: int) -> None:
    """Load CS in a task switch."""
    if not selector & 0xFFFC:
        raise Fault(TS, 0, True)
    found = fetch_or(cpu, selector, TS)
    code = found.segment
    error = selector & 0xFFFC
    rpl = selector & 3
    if not code.s or not code.type & 8 or (code.dpl > rpl if code.type & 4 else code.dpl != rpl):
        raise Fault(TS, error, True)
    if not code.present:
        raise Fault(NP, error, True)
    mark_accessed(cpu, found)
    cpu.segs[CS_] = code
    cpu.update_mode()


def load_stack(cpu: Cpu, selector: int) -> None:
    """Load SS in a task switch."""
    if not selector & 0xFFFC:
        raise Fault(TS, 0, True)
    found = fetch_or(cpu, selector, TS)
    stack = found.segment
    error = selector & 0xFFFC
    if not stack.s or stack.type & 10 != 2 or stack.dpl != cpu.cpl or selector & 3 != cpu.cpl:
        raise Fault(TS, error, True)
    if not stack.present:
        raise Fault(SS, error, True)
    mark_accessed(cpu, found)
    install(cpu, SS_, stack)
    cpu.update_mode()


def load_data(cpu: Cpu, number: int, selector: int) -> None:
    """Load a data segment register in a task switch."""
    if not selector & 0xFFFC:
        set_null(cpu, number, selector)
        return
    found = fetch_or(cpu, selector, TS)
    segment = found.segment
    error = selector & 0xFFFC
    if not segment.s or segment.type & 10 == 8:
        raise Fault(TS, error, True)
    if segment.type & 12 != 12 and (segment.dpl < cpu.cpl or segment.dpl < selector & 3):
        raise Fault(TS, error, True)
    if not segment.present:
        raise Fault(NP, error, True)
    mark_accessed(cpu, found)
    install(cpu, number, segment)
