"""VmFd's methods for port and memory accesses that need no exit: ioeventfd, coalesced zones."""

from __future__ import annotations

from .abi import ioevent as abi
from .fd import U32, U64, fd_number, in_range
from .registration import Registration

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .fd import HasFileno
    from .vm import VmFd

LENGTHS = (0, 1, 2, 4, 8)


def ioeventfd(
    vm: VmFd,
    eventfd: int | HasFileno,
    address: int,
    length: int,
    *,
    datamatch: int | None = None,
    pio: bool = False,
) -> Registration:
    """Signal `eventfd`, without an exit, when the guest writes `length` bytes to `address`.

    `pio`: a port, not memory. `datamatch`: only when this value is written. `length` 0: any length, without
    datamatch. KVM_IOEVENTFD, api.rst 4.59. Needs KVM_CAP_IOEVENTFD; KVM_CAP_IOEVENTFD_ANY_LENGTH for length 0.
    """
    if in_range("length", length, 8) not in LENGTHS:
        raise ValueError(f"length must be 0, 1, 2, 4 or 8, not {length}")
    flags = abi.KVM_IOEVENTFD_FLAG_PIO if pio else 0
    if datamatch is not None:
        flags |= abi.KVM_IOEVENTFD_FLAG_DATAMATCH
        in_range("datamatch", datamatch, (1 << 8 * length) - 1 if length else U64)
    request = abi.kvm_ioeventfd(
        datamatch or 0, in_range("address", address, U64), length, fd_number("an eventfd", eventfd), flags
    )
    vm.ioctl(abi.KVM_IOEVENTFD, request)
    undo = abi.kvm_ioeventfd.from_buffer_copy(request)
    undo.flags |= abi.KVM_IOEVENTFD_FLAG_DEASSIGN
    return Registration(f"ioeventfd {request.fd} at {address:#x}", vm, abi.KVM_IOEVENTFD, undo)


def register_coalesced_mmio(vm: VmFd, address: int, size: int, *, pio: bool = False) -> Registration:
    """Collect the guest's writes to this range in the ring of VcpuFd.coalesced_ring(), instead of exits.

    KVM_REGISTER_COALESCED_MMIO, api.rst 4.116. Needs KVM_CAP_COALESCED_MMIO; KVM_CAP_COALESCED_PIO for `pio`.
    """
    zone = _zone(address, size, pio)
    vm.ioctl(abi.KVM_REGISTER_COALESCED_MMIO, zone)
    what = f"coalesced zone {address:#x}, {size} bytes"
    return Registration(what, vm, abi.KVM_UNREGISTER_COALESCED_MMIO, zone)


def unregister_coalesced_mmio(vm: VmFd, address: int, size: int, *, pio: bool = False) -> None:
    """Give up all coalesced zones within this range.

    KVM_UNREGISTER_COALESCED_MMIO, api.rst 4.116. Needs KVM_CAP_COALESCED_MMIO; KVM_CAP_COALESCED_PIO for `pio`.
    """
    vm.ioctl(abi.KVM_UNREGISTER_COALESCED_MMIO, _zone(address, size, pio))


def _zone(address: int, size: int, pio: bool) -> abi.kvm_coalesced_mmio_zone:
    return abi.kvm_coalesced_mmio_zone(
        addr=in_range("address", address, U64), size=in_range("size", size, U32), pio=1 if pio else 0
    )
