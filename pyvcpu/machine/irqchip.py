"""IrqChip: the interrupt controllers of a machine, in the kernel or split, with PIT, routes and clock."""

from __future__ import annotations

from ..errors import ConfigError, PyvcpuError
from ..kvm.abi import basic as abi
from ..vcpu.arch_realize import enable_x2apic_api

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Any

    from ..devices.ioapic import Ioapic
    from ..kvm.vm import VmFd
    from ..vcpu.context import KvmContext
    from ..x86.topology import Topology

KINDS = ("none", "kernel", "split")
IOAPIC_PINS = 24
SPEAKER_DUMMY = 1  # KVM_PIT_SPEAKER_DUMMY: KVM answers port 0x61, too
PIC_MASTER, PIC_SLAVE, IOAPIC = 0, 1, 2  # KVM_IRQCHIP_*
CHIPS = {"pic_master": PIC_MASTER, "pic_slave": PIC_SLAVE, "ioapic": IOAPIC}


class IrqChipStateError(PyvcpuError, ValueError):
    """State data that no interrupt controllers of this machine could have given."""


class IrqChip:
    """The controllers beside the local APICs, which belong to the vCPUs.

    `kind` is none, kernel or split once create() has come so far. create() can be called again after a failure: what
    was done stays done. One thread at a time calls create(), reset(), state() and restore(), with the world held still
    for the last three; any thread calls set_line().
    """

    name = "irqchip"

    def __init__(self, context: KvmContext, topology: Topology, add_ioapic: Callable[[VmFd], Ioapic]) -> None:
        self._context = context
        self._topology = topology
        self._add_ioapic = add_ioapic
        self._done: set[str] = set()  # the steps of create() that KVM has taken
        self._ioapic: Ioapic | None = None
        self._drive: Callable[[int, bool], object] = _nowhere
        self._fresh: dict[str, bytes] = {}  # the controllers in the kernel as they were made

    @property
    def kind(self) -> str:
        """What there is: none, kernel or split; "" before create()."""
        return self._context.irqchip

    def create(self, kind: str) -> None:
        """Make them, before the first vCPU. Raise ConfigError or KvmError."""
        vm = self._context.vm
        if kind != "none":
            self._once("x2apic", lambda: enable_x2apic_api(self._context, self._topology))
        if kind == "kernel":
            self._once("irqchip", vm.create_irqchip)
            self._once("pit", lambda: vm.create_pit2(SPEAKER_DUMMY))
            self._drive = line_driver(vm)
            self._fresh = self._read_kernel()
        elif kind == "split":
            self._once("split", lambda: vm.enable_cap(abi.KVM_CAP_SPLIT_IRQCHIP, IOAPIC_PINS))
            if self._ioapic is None:
                self._ioapic = self._add_ioapic(vm)
            self._context.eoi, self._drive = self._ioapic.eoi, self._ioapic.set_line
        self._context.irqchip = kind

    def _once(self, step: str, function: Callable[[], object]) -> None:
        if step not in self._done:
            function()
            self._done.add(step)

    def set_line(self, gsi: int, level: bool) -> None:
        """Drive a line; without controllers it leads nowhere. Raise ConfigError for a line that there is not."""
        if not 0 <= gsi < IOAPIC_PINS:
            raise ConfigError(f"an interrupt line must be from 0 to {IOAPIC_PINS - 1}, not {gsi!r}")
        self._drive(gsi, bool(level))

    def unplug(self) -> None:
        """Let the lines lead nowhere from now on: the VM is about to be closed."""
        self._drive = _nowhere

    # Its state.

    def reset(self) -> None:
        """Put the controllers and the PIT back to how they were made; with split, the IOAPIC is a device."""
        if self.kind == "kernel":
            self._write_kernel(self._fresh)

    def state(self) -> dict[str, Any]:
        """Return the state of what is in the kernel, each part as KVM's structure, and the clock in ns."""
        state: dict[str, Any] = {"kind": self.kind, "clock": self._context.vm.get_clock().clock}
        if self.kind == "kernel":
            state |= self._read_kernel()
        return state

    def restore(self, data: object, *, clock: bool = True) -> None:
        """Take what state() gave. `clock`: kvmclock, too. Raise IrqChipStateError, with nothing changed."""
        keys = {"kind", "clock", *(self._fresh if self.kind == "kernel" else ())}
        if type(data) is not dict or set(data) != keys:
            raise IrqChipStateError(f"the state of the interrupt controllers must have {', '.join(sorted(keys))}")
        if data["kind"] != self.kind:
            raise IrqChipStateError(f"the state is of interrupt controllers {data['kind']!r}, not of {self.kind!r}")
        if type(data["clock"]) is not int or not 0 <= data["clock"] < 1 << 64:
            raise IrqChipStateError("the clock of the interrupt controllers must be a number of 64 bits")
        for name, fresh in self._fresh.items():
            if type(data[name]) is not bytes or len(data[name]) != len(fresh):
                raise IrqChipStateError(f"{name} of the interrupt controllers must be {len(fresh)} bytes")
        if self.kind == "kernel":
            self._write_kernel(data)
        if clock:
            self._context.vm.set_clock(data["clock"])

    def _read_kernel(self) -> dict[str, bytes]:
        vm = self._context.vm
        state = {name: bytes(vm.get_irqchip(number)) for name, number in CHIPS.items()}
        return {**state, "pit": bytes(vm.get_pit2())}

    def _write_kernel(self, state: dict[str, Any]) -> None:
        from ..kvm.abi import irq

        vm = self._context.vm
        for name in CHIPS:
            vm.set_irqchip(irq.kvm_irqchip.from_buffer_copy(state[name]))
        vm.set_pit2(irq.kvm_pit_state2.from_buffer_copy(state["pit"]))


def _nowhere(gsi: int, level: bool) -> None:
    """Drive no line."""


def line_driver(vm: VmFd) -> Callable[[int, bool], object]:
    """Return what drives the lines of the controllers in the kernel.

    With the requests made beforehand that takes 2 us, as much as an irqfd, which has no level and cannot be lowered.
    """
    from ..kvm.abi.irq import KVM_IRQ_LINE, kvm_irq_level

    requests = [(kvm_irq_level(irq=gsi, level=0), kvm_irq_level(irq=gsi, level=1)) for gsi in range(IOAPIC_PINS)]

    def drive(gsi: int, level: bool) -> None:
        vm.ioctl(KVM_IRQ_LINE, requests[gsi][level])

    return drive
