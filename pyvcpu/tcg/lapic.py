"""A local APIC: interrupts that wait for a processor, its timer, and messages to others (SDM vol. 3A, chapter 11).

All state is guarded by the lock of Irqs, which is held while others are called. Priorities are looked up in integers
of 256 bits, one bit a vector.
"""

from __future__ import annotations

from struct import pack, unpack

from .apic_timer import (
    ASSERT,
    BUS_NS,
    DEADLINE,
    DFR,
    ENABLED,
    EOI,
    ESR,
    EXTINT,
    FIXED,
    HW_ENABLED,
    ICR,
    ICR2,
    ID,
    INIT,
    IRR,
    ISR,
    LDR,
    LEVEL,
    LOGICAL,
    LOWEST,
    LVT_BITS,
    LVT_LINT0,
    LVT_TIMER,
    LVTS,
    M32,
    MASKED,
    NMI,
    NOT_IN_X2APIC,
    PERIODIC,
    PPR,
    READABLE,
    SELF_IPI,
    STARTUP,
    SVR,
    TDCR,
    TMCCT,
    TMICT,
    TMR,
    TPR,
    VERSION,
    VERSION_ID,
    X2APIC,
    ApicTimer,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .base import Base


class Lapic(ApicTimer):
    """The local APIC of a vCPU."""

    def __init__(self, vcpu: Base) -> None:
        super().__init__()
        self.vcpu = vcpu
        self.vm, self.irqs = vcpu.vm, vcpu.vm.irqs
        self.id = vcpu.id
        self.regs = [0] * 64
        self.irr = self.isr = self.tmr = 0
        self.arbitration = 0
        self.start = 0xFEE0_0000
        self.reset(False)

    # Modes.

    @property
    def x2apic(self) -> bool:
        """Tell whether the registers are MSRs."""
        return self.vcpu.apic_base & (X2APIC | HW_ENABLED) == X2APIC | HW_ENABLED

    @property
    def present(self) -> bool:
        """Tell whether IA32_APIC_BASE enables it."""
        return bool(self.vcpu.apic_base & HW_ENABLED)

    @property
    def enabled(self) -> bool:
        """Tell whether it takes interrupts: enabled in IA32_APIC_BASE and SVR."""
        return bool(self.vcpu.apic_base & HW_ENABLED and self.regs[SVR >> 4] & ENABLED)

    def reset(self, init: bool) -> None:
        """Take the state after RESET, or after INIT, which keeps the id (SDM vol. 3A, 11.4.7)."""
        self.stop()
        regs = self.regs
        identity, logical = regs[ID >> 4], regs[LDR >> 4]
        self.regs = regs = [0] * 64
        regs[ID >> 4] = identity if init or self.x2apic else (self.id & 0xFF) << 24
        regs[VERSION >> 4] = VERSION_ID
        for lvt in LVTS:
            regs[lvt >> 4] = MASKED
        if self.vcpu.is_bsp():
            regs[LVT_LINT0 >> 4] = EXTINT << 8  # virtual wire
        regs[DFR >> 4], regs[SVR >> 4] = M32, 0xFF
        self.irr = self.isr = self.tmr = 0
        self.deadline = 0
        if self.x2apic:
            regs[LDR >> 4] = logical

    def base_changed(self, old: int, new: int) -> None:
        """Follow a write of IA32_APIC_BASE."""
        with self.irqs.lock:
            self.start = new & 0xF_FFFF_FFFF_F000
            both = X2APIC | HW_ENABLED
            if new & both == both and old & both != both:
                self.regs[ID >> 4] = self.id
                self.regs[LDR >> 4] = self.id >> 4 << 16 | 1 << (self.id & 15)
            elif new & HW_ENABLED and not old & HW_ENABLED:
                self.regs[ID >> 4] = (self.id & 0xFF) << 24
            if old & HW_ENABLED and not new & HW_ENABLED:
                self.stop()
            self.vcpu.update_irq()

    def cpuid_changed(self) -> None:
        """Note whether the timer has a TSC deadline mode."""
        self.has_deadline = self.vcpu.cpuid_table.has("tsc_deadline")

    # Interrupts in.

    def accept(self, mode: int, vector: int, level: bool, asserted: bool = True) -> bool:
        """Take an interrupt; False where it goes nowhere. Under the lock."""
        vcpu = self.vcpu
        if mode in (FIXED, LOWEST):
            if not self.enabled:
                return False
            bit = 1 << vector
            self.tmr = self.tmr | bit if level else self.tmr & ~bit
            self.irr |= bit
            if mode == LOWEST:
                self.arbitration += 1
            vcpu.update_irq()
            return True
        if mode == NMI:
            vcpu.cpu.nmi_pending = True
        elif mode == INIT:
            if level and not asserted:
                return False
            vcpu.init_pending = True
            vcpu.sipi_pending = False
        elif mode == STARTUP:
            vcpu.sipi_vector = vector
            vcpu.sipi_pending = True
        else:
            return False
        vcpu.kick()
        return True

    def deliver_local(self, lvt: int) -> bool:
        """Take a local interrupt as its LVT entry says. Under the lock."""
        value = self.regs[lvt >> 4]
        if not self.present or value & MASKED:
            return False
        return self.accept(value >> 8 & 7, value & 0xFF, bool(value & LEVEL))

    def accepts_pic(self) -> bool:
        """Tell whether LINT0 passes the PIC's interrupts on."""
        value = self.regs[LVT_LINT0 >> 4]
        return not self.present or value & (MASKED | 0x700) == EXTINT << 8

    def priority(self) -> int:
        """Return the processor priority, PPR."""
        tpr = self.regs[TPR >> 4] & 0xFF
        serving = self.isr.bit_length() - 1 & 0xF0 if self.isr else 0
        return tpr if tpr & 0xF0 >= serving else serving

    def ready(self) -> bool:
        """Tell whether an interrupt may be delivered. Under the lock."""
        irr = self.irr
        return bool(irr) and self.present and (irr.bit_length() - 1 & 0xF0) > self.priority() and self.enabled

    def acknowledge(self) -> int | None:
        """Begin to serve the most urgent interrupt; returns its vector. Under the lock."""
        if not self.ready():
            return None
        vector = self.irr.bit_length() - 1
        self.irr &= ~(1 << vector)
        self.isr |= 1 << vector
        return vector

    def end(self) -> None:
        """End the interrupt that is being served (EOI)."""
        if not self.isr:
            return
        vector = self.isr.bit_length() - 1
        bit = 1 << vector
        self.isr &= ~bit
        level = bool(self.tmr & bit)
        self.irqs.ended(self.vcpu, vector, level)
        self.vcpu.update_irq()

    def get_cr8(self) -> int:
        """Return CR8, which is the upper half of TPR."""
        return self.regs[TPR >> 4] >> 4 & 15

    def set_cr8(self, value: int) -> None:
        """Set CR8."""
        with self.irqs.lock:
            self.regs[TPR >> 4] = value << 4
            self.vcpu.update_irq()

    # Addresses.

    def matches(self, destination: int, logical: bool, from_ipi: bool) -> bool:
        """Tell whether a message is for this APIC (SDM vol. 3A, 11.6.2). Under the lock."""
        x2apic = self.x2apic
        if not from_ipi and destination == 0xFF and x2apic and not self.irqs.broadcast_quirk_off:
            return True
        if destination == (M32 if x2apic else 0xFF):
            return True
        mine = self.regs[(LDR if logical else ID) >> 4]
        if not logical:
            if x2apic or self.id > 0xFF:
                return destination == self.id
            return destination == mine >> 24
        if x2apic:
            return mine >> 16 == destination >> 16 and bool(mine & destination & 0xFFFF)
        mine >>= 24
        if self.regs[DFR >> 4] == M32:
            return bool(mine & destination)
        return mine >> 4 == destination >> 4 & 0xFFF_FFFF and bool(mine & destination & 15)

    def send(self, low: int, destination: int) -> None:
        """Send an IPI, as a write to ICR asks for."""
        self.irqs.send(
            self, low >> 8 & 7, low & 0xFF, bool(low & LEVEL), bool(low & ASSERT), bool(low & LOGICAL),
            destination, low >> 18 & 3,
        )  # fmt: skip

    # Registers.

    def read(self, offset: int) -> int | None:
        """Read a register; None where there is none. Under the lock."""
        if offset not in READABLE:
            return None
        for base, bits in ((ISR, self.isr), (TMR, self.tmr), (IRR, self.irr)):
            if base <= offset < base + 0x80:
                return bits >> (offset - base) * 2 & M32
        if offset == PPR:
            return self.priority()
        if offset == TMCCT:
            return self.count()
        return self.regs[offset >> 4]

    def write(self, offset: int, value: int) -> bool:
        """Write a register; False where there is none, or it cannot be written. Under the lock."""
        regs, at = self.regs, offset >> 4
        if offset == EOI:
            self.end()
        elif offset == TPR:
            regs[at] = value & 0xFF
            self.vcpu.update_irq()
        elif offset == ICR:
            regs[at] = value & ~(1 << 12)
            self.send(value, regs[ICR2 >> 4] if self.x2apic else regs[ICR2 >> 4] >> 24)
        elif offset == ICR2:
            regs[at] = value & 0xFF00_0000
        elif offset in LVT_BITS:
            self._write_lvt(offset, value)
        elif offset == TMICT:
            if self.mode != DEADLINE:
                regs[at] = value
                self.begin(value)
        elif offset == TDCR:
            regs[at] = value & 0xB
            self._divider_changed()
        elif offset == SVR:
            self._write_svr(value)
        elif offset == SELF_IPI and self.x2apic:
            self.irqs.send(self, FIXED, value & 0xFF, False, True, False, 0, 1)
        elif self.x2apic:
            return offset == ESR and not value
        elif offset in (ID, LDR):
            regs[at] = value & 0xFF00_0000
        elif offset == DFR:
            regs[at] = value | 0x0FFF_FFFF
        else:
            return offset == ESR
        return True

    def _write_svr(self, value: int) -> None:
        self.regs[SVR >> 4] = value & 0x3FF
        if not value & ENABLED:
            for lvt in LVTS:
                self.regs[lvt >> 4] |= MASKED
        self.vcpu.update_irq()

    def _write_lvt(self, offset: int, value: int) -> None:
        if not self.regs[SVR >> 4] & ENABLED:
            value |= MASKED
        mask = LVT_BITS[offset]
        if offset == LVT_TIMER:
            if not self.has_deadline:
                mask &= ~(1 << 18)
            before = self.mode
            self.regs[offset >> 4] = value & mask
            if self.mode != before and DEADLINE in (self.mode, before):
                self.stop()
                self.regs[TMICT >> 4] = 0
                self.deadline = 0
            return
        self.regs[offset >> 4] = value & mask
        if offset == LVT_LINT0:
            self.vcpu.update_irq()

    # Memory and MSRs, on the vCPU's thread.

    def mmio_read(self, offset: int, size: int) -> bytes:
        """Read the register page; what has no register reads as 0, the disabled APIC as all ones."""
        if not self.present or self.x2apic:
            return b"\xff" * size
        at = offset & 15
        if at + size > 4:
            return bytes(size)
        with self.irqs.lock:
            value = self.read(offset & ~15) or 0
        return value.to_bytes(4, "little")[at : at + size]

    def mmio_write(self, offset: int, data: bytes) -> None:
        """Write the register page: 32 bits at the start of a register, else nothing."""
        if self.present and not self.x2apic and len(data) == 4 and not offset & 15:
            with self.irqs.lock:
                self.write(offset, int.from_bytes(data, "little"))

    def read_msr(self, index: int, host: bool) -> int | None:
        """Read a register of x2APIC mode; None where there is none."""
        offset = (index - 0x800) << 4
        if not self.x2apic or offset in NOT_IN_X2APIC:
            return None
        with self.irqs.lock:
            value = self.read(offset)
            if value is not None and offset == ICR:
                value |= self.regs[ICR2 >> 4] << 32
        return value

    def write_msr(self, index: int, value: int, host: bool) -> bool:
        """Write a register of x2APIC mode; False where there is none."""
        offset = (index - 0x800) << 4
        if not self.x2apic or offset in NOT_IN_X2APIC or (offset != ICR and value >> 32):
            return False
        if offset == EOI and value:
            return False
        with self.irqs.lock:
            if offset == ICR:
                self.regs[ICR2 >> 4] = value >> 32
            return self.write(offset, value & M32)

    # KVM_GET_LAPIC, KVM_SET_LAPIC.

    def get(self) -> bytes:
        """Return kvm_lapic_state."""
        with self.irqs.lock:
            regs = list(self.regs)
            regs[TMCCT >> 4], regs[PPR >> 4] = self.count(), self.priority()
            for base, bits in ((ISR, self.isr), (TMR, self.tmr), (IRR, self.irr)):
                for at in range(8):
                    regs[(base >> 4) + at] = bits >> 32 * at & M32
            if self.x2apic and not self.irqs.wide_ids:
                regs[ID >> 4] = regs[ID >> 4] << 24 & M32
        return b"".join(pack("<I12x", value) for value in regs)

    def set(self, data: bytes) -> None:
        """Take kvm_lapic_state. Raise OSError EINVAL for another x2APIC id than the vCPU's."""
        regs = [unpack("<I", data[at : at + 4])[0] for at in range(0, 1024, 16)]
        with self.irqs.lock:
            if self.x2apic:
                if not self.irqs.wide_ids:
                    regs[ID >> 4] >>= 24
                elif regs[ID >> 4] != self.id:
                    raise OSError(22, "x2APIC id")
                regs[ID >> 4] = self.id
                regs[LDR >> 4] = self.id >> 4 << 16 | 1 << (self.id & 15)
            self.stop()
            self.isr, self.tmr, self.irr = (
                sum(regs[(base >> 4) + at] << 32 * at for at in range(8)) for base in (ISR, TMR, IRR)
            )
            left = regs[TMCCT >> 4]
            regs[TMCCT >> 4] = 0
            regs[VERSION >> 4] = VERSION_ID
            self.regs = regs
            if self.mode == DEADLINE:
                if self.deadline:
                    self._arm_deadline()
            elif regs[TMICT >> 4]:
                self.target = self.vm.clock.now() + (left or regs[TMICT >> 4]) * BUS_NS * self.divider
                if left or self.mode == PERIODIC:
                    self.timer = self.vm.timers.arm(self.target, self._expired)
            self.vcpu.update_irq()
