"""What stands behind /dev/kvm: which KVM this is, what it can do, and where VMs come from."""

from __future__ import annotations

import errno
import os
from struct import pack, unpack

from ..kvm.abi import basic, device, features, msr
from ..kvm.abi.caps import Cap
from . import cpuid, msrs
from .memory import SLOTS
from .thing import Thing, fetch, give
from .vm import MAX_VCPU_ID, MAX_VCPUS, Vm

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import ClassVar

    from .kernel import TcgKernel
    from .thing import Request

RUN_SIZE = 3 * 4096  # kvm_run, the data of port I/O, the coalesced ring
MCE_BANKS = 32
MCG_CAP = 1 << 24 | 1 << 8  # MCG_SER_P, MCG_CTL_P
GUEST_DEBUG = 0x1F0003  # KVM_GUESTDBG_*: all

# What KVM_CHECK_EXTENSION answers; what is not here is not there.
CAPABILITIES: dict[int, int] = {
    **dict.fromkeys(
        (
            Cap.IRQCHIP, Cap.HLT, Cap.USER_MEMORY, Cap.SET_TSS_ADDR, Cap.EXT_CPUID, Cap.CLOCKSOURCE, Cap.PIT,
            Cap.NOP_IO_DELAY, Cap.MP_STATE, Cap.SYNC_MMU, Cap.DESTROY_MEMORY_REGION_WORKS, Cap.USER_NMI,
            Cap.SET_GUEST_DEBUG, Cap.REINJECT_CONTROL, Cap.IRQ_INJECT_STATUS, Cap.JOIN_MEMORY_REGIONS_WORKS, Cap.IRQFD,
            Cap.PIT2, Cap.SET_BOOT_CPU_ID, Cap.PIT_STATE2, Cap.IOEVENTFD, Cap.SET_IDENTITY_MAP_ADDR,
            Cap.INTERNAL_ERROR_DATA, Cap.VCPU_EVENTS, Cap.DEBUGREGS, Cap.X86_ROBUST_SINGLESTEP, Cap.ENABLE_CAP,
            Cap.XCRS, Cap.TSC_CONTROL, Cap.GET_TSC_KHZ, Cap.TSC_DEADLINE_TIMER, Cap.KVMCLOCK_CTRL, Cap.SIGNAL_MSI,
            Cap.READONLY_MEM, Cap.IRQFD_RESAMPLE, Cap.DEVICE_CTRL, Cap.IOAPIC_POLARITY_IGNORED, Cap.ENABLE_CAP_VM,
            Cap.IOEVENTFD_NO_LENGTH, Cap.CHECK_EXTENSION_VM, Cap.SPLIT_IRQCHIP, Cap.IOEVENTFD_ANY_LENGTH,
            Cap.VCPU_ATTRIBUTES, Cap.IMMEDIATE_EXIT, Cap.GET_MSR_FEATURES, Cap.COALESCED_PIO, Cap.EXCEPTION_PAYLOAD,
            Cap.X86_USER_SPACE_MSR, Cap.X86_MSR_FILTER, Cap.ENFORCE_PV_FEATURE_CPUID, Cap.SREGS2, Cap.BINARY_STATS_FD,
            Cap.SYS_ATTRIBUTES, Cap.VM_TSC_CONTROL, Cap.X86_TRIPLE_FAULT_EVENT, Cap.USER_MEMORY2, Cap.VM_TYPES,
            Cap.EXT_EMUL_CPUID, Cap.MSR_PLATFORM_INFO, Cap.VAPIC, Cap.XSAVE,
        ),
        1,
    ),
    Cap.NR_VCPUS: os.cpu_count() or 1,
    Cap.NR_MEMSLOTS: SLOTS,
    Cap.COALESCED_MMIO: 2,  # the page of the run mapping where the ring is
    Cap.IRQ_ROUTING: 4096,
    Cap.MCE: MCE_BANKS,
    Cap.ADJUST_CLOCK: 4 | 8 | 2,  # REALTIME, HOST_TSC, TSC_STABLE
    Cap.MAX_VCPUS: MAX_VCPUS,
    Cap.MAX_VCPU_ID: MAX_VCPU_ID,
    Cap.SYNC_REGS: 7,
    Cap.X2APIC_API: 3,
    Cap.MANUAL_DIRTY_LOG_PROTECT2: 3,
    Cap.DIRTY_LOG_RING: 1 << 20,
    Cap.DIRTY_LOG_RING_ACQ_REL: 1 << 20,
    Cap.SET_GUEST_DEBUG2: GUEST_DEBUG,
    Cap.XSAVE2: 4096,
}  # fmt: skip


