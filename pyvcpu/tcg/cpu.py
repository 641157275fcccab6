"""The processor: its state, and the loop that runs it."""

from __future__ import annotations

from . import answers, breakpoints, interp, mmu, modes, steps
from .blocks import Block, CodeCache, find
from .contract import (
    EVENT_EXCEPTION,
    EVENT_INTERRUPT,
    EVENT_NMI,
    EVENT_SOFTWARE,
    EXIT_ATTENTION,
    EXIT_DEBUG,
    EXIT_FAIL,
    EXIT_HALT,
    EXIT_MMIO,
    EXIT_MSR,
    EXIT_PIO,
    EXIT_SHUTDOWN,
    EXIT_SIPI_WAIT,
    Event,
    PhysicalMemory,
    Platform,
    Segment,
    UserMsr,
)  # fmt: skip
from .exceptions import DB, Exit, Fault
from .interp import IF, M16, M32, RF, TF
from .interrupts import deliver, once
from .mmu import Tlb
from .paging import SUPERVISOR, SUPERVISOR_AC, USER

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .blocks import Key
    from .decode import Insn
    from .fpu import Fpu
    from .mmu import Mixed

__all__ = [
    "EVENT_EXCEPTION", "EVENT_INTERRUPT", "EVENT_NMI", "EVENT_SOFTWARE", "EXIT_ATTENTION", "EXIT_DEBUG", "EXIT_FAIL",
    "EXIT_HALT", "EXIT_MMIO", "EXIT_MSR", "EXIT_PIO", "EXIT_SHUTDOWN", "EXIT_SIPI_WAIT", "Cpu", "Event",
    "PhysicalMemory", "Platform", "Segment", "UserMsr",
]  # fmt: skip

ES, CS, SS, DS, FS, GS, LDTR, TR = range(8)
PE, AM, PG = 1, 1 << 18, 1 << 31
SLICE = 20_000  # instructions that a translated loop may run before others are looked at
HOT = 30  # executions of a block in the cold tier before it is translated
SINGLE_STEP, USE_SW_BP, USE_HW_BP = 2, 0x10000, 0x20000  # KVM_GUESTDBG_*
ENABLE = 1


