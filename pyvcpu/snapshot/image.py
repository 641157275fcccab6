"""Image: the memory of a snapshot, which never changes; whole, or as a layer of pages over another image.

It lies in a file (a snapshot's, or one in memory only), and is mapped from there: what nobody touches is never read,
and machines that are made of the same image share it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from weakref import finalize

from . import pagemap
from .plain import SnapshotError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Protocol

    class Ram(Protocol):
        """A machine's memory, as images are made of it and put into it (memory.GuestMemory)."""

        size: int

        @property
        def window(self) -> memoryview: ...
        @property
        def host_start(self) -> int: ...
        def map_file(self, fd: int, offset: int = 0) -> None: ...


PAGE = 4096
ZERO_PAGE = bytes(PAGE)
SEALS = 0x1 | 0x2 | 0x4 | 0x8  # F_SEAL_SEAL, _SHRINK, _GROW, _WRITE
F_ADD_SEALS = 1033


class Image:
    """`size` bytes of memory, in whole pages, in the open file `fd` from `offset` on. It closes `fd`.

    With `base`, they are that image's but for the pages `numbers`, in rising order, which lie in the file one behind
    the other.
    """

    def __init__(
        self, fd: int, offset: int, size: int, base: Image | None = None, numbers: Sequence[int] | None = None
    ) -> None:
        self.fd = fd
        self.offset = offset
        self.size = size
        self.base = base
        self.stored = size // PAGE if numbers is None else len(numbers)  # pages that the file has room for
        self.places: dict[int, int] = {} if numbers is None else {number: at for at, number in enumerate(numbers)}
        self._mapped: mmap.mmap | None = None
        self._view: memoryview | None = None
        self._closer = finalize(self, os.close, fd)

    @property
    def bytes(self) -> memoryview:
        """What the file has for this image."""
        if self._view is None:
            self._check_open()
            length = self.stored * PAGE
            if not length:  # that cannot be mapped
                return memoryview(b"")
            self._mapped = mmap.mmap(self.fd, length, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=self.offset)
            self._view = memoryview(self._mapped)
        return self._view

    def _check_open(self) -> None:
        if not self._closer.alive:
            raise SnapshotError("the snapshot is closed")

    def close(self) -> None:
        """Close the file; closing again does nothing. What is mapped from it stays."""
        view, mapped, self._view, self._mapped = self._view, self._mapped, None, None
        if view is not None and mapped is not None:
            try:
                view.release()
                mapped.close()
            except BufferError:
                pass  # a page is being looked at: the mapping goes with that
        self._closer()

    @property
    def root(self) -> Image:
        """The whole image below all layers."""
        image = self
        while image.base is not None:
            image = image.base
        return image

    def lineage(self) -> list[Image]:
        """Return the layers, this one first, and the whole image last."""
        found = [self]
        while (base := found[-1].base) is not None:
            found.append(base)
        return found

    def page(self, number: int) -> memoryview:
        """Return the page `number`."""
        image = self
        while image.base is not None:
            place = image.places.get(number)
            if place is not None:
                return image.bytes[place * PAGE : place * PAGE + PAGE]
            image = image.base
        return image.bytes[number * PAGE : number * PAGE + PAGE]

    def put_into(self, memory: Ram) -> None:
        """Make `memory` this image: map the whole one, and copy the pages of the layers."""
        root = self.root
        root._check_open()
        memory.map_file(root.fd, root.offset)
        self.copy_pages(memory, {number for image in self.lineage() for number in image.places})

    def copy_pages(self, memory: Ram, numbers: Iterable[int]) -> None:
        """Copy these pages into `memory`."""
        window = memory.window
        if self.base is None:
            view = self.bytes
            for number in numbers:
                at = number * PAGE
                window[at : at + PAGE] = view[at : at + PAGE]
            return
        for number in numbers:
            window[number * PAGE : number * PAGE + PAGE] = self.page(number)

    def differing(self, other: Image) -> set[int] | None:
        """Return the numbers of all pages in which the two may differ; None where they have nothing in common."""
        if other is self:
            return set()
        mine, others = self.lineage(), other.lineage()
        common = next((image for image in mine if image in others), None)
        if common is None:
            return None
        above = mine[: mine.index(common)] + others[: others.index(common)]
        return {number for image in above for number in image.places}


def capture(memory: Ram) -> Image:
    """Return a copy of all memory, without room for pages of zeros; the guest stands still."""
    fd = _memory_file()
    try:
        os.ftruncate(fd, memory.size)
        window = memory.window
        pages = pagemap.touched(memory.host_start, memory.size // PAGE)
        for first, last in runs(number for number in pages if not is_zero(window, number)):
            write_all(fd, window[first * PAGE : last * PAGE], first * PAGE)
        _seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return Image(fd, 0, memory.size)


def capture_layer(memory: Ram, base: Image) -> Image:
    """Return the pages in which memory, which was made of `base`, differs from it; the guest stands still."""
    window = memory.window
    candidates = pagemap.private(memory.host_start, memory.size // PAGE)
    numbers = [
        number
        for number in candidates
        if bytes(window[number * PAGE : number * PAGE + PAGE]) != bytes(base.page(number))
    ]
    fd = _memory_file()
    try:
        os.ftruncate(fd, len(numbers) * PAGE)
        at = 0
        for first, last in runs(numbers):
            write_all(fd, window[first * PAGE : last * PAGE], at)
            at += (last - first) * PAGE
        _seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return Image(fd, 0, memory.size, base, numbers)


def runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the first, and the one behind the last, of each run of successive numbers, which rise."""
    first = last = -1
    for number in numbers:
        if number != last:
            if last >= 0:
                yield first, last
            first = number
        last = number + 1
    if last >= 0:
        yield first, last


def is_zero(window: memoryview, number: int) -> bool:
    """Tell whether the page `number` holds nothing but zeros."""
    return bytes(window[number * PAGE : number * PAGE + PAGE]) == ZERO_PAGE


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data`, in as many steps as it takes."""
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def _memory_file() -> int:
    return os.memfd_create("pyvcpu snapshot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _seal(fd: int) -> None:
    """Have nobody change it any more."""
    fcntl.fcntl(fd, F_ADD_SEALS, SEALS)
