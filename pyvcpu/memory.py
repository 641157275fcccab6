"""Guest physical memory: what is RAM, where it lies, and how the host reads and writes it."""

from __future__ import annotations

import ctypes
import mmap
import os

from .errors import ConfigError, PyvcpuError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .kvm.vm import VmFd

PAGE = 4096
FOUR_GIB = 1 << 32
# The last GiB below 4 GiB is left to devices (local APIC, IOAPIC, reset vector, PCI); RAM goes on above it.
HOLE = 0xC000_0000
HUGE_PAGE = 2 << 20
LARGE = 128 << 20  # from here on a guest is one, such as Linux, that gains by huge pages (docs/benchmarks.md)
MOST_DIGITS = 20
MAP_FIXED = 0x10  # mmap has no name for it
UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class GuestMemoryError(PyvcpuError, IndexError):
    """An address range that is not wholly guest RAM."""


class HostMemoryError(PyvcpuError, MemoryError):
    """The host does not give this much memory."""


def parse_size(text: str | int) -> int:
    """Return a number of bytes: an integer, or digits with K, M, G or T (powers of 1024; B and iB may follow).

    >>> parse_size("64M"), parse_size("2GiB"), parse_size(4096)
    (67108864, 2147483648, 4096)
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    if not isinstance(text, str):
        raise TypeError(f"a size is a number of bytes or a text such as 64M, not {text!r}")
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    digits = number.rstrip("KMGT")
    unit = number[len(digits) :]
    if not (digits.isascii() and digits.isdigit()) or unit not in UNITS:
        raise ConfigError(f"a size is a number with K, M, G or T behind it, such as 64M or 2G, not {text!r}")
    if len(digits) > MOST_DIGITS:
        raise ConfigError(f"a size of {len(digits)} digits is more than any host has")
    return int(digits) << UNITS[unit]


def format_size(size: int) -> str:
    """Return `size` bytes as a person would write it: 64M, 1536K, 4097."""
    for unit in ("T", "G", "M", "K"):
        if size and size % (1 << UNITS[unit]) == 0:
            return f"{size >> UNITS[unit]}{unit}"
    return str(size)


class GuestMemory:
    """The RAM of one machine, `size` bytes (a multiple of 4 KiB) at guest physical 0, on from 4 GiB past the hole.

    The host backs a page when it is first touched. Below 128 MiB that is one of 4 KiB, so that no more is resident than
    the guest used. From there on it is one of 2 MiB where the host has them to give (transparent huge pages): one fault
    in place of 512, and shorter page walks. Any thread may read and write; like the guest's own processors, nobody gets
    an atomicity that an aligned access of at most 8 bytes would not give.

    >>> memory = GuestMemory("1M")
    >>> memory.write(0x1000, b"hello")
    >>> memory.read(0x1000, 5), memory[0x1000], bytes(memory[0x1001:0x1005])
    (b'hello', 104, b'ello')
    >>> memory.close()
    """

    def __init__(self, size: str | int) -> None:
        self.size = parse_size(size)
        if self.size <= 0 or self.size % PAGE:
            hint = f"; QEMU's -m {size} is {size}M here" if str(size).isdigit() and 0 < self.size < 1 << 20 else ""
            raise ConfigError(f"memory must be a positive multiple of 4K, not {size}{hint}")
        large = self.size >= LARGE
        try:
            # With room to begin at a huge page: KVM maps one where guest and host address agree in their low 21 bits.
            self._map = mmap.mmap(-1, self.size + HUGE_PAGE * large, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError) as error:
            raise HostMemoryError(
                f"the host does not give {format_size(self.size)} of memory ({error}); ask for less with --memory"
            ) from None
        self._advise()
        self._view = memoryview(self._map)
        self._first = first = -self._address() % HUGE_PAGE if large else 0
        self._is_file = False
        # The pages that the host wrote since, counted from the start of RAM; None: nobody wants to know.
        self.written: set[int] | None = None
        self.views: set[tuple[int, int]] = set()  # first page and the one behind the last: writable at any time
        low = min(self.size, HOLE)
        # (guest physical start, end, offset in the mapping)
        self.ranges = [(0, low, first)]
        if self.size > low:
            self.ranges.append((FOUR_GIB, FOUR_GIB + self.size - low, first + low))

    def _advise(self) -> None:
        try:  # noqa: SIM105 - contextlib costs every boot its import
            self._map.madvise(mmap.MADV_HUGEPAGE if self.size >= LARGE else mmap.MADV_NOHUGEPAGE)
        except OSError:  # EINVAL: a host kernel without transparent huge pages
            pass

    def _address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def register(self, vm: VmFd, flags: int = 0) -> None:
        """Make the RAM slots 0 and 1 of `vm`, or change their flags; the VM must be closed before this memory."""
        host = self._address()
        for slot, (start, end, offset) in enumerate(self.ranges):
            vm.set_user_memory_region(slot, start, end - start, host + offset, flags)

    def map_file(self, fd: int, offset: int = 0) -> None:
        """Make all of it what the file `fd` holds from `offset` (whole pages) on; for guests that are paused.

        Nothing is read before it is touched, and what is written stays here: the file is mapped privately. All views,
        and the slots of a VM, stay valid. The file must not become shorter as long as this memory is used. Raise
        HostMemoryError.
        """
        self._remap(fd, offset)
        self._is_file = True

    def _remap(self, fd: int, offset: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
        address = self._address() + self._first
        flags = mmap.MAP_PRIVATE | MAP_FIXED | (mmap.MAP_ANONYMOUS if fd < 0 else 0)
        if libc.mmap(address, self.size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, offset) != address:
            reason = os.strerror(ctypes.get_errno())
            raise HostMemoryError(f"the host does not map {format_size(self.size)} of memory anew: {reason}")
        self._advise()

    @property
    def window(self) -> memoryview:
        """All of RAM, without the hole, from its start on; whoever writes there says so in `written` itself."""
        return self._view[self._first : self._first + self.size]

    def page_number(self, address: int) -> int | None:
        """Return the number of the page at guest physical `address`, counted from the start of RAM; None outside."""
        for start, end, offset in self.ranges:
            if start <= address < end:
                return (address - start + offset - self._first) // PAGE
        return None

    @property
    def host_start(self) -> int:
        """Where in this process RAM begins."""
        return self._address() + self._first

    def host_address(self, address: int, length: int = 1) -> int:
        """Return where the `length` bytes of RAM at guest physical `address` are in this process, for its lifetime.

        For what wants addresses: ioctls, ctypes, memory slots of one's own. Raise GuestMemoryError outside RAM.
        """
        return self._address() + self._offset(address, length)

    @property
    def end_of_low(self) -> int:
        """Where the RAM below 4 GiB ends."""
        return self.ranges[0][1]

    def _offset(self, address: int, length: int) -> int:
        if length < 0:
            raise ValueError(f"a length must not be negative, not {length}")
        for start, end, offset in self.ranges:
            if start <= address and address + length <= end:
                return address - start + offset
        where = " and ".join(f"{start:#x}-{end - 1:#x}" for start, end, _ in self.ranges)
        raise GuestMemoryError(f"{length} bytes at {address:#x} are not all guest RAM, which is {where}")

    def read(self, address: int, length: int) -> bytes:
        """Return a copy of `length` bytes at guest physical `address`; raise GuestMemoryError outside RAM."""
        offset = self._offset(address, length)
        return self._map[offset : offset + length]

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` to guest physical `address`; raise GuestMemoryError, and write nothing, outside RAM."""
        length = len(data) if isinstance(data, (bytes, bytearray)) else memoryview(data).nbytes
        offset = self._offset(address, length)
        if self.written is not None:
            self._mark(offset, length)
        self._map[offset : offset + length] = data

    def _mark(self, offset: int, length: int) -> None:
        """Note that the host writes there, for whoever wants to know which pages have changed."""
        if self.written is not None and length:
            offset -= self._first
            self.written.update(range(offset // PAGE, (offset + length - 1) // PAGE + 1))

    def clear(self) -> None:
        """Make all of it zero, and give the host back what it backed; for guests that are paused."""
        if self._is_file:
            self._remap(-1, 0)
            self._is_file = False
        else:
            self._map.madvise(mmap.MADV_DONTNEED)
        self.written = None  # all of it has changed

    def view(self, address: int, length: int) -> memoryview:
        """Return a writable window on guest memory, without a copy.

        `view.cast("I")` makes aligned 32-bit numbers of it. It outlives close(): the host then frees the memory when
        the last view is gone.
        """
        offset = self._offset(address, length)
        if length:
            first = offset - self._first
            self.views.add((first // PAGE, (first + length - 1) // PAGE + 1))
        return self._view[offset : offset + length]

    def passing_view(self, address: int, length: int) -> memoryview:
        """Return the same for one who drops it before the world stands still, as devices do at the end of a request."""
        offset = self._offset(address, length)
        self._mark(offset, length)
        return self._view[offset : offset + length]

    def read_int(self, address: int, size: int = 4) -> int:
        """Return the little-endian number of `size` bytes at `address`."""
        return int.from_bytes(self.read(address, size), "little")

    def write_int(self, address: int, value: int, size: int = 4) -> None:
        """Store `value` as a little-endian number of `size` bytes; raise OverflowError when it does not fit."""
        self.write(address, value.to_bytes(size, "little"))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: int | slice) -> int | bytes:
        """`memory[a]` is a byte as a number, `memory[a:b]` the bytes from a to b; addresses are guest physical."""
        if isinstance(key, slice):
            return self.read(*self._span(key))
        return self._map[self._offset(key, 1)]

    def __setitem__(self, key: int | slice, value: int | bytes | bytearray | memoryview) -> None:
        if not isinstance(key, slice):
            if not isinstance(value, int):
                raise TypeError(f"memory[address] takes a number from 0 to 255, not {value!r}")
            self.write(key, bytes((value,)))
            return
        start, length = self._span(key)
        if isinstance(value, int) or memoryview(value).nbytes != length:
            raise ValueError(f"memory[{start:#x}:{start + length:#x}] takes exactly {length} bytes")
        self.write(start, value)

    def _span(self, key: slice) -> tuple[int, int]:
        if key.step not in (None, 1) or key.start is None or key.stop is None:
            raise ValueError("a slice of guest memory names both its ends, and no step")
        if key.stop < key.start:
            raise ValueError(f"a slice of guest memory must not end ({key.stop:#x}) before it starts ({key.start:#x})")
        return key.start, key.stop - key.start

    def close(self) -> None:
        """Give the memory back, or leave that to the last view(); closing again does nothing."""
        try:
            self._view.release()
            self._map.close()
        except BufferError:
            pass  # a view is still in use: the mapping goes with it


class DeviceMemory:
    """Guest memory as devices have it: their views do not outlive a request."""

    __slots__ = ("read", "view", "write")

    def __init__(self, memory: GuestMemory) -> None:
        self.read, self.write, self.view = memory.read, memory.write, memory.passing_view
