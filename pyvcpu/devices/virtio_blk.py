"""The virtio block device: a disk whose bytes are those of a file. Source: VIRTIO 1.2, section 5.2."""

from __future__ import annotations

import fcntl
import os
from struct import Struct

from ..errors import ConfigError
from .queue import MAX_BYTES, MAX_SIZE, QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Protocol

    from .queue import Chain

    Move = Callable[[list[memoryview], int], int]  # buffers, offset in the file -> bytes moved

    class Backend(Protocol):
        """Where the bytes are; methods raise OSError. The device calls one at a time."""

        @property
        def size(self) -> int: ...
        @property
        def readonly(self) -> bool: ...
        def preadv(self, buffers: list[memoryview], offset: int) -> int: ...
        def pwritev(self, buffers: list[memoryview], offset: int) -> int: ...
        def fsync(self) -> None: ...


SECTOR = 512

# Feature bits (section 5.2.3)
F_SIZE_MAX = 1 << 1
F_SEG_MAX = 1 << 2
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9

# Requests (section 5.2.6)
T_IN = 0
T_OUT = 1
T_FLUSH = 4
T_GET_ID = 8
ID_BYTES = 20

S_OK = 0
S_IOERR = 1
S_UNSUPP = 2

SEG_MAX = MAX_SIZE - 2  # data buffers in a request, besides the header and the status
SIZE_MAX = MAX_BYTES // MAX_SIZE  # bytes in each: a driver that keeps to both keeps to what a chain may hold

_HEADER = Struct("<IIQ")  # type, reserved, sector
_CONFIG = Struct("<QIIHBBI")  # capacity, size_max, seg_max, geometry, blk_size


class DiskFile:
    """The open file or block device `fd` as a disk; whoever opened it closes it.

    It is locked (flock) while `fd` is open: several machines may read a disk, or one may write it. Raise ConfigError
    when it is in use already, or its size cannot be a disk's.
    """

    def __init__(self, fd: int, name: str, *, readonly: bool = False) -> None:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if readonly else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            hint = "" if readonly else "; it can be used more than once with ,ro"
            raise ConfigError(f"{name} is in use as a disk already{hint}") from None
        self._fd = fd
        self.readonly = readonly
        self.size = os.lseek(fd, 0, os.SEEK_END)  # stat() knows no size of block devices
        if self.size == 0 or self.size % SECTOR:
            raise ConfigError(
                f"a disk must hold whole sectors of {SECTOR} bytes, and at least one; {name} has {self.size} bytes "
                f"(`truncate -s %{SECTOR}` fills up the last sector)"
            )

    def preadv(self, buffers: list[memoryview], offset: int) -> int:
        """Read into `buffers`, as os.preadv does."""
        return os.preadv(self._fd, buffers, offset)

    def pwritev(self, buffers: list[memoryview], offset: int) -> int:
        """Write `buffers`, as os.pwritev does."""
        return os.pwritev(self._fd, buffers, offset)

    def fsync(self) -> None:
        """Return when everything written is on the medium."""
        os.fdatasync(self._fd)


class VirtioBlk:
    """A disk of 512-byte sectors.

    What the driver has written is in the file when the request is given back: it outlives this process. After a
    flush it is on the medium. A request that the file refuses ends with S_IOERR.
    """

    device_id = 2
    queues = 1

    def __init__(self, backend: Backend, serial: str = "") -> None:
        self.name = f"disk {serial}".rstrip()
        self._backend = backend
        self._sectors = backend.size // SECTOR
        self._id = serial.encode()[:ID_BYTES].ljust(ID_BYTES, b"\0")
        self.features = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | (F_RO if backend.readonly else 0)
        self.config = _CONFIG.pack(self._sectors, SIZE_MAX, SEG_MAX, 0, 0, 0, SECTOR)

    def serve(self, queue: int, chain: Chain) -> int:
        """Do one request: header, data to write, data to read, status, wherever the buffers are cut (2.7.4)."""
        header, out = split(chain.readable, _HEADER.size)
        into, status = split(chain.writable, length_of(chain.writable) - 1)
        if length_of(header) < _HEADER.size or length_of(status) != 1:
            raise QueueError("a request must have a header of 16 bytes and room for a status")
        kind, _, sector = _HEADER.unpack(b"".join(header))
        try:
            result, written = self._do(kind, sector, out, into)
        except OSError:
            result, written = S_IOERR, 0
        status[0][0] = result
        return written + 1

    def _do(self, kind: int, sector: int, out: list[memoryview], into: list[memoryview]) -> tuple[int, int]:
        """Return the status, and how many bytes of `into` were written."""
        if kind == T_IN:
            return self._transfer(self._backend.preadv, sector, into)
        if kind == T_OUT:
            return S_IOERR if self._backend.readonly else self._transfer(self._backend.pwritev, sector, out)[0], 0
        if kind == T_FLUSH:
            if not self._backend.readonly:
                self._backend.fsync()
            return S_OK, 0
        if kind == T_GET_ID:
            return S_OK, self._write_id(into)
        return S_UNSUPP, 0

    def _transfer(self, move: Move, sector: int, buffers: list[memoryview]) -> tuple[int, int]:
        """Move all of `buffers`, in as many steps as it takes; return the status and how many bytes were moved."""
        length, done = length_of(buffers), 0
        if length % SECTOR or sector + length // SECTOR > self._sectors:
            return S_IOERR, 0
        while done < length:
            count = move(split(buffers, done)[1], sector * SECTOR + done)
            if count <= 0:  # the file has become shorter
                return S_IOERR, done
            done += count
        return S_OK, done

    def _write_id(self, into: list[memoryview]) -> int:
        done = 0
        for view in into:
            part = self._id[done : done + len(view)]
            view[: len(part)] = part
            done += len(part)
        return done


def length_of(views: list[memoryview]) -> int:
    """Return how many bytes the buffers hold together."""
    return sum(map(len, views))


def split(views: list[memoryview], at: int) -> tuple[list[memoryview], list[memoryview]]:
    """Cut a sequence of buffers after `at` bytes, or at its end; empty ones are left out."""
    before: list[memoryview] = []
    behind: list[memoryview] = []
    for view in views:
        cut = min(max(at, 0), len(view))
        before.append(view[:cut])
        behind.append(view[cut:])
        at -= len(view)
    return [view for view in before if len(view)], [view for view in behind if len(view)]
