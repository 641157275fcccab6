"""The processor: its state, and the loop that runs it."""

from __future__ import annotations

from . import interp, interp_string, mmu, segments
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
from .exceptions import DB, GP, Exit, Fault
from .interp import ACF, IF, M16, M32, M64, RF, TF, VM
from .interrupts import deliver, once
from .mmu import AFTER_WATCH, SUPERVISOR, SUPERVISOR_AC, USER, Tlb

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
        self.redo = False
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

    # The mode.
    def cpuid_changed(self) -> None:
        """Take from CPUID what paging and CR4 depend on."""
        cpuid = self.platform.cpuid
        highest = cpuid(0x80000000, 0)[0]
        self.phys_bits = (cpuid(0x80000008, 0)[0] & 0xFF or 36) if highest >= 0x80000008 else 36
        self.gigabyte_pages = bool(highest >= 0x80000001 and cpuid(0x80000001, 0)[3] & 1 << 26)
        largest, ebx, _, _ = cpuid(0, 0)
        self.vendor_intel = ebx == 0x756E6547
        self.reserved = (1 << 52) - (1 << self.phys_bits)
        ecx = cpuid(1, 0)[2]
        _, ebx7, ecx7, _ = cpuid(7, 0) if largest >= 7 else (0, 0, 0, 0)
        allowed = -1
        for bit, there in (
            (16, ebx7 & 1), (17, ecx & 1 << 17), (18, ecx & 1 << 26), (20, ebx7 & 1 << 7), (21, ebx7 & 1 << 20),
            (11, ecx7 & 4), (12, ecx7 & 1 << 16),
        ):  # fmt: skip
            if not there:
                allowed &= ~(1 << bit)
        self.cr4_allowed = allowed

    def state_changed(self) -> None:
        """Work out the mode anew and flush the TLB: to call after registers were set from outside."""
        self.cpuid_changed()
        self.mode_key = None
        protected = bool(self.cr0 & PE)
        if self.flags & VM and protected:
            self.cpl = 3
        else:
            self.cpl = self.segs[SS].dpl if protected else 0
        self.update_mode()
        if self.cr0 & PG and self.cr4 & mmu.PAE and not self.long:
            from .interp_system import load_pdptrs

            load_pdptrs(self, self.cr3, False)
        for segment in self.segs:
            segments.ranges(self, segment)
        mmu.flush(self)
        self.update_breakpoints()
        self.wake = 1

    def update_mode(self) -> None:
        """Work out what follows from CR0, EFER, CS, SS, the privilege level and RFLAGS."""
        cr0, flags = self.cr0, self.flags
        cs, ss = self.segs[CS], self.segs[SS]
        key = (cr0, self.cr4, self.efer, flags & (VM | ACF), self.cpl, cs.l, cs.db, cs.base, cs.limit, ss.db)
        if key == self.mode_key:
            segments.ranges(self, cs)
            return
        self.long = bool(self.efer & mmu.LMA)
        protected = bool(cr0 & PE)
        self.v86 = protected and bool(flags & VM) and not self.long
        was = self.protected
        self.protected = protected and not self.v86
        if not protected:
            self.cpl = 0
        self.mode_key = (*key[:4], self.cpl, *key[5:])
        bits = 64 if self.long and cs.l else 32 if cs.db else 16
        if bits != self.bits:
            if (bits == 64) != (self.bits == 64):
                for tlb in (*self.tlb, *self.mixed_tlb):
                    tlb.clear()
            if bits != 64:
                self.regs[:8] = [value & M32 for value in self.regs[:8]]
            self.bits = bits
        self.stack_mask = M64 if bits == 64 else M32 if ss.db else M16
        self.canonical_bits = 56 if self.cr4 & mmu.LA57 else 47
        ac = flags & ACF
        self.accessor = USER if self.cpl == 3 else SUPERVISOR_AC if ac and self.cr4 & mmu.SMAP else SUPERVISOR
        self.align_check = bool(self.cpl == 3 and ac and cr0 & AM)
        if self.align_check:
            self.read_tlb, self.write_tlb, self.mixed = {}, {}, {}
        else:
            self.read_tlb, self.write_tlb = self.tlb[self.accessor], self.tlb[3 + self.accessor]
            self.mixed = self.mixed_tlb[self.accessor]
        if was != self.protected:
            for segment in self.segs:
                segments.ranges(self, segment)
        else:
            segments.ranges(self, cs)
        self.select_code_map()

    def select_code_map(self) -> None:
        """Choose the map of blocks for the current mode."""
        cs = self.segs[CS]
        if self.bits == 64:
            key: Key = (64, tuple(self.break_rips)) if self.break_rips else (64,)
        else:
            flat = 0
            for number in (ES, SS, DS):
                segment = self.segs[number]
                if segment.base == 0 and segment.write_low == 0 and segment.write_high == M32 == segment.read_high:
                    flat |= 1 << number
            key = (self.bits, self.stack_mask, flat, cs.base, cs.limit, *self.break_rips)
        self.code_key = key
        code_map = self.code_maps.get(key)
        if code_map is None:
            code_map = self.code_maps[key] = {}
        self.code_map = code_map

    def update_breakpoints(self) -> None:
        """Work out which addresses and pages the breakpoints concern, the guest's and the host's."""
        self.break_rips, self.watchpoints, self.watched = {}, [], set()
        host = self.debug_control & ENABLE and self.debug_control & USE_HW_BP
        dr = self.debug_dr if host else self.dr
        control = dr[7]
        for number in range(4):
            if not control >> 2 * number & 3:
                continue
            kind, length = control >> 16 + 4 * number & 3, (1, 2, 8, 4)[control >> 18 + 4 * number & 3]
            start = dr[number]
            if kind == 0:
                self.break_rips[start] = self.break_rips.get(start, 0) | 1 << number
            elif kind != 2:
                start &= ~(length - 1)
                self.watchpoints.append((number, start, length, kind))
                self.watched.add(start >> 12)
        for tlb in (*self.tlb, *self.mixed_tlb):
            tlb.clear()
        self.code_maps.clear()
        self.select_code_map()
        self.wake = 1

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

    def host_breakpoint(self, insn: Insn) -> None:
        """Leave for the host's debugger at an INT3."""
        self.rip = insn.rip
        self.exit_exception, self.exit_dr6 = 3, 0
        self.exit_pc = self.linear_rip()
        raise Exit(EXIT_DEBUG)

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

    def alone(self) -> None:
        """Run one instruction, then do what was waiting for that: end of the shadow, RF, single step."""
        self.wake = 1
        flags = self.flags
        shadow, self.interrupt_shadow = self.interrupt_shadow, False
        stepped = self.debug_control & ENABLE and self.debug_control & SINGLE_STEP
        step = flags & TF or stepped
        self.single = bool(step)
        try:
            self.one()
        except Exit as leaving:
            if leaving.done and not stepped:
                self.flags &= ~RF
            elif not leaving.done:
                self.interrupt_shadow = shadow
                raise
            if not step:
                raise
        finally:
            self.single = False
        if flags & RF and self.flags & RF:
            self.flags &= ~RF
        if stepped:
            self.leave_for_debugger(0x4000)
        if flags & TF and not self.interrupt_shadow and self.flags & TF:
            self.dr[6] |= 0x4000
            raise Fault(DB, trap=True)

    def leave_for_debugger(self, dr6: int) -> None:
        """Report a debug event to the host."""
        self.exit_exception, self.exit_dr6, self.exit_pc = DB, 0xFFFF0FF0 | dr6, self.linear_rip()
        raise Exit(EXIT_DEBUG, True)

    def one(self) -> None:
        """Run one instruction in the cold tier; faults are delivered."""
        insn = None
        try:
            block = self.code_map.get(self.rip) or find(self)
            if self.break_rips:
                self.breakpoint_here()
            insn = block.insns[0]
            self.rip = insn.next
            self.mmio_at = 0
            insn.fn(self, insn)
            if self.after:
                self.finish()
        except Fault as fault:
            self.fault(fault, insn)
        except Exit as leaving:
            if not leaving.done and insn is not None:
                self.rip = insn.rip
            raise

    def breakpoint_here(self) -> None:
        """Raise #DB, or leave for the host, where an instruction breakpoint is at rip."""
        if self.flags & RF:
            return
        hits = self.break_rips.get(self.linear_rip())
        if hits is None:
            return
        if self.debug_control & ENABLE and self.debug_control & USE_HW_BP:
            self.leave_for_debugger(hits)
        self.dr[6] |= hits
        raise Fault(DB)

    def finish(self) -> None:
        """Do what was left for the end of an instruction: forget answered device accesses, report watchpoints."""
        after, self.after = self.after, 0
        self.mmio_done()
        if after & AFTER_WATCH:
            hits, self.watch_hits = self.watch_hits, 0
            if self.debug_control & ENABLE and self.debug_control & USE_HW_BP:
                self.leave_for_debugger(hits)
            self.dr[6] |= hits
            raise Fault(DB, trap=True)

    def mmio_done(self) -> None:
        """Forget the device accesses of an instruction that is complete."""
        self.mmio_replay.clear()
        self.mmio_at = 0

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
        self.wake = 1

    def execute(self, budget: int) -> int:
        """Run about `budget` instructions, until one of EXIT_*."""
        self.enter()
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
                        if not self.redo:
                            if self.after:
                                self.finish()
                            continue
                        self.redo = False
                        self.one()
                        left -= 1
                        continue
                    block.count += 1
                    if block.count == self.hot_after:
                        self.translate(block)
                        continue
                    left -= len(block.insns)
                    self.mmio_at = 0
                    for insn in block.insns:
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

    def step(self) -> int:
        """Run exactly one instruction. Returns EXIT_ATTENTION when it is complete, else as execute() does."""
        self.enter()
        try:
            self.wake = 0
            shadow, self.interrupt_shadow = self.interrupt_shadow, False
            if self.pending is not None:
                event, self.pending = self.pending, None
                deliver(self, event.vector, event.error, event.kind)
            try:
                self.single = True
                self.one()
            except Exit as leaving:
                if not leaving.done:
                    self.interrupt_shadow = shadow
                raise
            finally:
                self.single = False
                self.wake = 1
        except Exit as leaving:
            return leaving.code
        return EXIT_ATTENTION

    def recheck(self) -> None:
        """Compare decoded code with memory again when next used: to call at KVM_RUN, for the host may have written."""
        self.code.epoch += 1
        for code_map in self.code_maps.values():
            code_map.clear()

    # Answers to exits.
    def complete_in(self, data: bytes) -> None:
        """Finish an IN or INS that caused EXIT_PIO."""
        if self.exit_insn is not None:
            interp_string.finish_in(self, self.exit_insn, data)
        self.exit_insn = None

    def complete_out(self) -> None:
        """Finish an OUT or OUTS that caused EXIT_PIO."""
        if self.exit_insn is not None:
            interp_string.finish_out(self, self.exit_insn)
        self.exit_insn = None

    def complete_mmio(self, data: bytes | None) -> None:
        """Answer an EXIT_MMIO: the data read, None for a write. The instruction is run again from its start."""
        self.mmio_replay.append(data)

    def complete_msr(self, value: int | None) -> None:
        """Answer an EXIT_MSR: the value read (any number for a write), or None for #GP."""
        insn, self.exit_insn = self.exit_insn, None
        if insn is None:
            return
        if value is None:
            self.pending = Event(GP, 0, EVENT_EXCEPTION)
            self.wake = 1
            return
        if not self.exit_write:
            self.regs[0], self.regs[2] = value & M32, value >> 32 & M32
        self.rip = insn.next

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
