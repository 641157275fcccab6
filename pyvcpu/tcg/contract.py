"""The seam between the processor and its machine: exit codes, events, and what each side offers the other."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from contextlib import AbstractContextManager
    from typing import Protocol

    from .blocks import CodeCache
else:
    Protocol = object

# What Cpu.execute() and Cpu.step() return.
EXIT_ATTENTION = 0  # attention was set, or the budget is used up
EXIT_HALT = 1  # HLT; rip is behind it
EXIT_PIO = 2
EXIT_MMIO = 3
EXIT_SHUTDOWN = 4  # triple fault
EXIT_DEBUG = 5  # a breakpoint, watchpoint or step for the host's debugger
EXIT_FAIL = 6  # an instruction that is deliberately not built, or that cannot be fetched from memory
EXIT_MSR = 7  # the platform raised UserMsr: the user space is to answer
EXIT_SIPI_WAIT = 8  # set by the platform only

# Kinds of an Event, as the interruption types of VMX and the fields of kvm_vcpu_events tell them apart.
EVENT_INTERRUPT, EVENT_NMI, EVENT_EXCEPTION, EVENT_SOFTWARE = 0, 2, 3, 4


class Event:
    """An interrupt or exception that is to be delivered before the next instruction."""

    __slots__ = ("error", "kind", "vector")

    def __init__(self, vector: int, error: int | None = None, kind: int = EVENT_INTERRUPT) -> None:
        self.vector, self.error, self.kind = vector, error, kind


class UserMsr(Exception):
    """Raised by Platform.read_msr and write_msr where user space asked to answer itself: becomes EXIT_MSR."""


class Segment:
    """A segment register with its hidden part. `limit` is in bytes, expanded; flags as in kvm_segment."""

    __slots__ = (
        "avl", "base", "db", "dpl", "g", "l", "limit", "present", "read_high", "read_low", "s", "selector", "type",
        "unusable", "write_high", "write_low",
    )  # fmt: skip

    def __init__(self) -> None:
        self.selector = self.base = 0
        self.limit = 0xFFFF
        self.type, self.s, self.dpl, self.present = 3, 1, 0, 1
        self.avl = self.l = self.db = self.g = self.unusable = 0
        # Offsets that may be read and written, both inclusive; Cpu.state_changed() works them out.
        self.read_low = self.write_low = 0
        self.read_high = self.write_high = 0xFFFF


class PhysicalMemory(Protocol):
    """Guest physical memory in pages of 4096 bytes. The KVM objects implement it."""

    generation: int
    code: CodeCache | None  # None at first; the first Cpu puts the store of decoded code that all vCPUs share here

    def page(self, gfn: int) -> memoryview | None:
        """Return the 4096 bytes ("B", writable, also for a read-only slot) of a page, None where no slot is."""

    def writable(self, gfn: int) -> bool:
        """Tell whether the page lies in a slot that is not KVM_MEM_READONLY."""

    def mark_dirty(self, gfn: int) -> None:
        """Note in the dirty log that the page is written. Called once per page and generation."""


class Platform(Protocol):
    """What a Cpu asks its machine for; all calls come on the vCPU's own thread."""

    @property
    def lock(self) -> AbstractContextManager[bool]:
        """The lock of the VM, for instructions that are atomic between its vCPUs."""

    def port_read(self, port: int, size: int) -> int | None:
        """Read an I/O port, None where nobody inside answers."""

    def port_write(self, port: int, size: int, value: int) -> bool:
        """Write an I/O port; False where nobody inside takes it."""

    def mmio_read(self, address: int, size: int) -> bytes | None:
        """Read a device's memory, None where nobody inside answers."""

    def mmio_write(self, address: int, data: bytes) -> bool:
        """Write a device's memory; False where nobody inside takes it."""

    def interrupt(self) -> int | None:
        """Acknowledge the interrupt that is to be delivered now, and return its vector."""

    def check_msr(self, index: int, write: bool) -> None:
        """Raise UserMsr or #GP where RDMSR or WRMSR may not reach an MSR, be it the processor's or the platform's."""

    def read_msr(self, index: int) -> int | None:
        """Read an MSR that is not in Cpu.msr; None is #GP."""

    def write_msr(self, index: int, value: int) -> bool:
        """Write an MSR that is not in Cpu.msr; False is #GP."""

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """Return eax, ebx, ecx, edx."""

    def tsc(self) -> int:
        """Return the time stamp counter."""

    def get_cr8(self) -> int:
        """Return the task priority, 0 to 15."""

    def set_cr8(self, value: int) -> None:
        """Set the task priority, 0 to 15."""

    def pause(self) -> None:
        """Let other vCPUs run: PAUSE, MWAIT."""
