"""CPUID leaves in the form in which KVM takes and gives them."""

from __future__ import annotations

import ctypes
import errno

from .abi.basic import kvm_cpuid2, kvm_cpuid_entry2
from .errors import KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable, Iterator

    from .abi.base import Ioctl
    from .fd import Fd

HEAD = ctypes.sizeof(kvm_cpuid2)
ENTRY = ctypes.sizeof(kvm_cpuid_entry2)
FIRST_GUESS, KERNEL_LIMIT = 128, 4096


class CpuidTable:
    """A list of kvm_cpuid_entry2 behind a kvm_cpuid2, in one piece of memory, as the kernel wants it.

    `table[i]` and iteration give entries that write through; a copy() is independent.
    """

    __slots__ = ("_buffer", "entries")

    def __init__(self, buffer: ctypes.Array[ctypes.c_char], count: int) -> None:
        self._buffer = buffer
        self.entries = (kvm_cpuid_entry2 * count).from_buffer(buffer, HEAD)

    @classmethod
    def of(cls, entries: Iterable[kvm_cpuid_entry2]) -> CpuidTable:
        """Make a table of copies of `entries`."""
        return cls.from_bytes(b"".join(map(bytes, entries)))

    @classmethod
    def from_bytes(cls, raw: bytes | bytearray) -> CpuidTable:
        """Make a table of what bytes() of one gives: entries of 40 bytes each."""
        head = kvm_cpuid2(nent=len(raw) // ENTRY)
        return cls(ctypes.create_string_buffer(bytes(head) + raw, HEAD + len(raw)), head.nent)

    @classmethod
    def fetch(cls, fd: Fd, request: Ioctl) -> CpuidTable:
        """Ask `fd` for a table, with a larger buffer each time the kernel says E2BIG."""
        size = FIRST_GUESS
        while True:
            buffer = ctypes.create_string_buffer(HEAD + size * ENTRY)
            head = kvm_cpuid2.from_buffer(buffer)
            head.nent = size
            try:
                fd.ioctl(request, buffer)
            except KvmError as error:
                if error.errno != errno.E2BIG or size >= KERNEL_LIMIT:
                    raise
                size = max(size * 2, head.nent)
            else:
                if head.nent == size:
                    head.nent = _filled(buffer, size)
                return cls(buffer, head.nent)

    @property
    def buffer(self) -> ctypes.Array[ctypes.c_char]:
        """The memory that a KVM_SET_CPUID2 hands to the kernel."""
        return self._buffer

    def copy(self) -> CpuidTable:
        """Return a table of its own."""
        return CpuidTable(type(self._buffer).from_buffer_copy(self._buffer), len(self.entries))

    def find(self, function: int, index: int = 0) -> kvm_cpuid_entry2 | None:
        """Return the entry of leaf `function`, subleaf `index`, or None."""
        return next((e for e in self.entries if e.function == function and e.index == index), None)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[kvm_cpuid_entry2]:
        return iter(self.entries)

    def __getitem__(self, i: int) -> kvm_cpuid_entry2:
        return self.entries[i]

    def __bytes__(self) -> bytes:
        """Return the entries as the kernel keeps them, 40 bytes each."""
        return bytes(self._buffer)[HEAD : HEAD + ENTRY * len(self.entries)]


def _filled(buffer: ctypes.Array[ctypes.c_char], size: int) -> int:
    """Return how many entries the kernel has written. Linux 6.1 leaves nent alone when KVM_GET_CPUID2 succeeds."""
    written = buffer.raw[HEAD : HEAD + size * ENTRY].rstrip(b"\0")
    return -(-len(written) // ENTRY)
