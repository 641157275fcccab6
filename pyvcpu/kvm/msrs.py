"""Lists of MSRs in the form in which KVM takes and gives them, and filters of what a guest may touch."""

from __future__ import annotations

import ctypes
import errno

from .abi import msr as abi
from .errors import KvmError
from .fd import U32, U64, Fd, bytes_of, in_range

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable, Sequence

    from .abi.base import Ioctl
    from .vm import VmFd

HEAD = ctypes.sizeof(abi.kvm_msrs)
AT_ONCE = 255  # the kernel takes fewer than 256 in one request
MAX_INDICES = 1 << 16


class MsrError(KvmError):
    """KVM refused the MSR `index`, the one at `position` in the list; those before it were done."""

    def __init__(self, ioctl: str, index: int, position: int, where: str = "") -> None:
        super().__init__(
            ioctl, 0, where, f"MSR {index:#x}, number {position} of the list, was refused; those before it were done"
        )
        self.index = index
        self.position = position

    def __reduce__(self) -> tuple[type[MsrError], tuple[str, int, int, str]]:  # type: ignore[override]  # other arguments
        return type(self), (self.ioctl, self.index, self.position, self.where)


class MsrFilterRange:
    """A rule for `count` MSRs from `base` on: whether the guest may read or write them.

    `bitmap` has a bit for each, lowest first: 1 allows, 0 denies. With `read` it rules reads, with `write` writes; an
    access that it does not rule is allowed or denied by the rest of the filter. Without `count`: 8 times the length of
    `bitmap`.
    """

    __slots__ = ("base", "bitmap", "count", "read", "write")

    def __init__(
        self, base: int, bitmap: bytes, count: int | None = None, *, read: bool = True, write: bool = True
    ) -> None:
        bits = 8 * min(len(bytes_of("the bitmap of a filter range", bitmap)), abi.KVM_MSR_FILTER_MAX_BITMAP_SIZE)
        self.base = in_range("the first MSR of a filter range", base, U32)
        self.count = in_range("the number of MSRs in a filter range", bits if count is None else count, bits, 1)
        self.bitmap = bitmap
        self.read = bool(read)
        self.write = bool(write)
        if not (self.read or self.write):
            raise ValueError("a filter range must rule reads, writes or both")


def fetch_index_list(fd: Fd, request: Ioctl) -> list[int]:
    """Ask for a list of MSR indices, with the room that the kernel names when it says E2BIG."""
    count = 0
    while True:
        buffer = (ctypes.c_uint32 * (1 + count))(count)
        try:
            fd.ioctl(request, buffer)
        except KvmError as error:
            if error.errno != errno.E2BIG or not count < buffer[0] < MAX_INDICES:
                raise
            count = buffer[0]
        else:
            return list(buffer[1 : 1 + buffer[0]])


def read_msrs(fd: Fd, indices: Iterable[int]) -> list[tuple[int, int]]:
    """Return (index, value) for each of `indices`, in their order."""
    wanted = [in_range("an MSR index", index, U32) for index in indices]
    entries = _request(fd, abi.KVM_GET_MSRS, [(index, 0) for index in wanted])
    return [(entry.index, entry.data) for entry in entries]


def write_msrs(fd: Fd, values: Iterable[tuple[int, int]]) -> None:
    """Set each MSR of (index, value), in their order."""
    _request(
        fd,
        abi.KVM_SET_MSRS,
        [(in_range("an MSR index", index, U32), in_range("an MSR's value", value, U64)) for index, value in values],
    )


def _request(fd: Fd, request: Ioctl, values: list[tuple[int, int]]) -> list[abi.kvm_msr_entry]:
    """Make `request` for all of `values`, some at a time; raise MsrError at the first that KVM refuses."""
    result: list[abi.kvm_msr_entry] = []
    for start in range(0, len(values), AT_ONCE):
        part = values[start : start + AT_ONCE]
        buffer = ctypes.create_string_buffer(HEAD + len(part) * ctypes.sizeof(abi.kvm_msr_entry))
        abi.kvm_msrs.from_buffer(buffer).nmsrs = len(part)
        entries = (abi.kvm_msr_entry * len(part)).from_buffer(buffer, HEAD)
        for entry, (index, value) in zip(entries, part, strict=True):
            entry.index, entry.data = index, value
        done = fd.ioctl(request, buffer)
        if done < len(part):
            raise MsrError(request.name, part[done][0], start + done, fd.where)
        result += entries
    return result


def x86_set_msr_filter(vm: VmFd, ranges: Sequence[MsrFilterRange] = (), *, deny_others: bool = False) -> None:
    """Rule which MSRs the guest may touch; what is denied is a #GP, or an exit under KVM_CAP_X86_USER_SPACE_MSR.

    Without ranges and `deny_others`, all is allowed again. KVM_X86_SET_MSR_FILTER, api.rst 4.97. Needs
    KVM_CAP_X86_MSR_FILTER.
    """
    argument, kept = _filter_argument(ranges, deny_others)
    vm.ioctl(abi.KVM_X86_SET_MSR_FILTER, argument)
    del kept  # the kernel has copied the bitmaps


def _filter_argument(ranges: Sequence[MsrFilterRange], deny_others: bool) -> tuple[abi.kvm_msr_filter, list[object]]:
    """Return the argument of KVM_X86_SET_MSR_FILTER and the memory that it points to."""
    if len(ranges) > abi.KVM_MSR_FILTER_MAX_RANGES:
        raise ValueError(f"a filter has at most {abi.KVM_MSR_FILTER_MAX_RANGES} ranges, not {len(ranges)}")
    argument = abi.kvm_msr_filter()
    argument.flags = abi.KVM_MSR_FILTER_DEFAULT_DENY if deny_others else abi.KVM_MSR_FILTER_DEFAULT_ALLOW
    kept: list[object] = []
    for slot, given in zip(argument.ranges, ranges, strict=False):
        if not isinstance(given, MsrFilterRange):
            raise TypeError(f"a filter consists of MsrFilterRange, not {given!r}")
        room = (given.count + 63) // 64 * 8  # the kernel reads whole longs
        bitmap = ctypes.create_string_buffer(given.bitmap[:room], room)
        kept.append(bitmap)
        slot.flags = (abi.KVM_MSR_FILTER_READ if given.read else 0) | (abi.KVM_MSR_FILTER_WRITE if given.write else 0)
        slot.base, slot.nmsrs, slot.bitmap = given.base, given.count, ctypes.addressof(bitmap)
    return argument, kept
