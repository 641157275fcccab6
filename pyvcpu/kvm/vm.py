"""VmFd: one virtual machine."""

from __future__ import annotations

import ctypes
from _thread import allocate_lock

from .abi import basic as abi
from .fd import U32, U64, Fd, in_range
from .vcpu import VcpuFd

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .kernel import Kernel

DIRTY_RINGS = (192, 223)  # KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL


class VmCore(Fd):
    """What every boot needs of VmFd.

    `slots_lock` guards `slot_sizes` (bytes by slot, as set through this object) and makes a change of a slot and its
    entry one step. `dirty_ring_bytes` and `kept` (memory that the kernel reads whenever it likes) are set before the
    first vCPU, by one thread.
    """

    __slots__ = ("dirty_ring_bytes", "kept", "slot_sizes", "slots_lock")

    def __init__(self, kernel: Kernel, fd: int, where: str = "", parent: Fd | None = None) -> None:
        super().__init__(kernel, fd, where, parent)
        self.slots_lock = allocate_lock()
        self.slot_sizes: dict[int, int] = {}
        self.dirty_ring_bytes = 0
        self.kept: list[object] = []

    def check_extension(self, cap: int) -> int:
        """Return what Kvm.check_extension() returns, for this VM (KVM_CHECK_EXTENSION, api.rst 4.4).

        Needs KVM_CAP_CHECK_EXTENSION_VM.
        """
        return self.ioctl(abi.KVM_CHECK_EXTENSION, in_range("a capability", cap, U32))

    def create_vcpu(self, vcpu_id: int) -> VcpuFd:
        """Create the vCPU whose APIC id is `vcpu_id` (KVM_CREATE_VCPU, api.rst 4.7).

        An id can be used once in the life of a VM, also after its fd was closed.
        """
        in_range("a vCPU id", vcpu_id, U32)
        where = f"vCPU {vcpu_id}"
        return VcpuFd(self.kernel, self.ioctl(abi.KVM_CREATE_VCPU, vcpu_id, where), where, self)

    def set_user_memory_region(
        self, slot: int, guest_phys_addr: int, memory_size: int, userspace_addr: int, flags: int = 0
    ) -> None:
        """Make `memory_size` bytes of this process at `userspace_addr` the guest's memory at `guest_phys_addr`.

        All three are bytes and multiples of the page size; memory_size 0 deletes the slot. `slot` holds the address
        space in its upper 16 bits. The host memory must stay mapped until the slot or the VM is gone.
        KVM_SET_USER_MEMORY_REGION, api.rst 4.35. Needs KVM_CAP_USER_MEMORY.
        """
        region = abi.kvm_userspace_memory_region(
            in_range("slot", slot, U32),
            in_range("flags", flags, U32),
            in_range("guest_phys_addr", guest_phys_addr, U64),
            in_range("memory_size", memory_size, U64),
            in_range("userspace_addr", userspace_addr, U64),
        )
        with self.slots_lock:
            self.ioctl(abi.KVM_SET_USER_MEMORY_REGION, region)
            self.slot_sizes[slot] = memory_size

    def set_tss_addr(self, address: int) -> None:
        """Give Intel's KVM three pages below 4 GiB, outside of RAM, for real mode (KVM_SET_TSS_ADDR, api.rst 4.36).

        Needs KVM_CAP_SET_TSS_ADDR.
        """
        self.ioctl(abi.KVM_SET_TSS_ADDR, in_range("the TSS address", address, U32))

    def set_identity_map_addr(self, address: int) -> None:
        """Give Intel's KVM a page below 4 GiB, outside of RAM (KVM_SET_IDENTITY_MAP_ADDR, api.rst 4.40).

        Needs KVM_CAP_SET_IDENTITY_MAP_ADDR.
        """
        self.ioctl(abi.KVM_SET_IDENTITY_MAP_ADDR, ctypes.c_uint64(in_range("the identity map address", address, U64)))

    def create_irqchip(self) -> None:
        """Create PICs, IOAPIC and a local APIC per vCPU in the kernel, before any vCPU.

        KVM_CREATE_IRQCHIP, api.rst 4.24. Needs KVM_CAP_IRQCHIP.
        """
        self.ioctl(abi.KVM_CREATE_IRQCHIP)

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> None:
        """Turn on a capability that is off at first; `args` as it defines them (KVM_ENABLE_CAP, api.rst 4.37).

        Needs KVM_CAP_ENABLE_CAP_VM.
        """
        if len(args) > 4:
            raise ValueError(f"a capability takes at most 4 arguments, not {len(args)}")
        request = abi.kvm_enable_cap(in_range("a capability", cap, U32), in_range("flags", flags, U32))
        request.args[: len(args)] = [in_range("an argument", arg, U64) for arg in args]
        self.ioctl(abi.KVM_ENABLE_CAP, request)
        if cap in DIRTY_RINGS and args:
            self.dirty_ring_bytes = args[0]


if TYPE_CHECKING:
    from .vm_guests import VmGuests
    from .vm_io import VmIo
    from .vm_irq import VmIrq
    from .vm_memory import VmMemory

    class _VmBase(VmIrq, VmMemory, VmIo, VmGuests):
        __slots__ = ()
else:
    _VmBase = VmCore


class VmFd(_VmBase):
    """A VM: memory slots, interrupt controllers, and where vCPUs come from. Usable only in the process that made it.

    Its rarer methods are in vm_irq, vm_memory, vm_io and vm_guests, imported when the first of them is asked for.
    """

    __slots__ = ()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            from . import themes as themes  # gives Kvm, VmFd and VcpuFd the rest of their bases

            return object.__getattribute__(self, name)

        def __dir__(self) -> list[str]:
            from . import themes as themes

            return list(object.__dir__(self))
