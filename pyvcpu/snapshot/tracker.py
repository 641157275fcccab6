"""Tracker: which pages of a machine's memory have changed since it was restored, by KVM's log and the host's own."""

from __future__ import annotations

import ctypes

from ..kvm.abi import basic, memory
from .image import PAGE

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Collection, Iterator

    from ..kvm.vm import VmFd
    from ..memory import GuestMemory
    from .image import Image

BLOCK, PART = 4096, 128  # bytes of a bitmap that are looked at together
ZEROS = bytes(BLOCK)


class Log:
    """KVM's log of the pages of one slot that the guest wrote, as numbers from the start of RAM on."""

    def __init__(self, vm: VmFd, slot: int, first: int, pages: int) -> None:
        self._vm = vm
        self._first = first
        self._buffer = ctypes.create_string_buffer(-(-pages // 64) * 8)
        self._request = memory.kvm_dirty_log(slot=slot)
        self._request.dirty_bitmap = ctypes.addressof(self._buffer)
        self._address = ctypes.addressof(self._request)
        self._last, self._pages = bytes(len(self._buffer)), list[int]()

    def collect(self) -> list[int]:
        """Return the pages written since the last call (KVM_GET_DIRTY_LOG, which also has KVM watch them anew)."""
        vm = self._vm
        if vm.kernel.ioctl(vm.fd, memory.KVM_GET_DIRTY_LOG.number, self._address) < 0:
            raise vm.refusal("KVM_GET_DIRTY_LOG")
        raw = self._buffer.raw
        if raw != self._last:  # a guest that is run again and again writes to the same pages, as a rule
            self._last, self._pages = raw, list(self._numbers(raw))
        return self._pages

    def _numbers(self, raw: bytes) -> Iterator[int]:
        """Yield the numbers of the bits that are set."""
        for start in range(0, len(raw), BLOCK):
            block = raw[start : start + BLOCK]
            if block == ZEROS or not any(block):
                continue
            for at in range(start, start + len(block), PART):
                bits = int.from_bytes(raw[at : at + PART], "little")
                while bits:  # the highest first: that is found at once
                    bit = bits.bit_length() - 1
                    bits ^= 1 << bit
                    yield self._first + 8 * at + bit


class Tracker:
    """Knows which pages of a machine's memory differ from `image`, since begin()."""

    def __init__(self, vm: VmFd, ram: GuestMemory) -> None:
        self._vm = vm
        self._ram = ram
        self._logs: list[Log] = []
        self._window = ram.window
        self.image: Image | None = None

    def begin(self, image: Image) -> None:
        """Note that memory has just been made `image`, and watch it from now on. Raise KvmError."""
        ram = self._ram
        if not self._logs:
            ram.register(self._vm, basic.KVM_MEM_LOG_DIRTY_PAGES)
            at = 0
            for slot, (start, end, _) in enumerate(ram.ranges):
                self._logs.append(Log(self._vm, slot, at, (end - start) // PAGE))
                at += (end - start) // PAGE
        self.collect()
        self.image, ram.written = image, set()

    def collect(self) -> Collection[int]:
        """Return the pages that guest and host have written since the last call, and those of which a view is out."""
        found = self._logs[0].collect()
        ram = self._ram
        written, views = ram.written, ram.views
        if len(self._logs) == 1 and not written and not views:
            return found
        pages = set(found)
        for log in self._logs[1:]:
            pages.update(log.collect())
        if written:
            pages |= written
            written.clear()
        for first, last in views:
            pages.update(range(first, last))
        return pages

    def rewind(self, image: Image) -> bool:
        """Make memory `image` by copying what differs; False, with nothing done, where that is not known."""
        if self.image is None or self._ram.written is None:
            return False
        if image is self.image:
            also: set[int] | None = None
        else:
            also = self.image.differing(image)
            if also is None:
                return False
        pages = self.collect()
        if also:
            pages = also.union(pages)
        self.image = image
        if image.base is None:
            window, source = self._window, image.bytes
            for number in pages:
                at = number * PAGE
                end = at + PAGE
                window[at:end] = source[at:end]
        else:
            image.copy_pages(self._ram, pages)
        return True

    def close(self) -> None:
        """Let go of memory."""
        self._window.release()
