"""What stands behind a vCPU's fd: the processor, its page shared with user space, and its requests but KVM_RUN.

`mutex` is held during each request, KVM_RUN included: others wait for it, as with KVM. What other threads do to a vCPU
(interrupts, INIT, NMI) goes through Irqs, whose lock guards the fields that say so, and through kick().
"""

from __future__ import annotations

import errno
import os
from struct import pack, unpack

from ..kvm.abi import basic, clock, debug, device, events, features, irq, msr, state, stats
from . import msrs, paging
from .contract import EVENT_EXCEPTION, Event
from .exceptions import Fault
from .hostmap import Mapping
from .rings import OFFSET, Ring
from .thing import fetch, give
from .vcpu_state import VcpuState

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .lapic import Lapic

PAGE = 4096
RUN_SIZE = 3 * PAGE
RUNNABLE, UNINITIALIZED, INIT_RECEIVED, HALTED, SIPI_RECEIVED = range(5)
APIC_START, APIC_ENABLED, X2APIC_ENABLED, BSP = 0xFEE0_0000, 1 << 11, 1 << 10, 1 << 8
TSC_KHZ = 1_000_000
MAX_TSC_KHZ = 1 << 32
DEBUG_CONTROL = 0x1F0003
INJECT_DB, INJECT_BP = 1 << 18, 1 << 19
M64 = 0xFFFF_FFFF_FFFF_FFFF
ONE_MSR = 0x2030_0002_0000_0000  # KVM_REG_X86 | KVM_REG_SIZE_U64 | KVM_X86_REG_TYPE_MSR << 32
KVM_CAP_ENFORCE_PV, KVM_CAP_EXIT_HLT = 190, 143


