"""A vCPU without its fd: its fields, its time, its reset, and how others get its attention."""

from __future__ import annotations

import os
import threading
from struct import pack

from . import msrs
from .cpu import Cpu
from .cpuid import Table
from .signals import Signals
from .thing import Thing

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Any

    from .hostmap import Mapping
    from .lapic import Lapic
    from .rings import Ring
    from .stats import StatsFile
    from .vmcore import VmCore

RUNNABLE, UNINITIALIZED, INIT_RECEIVED, HALTED, SIPI_RECEIVED = range(5)
APIC_START, APIC_ENABLED, X2APIC_ENABLED, BSP = 0xFEE0_0000, 1 << 11, 1 << 10, 1 << 8
M64 = 0xFFFF_FFFF_FFFF_FFFF


class Spare:
    """Stands in for the FPU while the rest is reset."""

    def reset(self) -> None:
        """Do nothing."""


class Base(Thing):
    """The fields of a vCPU, and what is done to them by more than one part."""

    page: memoryview
    ring: Ring | None = None
    mapping: Mapping

    def __init__(self, vm: VmCore, number: int) -> None:
        super().__init__()
        self.vm, self.id = vm, number
        self.mutex = threading.Lock()
        self.signals = Signals()
        self.cpuid_table = Table([])
        self.has_run = False
        self.msrs = msrs.initial()
        self.banks: dict[int, int] = {}
        self.mcg_cap = 0
        self.tsc_khz = vm.tsc_khz
        self.tsc_offset = -self.host_tsc(vm.born)
        self.tsc_adjust = 0
        self.cr8 = 0
        self.shadow_kind = 0
        self.sipi_vector = 0
        self.init_pending = self.sipi_pending = False
        self.triple_fault = False
        self.external: int | None = None  # a vector from user space, with local APICs in the kernel only
        self.want_exit: Callable[[Any], None] | None = None  # an exit that is due when the instruction is complete
        self.exit_value = 0
        self.ended: list[int] = []  # vectors whose EOI user space is to hear of
        self.completion: Callable[[Any], bool] | None = None
        self.budget = 2000  # instructions until the next look at signals and timers
        self.was_kicked = False  # KVM_RUN was last left with EINTR
        self.thread = 0  # that KVM_RUN runs in
        self.turns = 0  # how often Cpu.execute() was left
        self.wake_fd = -1
        self.sleeping = False
        self.exits = self.io_exits = self.mmio_exits = self.halt_exits = self.signal_exits = 0
        self.stats: StatsFile | None = None
        self.clock_version = 0
        self.guest_stopped = False
        self.lapic: Lapic | None = None
        self.apic_base = APIC_START | APIC_ENABLED | (BSP if self.is_bsp() else 0)
        self.mp_state = RUNNABLE
        self.lock = vm.bus_lock
        self.cpu = Cpu(vm.memory, self)  # type: ignore[arg-type]  # Platform, which is made of this, is one
        self.cpu.fpu.init()  # KVM's FPU is after RESET as after FNINIT
        if vm.irqs.mode != "none":
            from .lapic import Lapic

            self.lapic = Lapic(self)
            if not self.is_bsp():
                self.mp_state = UNINITIALIZED

    # What others do.

    def kick(self) -> None:
        """Have the vCPU look at its events: now where it sleeps, at the next block where it runs. Any thread."""
        self.cpu.attention = 1
        if self.sleeping:
            self.vm.woken = True
            os.eventfd_write(self.wake_fd, 1)

    def is_bsp(self) -> bool:
        """Tell whether this is the boot processor."""
        return self.id == self.vm.boot_cpu

    # Interrupts.

    def update_irq(self) -> None:
        """Tell the processor whether an interrupt waits. Under the lock of Irqs; any thread."""
        if self.has_interrupt():
            self.cpu.irq_pending = True
            self.kick()

    def has_interrupt(self) -> bool:
        """Tell whether a controller has an interrupt for this processor. Under the lock of Irqs."""
        pic = self.vm.irqs.pic
        if (self.external is not None or (pic is not None and pic.output)) and self.accepts_pic():
            return True
        return self.lapic is not None and self.lapic.ready()

    def accepts_pic(self) -> bool:
        """Tell whether interrupts of the PIC, or of user space, reach this processor."""
        return self.lapic is None or self.lapic.accepts_pic()

    # Time.

    def tsc(self) -> int:
        """Return the time stamp counter."""
        return self.host_tsc(self.vm.clock.now()) + self.tsc_offset & M64

    def host_tsc(self, now: int) -> int:
        """Return what a TSC of this rate has counted at a time of the VM's clock."""
        return now * self.tsc_khz // 1_000_000

    def set_tsc(self, value: int, host: bool) -> None:
        """Write the time stamp counter; what the guest writes shows in TSC_ADJUST (SDM vol. 3B, 18.17.3)."""
        delta = (value - self.tsc()) & M64
        if host and not value:
            return
        self.tsc_offset += delta
        self.clock_version = -1  # kvmclock's page names a TSC
        if not host:
            self.tsc_adjust = (self.tsc_adjust + delta) & M64
        if self.lapic is not None:
            self.lapic.time_changed()

    def set_system_time(self, value: int) -> None:
        """Tell the guest the time in a page of its own from now on (MSR_KVM_SYSTEM_TIME_NEW)."""
        self.msrs[msrs.SYSTEM_TIME] = value
        self.update_clock()

    def update_clock(self) -> None:
        """Write the pvclock page (msr.rst: struct pvclock_vcpu_time_info), odd version first."""
        value = self.msrs[msrs.SYSTEM_TIME]
        if not value & 1:
            return
        memory, address = self.vm.memory, value & ~1
        now = self.vm.clock.now()
        shift, multiplier = scale(self.tsc_khz)
        flags = 1 | (2 if self.guest_stopped else 0)  # PVCLOCK_TSC_STABLE_BIT, PVCLOCK_GUEST_STOPPED
        self.guest_stopped = False
        old = memory.read(address, 4)
        version = (int.from_bytes(old, "little") | 1 if old else 1) & 0xFFFF_FFFF
        tsc = self.host_tsc(now) + self.tsc_offset & M64
        body = pack("<IQQIbBxx", 0, tsc, self.vm.kvmclock(now) & M64, multiplier, shift, flags)
        memory.write(address, pack("<I", version))
        memory.write(address + 4, body)
        memory.write(address, pack("<I", version + 1 & 0xFFFF_FFFF))

    # Registers that are not the processor's.

    def set_apic_base(self, value: int, host: bool) -> bool:
        """Write IA32_APIC_BASE; False for a value or a change of mode that there is not (SDM vol. 3A, 11.12.5)."""
        old = self.apic_base
        x2apic = X2APIC_ENABLED if host or self.cpuid_table.has("x2apic") else 0
        if value & ~(((1 << self.cpu.phys_bits) - 1 & ~0xFFF) | APIC_ENABLED | x2apic | BSP):
            return False
        mode, before = value >> 10 & 3, old >> 10 & 3
        if mode == 1 or (not host and ((before == 3 and mode == 2) or (before == 0 and mode == 3))):
            return False
        self.apic_base = value
        if self.lapic is not None:
            self.lapic.base_changed(old, value)
        return True

    def restore_cr8(self, value: int) -> None:
        """Set CR8 as the host does."""
        if self.lapic is not None:
            self.lapic.set_cr8(value & 15)
        else:
            self.cr8 = value & 15

    def changed(self) -> None:
        """Have the processor look at its state again, after it was set from outside."""
        self.cpu.state_changed()

    def drop_completion(self) -> None:
        """Forget the port, memory or MSR access that user space was to answer."""
        self.completion = None
        self.cpu.exit_insn = None
        self.cpu.mmio_done()

    def reset(self, init: bool) -> None:
        """Take the state after RESET, or after INIT (which keeps the FPU, MSRs and the cache bits of CR0)."""
        cpu = self.cpu
        kept = cpu.cr0 & 0x6000_0000, dict(cpu.msr), cpu.xcr0
        fpu = cpu.fpu
        if init:
            cpu.fpu = Spare()  # type: ignore[assignment]  # so that Cpu.reset leaves it alone
        cpu.reset()
        if init:
            cpu.cr0, cpu.xcr0 = 0x10 | kept[0], kept[2]
            cpu.msr.update(kept[1])
            cpu.fpu = fpu
        else:
            cpu.fpu.init()
        self.cr8 = 0
        self.drop_completion()
        cpu.regs[2] = self.cpuid_table.look_up(1, 0)[0] or 0x600
        if self.lapic is not None:
            self.lapic.reset(init)
        cpu.state_changed()


def scale(khz: int) -> tuple[int, int]:
    """Return shift and multiplier that make nanoseconds of TSC ticks: (ticks << shift) * multiplier >> 32."""
    shift, rate = 0, khz * 1000
    while rate > 2_000_000_000:
        shift, rate = shift - 1, rate >> 1
    while rate <= 1_000_000_000:
        shift, rate = shift + 1, rate << 1
    return shift, (1_000_000_000 << 32) // rate
