"""The virtio block device: a disk whose bytes are those of a file. Source: VIRTIO 1.2, section 5.2."""

from __future__ import annotations

from struct import Struct

from .device import StateDataError, checked, flag, integer
from .disk_file import SECTOR
from .disk_file import DiskFile as DiskFile
from .queue import MAX_BYTES, MAX_SIZE, QueueError
from .virtio import RequestDevice

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Protocol

    from .device import State
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
_STATE = {"sectors": integer(0, (1 << 64) // SECTOR), "readonly": flag}


class VirtioBlk(RequestDevice):
    """A disk of 512-byte sectors.

    What the driver has written is in the file when the request is in the used ring: it outlives this process. After a
    flush it is on the medium. A request that the file refuses ends with S_IOERR; `warn(line)` says why, once for each
    reason.
    """

    device_id = 2

    def __init__(self, backend: Backend, serial: str = "", warn: Callable[[str], object] | None = None) -> None:
        super().__init__()
        self.name = f"disk {serial}".rstrip()
        self._backend = backend
        self._warn = warn
        self._said: set[int | None] = set()  # errnos
        self._unsaid: OSError | None = None
        self._sectors = backend.size // SECTOR
        self._id = serial.encode()[:ID_BYTES].ljust(ID_BYTES, b"\0")
        self.features = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | (F_RO if backend.readonly else 0)
        self.config = _CONFIG.pack(self._sectors, SIZE_MAX, SEG_MAX, 0, 0, 0, SECTOR)

    def state(self) -> State:
        """Return what the guest knows of the disk; its bytes are not in it."""
        return {"sectors": self._sectors, "readonly": self._backend.readonly}

    def restore(self, data: object) -> None:
        """Check that `data` came from a disk of this size that could be written if this one can."""
        values = checked(self.name, _STATE, data)
        if values != self.state():
            kind = "read-only" if values["readonly"] else "writable"
            raise StateDataError(f"{self.name} must be a {kind} one of {values['sectors'] * SECTOR} bytes, as it was")
        self.reset()

    def served(self) -> None:
        """Warn of a file that has failed."""
        error, self._unsaid = self._unsaid, None
        if error is not None and error.errno not in self._said:
            self._said.add(error.errno)
            if self._warn is not None:
                self._warn(f"{self.name}: {error.strerror or error}; the guest sees an I/O error")

    def serve(self, index: int, chain: Chain) -> int:
        """Do one request: header, data to write, data to read, status, wherever the buffers are cut (2.7.4)."""
        header, out = split(chain.readable, _HEADER.size)
        into, status = split(chain.writable, length_of(chain.writable) - 1)
        if length_of(header) < _HEADER.size or length_of(status) != 1:
            raise QueueError("a request must have a header of 16 bytes and room for a status")
        kind, _, sector = _HEADER.unpack(b"".join(header))
        try:
            result, written = self._do(kind, sector, out, into)
        except OSError as error:
            self._unsaid = error
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