class Vcpu(VcpuState):
    """A vCPU."""

    NAME = "kvm-vcpu"
    RING = RUN_SIZE - PAGE

    # The fd.

    def file(self) -> int:
        """Return a new memory file, and map it, with the ring of coalesced writes as its last page."""
        fd = os.memfd_create(f"{self.NAME}:{self.id}", os.MFD_CLOEXEC)
        try:
            rings = self.vm.memory.rings
            os.ftruncate(fd, RUN_SIZE if rings is None else OFFSET + rings.size)
            self.mapping = Mapping(fd, RUN_SIZE)
            if rings is not None:
                self.ring = Ring(fd, rings.size, self.kick)
        except OSError:
            os.close(fd)
            raise
        self.page = self.mapping.view
        return fd

    def closed(self, fd: int) -> None:
        """Note that the fd is being closed: the vCPU's id stays taken, its processor goes when the VM does."""
        self.vm.released()

    def destroy(self) -> None:
        """Give back what the vCPU has of the host."""
        self.cpu.close()
        if self.lapic is not None:
            self.lapic.stop()
        self.mapping.close()
        if self.ring is not None:
            self.ring.close()
        if self.stats is not None:
            os.close(self.stats.fd)
        if self.wake_fd >= 0:
            os.close(self.wake_fd)

    def unknown(self, number: int) -> int:
        """KVM's own answer for a vCPU is EINVAL; ENOTTY for what needs a capability that is not there."""
        return errno.ENOTTY if number in LACKING else errno.EINVAL

    # Requests; those for registers are in vcpu_state.

    def _get_mp_state(self, address: int) -> int:
        with self.vm.irqs.lock:
            self.accept_init_sipi()
            give(address, pack("<I", self.mp_state))
        return 0

    def _set_mp_state(self, address: int) -> int:
        (wanted,) = unpack("<I", fetch(address, 4))
        with self.vm.irqs.lock:
            if wanted > SIPI_RECEIVED or (wanted != RUNNABLE and self.lapic is None):
                raise OSError(errno.EINVAL, "no such state")
            if wanted == SIPI_RECEIVED:
                self.mp_state, self.sipi_pending = INIT_RECEIVED, True
            else:
                self.mp_state = wanted
        return 0

    def _set_signal_mask(self, address: int) -> int:
        if not address:
            self.signals.mask = None
            return 0
        (length,) = unpack("<I", fetch(address, 4))
        if length != 8:
            raise OSError(errno.EINVAL, "length")
        (self.signals.mask,) = unpack("<Q", fetch(address + 4, 8))
        return 0

    def _interrupt(self, address: int) -> int:
        (vector,) = unpack("<I", fetch(address, 4))
        if vector > 255:
            raise OSError(errno.EINVAL, "vector")
        mode = self.vm.irqs.mode
        if mode == "none":
            self.cpu.pending = Event(vector)
            self.cpu.wake = 1
            return 0
        if mode == "kernel":
            raise OSError(errno.ENXIO, "there is a PIC")
        with self.vm.irqs.lock:
            if self.external is not None:
                raise OSError(errno.EEXIST, "queued already")
            self.external = vector
            self.update_irq()
        return 0

    def _nmi(self, argument: int) -> int:
        self.cpu.nmi_pending = True
        self.kick()
        return 0

    def _translate(self, address: int) -> int:
        (linear,) = unpack("<Q", fetch(address, 8))
        cpu, cr2 = self.cpu, self.cpu.cr2
        try:
            physical, valid = paging.translate(cpu, linear, False, paging.SUPERVISOR_AC), 1
        except Fault:
            physical, valid = M64, 0
        cpu.cr2 = cr2
        give(address + 8, pack("<QBBB", physical, valid, 1, 0))
        return 0

    def _set_guest_debug(self, address: int) -> int:
        control, *registers = unpack("<I4x8Q", fetch(address, 72))
        cpu = self.cpu
        if control & (INJECT_DB | INJECT_BP):
            if cpu.pending is not None and cpu.pending.kind == EVENT_EXCEPTION:
                raise OSError(errno.EBUSY, "an exception is pending")
            cpu.pending = Event(1 if control & INJECT_DB else 3, None, EVENT_EXCEPTION)
        cpu.debug_control = control if control & 1 else 0
        cpu.debug_dr = list(registers)
        cpu.update_breakpoints()
        return 0

    def _get_lapic(self, address: int) -> int:
        give(address, self.apic().get())
        return 0

    def _set_lapic(self, address: int) -> int:
        self.apic().set(fetch(address, 1024))
        return 0

    def apic(self) -> Lapic:
        """Return the local APIC. Raise OSError EINVAL where there is none in the kernel."""
        if self.lapic is None:
            raise OSError(errno.EINVAL, "no local APIC")
        return self.lapic

    def _get_tsc_khz(self, argument: int) -> int:
        return self.tsc_khz

    def _set_tsc_khz(self, khz: int) -> int:
        if khz >= MAX_TSC_KHZ:
            raise OSError(errno.EINVAL, "rate")
        now = self.tsc()
        self.tsc_khz = khz or TSC_KHZ
        self.tsc_offset += now - self.tsc()
        self.clock_version = -1
        return 0

    def _kvmclock_ctrl(self, argument: int) -> int:
        if not self.msrs[msrs.SYSTEM_TIME] & 1:
            raise OSError(errno.EINVAL, "no kvmclock")
        self.guest_stopped = True
        self.clock_version = -1  # KVM_RUN tells the guest
        return 0

    def _setup_mce(self, address: int) -> int:
        (cap,) = unpack("<Q", fetch(address, 8))
        banks = cap & 0xFF
        if not 0 < banks <= 32 or cap & ~(1 << 24 | 1 << 8 | 0xFF):
            raise OSError(errno.EINVAL, "banks")
        self.mcg_cap = cap
        self.msrs[msrs.MCG_CTL] = M64 if cap & 1 << 8 else 0
        self.banks.clear()
        return 0

    def _set_mce(self, address: int) -> int:
        status, place, misc, mcg_status, bank = unpack("<QQQQB", fetch(address, 33))
        if bank >= self.mcg_cap & 0xFF or not status & 1 << 63:
            raise OSError(errno.EINVAL, "bank")
        base = msrs.MC0_CTL + 4 * bank
        if self.banks.get(base, M64) != M64 and status & 1 << 61:
            return 0
        before = self.banks.get(base + 1, 0)
        if status & 1 << 61:  # uncorrected: a machine check, or the end where one is being served
            if self.msrs[msrs.MCG_STATUS] & 4 or not self.cpu.cr4 & 1 << 6:
                self.triple_fault = True
                return 0
            self.msrs[msrs.MCG_STATUS] = mcg_status
            self.cpu.pending = Event(18, None, EVENT_EXCEPTION)
        elif before & 1 << 63 and before & 1 << 61:
            self.banks[base + 1] = before | 1 << 62
            return 0
        if before & 1 << 63:
            status |= 1 << 62
        self.banks.update({base + 1: status, base + 2: place, base + 3: misc})
        return 0

    def _tpr_access(self, address: int) -> int:
        _enabled, flags = unpack("<II", fetch(address, 8))
        if flags:
            raise OSError(errno.EINVAL, "flags")
        return 0

    def _set_vapic(self, address: int) -> int:
        (place,) = unpack("<Q", fetch(address, 8))
        if self.lapic is None or (place and self.vm.memory.slot_of(place >> 12) is None):
            raise OSError(errno.EINVAL, "no local APIC, or no memory")
        return 0

    def _enable_cap(self, address: int) -> int:
        cap, flags, _value = unpack("<IIQ", fetch(address, 16))
        if flags or cap != KVM_CAP_ENFORCE_PV:
            raise OSError(errno.EINVAL, "no such capability")
        return 0

    def _attribute(self, address: int) -> int:
        _flags, group, attr, place = unpack("<IIQQ", fetch(address, 24))
        if (group, attr) != (clock.KVM_VCPU_TSC_CTRL, clock.KVM_VCPU_TSC_OFFSET):
            raise OSError(errno.ENXIO, "no such attribute")
        return int(place)

    def _has_attribute(self, address: int) -> int:
        self._attribute(address)
        return 0

    def _get_attribute(self, address: int) -> int:
        give(self._attribute(address), pack("<Q", self.tsc_offset & M64))
        return 0

    def _set_attribute(self, address: int) -> int:
        (self.tsc_offset,) = unpack("<Q", fetch(self._attribute(address), 8))
        return 0

    def _stats_fd(self, argument: int) -> int:
        from .stats import StatsFile

        if self.stats is None:
            self.stats = StatsFile(f"kvm-{os.getpid()}/vcpu-{self.id}", self, True)
        return os.dup(self.stats.fd)


