"""VmFd: one virtual machine."""

from __future__ import annotations

import ctypes
from _thread import allocate_lock

from .abi import basic as abi
from .fd import U32, U64, Fd, LazyModule, in_range
from .vcpu import VcpuFd

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from . import device, encryption, hyperv, msrs, routes, stats, vm_guests, vm_io, vm_irq, vm_memory, xen
    from .kernel import Kernel
else:
    device = LazyModule("pyvcpu.kvm.device")
    encryption = LazyModule("pyvcpu.kvm.encryption")
    hyperv = LazyModule("pyvcpu.kvm.hyperv")
    msrs = LazyModule("pyvcpu.kvm.msrs")
    routes = LazyModule("pyvcpu.kvm.routes")
    stats = LazyModule("pyvcpu.kvm.stats")
    vm_guests = LazyModule("pyvcpu.kvm.vm_guests")
    vm_io = LazyModule("pyvcpu.kvm.vm_io")
    vm_irq = LazyModule("pyvcpu.kvm.vm_irq")
    vm_memory = LazyModule("pyvcpu.kvm.vm_memory")
    xen = LazyModule("pyvcpu.kvm.xen")

DIRTY_RINGS = (abi.KVM_CAP_DIRTY_LOG_RING, abi.KVM_CAP_DIRTY_LOG_RING_ACQ_REL)


class VmFd(Fd):
    """A VM: memory slots, interrupt controllers, and where vCPUs come from. Usable only in the process that made it.

    `slot_sizes` has the bytes of each slot that was set through this object. `slots_lock` guards it, and is held while
    a slot is changed, so that the slot and its entry change together. `dirty_ring_bytes` and `kept` (memory that the
    kernel may read at any time) are set before the first vCPU, by one thread.
    """

    __slots__ = ("dirty_ring_bytes", "kept", "slot_sizes", "slots_lock")

    def __init__(self, kernel: Kernel, fd: int = -1, where: str = "", parent: Fd | None = None) -> None:
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
        return self.create(VcpuFd, abi.KVM_CREATE_VCPU, vcpu_id, where)

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

    # The rarer requests, loaded when first used.
    # vm_irq.py
    irq_line = vm_irq.irq_line
    irq_line_status = vm_irq.irq_line_status
    get_irqchip = vm_irq.get_irqchip
    set_irqchip = vm_irq.set_irqchip
    create_pit = vm_irq.create_pit
    create_pit2 = vm_irq.create_pit2
    get_pit = vm_irq.get_pit
    set_pit = vm_irq.set_pit
    get_pit2 = vm_irq.get_pit2
    set_pit2 = vm_irq.set_pit2
    reinject_control = vm_irq.reinject_control
    set_boot_cpu_id = vm_irq.set_boot_cpu_id
    irqfd = vm_irq.irqfd
    signal_msi = vm_irq.signal_msi
    # routes.py
    set_gsi_routing = routes.set_gsi_routing
    # vm_memory.py
    set_user_memory_region2 = vm_memory.set_user_memory_region2
    set_memory_attributes = vm_memory.set_memory_attributes
    create_guest_memfd = vm_memory.create_guest_memfd
    get_dirty_log = vm_memory.get_dirty_log
    clear_dirty_log = vm_memory.clear_dirty_log
    reset_dirty_rings = vm_memory.reset_dirty_rings
    set_nr_mmu_pages = vm_memory.set_nr_mmu_pages
    get_nr_mmu_pages = vm_memory.get_nr_mmu_pages
    # vm_io.py
    ioeventfd = vm_io.ioeventfd
    register_coalesced_mmio = vm_io.register_coalesced_mmio
    unregister_coalesced_mmio = vm_io.unregister_coalesced_mmio
    # vm_guests.py
    get_clock = vm_guests.get_clock
    set_clock = vm_guests.set_clock
    get_tsc_khz = vm_guests.get_tsc_khz
    set_tsc_khz = vm_guests.set_tsc_khz
    set_pmu_event_filter = vm_guests.set_pmu_event_filter
    # msrs.py
    x86_set_msr_filter = msrs.x86_set_msr_filter
    # device.py
    create_device = device.create_device
    # stats.py
    get_stats_fd = stats.get_stats_fd
    # xen.py
    xen_hvm_config = xen.xen_hvm_config
    xen_hvm_get_attr = xen.xen_hvm_get_attr
    xen_hvm_set_attr = xen.xen_hvm_set_attr
    xen_hvm_evtchn_send = xen.xen_hvm_evtchn_send
    # hyperv.py
    hyperv_eventfd = hyperv.hyperv_eventfd
    # encryption.py
    memory_encrypt_op = encryption.memory_encrypt_op
    memory_encrypt_reg_region = encryption.memory_encrypt_reg_region
    memory_encrypt_unreg_region = encryption.memory_encrypt_unreg_region
