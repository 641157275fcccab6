"""The file of KVM_GET_STATS_FD (api.rst 4.133).

It is one of memory, one for each vCPU and VM, made at the first request. A vCPU's is brought up to date each time that
KVM_RUN is left. Every request gets a duplicate of its fd.
"""

from __future__ import annotations

import os
from struct import pack

HEADER, DESC, NAME, ID = 24, 16, 48, 48
CUMULATIVE, INSTANT, LOGARITHMIC = 0, 1, 4
BOOLEAN = 0x40
BUCKETS = 32

VM_STATS = (("remote_tlb_flush", CUMULATIVE, 1), ("mmu_flush", CUMULATIVE, 1))
VCPU_STATS = (
    ("exits", CUMULATIVE, 1), ("io_exits", CUMULATIVE, 1), ("mmio_exits", CUMULATIVE, 1), ("halt_exits", CUMULATIVE, 1),
    ("signal_exits", CUMULATIVE, 1), ("blocking", INSTANT | BOOLEAN, 1),
    ("halt_wait_hist", LOGARITHMIC, BUCKETS),
)  # fmt: skip


class StatsFile:
    """A file of statistics."""

    __slots__ = ("_table", "_where", "fd")

    def __init__(self, name: str, counts: object, of_vcpu: bool) -> None:
        """Make the file; values are the attributes of `counts` of their names, 0 where it has none."""
        self._table = VCPU_STATS if of_vcpu else VM_STATS
        self.fd = os.memfd_create("kvm-stats", os.MFD_CLOEXEC)
        descriptors = b""
        offset = 0
        for stat, flags, size in self._table:
            descriptors += pack("<IhHII", flags, 0, size, offset, 0) + stat.encode().ljust(NAME, b"\0")
            offset += 8 * size
        at = HEADER + ID
        self._where = at + len(descriptors)
        head = pack("<6I", 0, NAME, len(self._table), HEADER, at, self._where)
        os.pwrite(self.fd, head + name.encode().ljust(ID, b"\0") + descriptors, 0)
        self.write(counts)

    def write(self, counts: object) -> None:
        """Bring it up to date."""
        data = b"".join(pack("<Q", getattr(counts, name, 0)).ljust(8 * size, b"\0") for name, _, size in self._table)
        os.pwrite(self.fd, data, self._where)
