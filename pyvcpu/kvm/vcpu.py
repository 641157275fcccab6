"""VcpuFd: one virtual processor, as the kernel sees it."""

from __future__ import annotations

import errno

from .abi import basic as abi
from .cpuid import CpuidTable
from .errors import KvmError
from .fd import U32, U64, Fd, LazyModule, in_range

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import mmap
    from typing import Any

    from . import encryption, stats, vcpu_clock, vcpu_control, vcpu_debug, vcpu_memory, vcpu_msr, vcpu_state, xen
else:
    encryption = LazyModule("pyvcpu.kvm.encryption")
    stats = LazyModule("pyvcpu.kvm.stats")
    vcpu_clock = LazyModule("pyvcpu.kvm.vcpu_clock")
    vcpu_control = LazyModule("pyvcpu.kvm.vcpu_control")
    vcpu_debug = LazyModule("pyvcpu.kvm.vcpu_debug")
    vcpu_memory = LazyModule("pyvcpu.kvm.vcpu_memory")
    vcpu_msr = LazyModule("pyvcpu.kvm.vcpu_msr")
    vcpu_state = LazyModule("pyvcpu.kvm.vcpu_state")
    xen = LazyModule("pyvcpu.kvm.xen")

RUN_AGAIN = (errno.EINTR, errno.EAGAIN)