class Cpu:
    """One processor. All methods belong to its thread; others may set `attention`, `irq_pending` and `nmi_pending`."""

    fpu: Fpu

    def __init__(self, memory: PhysicalMemory, platform: Platform) -> None:
        self.memory, self.platform = memory, platform
        if memory.code is None:
            memory.code = CodeCache()
        self.code: CodeCache = memory.code
        self.generation = memory.generation
        self.tlb = [Tlb(self, write, user) for write in (False, True) for user in (SUPERVISOR, SUPERVISOR_AC, USER)]
        self.read_tlb: dict[int, memoryview] = self.tlb[0]
        self.write_tlb: dict[int, memoryview] = self.tlb[3]
        # Writable pages that hold decoded code, too: number to (bytes, gfn, what is decoded there).
        self.mixed_tlb: tuple[dict[int, Mixed], dict[int, Mixed], dict[int, Mixed]] = ({}, {}, {})
        self.mixed: dict[int, Mixed] = self.mixed_tlb[0]
        self.fetch_tlb: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self.code_maps: dict[Key, dict[int, Block]] = {}
        self.code_map: dict[int, Block] = {}
        self.code_key: Key = ()
        self.mode_key: Key | None = None  # what the mode was last worked out from
        self.last_physical = 0
        self.large: set[int] = set()  # which 2 MB of linear memory have something of a large page in the TLB
        self.after = 0
        self.watched: set[int] = set()
        self.watchpoints: list[tuple[int, int, int, int]] = []
        self.watch_hits = 0
        self.break_rips: dict[int, int] = {}
        self.mmio_replay: list[bytes | None] = []
        self.mmio_at = 0
        self.wake = 1
        self.extra = 0  # instructions that a REP stands for
        self.port_answer: bytes | None = None  # of an INS that could not be finished at once
        self.single = False
        self.resume: list[Insn] | None = None  # what translated code leaves to the cold tier: the rest of a block
        self.instructions = 0  # that were run by execute(), about
        self.hot_after = HOT  # tests set it to 1, or to a number that is never reached
        self.phys_bits, self.gigabyte_pages, self.vendor_intel, self.cr4_allowed = 36, True, True, -1
        self.reserved = 0
        self.keep_null_base = True
        self.pdptr = [0, 0, 0, 0]
        self.attention = 0
        self.irq_pending = self.nmi_pending = False
        self.debug_control = 0  # KVM_GUESTDBG_* of the host's debugger
        self.debug_dr = [0] * 8
        self.exit_port = self.exit_size = self.exit_count = 0
        self.exit_in = self.exit_write = False
        self.exit_data = b""
        self.exit_address = self.exit_msr = self.exit_exception = self.exit_dr6 = self.exit_pc = 0
        self.exit_insn: Insn | None = None
        self.fpu = make_fpu()
        self.msr: dict[int, int] = {}
        self.reset()
        self.code.cpus.append(self)

    def close(self) -> None:
        """Leave the VM's list of processors."""
        if self in self.code.cpus:
            self.code.cpus.remove(self)

    def reset(self) -> None:
        """Take the state after RESET (SDM vol. 3A table 10-1)."""
        self.regs = [0] * 16
        self.regs[2] = 0x600
        self.rip = 0xFFF0
        self.flags, self.fw, self.fr, self.fa, self.fb, self.fc = 2, 0, 0, 0, 0, 0
        self.segs = [Segment() for _ in range(8)]
        self.segs[CS].selector, self.segs[CS].base, self.segs[CS].type = 0xF000, 0xFFFF0000, 11
        self.segs[LDTR].type, self.segs[LDTR].s = 2, 0
        self.segs[TR].type, self.segs[TR].s = 11, 0
        self.gdt_base = self.idt_base = 0
        self.gdt_limit = self.idt_limit = 0xFFFF
        self.cr0, self.cr2, self.cr3, self.cr4, self.efer = 0x60000010, 0, 0, 0, 0
        self.xcr0 = 1
        self.dr = [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400]
        self.msr.clear()
        self.msr[0x277] = 0x0007040600070406
        self.interrupt_shadow = self.nmi_blocked = False
        self.pending: Event | None = None
        self.cpl = 0
        self.protected = self.v86 = self.long = False
        self.bits = 16
        self.stack_mask = M16
        self.accessor = SUPERVISOR
        self.align_check = False
        self.canonical_bits = 47
        self.mmio_replay.clear()
        self.mmio_at = 0
        self.fpu.reset()
        self.state_changed()

    def forget_writable(self) -> None:
        """Clear the TLBs of writes."""
        for tlb in self.tlb[3:]:
            tlb.clear()
        for mixed in self.mixed_tlb:
            mixed.clear()

    def forget_pages(self) -> None:
        """Clear the TLBs of reads and writes."""
        self.forget_writable()
        for tlb in self.tlb[:3]:
            tlb.clear()

    # Flags.
    def get_rflags(self) -> int:
        """Return RFLAGS."""
        return interp.get_flags(self)

    def set_rflags(self, value: int) -> None:
        """Set RFLAGS, without any check."""
        self.flags, self.fw = value | 2, 0
        self.update_mode()
        self.wake = 1

    # Events.
    def inject(self, vector: int, error: int | None = None, software: bool = False) -> None:
        """Have an interrupt or exception delivered before the next instruction."""
        kind = EVENT_SOFTWARE if software else EVENT_EXCEPTION if error is not None else EVENT_INTERRUPT
        self.pending = Event(vector, error, kind)
        self.wake = 1

    def window(self) -> None:
        """Look at events before the next block: to call where an interrupt may have become possible."""
        if self.irq_pending or self.nmi_pending or self.flags & (TF | RF):
            self.wake = 1

    def shadow(self) -> None:
        """Hold interrupts off until the next instruction is complete."""
        self.interrupt_shadow = True
        self.wake = 1

    def software_interrupt(self, vector: int) -> None:
        """Deliver INT n, INT3 or INTO; rip is behind the instruction. A fault on the way is the instruction's."""
        once(self, vector, None, EVENT_SOFTWARE)

    def linear_rip(self) -> int:
        """Return the linear address of the next instruction."""
        return self.rip if self.bits == 64 else self.segs[CS].base + self.rip & M32

    def service(self) -> None:
        """Deliver what is pending, and run one instruction alone where something waits for its end."""
        self.wake = 0
        event = self.pending
        if event is not None:
            self.pending = None
            deliver(self, event.vector, event.error, event.kind)
        elif not self.interrupt_shadow:
            if self.nmi_pending and not self.nmi_blocked:
                self.nmi_pending = False
                deliver(self, 2, None, EVENT_NMI)
            elif self.irq_pending and self.flags & IF:
                self.irq_pending = False
                vector = self.platform.interrupt()
                if vector is not None:
                    self.irq_pending = True
                    deliver(self, vector, None, EVENT_INTERRUPT)
        stepped = self.debug_control & ENABLE and self.debug_control & SINGLE_STEP
        if self.flags & (TF | RF) or self.interrupt_shadow or stepped:
            self.alone()

    def fault(self, fault: Fault, insn: Insn | None) -> None:
        """Deliver a fault of an instruction (None: of its fetch)."""
        if insn is not None and not fault.trap:
            self.rip = insn.rip
        self.mmio_done()
        self.after = 0
        self.watch_hits = 0
        self.port_answer = None
        if fault.vector == DB and self.dr[7] & 0x2000:
            self.dr[7] &= ~0x2000
        deliver(self, fault.vector, fault.error, EVENT_EXCEPTION)
        self.wake = 1

    # Running.
    def enter(self) -> None:
        """Prepare for a run: notice what others have changed."""
        if self.memory.generation != self.generation:
            self.generation = self.memory.generation
            mmu.flush(self)
        if self.bits != 64:
            self.regs[:8] = [value & M32 for value in self.regs[:8]]
        self.mmio_at = 0
        self.wake = 1

    def execute(self, budget: int) -> int:
        """Run about `budget` instructions, until one of EXIT_*."""
        self.enter()
        if self.mmio_replay or self.port_answer is not None:
            # an instruction waits for its answers: nothing may come in between that accesses devices itself
            try:
                self.one()
            except Exit as leaving:
                return leaving.code
        left = before = budget
        insn: Insn | None = None
        while True:
            insn = None
            try:
                while True:
                    if self.wake:
                        self.service()
                        left -= 1 + self.extra
                        self.extra = 0
                        if self.wake and not self.attention and left > 0:
                            continue
                    if self.attention or left <= 0:
                        self.attention = 0
                        return EXIT_ATTENTION
                    block = self.code_map.get(self.rip)
                    if block is None:
                        block = find(self)
                        if self.break_rips:
                            self.breakpoint_here()
                    hot = block.hot
                    if hot is not None:
                        left -= hot(self, left if left < SLICE else SLICE)
                        insns = self.resume
                        if insns is None:
                            if self.after:
                                self.finish()
                            continue
                        self.resume = None
                    else:
                        block.count += 1
                        if block.count == self.hot_after:
                            self.translate(block)
                            continue
                        insns = block.insns
                    left -= len(insns)
                    self.mmio_at = 0
                    for insn in insns:
                        self.rip = insn.next
                        insn.fn(self, insn)
                        if self.after:
                            self.finish()
                            break
                    insn = None
            except Fault as fault:
                try:
                    self.fault(fault, insn)
                except Exit as leaving:
                    return leaving.code
                left -= 1
            except Exit as leaving:
                if insn is not None and not leaving.done:
                    self.rip = insn.rip
                return leaving.code
            finally:
                self.instructions += before - left
                before = left

    def translate(self, block: Block) -> None:
        """Give a block that has proved hot to the translator."""
        from .translate import translate

        translate(self, block)

    def recheck(self) -> None:
        """Compare decoded code with memory again when next used: to call at KVM_RUN, for the host may have written."""
        self.code.epoch += 1
        for code_map in self.code_maps.values():
            code_map.clear()

    # From other modules.
    alone = steps.alone
    one = steps.one
    step = steps.step
    cpuid_changed = modes.cpuid_changed
    state_changed = modes.state_changed
    update_mode = modes.update_mode
    select_code_map = modes.select_code_map
    update_breakpoints = breakpoints.update_breakpoints
    host_breakpoint = breakpoints.host_breakpoint
    leave_for_debugger = breakpoints.leave_for_debugger
    breakpoint_here = breakpoints.breakpoint_here
    finish = breakpoints.finish
    mmio_done = breakpoints.mmio_done
    complete_in = answers.complete_in
    complete_out = answers.complete_out
    complete_mmio = answers.complete_mmio
    complete_msr = answers.complete_msr
    # Memory, for the instructions of all units. `seg` is 0..5, `offset` the effective address; a fault is raised as
    # exceptions.Fault, and nothing is changed then.
    load = mmu.load
    store = mmu.store
    load_bytes = mmu.load_bytes
    store_bytes = mmu.store_bytes
    load_for_store = mmu.load_for_store
    probe_store = mmu.probe_store
    set_status = interp.set_status


class NoFpu:
    """Stands in where there is no FPU."""

    def reset(self) -> None:
        """Do nothing."""


def make_fpu() -> Fpu:
    """Return the FPU's state."""
    try:
        from .fpu import Fpu
    except ImportError:
        return NoFpu()  # type: ignore[return-value]
    return Fpu()
