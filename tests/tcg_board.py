"""A VM of the software KVM without fds, whose clock somebody sets: for tests of its controllers and timers."""

from __future__ import annotations

import os

from pyvcpu.tcg.apic_timer import LDR, SVR
from pyvcpu.tcg.clock import Clock
from pyvcpu.tcg.kernel import TcgKernel
from pyvcpu.tcg.vcpu import Vcpu
from pyvcpu.tcg.vm import Vm

VECTOR = 0x31


class Still(Clock):
    """A clock that somebody sets."""

    __slots__ = ("time",)

    def __init__(self) -> None:
        super().__init__()
        self.time = 0

    def now(self) -> int:
        """Return what was set."""
        return self.time


class Board:
    """A VM without fds, with `smp` vCPUs and kernel or split controllers."""

    def __init__(self, smp: int, split: bool = False, wide: bool = False) -> None:
        self.clock = Still()
        self.vm = vm = Vm(TcgKernel())
        vm.clock = vm.timers.clock = self.clock
        vm.timers.poke = int
        vm.born = 0
        if split:
            vm.irqs.mode, vm.irqs.reserved_pins = "split", 24
        else:
            vm.irqs.create()
        vm.irqs.wide_ids = wide
        for number in range(smp):
            vcpu = Vcpu(vm, number)
            fd = vcpu.file()
            os.close(fd)
            vm.vcpus[number] = vcpu
            assert vcpu.lapic is not None
            vcpu.lapic.has_deadline = True
        self.apics = [vcpu.lapic for vcpu in vm.vcpus.values() if vcpu.lapic is not None]

    def enable(self) -> None:
        """Enable all local APICs, with logical ids 1, 2, 4 ..."""
        for at, apic in enumerate(self.apics):
            apic.write(SVR, 0x1FF)
            apic.write(LDR, 1 << at << 24)

    def waiting(self, vector: int = VECTOR) -> list[int]:
        """Return the numbers of the vCPUs at which a vector waits, and take it away."""
        found = [at for at, apic in enumerate(self.apics) if apic.irr >> vector & 1]
        for apic in self.apics:
            apic.irr &= ~(1 << vector)
        return found

    def after(self, nanoseconds: int) -> None:
        """Let time pass."""
        self.clock.time += nanoseconds
        self.vm.timers.run()
