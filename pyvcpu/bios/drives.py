"""The drives that INT 13h knows: floppies as 0 and 1, disks as 80h and up, with the geometry that each is given."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterator
    from typing import Protocol

    class Backend(Protocol):
        """Where the bytes of a drive are; methods raise OSError."""

        @property
        def size(self) -> int: ...
        @property
        def readonly(self) -> bool: ...
        def preadv(self, buffers: list[memoryview], offset: int) -> int: ...
        def pwritev(self, buffers: list[memoryview], offset: int) -> int: ...


SECTOR = 512
FIRST_DISK = 0x80
MOST_FLOPPIES, MOST_DISKS = 2, 16
CYLINDERS_MOST = 1024  # ten bits

# Sizes of floppies in KiB: cylinders, heads, sectors, and the type that INT 13h AH=08h and CMOS give.
FLOPPIES = {
    160: (40, 1, 8, 1),
    180: (40, 1, 9, 1),
    320: (40, 2, 8, 1),
    360: (40, 2, 9, 1),
    720: (80, 2, 9, 3),
    1200: (80, 2, 15, 2),
    1440: (80, 2, 18, 4),
    2880: (80, 2, 36, 5),
}
PARTITIONS, PARTITION_SIZE, SIGNATURE = 446, 16, slice(510, 512)


class MemoryDisk:
    """A disk whose bytes are in memory, whole sectors; what the guest writes is gone with the machine."""

    def __init__(self, content: bytes) -> None:
        self.readonly = False
        self._bytes = bytearray(content.ljust(-(-len(content) // SECTOR) * SECTOR, b"\0"))
        self.size = len(self._bytes)

    def preadv(self, buffers: list[memoryview], offset: int) -> int:
        """Read into `buffers`, as os.preadv does."""
        done = 0
        for buffer in buffers:
            part = self._bytes[offset + done : offset + done + len(buffer)]
            buffer[: len(part)] = part
            done += len(part)
        return done

    def pwritev(self, buffers: list[memoryview], offset: int) -> int:
        """Write `buffers`, as os.pwritev does; the disk does not grow."""
        done = 0
        for buffer in buffers:
            start = offset + done
            part = buffer[: max(self.size - start, 0)]
            self._bytes[start : start + len(part)] = part
            done += len(part)
        return done


class Drive:
    """A drive: its number, its sectors, and cylinders, heads and sectors as INT 13h counts them.

    `kind`: of a floppy; 0 for a disk. `status`: of the last request.
    """

    def __init__(self, number: int, backend: Backend, geometry: tuple[int, int, int], kind: int = 0) -> None:
        self.number = number
        self.backend = backend
        self.cylinders, self.heads, self.sectors = geometry
        self.kind = kind
        self.count = -(-backend.size // SECTOR)

    @property
    def is_floppy(self) -> bool:
        """Whether it is a floppy."""
        return self.number < FIRST_DISK

    def sector_of(self, cylinder: int, head: int, sector: int) -> int | None:
        """Return the number of a sector, counted from 0; None where the geometry has none."""
        if not 1 <= sector <= self.sectors or head >= self.heads or cylinder >= self.cylinders:
            return None
        return (cylinder * self.heads + head) * self.sectors + sector - 1

    def read(self, sector: int, view: memoryview) -> None:
        """Fill `view` from `sector` on; a file that ends in the middle of a sector goes on with zeros. Raise OSError.

        The sectors are the drive's.
        """
        done, start = 0, sector * SECTOR
        while done < len(view):
            count = self.backend.preadv([view[done:]], start + done)
            if count <= 0:
                if start + done < self.backend.size:
                    raise OSError("the file has become shorter")
                view[done:] = bytes(len(view) - done)
                return
            done += count

    def write(self, sector: int, view: memoryview) -> None:
        """Write `view` from `sector` on; what would lie behind the file's end is dropped. Raise OSError."""
        done, start = 0, sector * SECTOR
        view = view[: max(self.backend.size - start, 0)]
        while done < len(view):
            count = self.backend.pwritev([view[done:]], start + done)
            if count <= 0:
                raise OSError("the file takes no more")
            done += count


