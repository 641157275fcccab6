"""What stands behind a VM's fd: its requests."""

from __future__ import annotations

import errno
import os
from struct import pack, unpack

from ..kvm.abi import basic, ioevent, irq, msr, stats
from ..kvm.abi import clock as clocks
from ..kvm.abi import device as devices
from ..kvm.abi import memory as memories
from .msrs import Filter
from .routes import IOAPIC, USER
from .thing import fetch, give
from .vmcore import VmCore

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import ClassVar

    from .pit import Pit
    from .thing import Request

PINS = 24
MAX_VCPUS, MAX_VCPU_ID = 1024, 4096
TSC_KHZ = 1_000_000
REALTIME, HOST_TSC, TSC_STABLE = 4, 8, 2
M64 = 0xFFFF_FFFF_FFFF_FFFF
(
    CAP_SPLIT, CAP_X2APIC, CAP_PAYLOAD, CAP_MANUAL_LOG, CAP_USER_MSR, CAP_RING, CAP_TRIPLE_FAULT,
    CAP_RING_ACQ_REL,
) = 121, 129, 164, 168, 188, 192, 218, 223  # fmt: skip


class Vm(VmCore):
    """The requests of a VM."""

    # Time.

    def _get_clock(self, address: int) -> int:
        now = self.clock.now()
        data = pack("<QIIQQ16x", self.kvmclock(now) & M64, REALTIME | HOST_TSC | TSC_STABLE, 0, self.clock.wall(), now)
        give(address, data)
        return 0

    def _set_clock(self, address: int) -> int:
        value, flags, _, real = unpack("<QIIQ", fetch(address, 24))
        if flags & ~(REALTIME | HOST_TSC | TSC_STABLE):
            raise OSError(errno.EINVAL, "flags")
        if flags & REALTIME:
            value += max(0, self.clock.wall() - real)
        self.clock_offset = value - self.clock.now()
        self.clock_version += 1
        for vcpu in self.vcpus.values():
            vcpu.kick()
        return 0

    def _get_tsc_khz(self, argument: int) -> int:
        return self.tsc_khz

    def _set_tsc_khz(self, khz: int) -> int:
        if khz >= 1 << 32:
            raise OSError(errno.EINVAL, "rate")
        self.tsc_khz = khz or TSC_KHZ
        return 0

    # Capabilities.

    def _check_extension(self, cap: int) -> int:
        from .system import extension

        return extension(cap)

    def _enable_cap(self, address: int) -> int:
        cap, flags, value = unpack("<IIQ", fetch(address, 16))
        if flags:
            raise OSError(errno.EINVAL, "flags")
        irqs = self.irqs
        if cap == CAP_SPLIT:
            with self.lock:
                if value > 4096:
                    raise OSError(errno.EINVAL, "pins")
                if irqs.mode != "none":
                    raise OSError(errno.EEXIST, "there are controllers")
                if self.vcpus:
                    raise OSError(errno.EINVAL, "there are vCPUs")
                irqs.mode, irqs.reserved_pins = "split", value
        elif cap == CAP_X2APIC and not value & ~3:
            irqs.wide_ids = irqs.wide_ids or bool(value & 1)
            irqs.broadcast_quirk_off = irqs.broadcast_quirk_off or bool(value & 2)
        elif cap in (CAP_RING, CAP_RING_ACQ_REL):
            self._make_rings(value)
        elif cap == CAP_PAYLOAD:
            self.exception_payload = bool(value)
        elif cap == CAP_TRIPLE_FAULT:
            self.triple_fault_event = bool(value)
        elif cap == CAP_MANUAL_LOG and not value & ~3 and value != 2:
            self.manual_log = bool(value & 1)
            self.memory.initially_set = bool(value & 2)
        elif cap == CAP_USER_MSR and not value & ~7:
            self.user_msrs = value
        else:
            raise OSError(errno.EINVAL, "no such capability")
        return 0

    def _set_msr_filter(self, address: int) -> int:
        made = Filter(fetch(address, 8 + 16 * 24))
        self.msr_filter = None if made.allow and not made.ranges else made
        return 0

    # Memory.

    def _set_region(self, address: int) -> int:
        number, flags, place, size, host = unpack("<IIQQQ", fetch(address, 32))
        return self._change_slot(number, flags, place, size, host)

    def _set_region2(self, address: int) -> int:
        number, flags, place, size, host = unpack("<IIQQQ", fetch(address, 32))
        if flags & ~3:
            raise OSError(errno.EINVAL, "flags")
        return self._change_slot(number, flags, place, size, host)

    def _change_slot(self, number: int, flags: int, place: int, size: int, host: int) -> int:
        gone = self.memory.set_region(number, flags, place, size, host)
        self.settle()
        code = self.memory.code
        if gone and code is not None:
            code.clear()
        return 0

    def _get_dirty_log(self, address: int) -> int:
        number, _, place = unpack("<IIQ", fetch(address, 16))
        bitmap = self.memory.take_log(number, self.manual_log)
        if not self.manual_log:
            self.settle()
        give(place, bitmap)
        return 0

    def _clear_dirty_log(self, address: int) -> int:
        number, count, first, place = unpack("<IIQQ", fetch(address, 24))
        slot, _ = self.memory.logged(number)
        end = first + count
        if first & 63 or first > slot.count or count > slot.count - first or (count & 63 and end != slot.count):
            raise OSError(errno.EINVAL, "range")
        size = (count + 63) // 64 * 8
        bits = int.from_bytes(fetch(place, size), "little") & (1 << count) - 1 if size else 0
        self.memory.clear_log(number, first, count, bits)
        self.settle()
        return 0

    def _set_mmu_pages(self, count: int) -> int:
        if count < 64:
            raise OSError(errno.EINVAL, "too few")
        return 0

    def _set_tss_addr(self, place: int) -> int:
        if place > (1 << 32) - 3 * 4096:
            raise OSError(errno.EINVAL, "address")
        return 0

    def _identity_map(self, address: int) -> int:
        if self.vcpus:
            raise OSError(errno.EINVAL, "there are vCPUs")
        fetch(address, 8)
        return 0

    def _reset_rings(self, argument: int) -> int:
        rings = self.memory.rings
        if rings is None:
            raise OSError(errno.EINVAL, "there are no dirty rings")
        count = rings.reset(self.dirty_rings())
        if count:
            self.memory.generation += 1
            self.settle()
        return count

    def _make_rings(self, size: int) -> None:
        from .rings import Rings

        if self.memory.rings is not None or self.vcpus:
            raise OSError(errno.EINVAL, "too late")
        self.memory.rings = Rings(size)

    # vCPUs.

    def _create_vcpu(self, number: int) -> int:
        from .vcpu import Vcpu

        if number >= MAX_VCPU_ID:
            raise OSError(errno.EINVAL, "id")
        with self.lock:
            if number in self.vcpus:
                raise OSError(errno.EEXIST, "id")
            if len(self.vcpus) >= MAX_VCPUS:
                raise OSError(errno.EINVAL, "too many")
            vcpu = Vcpu(self, number)
            try:
                fd = self.kernel.install(vcpu)
            except OSError:
                vcpu.cpu.close()
                raise
            self.vcpus[number] = vcpu
            self._users += 1
        return fd

    def _set_boot_cpu(self, number: int) -> int:
        with self.lock:
            if self.vcpus:
                raise OSError(errno.EBUSY, "there are vCPUs")
            self.boot_cpu = number
        return 0

    # Interrupts.

    def _create_irqchip(self, argument: int) -> int:
        with self.lock:
            if self.irqs.mode != "none":
                raise OSError(errno.EEXIST, "there are controllers")
            if self.vcpus:
                raise OSError(errno.EINVAL, "there are vCPUs")
            self.irqs.create()
        return 0

    def _irq_line(self, address: int) -> int:
        gsi, level = unpack("<II", fetch(address, 8))
        if self.irqs.mode == "none":
            raise OSError(errno.ENXIO, "no controllers")
        self.irqs.set_line(USER, gsi, bool(level))
        return 0

    def _irq_line_status(self, address: int) -> int:
        gsi, level = unpack("<II", fetch(address, 8))
        if self.irqs.mode == "none":
            raise OSError(errno.ENXIO, "no controllers")
        give(address, pack("<i", self.irqs.set_line(USER, gsi, bool(level))))
        return 0

    def _get_irqchip(self, address: int) -> int:
        (chip,) = unpack("<I", fetch(address, 4))
        pic, ioapic = self.irqs.pic, self.irqs.ioapic
        if pic is None or ioapic is None:
            raise OSError(errno.ENXIO, "no controllers")
        with self.irqs.lock:
            if chip > IOAPIC:
                raise OSError(errno.EINVAL, "no such chip")
            data = ioapic.get() if chip == IOAPIC else pic.get(chip)
        give(address + 8, data.ljust(512, b"\0"))
        return 0

    def _set_irqchip(self, address: int) -> int:
        data = fetch(address, 520)
        chip = int.from_bytes(data[:4], "little")
        pic, ioapic = self.irqs.pic, self.irqs.ioapic
        if pic is None or ioapic is None:
            raise OSError(errno.ENXIO, "no controllers")
        with self.irqs.lock:
            if chip > IOAPIC:
                raise OSError(errno.EINVAL, "no such chip")
            if chip == IOAPIC:
                ioapic.set(data[8:])
            else:
                pic.set(chip, data[8:])
        return 0

    def _set_routing(self, address: int) -> int:
        self.irqs.set_routes(address)
        return 0

    def _signal_msi(self, address: int) -> int:
        return self.irqs.signal_msi(address)

    def _irqfd(self, address: int) -> int:
        self.helper.assign(address, self.irqs)
        return 0

    # The timer.

    def _create_pit(self, argument: int) -> int:
        return self._make_pit(True)

    def _create_pit2(self, address: int) -> int:
        return self._make_pit(bool(unpack("<I", fetch(address, 4))[0] & irq.KVM_PIT_SPEAKER_DUMMY))

    def _make_pit(self, speaker: bool) -> int:
        from .pit import Pit

        with self.lock:
            if self.pit is not None:
                raise OSError(errno.EEXIST, "there is a PIT")
            if self.irqs.pic is None:
                raise OSError(errno.ENOENT, "no controllers")
            self.pit = Pit(self, speaker)
        return 0

    def _the_pit(self) -> Pit:
        if self.pit is None:
            raise OSError(errno.ENXIO, "no PIT")
        return self.pit

    def _get_pit(self, address: int) -> int:
        give(address, self._the_pit().get()[:72])
        return 0

    def _get_pit2(self, address: int) -> int:
        give(address, self._the_pit().get())
        return 0

    def _set_pit(self, address: int) -> int:
        self._the_pit().set(fetch(address, 72), False)
        return 0

    def _set_pit2(self, address: int) -> int:
        self._the_pit().set(fetch(address, 112), True)
        return 0

    def _reinject(self, address: int) -> int:
        pit = self._the_pit()
        pit.reinject = bool(fetch(address, 32)[0])
        return 0

    # Accesses without an exit.

    def _ioeventfd(self, address: int) -> int:
        self.events.assign(address)
        self.io.update()
        return 0

    def _register_zone(self, address: int) -> int:
        self.zones.register(address)
        self.io.update()
        return 0

    def _unregister_zone(self, address: int) -> int:
        self.zones.unregister(address)
        self.io.update()
        return 0

    # The rest.

    def _create_device(self, address: int) -> int:
        fetch(address, 12)
        raise OSError(errno.ENODEV, "no such device")

    def _stats_fd(self, argument: int) -> int:
        from .stats import StatsFile

        if self.stats is None:
            self.stats = StatsFile(f"kvm-{os.getpid()}", self, False)
        return os.dup(self.stats.fd)

    REQUESTS: ClassVar[dict[int, Request]] = {
        basic.KVM_CHECK_EXTENSION.number: _check_extension,
        basic.KVM_ENABLE_CAP.number: _enable_cap,
        basic.KVM_CREATE_VCPU.number: _create_vcpu,
        basic.KVM_SET_USER_MEMORY_REGION.number: _set_region,
        memories.KVM_SET_USER_MEMORY_REGION2.number: _set_region2,
        memories.KVM_GET_DIRTY_LOG.number: _get_dirty_log,
        memories.KVM_CLEAR_DIRTY_LOG.number: _clear_dirty_log,
        memories.KVM_RESET_DIRTY_RINGS.number: _reset_rings,
        memories.KVM_SET_NR_MMU_PAGES.number: _set_mmu_pages,
        basic.KVM_SET_TSS_ADDR.number: _set_tss_addr,
        basic.KVM_SET_IDENTITY_MAP_ADDR.number: _identity_map,
        basic.KVM_CREATE_IRQCHIP.number: _create_irqchip,
        irq.KVM_SET_BOOT_CPU_ID.number: _set_boot_cpu,
        irq.KVM_IRQ_LINE.number: _irq_line,
        irq.KVM_IRQ_LINE_STATUS.number: _irq_line_status,
        irq.KVM_GET_IRQCHIP.number: _get_irqchip,
        irq.KVM_SET_IRQCHIP.number: _set_irqchip,
        irq.KVM_SET_GSI_ROUTING.number: _set_routing,
        irq.KVM_SIGNAL_MSI.number: _signal_msi,
        irq.KVM_IRQFD.number: _irqfd,
        irq.KVM_CREATE_PIT.number: _create_pit,
        irq.KVM_CREATE_PIT2.number: _create_pit2,
        irq.KVM_GET_PIT.number: _get_pit,
        irq.KVM_SET_PIT.number: _set_pit,
        irq.KVM_GET_PIT2.number: _get_pit2,
        irq.KVM_SET_PIT2.number: _set_pit2,
        irq.KVM_REINJECT_CONTROL.number: _reinject,
        ioevent.KVM_IOEVENTFD.number: _ioeventfd,
        ioevent.KVM_REGISTER_COALESCED_MMIO.number: _register_zone,
        ioevent.KVM_UNREGISTER_COALESCED_MMIO.number: _unregister_zone,
        clocks.KVM_GET_CLOCK.number: _get_clock,
        clocks.KVM_SET_CLOCK.number: _set_clock,
        basic.KVM_GET_TSC_KHZ.number: _get_tsc_khz,
        clocks.KVM_SET_TSC_KHZ.number: _set_tsc_khz,
        msr.KVM_X86_SET_MSR_FILTER.number: _set_msr_filter,
        devices.KVM_CREATE_DEVICE.number: _create_device,
        stats.KVM_GET_STATS_FD.number: _stats_fd,
    }
