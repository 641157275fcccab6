"""VmFd: one virtual machine."""

from __future__ import annotations

import ctypes

from .abi import basic as abi
from .fd import U32, U64, Fd, in_range
from .vcpu import VcpuFd


class VmFd(Fd):
    """A VM: memory slots, interrupt controllers, and where vCPUs come from. Usable only in the process that made it."""

    __slots__ = ()

    def check_extension(self, cap: int) -> int:
        """Return what Kvm.check_extension() returns, for this VM (KVM_CHECK_EXTENSION, api.rst 4.4)."""
        return self.ioctl(abi.KVM_CHECK_EXTENSION, in_range("a capability", cap, U32))

    def create_vcpu(self, vcpu_id: int) -> VcpuFd:
        """Create the vCPU whose APIC id is `vcpu_id` (KVM_CREATE_VCPU, api.rst 4.7).

        An id can be used once in the life of a VM, also after its fd was closed.
        """
        in_range("a vCPU id", vcpu_id, U32)
        where, self.where = self.where, f"vCPU {vcpu_id}"
        try:
            fd = self.ioctl(abi.KVM_CREATE_VCPU, vcpu_id)
        finally:
            self.where = where
        return VcpuFd(self.kernel, fd, f"vCPU {vcpu_id}")

    def set_user_memory_region(
        self, slot: int, guest_phys_addr: int, memory_size: int, userspace_addr: int, flags: int = 0
    ) -> None:
        """Make `memory_size` bytes of this process at `userspace_addr` the guest's memory at `guest_phys_addr`.

        All three are bytes and multiples of the page size; memory_size 0 deletes the slot. `slot` holds the address
        space in its upper 16 bits. The host memory must stay mapped until the slot or the VM is gone.
        KVM_SET_USER_MEMORY_REGION, api.rst 4.35.
        """
        region = abi.kvm_userspace_memory_region(
            in_range("slot", slot, U32),
            in_range("flags", flags, U32),
            in_range("guest_phys_addr", guest_phys_addr, U64),
            in_range("memory_size", memory_size, U64),
            in_range("userspace_addr", userspace_addr, U64),
        )
        self.ioctl(abi.KVM_SET_USER_MEMORY_REGION, region)

    def set_tss_addr(self, address: int) -> None:
        """Give Intel's KVM three pages below 4 GiB, outside of RAM, for real mode (KVM_SET_TSS_ADDR, api.rst 4.36)."""
        self.ioctl(abi.KVM_SET_TSS_ADDR, in_range("the TSS address", address, U32))

    def set_identity_map_addr(self, address: int) -> None:
        """Give Intel's KVM a page below 4 GiB, outside of RAM (KVM_SET_IDENTITY_MAP_ADDR, api.rst 4.55)."""
        self.ioctl(abi.KVM_SET_IDENTITY_MAP_ADDR, ctypes.c_uint64(in_range("the identity map address", address, U64)))

    def create_irqchip(self) -> None:
        """Create PICs, IOAPIC and a local APIC per vCPU in the kernel, before any vCPU.

        KVM_CREATE_IRQCHIP, api.rst 4.24.
        """
        self.ioctl(abi.KVM_CREATE_IRQCHIP)

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> None:
        """Turn on a capability that is off at first; `args` as it defines them (KVM_ENABLE_CAP, api.rst 4.37)."""
        if len(args) > 4:
            raise ValueError(f"a capability takes at most 4 arguments, not {len(args)}")
        request = abi.kvm_enable_cap(in_range("a capability", cap, U32), in_range("flags", flags, U32))
        request.args[: len(args)] = [in_range("an argument", arg, U64) for arg in args]
        self.ioctl(abi.KVM_ENABLE_CAP, request)