class VcpuFd(Fd):
    """A vCPU: its registers and KVM_RUN. KVM wants its requests from one thread, and warns of slowness otherwise."""

    __slots__ = ()

    def map_run(self, size: int) -> mmap.mmap:
        """Map struct kvm_run and what follows it; `size` is Kvm.get_vcpu_mmap_size()."""
        if size != self._mmap_size():  # a page behind the end would end the process with SIGBUS when touched
            raise ValueError(f"size must be Kvm.get_vcpu_mmap_size(), {self._mmap_size():#x}, not {size!r}")
        try:
            return self.kernel.mmap(self.fd, size)
        except OSError as error:
            raise KvmError("mmap", error.errno or 0, self.where) from None

    def _mmap_size(self) -> int:
        kvm: Any = self.parent and self.parent.parent
        return int(kvm.mmap_size or kvm.get_vcpu_mmap_size())

    def run(self) -> int:
        """Run the guest until it exits: return 0, or the errno EINTR or EAGAIN, which are answers and not errors.

        After EINTR kvm_run.exit_reason may be an old one. Raise KvmError for any other errno (KVM_RUN, api.rst 4.10).
        """
        if self.kernel.ioctl(self.fd, abi.KVM_RUN.number, 0) == 0:
            return 0
        code = self.kernel.errno()
        if code in RUN_AGAIN:
            return code
        raise KvmError("KVM_RUN", code, self.where)

    def get_regs(self) -> abi.kvm_regs:
        """Read the general registers (KVM_GET_REGS, api.rst 4.11)."""
        regs = abi.kvm_regs()
        self.ioctl(abi.KVM_GET_REGS, regs)
        return regs

    def set_regs(self, regs: abi.kvm_regs) -> None:
        """Write the general registers (KVM_SET_REGS, api.rst 4.12)."""
        self.ioctl(abi.KVM_SET_REGS, regs)

    def get_sregs(self) -> abi.kvm_sregs:
        """Read segments, control registers, EFER and APIC base (KVM_GET_SREGS, api.rst 4.13)."""
        sregs = abi.kvm_sregs()
        self.ioctl(abi.KVM_GET_SREGS, sregs)
        return sregs

    def set_sregs(self, sregs: abi.kvm_sregs) -> None:
        """Write segments, control registers, EFER and APIC base (KVM_SET_SREGS, api.rst 4.14)."""
        self.ioctl(abi.KVM_SET_SREGS, sregs)

    def translate(self, linear_address: int) -> int | None:
        """Return the guest physical address behind `linear_address` in the current mode, or None.

        KVM_TRANSLATE, api.rst 4.15.
        """
        translation = abi.kvm_translation(linear_address=in_range("a linear address", linear_address, U64))
        self.ioctl(abi.KVM_TRANSLATE, translation)
        return translation.physical_address if translation.valid else None

    def set_cpuid2(self, table: CpuidTable) -> None:
        """Set what the CPUID instruction shows; only before the first KVM_RUN (KVM_SET_CPUID2, api.rst 4.20).

        Needs KVM_CAP_EXT_CPUID.
        """
        if not isinstance(table, CpuidTable):
            raise TypeError(f"what CPUID shows must be a CpuidTable, not {table!r}")
        self.ioctl(abi.KVM_SET_CPUID2, table.buffer)

    def get_cpuid2(self) -> CpuidTable:
        """Read what the CPUID instruction shows (KVM_GET_CPUID2). Needs KVM_CAP_EXT_CPUID."""
        return CpuidTable.fetch(self, abi.KVM_GET_CPUID2)

    def get_mp_state(self) -> int:
        """Return one of the KVM_MP_STATE_* (KVM_GET_MP_STATE, api.rst 4.38). Needs KVM_CAP_MP_STATE."""
        state = abi.kvm_mp_state()
        self.ioctl(abi.KVM_GET_MP_STATE, state)
        return int(state.mp_state)

    def set_mp_state(self, mp_state: int) -> None:
        """Set one of the KVM_MP_STATE_* (KVM_SET_MP_STATE, api.rst 4.39). Needs KVM_CAP_MP_STATE."""
        self.ioctl(abi.KVM_SET_MP_STATE, abi.kvm_mp_state(in_range("an MP state", mp_state, U32)))

    def get_tsc_khz(self) -> int:
        """Return the rate of the guest's time-stamp counter in kHz (KVM_GET_TSC_KHZ, api.rst 4.56).

        Needs KVM_CAP_GET_TSC_KHZ.
        """
        return self.ioctl(abi.KVM_GET_TSC_KHZ)

    # The rarer requests, loaded when first used.
    # vcpu_state.py
    get_sregs2 = vcpu_state.get_sregs2
    set_sregs2 = vcpu_state.set_sregs2
    get_fpu = vcpu_state.get_fpu
    set_fpu = vcpu_state.set_fpu
    get_lapic = vcpu_state.get_lapic
    set_lapic = vcpu_state.set_lapic
    get_vcpu_events = vcpu_state.get_vcpu_events
    set_vcpu_events = vcpu_state.set_vcpu_events
    get_xsave = vcpu_state.get_xsave
    get_xsave2 = vcpu_state.get_xsave2
    set_xsave = vcpu_state.set_xsave
    get_xcrs = vcpu_state.get_xcrs
    set_xcrs = vcpu_state.set_xcrs
    get_nested_state = vcpu_state.get_nested_state
    set_nested_state = vcpu_state.set_nested_state
    get_one_reg = vcpu_state.get_one_reg
    set_one_reg = vcpu_state.set_one_reg
    get_reg_list = vcpu_state.get_reg_list
    set_signal_mask = vcpu_state.set_signal_mask
    # vcpu_debug.py
    get_debugregs = vcpu_debug.get_debugregs
    set_debugregs = vcpu_debug.set_debugregs
    x86_setup_mce = vcpu_debug.x86_setup_mce
    x86_set_mce = vcpu_debug.x86_set_mce
    set_guest_debug = vcpu_debug.set_guest_debug
    # vcpu_msr.py
    get_msrs = vcpu_msr.get_msrs
    set_msrs = vcpu_msr.set_msrs
    set_cpuid = vcpu_msr.set_cpuid
    get_supported_hv_cpuid = vcpu_msr.get_supported_hv_cpuid
    has_device_attr = vcpu_msr.has_device_attr
    get_device_attr = vcpu_msr.get_device_attr
    set_device_attr = vcpu_msr.set_device_attr
    # vcpu_clock.py
    set_tsc_khz = vcpu_clock.set_tsc_khz
    kvmclock_ctrl = vcpu_clock.kvmclock_ctrl
    # vcpu_control.py
    interrupt = vcpu_control.interrupt
    nmi = vcpu_control.nmi
    smi = vcpu_control.smi
    tpr_access_reporting = vcpu_control.tpr_access_reporting
    set_vapic_addr = vcpu_control.set_vapic_addr
    enable_cap = vcpu_control.enable_cap
    # vcpu_memory.py
    pre_fault_memory = vcpu_memory.pre_fault_memory
    coalesced_ring = vcpu_memory.coalesced_ring
    map_dirty_ring = vcpu_memory.map_dirty_ring
    # stats.py
    get_stats_fd = stats.get_stats_fd
    # xen.py
    xen_vcpu_get_attr = xen.xen_vcpu_get_attr
    xen_vcpu_set_attr = xen.xen_vcpu_set_attr
    # encryption.py
    memory_encrypt_op = encryption.memory_encrypt_op