def _run(vcpu: Vcpu, argument: int) -> int:
    from .run import kvm_run

    return kvm_run(vcpu, argument)


def _locked(request: Callable[[Vcpu, int], int]) -> Callable[[Vcpu, int], int]:
    """Make a request wait for KVM_RUN to be left."""

    def serve(vcpu: Vcpu, argument: int) -> int:
        with vcpu.mutex:
            return request(vcpu, argument)

    return serve


Vcpu.REQUESTS = {
    basic.KVM_RUN.number: _run,
    **{
        request.number: _locked(method)
        for request, method in (
            (basic.KVM_GET_REGS, Vcpu._get_regs), (basic.KVM_SET_REGS, Vcpu._set_regs),
            (basic.KVM_GET_SREGS, Vcpu._get_sregs), (basic.KVM_SET_SREGS, Vcpu._set_sregs),
            (state.KVM_GET_SREGS2, Vcpu._get_sregs2), (state.KVM_SET_SREGS2, Vcpu._set_sregs2),
            (events.KVM_GET_VCPU_EVENTS, Vcpu._get_events), (events.KVM_SET_VCPU_EVENTS, Vcpu._set_events),
            (debug.KVM_GET_DEBUGREGS, Vcpu._get_debugregs), (debug.KVM_SET_DEBUGREGS, Vcpu._set_debugregs),
            (state.KVM_GET_FPU, Vcpu._get_fpu), (state.KVM_SET_FPU, Vcpu._set_fpu),
            (state.KVM_GET_XSAVE, Vcpu._get_xsave), (state.KVM_SET_XSAVE, Vcpu._set_xsave),
            (state.KVM_GET_XSAVE2, Vcpu._get_xsave), (state.KVM_GET_XCRS, Vcpu._get_xcrs),
            (state.KVM_SET_XCRS, Vcpu._set_xcrs), (msr.KVM_GET_MSRS, Vcpu._get_msrs),
            (msr.KVM_SET_MSRS, Vcpu._set_msrs), (basic.KVM_SET_CPUID2, Vcpu._set_cpuid2),
            (basic.KVM_GET_CPUID2, Vcpu._get_cpuid2), (features.KVM_SET_CPUID, Vcpu._set_cpuid),
            (basic.KVM_GET_MP_STATE, Vcpu._get_mp_state), (basic.KVM_SET_MP_STATE, Vcpu._set_mp_state),
            (state.KVM_SET_SIGNAL_MASK, Vcpu._set_signal_mask), (irq.KVM_INTERRUPT, Vcpu._interrupt),
            (irq.KVM_NMI, Vcpu._nmi), (basic.KVM_TRANSLATE, Vcpu._translate),
            (debug.KVM_SET_GUEST_DEBUG, Vcpu._set_guest_debug), (state.KVM_GET_LAPIC, Vcpu._get_lapic),
            (state.KVM_SET_LAPIC, Vcpu._set_lapic), (basic.KVM_GET_TSC_KHZ, Vcpu._get_tsc_khz),
            (clock.KVM_SET_TSC_KHZ, Vcpu._set_tsc_khz), (state.KVM_KVMCLOCK_CTRL, Vcpu._kvmclock_ctrl),
            (basic.KVM_X86_SETUP_MCE, Vcpu._setup_mce), (debug.KVM_X86_SET_MCE, Vcpu._set_mce),
            (irq.KVM_TPR_ACCESS_REPORTING, Vcpu._tpr_access), (irq.KVM_SET_VAPIC_ADDR, Vcpu._set_vapic),
            (basic.KVM_ENABLE_CAP, Vcpu._enable_cap), (device.KVM_HAS_DEVICE_ATTR, Vcpu._has_attribute),
            (device.KVM_GET_DEVICE_ATTR, Vcpu._get_attribute), (device.KVM_SET_DEVICE_ATTR, Vcpu._set_attribute),
        )
    },
    stats.KVM_GET_STATS_FD.number: Vcpu._stats_fd,
}  # fmt: skip
LACKING = {irq.KVM_SMI.number}
