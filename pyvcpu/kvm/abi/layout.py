"""Where things lie in the pages that a vCPU and its thread share: plain offsets and Struct objects.

abi.run and abi.ioevent have the same as ctypes structures, by name. These here are for the run loop, which reads at
each exit and must neither wait for ctypes nor load those modules; a test compares the two. All offsets are bytes from
the start of the mapping of a vCPU's fd, unless a line says otherwise. Sources: struct kvm_run, struct
kvm_coalesced_mmio_ring and KVM_PIO_PAGE_OFFSET in linux/kvm.h; api.rst section 5 and 4.116.
"""

from __future__ import annotations

from struct import Struct

PAGE = 4096

# struct kvm_run: what the thread tells KVM, and what KVM tells at each exit.
REQUEST_INTERRUPT_WINDOW = 0  # u8, in
IMMEDIATE_EXIT = 1  # u8, in
EXIT_REASON = 8  # u32, out
READY_FOR_INTERRUPT_INJECTION = 12  # u8, out
IF_FLAG = 13  # u8, out
FLAGS = 14  # u16, out: KVM_RUN_X86_*
CR8 = 16  # u64, in and out, where no local APIC is in the kernel
APIC_BASE = 24  # u64, in and out, likewise
EXIT_UNION = 32  # 256 bytes: the member that belongs to exit_reason
VALID_REGS = 288  # u64, in: KVM_SYNC_X86_*, what KVM is to leave here at each exit
DIRTY_REGS = 296  # u64, in: KVM_SYNC_X86_*, what KVM is to take from here at the next KVM_RUN
SYNC_REGS = 304  # struct kvm_regs
SYNC_SREGS = 448  # struct kvm_sregs
SYNC_EVENTS = 760  # struct kvm_vcpu_events

# Members of the union.
IO = Struct("<BBHIQ")  # io: direction, size, port, count, data_offset
MMIO = Struct("<Q8sIB")  # mmio: phys_addr, data, len, is_write
MMIO_DATA = EXIT_UNION + 8  # 8 bytes
EOI_VECTOR = EXIT_UNION  # eoi.vector: u8

# The page of port data (KVM_PIO_PAGE_OFFSET). io.data_offset points to its start, on x86 always.
PIO_DATA = PAGE

# The ring of coalesced writes, where KVM_CAP_COALESCED_MMIO says that it is in page 2 (KVM_COALESCED_MMIO_PAGE_OFFSET).
RING = 2 * PAGE
RING_INDICES = Struct("<II")  # struct kvm_coalesced_mmio_ring: first (ours to move on), last (KVM's)
RING_FIRST = Struct("<I")
RING_ENTRY = Struct("<QII8s")  # struct kvm_coalesced_mmio: phys_addr, len, pio, data
RING_HEAD = RING_INDICES.size  # from the ring's start: where its first entry is
RING_ENTRIES = (PAGE - RING_HEAD) // RING_ENTRY.size  # KVM_COALESCED_MMIO_MAX

# From EXIT_REASON on, several things in one read, which takes less time than one by one.
# exit_reason, io or exit_reason, mmio:
REASON_AND_IO = Struct(f"<I{EXIT_UNION - EXIT_REASON - 4}xBBHIQ")
REASON_AND_MMIO = Struct(f"<I{EXIT_UNION - EXIT_REASON - 4}xQ8sIB")
# exit_reason; the union's first quadword (of io all but data_offset, of mmio phys_addr); the first byte of port data;
# the ring's first and last:
REASON_KEY_BYTE_RING = Struct(
    f"<I{EXIT_UNION - EXIT_REASON - 4}xQ{PIO_DATA - EXIT_UNION - 8}xc{RING - PIO_DATA - 1}xII"
)

# An entry of a dirty ring (struct kvm_dirty_gfn, api.rst 8.29): flags, which KVM and we change in turn; slot, offset.
DIRTY_ENTRY = Struct("<IIQ")
