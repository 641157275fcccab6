"""Binary statistics: the file descriptor of KVM_GET_STATS_FD, decoded by name (api.rst 4.133)."""

from __future__ import annotations

import ctypes
import os

from .abi import stats as abi
from .errors import KvmError
from .fd import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterator

    from .vcpu import VcpuFd
    from .vm import VmFd

HEADER = ctypes.sizeof(abi.kvm_stats_header)
DESC = ctypes.sizeof(abi.kvm_stats_desc)
TYPES = {0: "cumulative", 1: "instant", 2: "peak", 3: "linear histogram", 4: "logarithmic histogram"}
UNITS = {0x00: "", 0x10: "bytes", 0x20: "seconds", 0x30: "cycles", 0x40: "boolean"}


class Statistic:
    """What a statistic is: its kind, its unit (times base ** exponent), and for a linear histogram its bucket size."""

    __slots__ = ("base", "bucket_size", "exponent", "kind", "name", "offset", "size", "unit")

    def __init__(self, name: str, desc: abi.kvm_stats_desc) -> None:
        self.name = name
        self.kind = TYPES.get(desc.flags & abi.KVM_STATS_TYPE_MASK, "unknown")
        self.unit = UNITS.get(desc.flags & abi.KVM_STATS_UNIT_MASK, "unknown")
        self.base = 2 if desc.flags & abi.KVM_STATS_BASE_MASK == abi.KVM_STATS_BASE_POW2 else 10
        self.exponent = desc.exponent
        self.size = desc.size
        self.offset = desc.offset
        self.bucket_size = desc.bucket_size

    def __repr__(self) -> str:
        scale = f" x {self.base}^{self.exponent}" if self.exponent else ""
        return f"<{self.name}: {self.kind}{', ' if self.unit else ''}{self.unit}{scale}>"


class StatsFd(Fd):
    """The statistics of a VM or vCPU; they can be read at any time, also while it runs."""

    __slots__ = ()

    def describe(self) -> list[Statistic]:
        """Return what statistics there are."""
        return list(self._statistics())

    def read(self) -> dict[str, int | list[int]]:
        """Return all values by name: a number each, a histogram as a list of counts."""
        head = self._header()
        values: dict[str, int | list[int]] = {}
        for statistic in self._statistics():
            raw = self._pread(8 * statistic.size, head.data_offset + statistic.offset)
            numbers = [int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8)]
            values[statistic.name] = numbers[0] if statistic.size == 1 else numbers
        return values

    def identifier(self) -> str:
        """Return the kernel's name of whose statistics these are, such as kvm-1234/vcpu-0."""
        head = self._header()
        return _text(self._pread(head.name_size, head.id_offset))

    def _header(self) -> abi.kvm_stats_header:
        return abi.kvm_stats_header.from_buffer_copy(self._pread(HEADER, 0))

    def _statistics(self) -> Iterator[Statistic]:
        head = self._header()
        step = DESC + head.name_size
        raw = self._pread(head.num_desc * step, head.desc_offset)
        for at in range(0, len(raw) - step + 1, step):
            yield Statistic(_text(raw[at + DESC : at + step]), abi.kvm_stats_desc.from_buffer_copy(raw, at))

    def _pread(self, length: int, offset: int) -> bytes:
        try:
            return os.pread(self.fd, length, offset)
        except OSError as error:
            raise KvmError("pread", error.errno or 0, self.where) from None


def get_stats_fd(fd: VmFd | VcpuFd) -> StatsFd:
    """Open the statistics of this VM or vCPU (KVM_GET_STATS_FD, api.rst 4.133). Needs KVM_CAP_BINARY_STATS_FD."""
    return fd.create(StatsFd, abi.KVM_GET_STATS_FD, where=f"statistics of {fd.where or 'the VM'}")


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("ascii", "replace")
