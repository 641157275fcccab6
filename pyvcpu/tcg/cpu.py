"""The processor: its state, and the loop that runs it."""

from __future__ import annotations

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
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .fpu import Fpu

__all__ = [
    "EVENT_EXCEPTION", "EVENT_INTERRUPT", "EVENT_NMI", "EVENT_SOFTWARE", "EXIT_ATTENTION", "EXIT_DEBUG", "EXIT_FAIL",
    "EXIT_HALT", "EXIT_MMIO", "EXIT_MSR", "EXIT_PIO", "EXIT_SHUTDOWN", "EXIT_SIPI_WAIT", "Cpu", "Event",
    "PhysicalMemory", "Platform", "Segment", "UserMsr",
]  # fmt: skip

ES, CS, SS, DS, FS, GS, LDTR, TR = range(8)


class Cpu:
    """One processor. All methods belong to its thread; others may set `attention`, `irq_pending` and `nmi_pending`."""

    fpu: Fpu

    def __init__(self, memory: PhysicalMemory, platform: Platform) -> None:
        self.memory, self.platform = memory, platform
        self.regs = [0] * 16
        self.rip = 0
        self.segs = [Segment() for _ in range(8)]
        self.gdt_base = self.gdt_limit = self.idt_base = self.idt_limit = 0
        self.cr0 = self.cr2 = self.cr3 = self.cr4 = self.efer = 0
        self.xcr0 = 1
        self.dr = [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400]
        self.msr: dict[int, int] = {}
        self.interrupt_shadow = self.nmi_blocked = False
        self.pending: Event | None = None
        self.attention = 0
        self.irq_pending = self.nmi_pending = False
        self.debug_control = 0  # KVM_GUESTDBG_* of the host's debugger
        self.debug_dr = [0] * 8
        self.exit_port = self.exit_size = self.exit_count = 0
        self.exit_in = self.exit_write = False
        self.exit_data = b""
        self.exit_address = self.exit_msr = self.exit_exception = self.exit_dr6 = self.exit_pc = 0

    def get_rflags(self) -> int:
        """Return RFLAGS."""
        raise NotImplementedError

    def set_rflags(self, value: int) -> None:
        """Set RFLAGS, without any check."""
        raise NotImplementedError

    def reset(self) -> None:
        """Take the state after RESET (SDM vol. 3A table 10-1)."""
        raise NotImplementedError

    def state_changed(self) -> None:
        """Work out the mode anew and flush the TLB: to call after registers were set from outside."""
        raise NotImplementedError

    def execute(self, budget: int) -> int:
        """Run about `budget` instructions, until one of EXIT_*."""
        raise NotImplementedError

    def step(self) -> int:
        """Run exactly one instruction. Returns EXIT_ATTENTION when it is complete, else as execute() does."""
        raise NotImplementedError

    def inject(self, vector: int, error: int | None = None, software: bool = False) -> None:
        """Have an interrupt or exception delivered before the next instruction."""
        raise NotImplementedError

    def recheck(self) -> None:
        """Compare decoded code with memory again when next used: to call at KVM_RUN, for the host may have written."""
        raise NotImplementedError

    def complete_in(self, data: bytes) -> None:
        """Finish an IN or INS that caused EXIT_PIO."""
        raise NotImplementedError

    def complete_out(self) -> None:
        """Finish an OUT or OUTS that caused EXIT_PIO."""
        raise NotImplementedError

    def complete_mmio(self, data: bytes | None) -> None:
        """Answer an EXIT_MMIO: the data read, None for a write. The instruction is run again from its start."""
        raise NotImplementedError

    # Memory, for the instructions of all units. `seg` is 0..5, `offset` the effective address, not yet masked to its
    # size by the segment; a fault is raised as exceptions.Fault, and nothing is changed then.
    def load(self, seg: int, offset: int, size: int) -> int:
        """Read 1, 2, 4 or 8 bytes through a segment; returns the little-endian number."""
        raise NotImplementedError

    def store(self, seg: int, offset: int, size: int, value: int) -> None:
        """Write 1, 2, 4 or 8 bytes through a segment."""
        raise NotImplementedError

    def load_bytes(self, seg: int, offset: int, count: int) -> bytes:
        """Read any number of bytes (10, 16, 28, 512...) through a segment; one access as far as faults go."""
        raise NotImplementedError

    def store_bytes(self, seg: int, offset: int, data: bytes) -> None:
        """Write any number of bytes; both pages are probed before the first byte is written."""
        raise NotImplementedError
