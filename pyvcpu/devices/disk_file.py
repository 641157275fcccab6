"""A disk's file or block device: opened, locked against other programs, read and written.

The locks are QEMU's, so that its programs and this one see each other: an open file description lock (fcntl,
F_OFD_SETLK) on a byte of the file for each permission that a program uses, and one for each that it lets nobody else
have. They are all shared locks. A program takes its own, and then looks whether anyone holds the opposite one.
Source: what QEMU's block/file-posix.c takes for a raw image of a guest's disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from struct import Struct
from weakref import WeakSet

from ..errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .device import State

SECTOR = 512

USED, UNSHARED = 100, 200  # the first byte of each group (RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE)
CONSISTENT_READ, WRITE = 0, 1  # bit numbers (BLK_PERM_*)

# Nobody else may write the disk.
READS = (USED + CONSISTENT_READ, UNSHARED + WRITE)
WRITES = (USED + CONSISTENT_READ, USED + WRITE, UNSHARED + WRITE)

F_OFD_GETLK, F_OFD_SETLK = 36, 37
_FLOCK = Struct("@hhqqi4x")  # struct flock: type, whence, start, length, pid
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY)

_open: WeakSet[DiskFile] = WeakSet()  # for file systems without locks, and for other names of a block device


class DiskFile:
    """The open file or block device `fd` as a disk; whoever opened it closes it, after this.

    It is locked while it is open: several programs may read a disk, or one may write it. On a file system without locks
    `warn(line)` says so. Raise ConfigError when the disk is in use already, by any name, or its size cannot be that of
    a disk. close() gives back what else was opened; the locks go with `fd`.
    """

    def __init__(
        self, fd: int, name: str, *, readonly: bool = False, warn: Callable[[str], object] | None = None
    ) -> None:
        self._fd = fd
        self._more: list[int] = []  # what is held open beside `fd`
        self.name = name
        self.readonly = readonly
        status = os.fstat(fd)
        self._key = _key(status)
        try:
            self._check_others()
            if stat.S_ISBLK(status.st_mode):
                self._claim(status)
            self._lock(fd, warn)
            self.size = os.lseek(fd, 0, os.SEEK_END)  # stat() knows no size of block devices
            if self.size == 0 or self.size % SECTOR:
                raise ConfigError(
                    f"a disk must hold whole sectors of {SECTOR} bytes, and at least one; {name} has {self.size} bytes "
                    f"(`truncate -s %{SECTOR}` fills up the last sector)"
                )
        except BaseException:
            self.close()
            raise
        _open.add(self)

    def close(self) -> None:
        """Close what was opened beside `fd`, and forget the disk; closing again does nothing."""
        _open.discard(self)
        while self._more:
            os.close(self._more.pop())

    def identity(self) -> State:
        """Return, as plain data, by what a snapshot can tell whether the disk is the one that it was made with."""
        status = os.fstat(self._fd)
        return {
            "size": self.size,
            "device": status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev,
            "inode": status.st_ino,
            "modified": status.st_mtime_ns,
        }

    def preadv(self, buffers: list[memoryview], offset: int) -> int:
        """Read into `buffers`, as os.preadv does."""
        return os.preadv(self._fd, buffers, offset)

    def pwritev(self, buffers: list[memoryview], offset: int) -> int:
        """Write `buffers`, as os.pwritev does."""
        return os.pwritev(self._fd, buffers, offset)

    def fsync(self) -> None:
        """Return when everything written is on the medium."""
        os.fdatasync(self._fd)

    # Who else has it

    def _check_others(self) -> None:
        """Look at the disks of this process."""
        for other in tuple(_open):
            if other._fd == self._fd:
                other.close()  # its descriptor was closed, and is another's now
            elif other._key == self._key and other._is_open() and not (self.readonly and other.readonly):
                raise self._in_use()

    def _is_open(self) -> bool:
        try:
            return _key(os.fstat(self._fd)) == self._key
        except OSError:
            return False

    def _claim(self, status: os.stat_result) -> None:
        """Refuse a block device that is mounted, or part of something; a writer keeps it for itself (O_EXCL)."""
        mode = os.O_RDONLY if self.readonly else os.O_RDWR
        try:
            claim = os.open(f"/proc/self/fd/{self._fd}", mode | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise ConfigError(f"{self.name}: {error.strerror}") from None
            raise ConfigError(f"{self.name} is in use by this host; is it mounted, or a part of a RAID?") from None
        if self.readonly:
            os.close(claim)  # others may read it, too
        else:
            self._more.append(claim)
        backing = loop_file(status.st_rdev)
        if backing is not None:
            self._lock_backing(backing)

    def _lock_backing(self, path: str) -> None:
        """Lock the file behind a loop device as well, if it can be found."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        self._more.append(fd)
        self._key = _key(os.fstat(fd))
        self._check_others()
        self._lock(fd, None)

    def _lock(self, fd: int, warn: Callable[[str], object] | None) -> None:
        mine = READS if self.readonly else WRITES
        try:
            for byte in mine:
                fcntl.fcntl(fd, F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
            for byte in mine:
                opposite = byte + UNSHARED - USED if byte < UNSHARED else byte - UNSHARED + USED
                found = fcntl.fcntl(fd, F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, opposite, 1, 0))
                if _FLOCK.unpack(found)[0] != fcntl.F_UNLCK:
                    raise self._in_use()
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise self._in_use() from None
            if error.errno not in NO_LOCKS:
                raise ConfigError(f"{self.name} cannot be locked: {error.strerror}") from None
            if warn is not None:
                warn(
                    f"{self.name} cannot be locked here ({error.strerror}): "
                    "see to it yourself that no other program writes it"
                )

    def _in_use(self) -> ConfigError:
        hint = "" if self.readonly else "; it can be used more than once with ,ro"
        return ConfigError(f"{self.name} is in use as a disk already{hint}")


def loop_file(device: int, sysfs: str = "/sys") -> str | None:
    """Return the path of the file behind the loop device (or partition of one) `device`, None for any other."""
    at = f"{sysfs}/dev/block/{os.major(device)}:{os.minor(device)}"
    for place in (f"{at}/loop/backing_file", f"{at}/../loop/backing_file"):
        try:
            with open(place, "rb") as file:
                return os.fsdecode(file.read().removesuffix(b"\n"))
        except OSError:
            continue
    return None


def _key(status: os.stat_result) -> tuple[int, int]:
    """Return what two names of one disk have in common."""
    return (status.st_rdev, -1) if stat.S_ISBLK(status.st_mode) else (status.st_dev, status.st_ino)