def floppy_of(size: int) -> tuple[int, int, int, int] | None:
    """Return cylinders, heads, sectors and type of a floppy of so many bytes; None for other sizes."""
    return FLOPPIES.get(size >> 10) if size % 1024 == 0 else None


def geometry_of(sectors: int, first: bytes) -> tuple[int, int, int]:
    """Return cylinders, heads and sectors of a disk, from what its table of partitions was made with, else its size.

    As other BIOSes do: 16 heads and 63 sectors as long as 1024 cylinders are enough, then 32, 64, 128 and 255 heads.
    """
    found = _partitioned_with(first)
    if found is not None:
        heads, track = found
    else:
        track = 63
        heads = next((heads for heads in (16, 32, 64, 128) if heads * track * CYLINDERS_MOST >= sectors), 255)
        if sectors < 16 * track:  # hardly a disk: every sector of it can be had
            return (max(-(-sectors // track), 1), 1, track) if sectors > 0 else (1, 1, 1)
    return max(min(sectors // (heads * track), CYLINDERS_MOST), 1), heads, track


def _partitioned_with(first: bytes) -> tuple[int, int] | None:
    """Return heads and sectors as the ends of the partitions have them: partitions end with a cylinder."""
    if first[SIGNATURE] != b"\x55\xaa":
        return None
    found: set[tuple[int, int]] = set()
    for at in range(PARTITIONS, PARTITIONS + 4 * PARTITION_SIZE, PARTITION_SIZE):
        entry = first[at : at + PARTITION_SIZE]
        if len(entry) < PARTITION_SIZE or entry[0] & 0x7F or not any(entry[8:16]):
            if entry.strip(b"\0"):
                return None  # code, not a table
            continue
        head, track = entry[5], entry[6] & 0x3F
        if entry[4] == 0 or head == 0 or head == 0xFF or track == 0:
            return None
        found.add((head + 1, track))
    return found.pop() if len(found) == 1 else None


class Drives:
    """All drives, by number."""

    def __init__(self) -> None:
        self._by_number: dict[int, Drive] = {}
        self._has_first = False
        self.boot = FIRST_DISK  # the one that INT 19h boots

    def add(self, backend: Backend, *, first: bool = False) -> Drive | None:
        """Give `backend` the next number: 0 and 1 for the sizes of floppies, 80h and up for all others.

        `first`: it is the one to boot from, and gets the first number of its kind. Return None where no number is left.
        """
        shape = floppy_of(backend.size)
        base, most = (FIRST_DISK, MOST_DISKS) if shape is None else (0, MOST_FLOPPIES)
        taken = [drive for drive in self if drive.number & FIRST_DISK == base]
        if len(taken) == most:
            return None
        if first:
            for drive in reversed(taken):
                self._put(drive, drive.number + 1)
            self._by_number.pop(base, None)
        drive = make(base if first else base + len(taken), backend, shape)
        self._by_number[drive.number] = drive
        if first:
            self.boot, self._has_first = drive.number, True
        return drive

    def _put(self, drive: Drive, number: int) -> None:
        drive.number = number
        self._by_number[number] = drive

    @property
    def boots_nothing(self) -> bool:
        """Whether nobody has added the drive to boot from."""
        return not self._has_first

    def get(self, number: int) -> Drive | None:
        """Return the drive of a number, None where there is none."""
        return self._by_number.get(number)

    def __iter__(self) -> Iterator[Drive]:
        return iter([self._by_number[number] for number in sorted(self._by_number)])

    @property
    def floppies(self) -> int:
        """How many floppies there are."""
        return sum(number < FIRST_DISK for number in self._by_number)

    @property
    def disks(self) -> int:
        """How many disks there are."""
        return len(self._by_number) - self.floppies


def make(number: int, backend: Backend, shape: tuple[int, int, int, int] | None) -> Drive:
    """Return the drive for a backend, a floppy of this shape or a disk."""
    if shape is not None:
        return Drive(number, backend, shape[:3], shape[3])
    first = bytearray(SECTOR)
    try:  # noqa: SIM105 - contextlib takes time to import
        backend.preadv([memoryview(first)], 0)
    except OSError:
        pass  # a guest that reads it will be told
    return Drive(number, backend, geometry_of(-(-backend.size // SECTOR), bytes(first)))
