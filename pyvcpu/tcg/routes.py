"""The interrupt controllers of a VM together: which there are, where a GSI leads, and who gets a message.

One lock guards them all, the local APICs too: `lock` may be taken by any thread, and again by who has it. It is taken
before the locks of Timers and of Memory, never after.
"""

from __future__ import annotations

import errno
import os
import threading
from struct import unpack

from .apic_timer import EXTINT, LOWEST, LVT_LINT0, M32, MASKED, NMI
from .ioapic import LENGTH
from .thing import fetch

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Any

    from .base import Base
    from .eventfds import Irqfd
    from .ioapic import Ioapic
    from .lapic import Lapic
    from .pic import Pic
    from .vmcore import VmCore

IRQCHIP, MSI = 1, 2  # KVM_IRQ_ROUTING_*
MASTER, SLAVE, IOAPIC = 0, 1, 2
USER, RESAMPLER, TIMER = 1, 2, 4  # who drives a line: a bit each
MOST_ROUTES = 4096
NO_SHORTHAND, SELF, ALL, OTHERS = range(4)

Route = tuple[int, int, int]  # IRQCHIP, chip, pin; or MSI, address, data


class Irqs:
    """The interrupt controllers of a VM. `mode`: none, kernel (PICs, IOAPIC, local APICs) or split (local APICs)."""

    def __init__(self, vm: VmCore) -> None:
        self.vm = vm
        self.lock = threading.RLock()
        self.mode = "none"
        self.pic: Pic | None = None
        self.ioapic: Ioapic | None = None
        self.wide_ids = False  # KVM_X2APIC_API_USE_32BIT_IDS
        self.broadcast_quirk_off = False
        self.reserved_pins = 0
        self.routes: dict[int, list[Route]] = {}
        self._levels: dict[tuple[int, int], int] = {}
        self._ack: dict[tuple[int, int], list[Callable[[], object]]] = {}

    def lapics(self) -> list[Lapic]:
        """Return the local APICs of all vCPUs."""
        return [vcpu.lapic for vcpu in list(self.vm.vcpus.values()) if vcpu.lapic is not None]

    def create(self) -> None:
        """Make PICs and IOAPIC, and the routes that lead to them (KVM_CREATE_IRQCHIP)."""
        from .ioapic import PINS, Ioapic
        from .pic import PORTS, Pic

        with self.lock:
            self.pic, self.ioapic = Pic(self), Ioapic(self)
            self.mode = "kernel"
            for gsi in range(PINS):
                self.routes[gsi] = [(IRQCHIP, IOAPIC, gsi)]
                if gsi < 16:
                    self.routes[gsi].append((IRQCHIP, gsi >> 3, gsi & 7))
        self.vm.io.add(self.pic, PORTS)

    # Lines.

    def set_line(self, source: int, gsi: int, level: bool) -> int:
        """Set what one source says of a line. Returns how many interrupts that makes, -1 where it leads nowhere."""
        with self.lock:
            total = -1
            for kind, first, second in self.routes.get(gsi, ()):
                if kind == MSI:
                    result = self.message(first, second) if level else -1
                else:
                    result = self._drive(source, first, second, level)
                if result >= 0:
                    total = result + max(total, 0)
            return total

    def _drive(self, source: int, chip: int, pin: int, level: bool) -> int:
        key = chip, pin
        state = self._levels.get(key, 0)
        state = state | source if level else state & ~source
        self._levels[key] = state
        if chip == IOAPIC:
            return self.ioapic.set_line(pin, bool(state)) if self.ioapic is not None else -1
        return self.pic.set_line(chip << 3 | pin, bool(state)) if self.pic is not None else -1

    def raised(self, irqfds: list[Irqfd]) -> None:
        """Follow eventfds that were signalled: an edge, or a level that stays until the interrupt is ended."""
        for one in irqfds:
            if one.resample >= 0:
                self.set_line(RESAMPLER, one.gsi, True)
            else:
                self.set_line(USER, one.gsi, True)
                self.set_line(USER, one.gsi, False)

    def acknowledged(self, chip: int, pin: int) -> None:
        """Tell those who wait for the end of a line's interrupt. Under the lock."""
        irqfds = self.vm.helper.irqfds
        ticks = self.vm.pit
        if not irqfds and ticks is None:
            return
        for gsi, routes in self.routes.items():
            if (IRQCHIP, chip, pin) not in routes:
                continue
            if gsi == 0 and ticks is not None:
                ticks.acknowledged()
            for one in irqfds:
                if one.gsi == gsi and one.resample >= 0:
                    self.set_line(RESAMPLER, gsi, False)
                    os.eventfd_write(one.resample, 1)

    def unmasked(self) -> None:
        """Tell the PIT that lines were unmasked. Under the lock."""
        if self.vm.pit is not None:
            self.vm.pit.unmasked()

    def pic_raised(self) -> None:
        """Pass the PIC's request on to the processor that takes it. Under the lock."""
        for vcpu in list(self.vm.vcpus.values()):
            if vcpu.accepts_pic():
                vcpu.update_irq()
                return

    def timer_ticked(self) -> None:
        """Deliver a tick of the PIT as an NMI where LINT0 says so (Linux's NMI watchdog). Under the lock."""
        for lapic in self.lapics():
            if lapic.regs[LVT_LINT0 >> 4] & (MASKED | 0x700) == NMI << 8:
                lapic.deliver_local(LVT_LINT0)

    # Messages.

    def send(
        self, source: Lapic | None, mode: int, vector: int, level: bool, asserted: bool, logical: bool,
        destination: int, shorthand: int,
    ) -> int:  # fmt: skip
        """Deliver an interrupt message; returns how many APICs take it, -1 where there is none to. Under the lock."""
        if mode == EXTINT:
            return -1
        targets = []
        for lapic in self.lapics():
            if not lapic.present:
                continue
            if shorthand == NO_SHORTHAND:
                hit = lapic.matches(destination, logical, source is not None)
            else:
                hit = shorthand == ALL or (lapic is source) == (shorthand == SELF)
            if hit:
                targets.append(lapic)
        if mode == LOWEST:
            targets = sorted((one for one in targets if one.enabled), key=lambda one: one.arbitration)[:1]
        if not targets:
            return -1
        return sum(one.accept(mode, vector, level, asserted) for one in targets)

    def message(self, address: int, data: int) -> int:
        """Deliver an MSI (SDM vol. 3A, 11.11). Under the lock."""
        destination = address >> 12 & 0xFF
        if self.wide_ids:
            destination |= address >> 32 & 0xFFFF_FF00
        mode = data >> 8 & 7
        if address & 8 and mode == 0:
            mode = LOWEST
        return self.send(None, mode, data & 0xFF, bool(data & 1 << 15), True, bool(address & 4), destination, 0)

    def signal_msi(self, address: int) -> int:
        """Serve KVM_SIGNAL_MSI (api.rst 4.70)."""
        low, high, data = unpack("<III", fetch(address, 12))
        if self.mode == "none":
            raise OSError(errno.EINVAL, "no controllers")
        if self.wide_ids and high & 0xFF:
            raise OSError(errno.EINVAL, "address")
        with self.lock:
            result = self.message(high << 32 | low, data)
        if result < 0:
            raise OSError(errno.EPERM, "nobody is there")
        return result

    def ended(self, vcpu: Base, vector: int, level: bool) -> None:
        """Follow an EOI at a local APIC. Under the lock, on the vCPU's thread."""
        if self.ioapic is not None:
            if self.ioapic.handles(vector):
                self.ioapic.ended(vector, level)
        elif self.mode == "split" and self._is_level_route(vector):
            vcpu.ended.append(vector)
            vcpu.want_exit = ioapic_eoi
            vcpu.cpu.attention = 1

    def _is_level_route(self, vector: int) -> bool:
        for gsi in range(self.reserved_pins):
            for kind, _address, data in self.routes.get(gsi, ()):
                if kind == MSI and data & 0xFF == vector and data & 1 << 15:
                    return True
        return False

    # The IOAPIC's memory, on a vCPU's thread.

    def mmio_read(self, address: int, size: int) -> bytes | None:
        """Read the IOAPIC; None where the address is not its."""
        ioapic = self.ioapic
        if ioapic is None or not ioapic.base <= address < ioapic.base + LENGTH:
            return None
        if address & 15 or size > 8:
            return bytes(size)
        with self.lock:
            return ioapic.read(address - ioapic.base).to_bytes(8, "little")[:size]

    def mmio_write(self, address: int, data: bytes) -> bool:
        """Write the IOAPIC; False where the address is not its."""
        ioapic = self.ioapic
        if ioapic is None or not ioapic.base <= address < ioapic.base + LENGTH:
            return False
        if not address & 15:
            with self.lock:
                ioapic.write(address - ioapic.base, int.from_bytes(data[:4], "little"))
        return True

    # Routes.

    def set_routes(self, address: int) -> None:
        """Serve KVM_SET_GSI_ROUTING (api.rst 4.52)."""
        count, flags = unpack("<II", fetch(address, 8))
        if self.mode == "none" or count > MOST_ROUTES or flags:
            raise OSError(errno.EINVAL, "routes")
        routes: dict[int, list[Route]] = {}
        for at in range(count):
            gsi, kind, flags, _, *parts = unpack("<8I", fetch(address + 8 + 48 * at, 32))
            route = self._route(kind, flags, parts)
            if gsi >= MOST_ROUTES:
                raise OSError(errno.EINVAL, "GSI")
            there = routes.setdefault(gsi, [])
            if there and (kind == MSI or there[0][0] == MSI or any(other[1] == route[1] for other in there)):
                raise OSError(errno.EINVAL, "two routes for one GSI")
            there.append(route)
        with self.lock:
            self.routes = routes

    def _route(self, kind: int, flags: int, parts: list[int]) -> Route:
        if kind == IRQCHIP:
            chip, pin = parts[:2]
            if flags or self.mode != "kernel" or chip > IOAPIC or pin >= (24 if chip == IOAPIC else 8):
                raise OSError(errno.EINVAL, "route")
            return IRQCHIP, chip, pin
        if kind == MSI:
            low, high, data, _ = parts
            if flags & ~1 or (self.wide_ids and high & 0xFF):
                raise OSError(errno.EINVAL, "route")
            return MSI, high << 32 | low, data & M32
        raise OSError(errno.EINVAL, "route")


def ioapic_eoi(vcpu: Any) -> None:
    """Write KVM_EXIT_IOAPIC_EOI."""
    vcpu.page[8:12] = b"\x1a\0\0\0"
    vcpu.page[32] = vcpu.ended.pop(0)
    if vcpu.ended:
        vcpu.want_exit = ioapic_eoi