def extension(cap: int) -> int:
    """Answer KVM_CHECK_EXTENSION."""
    return CAPABILITIES.get(cap & 0xFFFF_FFFF, 0)


class System(Thing):
    """The system fd."""

    NAME = "kvm"

    def __init__(self, kernel: TcgKernel) -> None:
        super().__init__()
        self.kernel = kernel

    def _no_argument(self, argument: int, answer: int) -> int:
        if argument:
            raise OSError(errno.EINVAL, "no argument")
        return answer

    def _api_version(self, argument: int) -> int:
        return self._no_argument(argument, basic.KVM_API_VERSION)

    def _mmap_size(self, argument: int) -> int:
        return self._no_argument(argument, RUN_SIZE)

    def _check_extension(self, cap: int) -> int:
        return extension(cap)

    def _create_vm(self, kind: int) -> int:
        if kind:
            raise OSError(errno.EINVAL, "no such type")
        return self.kernel.install(Vm(self.kernel))

    def _supported_cpuid(self, address: int) -> int:
        return give_cpuid(address, cpuid.supported())

    def _emulated_cpuid(self, address: int) -> int:
        return give_cpuid(address, [])

    def _msr_index_list(self, address: int) -> int:
        return _give_list(address, msrs.INDICES)

    def _feature_index_list(self, address: int) -> int:
        return _give_list(address, tuple(msrs.FEATURE_MSRS))

    def _get_msrs(self, address: int) -> int:
        return msrs.get_list(address, msrs.FEATURE_MSRS.get)

    def _mce_cap(self, address: int) -> int:
        give(address, pack("<Q", MCG_CAP | MCE_BANKS))
        return 0

    def _has_attribute(self, address: int) -> int:
        _flags, group, attr, _place = unpack("<IIQQ", fetch(address, 24))
        if (group, attr) != (device.KVM_X86_GRP_SYSTEM, device.KVM_X86_XCOMP_GUEST_SUPP):
            raise OSError(errno.ENXIO, "no such attribute")
        return 0

    def _get_attribute(self, address: int) -> int:
        self._has_attribute(address)
        give(unpack("<IIQQ", fetch(address, 24))[3], pack("<Q", cpuid.XCR0))
        return 0

    REQUESTS: ClassVar[dict[int, Request]] = {
        basic.KVM_GET_API_VERSION.number: _api_version,
        basic.KVM_GET_VCPU_MMAP_SIZE.number: _mmap_size,
        basic.KVM_CHECK_EXTENSION.number: _check_extension,
        basic.KVM_CREATE_VM.number: _create_vm,
        basic.KVM_GET_SUPPORTED_CPUID.number: _supported_cpuid,
        features.KVM_GET_EMULATED_CPUID.number: _emulated_cpuid,
        msr.KVM_GET_MSR_INDEX_LIST.number: _msr_index_list,
        msr.KVM_GET_MSR_FEATURE_INDEX_LIST.number: _feature_index_list,
        msr.KVM_GET_MSRS.number: _get_msrs,
        basic.KVM_X86_GET_MCE_CAP_SUPPORTED.number: _mce_cap,
        device.KVM_HAS_DEVICE_ATTR.number: _has_attribute,
        device.KVM_GET_DEVICE_ATTR.number: _get_attribute,
    }

    def unknown(self, number: int) -> int:
        """KVM's own answer for its system fd is EINVAL."""
        return errno.EINVAL


def give_cpuid(address: int, entries: list[cpuid.Entry]) -> int:
    """Fill in a kvm_cpuid2. E2BIG, and how many there are, where they do not fit."""
    (room,) = unpack("<I", fetch(address, 4))
    if room < len(entries):
        raise OSError(errno.E2BIG, "too short")
    give(address + 8, cpuid.pack(entries))
    give(address, pack("<I", len(entries)))
    return 0


def _give_list(address: int, indices: tuple[int, ...]) -> int:
    """Fill in a kvm_msr_list. E2BIG, and how many there are, where they do not fit."""
    (room,) = unpack("<I", fetch(address, 4))
    give(address, pack("<I", len(indices)))
    if room < len(indices):
        raise OSError(errno.E2BIG, "too short")
    give(address + 4, pack(f"<{len(indices)}I", *indices))
    return 0
