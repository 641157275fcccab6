"""What the processor asks its machine for: ports, device memory, interrupts, MSRs, CPUID, time (contract.Platform)."""

from __future__ import annotations

from . import msrs
from .base import Base
from .contract import UserMsr
from .exceptions import GP, Fault

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpuid import Entry
    from .vcpu import Vcpu

M64 = 0xFFFF_FFFF_FFFF_FFFF
RUNNABLE, UNINITIALIZED, INIT_RECEIVED, HALTED = range(4)
FILTER, UNKNOWN, INVALID = 4, 2, 1  # KVM_MSR_EXIT_REASON_*
IF = 1 << 9
OSXSAVE, APIC = 1 << 27, 1 << 9
READ, WRITE = 1, 2
BLOCK_IRQS = 1 << 20  # KVM_GUESTDBG_BLOCKIRQ


class Platform(Base):
    """The half of a vCPU that its processor sees. All methods are called on the vCPU's thread."""

    def port_read(self, port: int, size: int) -> int | None:
        """Read a port of a device in here."""
        device = self.vm.io.ports.get(port)
        return None if device is None else device.port_read(port, size)

    def port_write(self, port: int, size: int, value: int) -> bool:
        """Write a port of a device in here, an ioeventfd or a coalesced zone."""
        io = self.vm.io
        if not io.busy:
            return False
        return io.port_write(port, size, value)

    def mmio_read(self, address: int, size: int) -> bytes | None:
        """Read the local APIC or the IOAPIC."""
        lapic = self.lapic
        if lapic is not None:
            if lapic.start <= address < lapic.start + 4096:
                return lapic.mmio_read(address - lapic.start, size)
            return self.vm.irqs.mmio_read(address, size)
        return None

    def mmio_write(self, address: int, data: bytes) -> bool:
        """Write the local APIC, the IOAPIC, an ioeventfd or a coalesced zone."""
        lapic = self.lapic
        if lapic is not None:
            if lapic.start <= address < lapic.start + 4096:
                lapic.mmio_write(address - lapic.start, data)
                return True
            if self.vm.irqs.mmio_write(address, data):
                return True
        return self.vm.io.busy and self.vm.io.mmio_write(address, data)

    def interrupt(self) -> int | None:
        """Acknowledge the interrupt that is to be delivered now; None may mean that user space wants the window."""
        irqs = self.vm.irqs
        if irqs.mode == "none":
            self._window()
            return None
        if self.cpu.debug_control & BLOCK_IRQS:
            return None
        with irqs.lock:
            if self.external is not None and self.accepts_pic():
                vector, self.external = self.external, None
                return vector
            if irqs.pic is not None and irqs.pic.output and self.accepts_pic():
                return irqs.pic.acknowledge()
            if self.lapic is not None:
                found = self.lapic.acknowledge()
                if found is not None:
                    return found
            if irqs.mode == "split":
                self._window()
        return None

    def _window(self) -> None:
        """Leave for user space where it asked for the moment at which an interrupt can be taken."""
        if self.page[0] and self.window_accepted():
            self.want_exit = window_open
            self.cpu.attention = 1

    def window_accepted(self) -> bool:
        """Tell whether user space could inject an interrupt, as far as the controllers go."""
        return self.external is None and self.accepts_pic()

    def accept_init_sipi(self) -> None:
        """Do what INIT and SIPI ask for. Under the lock of Irqs, on the vCPU's thread or under its mutex."""
        if self.init_pending:
            self.init_pending = False
            self.reset(True)
            self.mp_state = RUNNABLE if self.apic_base & 1 << 8 else INIT_RECEIVED
        if self.sipi_pending:
            self.sipi_pending = False
            if self.mp_state == INIT_RECEIVED:
                cpu = self.cpu
                code = cpu.segs[1]
                code.selector, code.base = self.sipi_vector << 8, self.sipi_vector << 12
                cpu.rip = 0
                cpu.state_changed()
                self.mp_state = RUNNABLE

    def check_msr(self, index: int, write: bool) -> None:
        """Raise UserMsr or #GP where a filter keeps the guest from an MSR: asked before any is read or written."""
        found = self.vm.msr_filter
        if found is not None and not found.allowed(index, WRITE if write else READ):
            self._denied(FILTER)
            raise Fault(GP, 0)

    def read_msr(self, index: int) -> int | None:
        """Read an MSR for the guest; user space may want to answer for those that there are not."""
        value = msrs.read(self, index)
        if value is None:
            self._denied(UNKNOWN)
        return value

    def write_msr(self, index: int, value: int) -> bool:
        """Write an MSR for the guest."""
        if msrs.write(self, index, value):
            return True
        self._denied(UNKNOWN if msrs.read(self, index) is None else INVALID)
        return False

    def _denied(self, reason: int) -> None:
        if self.vm.user_msrs & reason:
            self.exit_value = reason
            raise UserMsr

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """Return what CPUID shows."""
        eax, ebx, ecx, edx = self.cpuid_table.look_up(leaf, subleaf)
        if leaf in (1, 0xD):
            _, _, _, eax, ebx, ecx, edx = self.runtime_cpuid((leaf, subleaf, 0, eax, ebx, ecx, edx))
        return eax, ebx, ecx, edx

    def runtime_cpuid(self, entry: Entry) -> Entry:
        """Fill in what follows from the state: OSXSAVE, APIC; the size of the XSAVE area."""
        function, index, flags, eax, ebx, ecx, edx = entry
        cpu: object = getattr(self, "cpu", None)
        if function == 1 and cpu is not None:
            ecx = ecx & ~OSXSAVE | (OSXSAVE if self.cpu.cr4 & 1 << 18 else 0)
            if not self.apic_base & 1 << 11:
                edx &= ~APIC
        elif function == 0xD and index == 0 and eax:
            ebx = 576
        return function, index, flags, eax, ebx, ecx, edx

    def get_cr8(self) -> int:
        """Return the task priority."""
        return self.cr8 if self.lapic is None else self.lapic.get_cr8()

    def set_cr8(self, value: int) -> None:
        """Set the task priority; user space is told of a lower one where it has the local APIC."""
        if self.lapic is not None:
            self.lapic.set_cr8(value)
            return
        before, self.cr8 = self.cr8, value
        if value < before:
            self.want_exit = set_tpr
            self.cpu.attention = 1

    def pause(self) -> None:
        """Let other threads have the interpreter."""
        if len(self.vm.inside) > 1:
            self.vm.clock.give_way()


def window_open(vcpu: Vcpu) -> None:
    """Write KVM_EXIT_IRQ_WINDOW_OPEN."""
    vcpu.page[8:12] = b"\x07\0\0\0"


def set_tpr(vcpu: Vcpu) -> None:
    """Write KVM_EXIT_SET_TPR."""
    vcpu.page[8:12] = b"\x0b\0\0\0"
