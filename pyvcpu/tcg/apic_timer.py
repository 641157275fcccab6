"""A local APIC's registers by name (SDM vol. 3A, table 11-1), and its timer (11.5.4).

All state is guarded by the lock of Irqs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .base import Base
    from .clock import Timer
    from .routes import Irqs
    from .vmcore import VmCore

M32, M64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
ID, VERSION, TPR, APR, PPR, EOI, RRR, LDR, DFR, SVR = (
    0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0,
)  # fmt: skip
ISR, TMR, IRR, ESR, CMCI, ICR, ICR2 = 0x100, 0x180, 0x200, 0x280, 0x2F0, 0x300, 0x310
LVT_TIMER, LVT_THERMAL, LVT_PMC, LVT_LINT0, LVT_LINT1, LVT_ERROR = 0x320, 0x330, 0x340, 0x350, 0x360, 0x370
TMICT, TMCCT, TDCR, SELF_IPI = 0x380, 0x390, 0x3E0, 0x3F0
LVTS = (LVT_TIMER, LVT_THERMAL, LVT_PMC, LVT_LINT0, LVT_LINT1, LVT_ERROR)

FIXED, LOWEST, SMI, REMOTE_READ, NMI, INIT, STARTUP, EXTINT = range(8)
MASKED, LEVEL, LOGICAL, ASSERT = 1 << 16, 1 << 15, 1 << 11, 1 << 14
ENABLED, HW_ENABLED, X2APIC = 1 << 8, 1 << 11, 1 << 10
LVT_BITS = {
    LVT_TIMER: 0x710FF, LVT_THERMAL: 0x117FF, LVT_PMC: 0x117FF, LVT_LINT0: 0x1F7FF, LVT_LINT1: 0x1F7FF,
    LVT_ERROR: 0x110FF,
}  # fmt: skip
ONE_SHOT, PERIODIC, DEADLINE = range(3)
VERSION_ID = 0x14 | (len(LVTS) - 1) << 16
READABLE = {
    ID, VERSION, TPR, PPR, LDR, DFR, SVR, ESR, ICR, ICR2, TMICT, TMCCT, TDCR, *LVTS,
    *range(ISR, ISR + 0x80, 16), *range(TMR, TMR + 0x80, 16), *range(IRR, IRR + 0x80, 16),
}  # fmt: skip
NOT_IN_X2APIC = {DFR, ICR2}
BUS_NS = 1  # the timer counts nanoseconds, as in KVM
SHORTEST_PERIOD = 200_000  # ns; KVM's min_timer_period_us


class ApicTimer:
    """The timer of a local APIC: one-shot, periodic, or at a value of the TSC."""

    vcpu: Base
    vm: VmCore
    irqs: Irqs
    regs: list[int]

    def __init__(self) -> None:
        self.timer: Timer | None = None
        self.target = 0  # when the timer expires, in ns of the VM's clock
        self.deadline = 0  # IA32_TSC_DEADLINE
        self.has_deadline = False

    def deliver_local(self, lvt: int) -> bool:
        """Take a local interrupt as its LVT entry says. Under the lock."""
        raise NotImplementedError

    @property
    def mode(self) -> int:
        """Return the timer's mode; 3 counts as none."""
        return self.regs[LVT_TIMER >> 4] >> 17 & 3

    @property
    def divider(self) -> int:
        """Return by how much the timer's clock is divided."""
        value = self.regs[TDCR >> 4]
        shift = (value & 3 | value >> 1 & 4) + 1 & 7
        return 1 << shift

    def begin(self, count: int) -> None:
        """Let the timer count down from `count`; 0 stops it. Under the lock."""
        self.stop()
        if not count:
            return
        self.target = self.vm.clock.now() + self._period(count)
        self.timer = self.vm.timers.arm(self.target, self._expired)

    def _period(self, count: int) -> int:
        period = count * BUS_NS * self.divider
        return max(period, SHORTEST_PERIOD) if self.mode == PERIODIC else period

    def count(self) -> int:
        """Return the current count. Under the lock."""
        if self.timer is None or self.mode == DEADLINE:
            return 0
        left = self.target - self.vm.clock.now()
        if left <= 0:
            if self.mode != PERIODIC:
                return 0
            left %= self._period(self.regs[TMICT >> 4]) or 1
        return min(left // (BUS_NS * self.divider), M32)

    def _divider_changed(self) -> None:
        if self.timer is not None and self.mode != DEADLINE:
            left = self.regs[TMICT >> 4]
            self.begin(left)

    def stop(self) -> None:
        """Stop the timer."""
        self.vm.timers.cancel(self.timer)
        self.timer = None

    def _expired(self, timer: Timer) -> None:
        """Deliver the timer's interrupt. Any thread."""
        with self.irqs.lock:
            if timer is not self.timer:
                return
            self.timer = None
            if self.mode == DEADLINE:
                self.deadline = 0
            elif self.mode == PERIODIC:
                period = self._period(self.regs[TMICT >> 4])
                now = self.vm.clock.now()
                self.target += max(1, (now - self.target) // period + 1) * period if period else 0
                if period:
                    self.timer = self.vm.timers.arm(self.target, self._expired)
            self.deliver_local(LVT_TIMER)

    def tsc_deadline_value(self) -> int:
        """Return IA32_TSC_DEADLINE."""
        return self.deadline if self.mode == DEADLINE else 0

    def set_tsc_deadline(self, value: int) -> None:
        """Write IA32_TSC_DEADLINE: the TSC at which the timer expires, 0 for never (SDM vol. 3A, 11.5.4.1)."""
        with self.irqs.lock:
            if self.mode != DEADLINE:
                return
            self.stop()
            self.deadline = value
            if value:
                self._arm_deadline()

    def _arm_deadline(self) -> None:
        ticks = self.deadline - self.vcpu.tsc()
        self.target = self.vm.clock.now() + max(ticks, 0) * 1_000_000 // self.vcpu.tsc_khz
        if ticks <= 0:
            self.deadline = 0
            self.deliver_local(LVT_TIMER)
        else:
            self.timer = self.vm.timers.arm(self.target, self._expired)

    def time_changed(self) -> None:
        """Follow a change of the TSC."""
        with self.irqs.lock:
            if self.mode == DEADLINE and self.deadline:
                self.stop()
                self._arm_deadline()
