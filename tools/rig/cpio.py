"""Write cpio archives as Linux unpacks them at boot (Documentation/driver-api/early-userspace/buffer-format.rst).

Archives follow one another in one file, each starting at a multiple of 4; later ones add to earlier ones.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

MAGIC = "070701"  # "newc": 13 fields of 8 hexadecimal digits follow
END = "TRAILER!!!"
ALIGNMENT = 512  # of the end: what cpio itself writes, and a multiple of 4


class Archive:
    """One archive, written to `file` from where that stands; everything in it belongs to root.

    Parent folders come into being with the first file in them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inode = 0
        self._folders = {""}

    def add(self, name: str, data: bytes = b"", mode: int = stat.S_IFREG | 0o644, mtime: int = 0) -> None:
        """Add one entry; `name` is relative to the root. The data of a symbolic link is its target."""
        parent = os.path.dirname(name)
        if parent not in self._folders:
            self.folder(parent)
        self._entry(name, data, mode, mtime)

    def folder(self, name: str, mtime: int = 0) -> None:
        """Add a folder and its parents, unless they are there."""
        if name in self._folders:
            return
        self._folders.add(name)
        self.add(name, mode=stat.S_IFDIR | 0o755, mtime=mtime)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self.add(name, target.encode(), stat.S_IFLNK | 0o777)

    def tree(self, source: Path, name: str, skip: Callable[[str], bool] = lambda path: False) -> None:
        """Add what lies in the folder `source` under `name`; `skip` is asked with paths relative to `source`.

        Sockets, pipes and devices are left out, and so is what vanishes meanwhile.
        """
        self.folder(name)
        for path, is_folder in sorted(_walk(source, "", skip)):
            try:
                status = os.lstat(source / path)
                target = f"{name}/{path}" if name else path
                if is_folder:
                    self.folder(target, int(status.st_mtime))
                elif stat.S_ISLNK(status.st_mode):
                    self.link(target, os.readlink(source / path))
                elif stat.S_ISREG(status.st_mode):
                    self.add(target, (source / path).read_bytes(), status.st_mode, int(status.st_mtime))
            except FileNotFoundError:
                continue

    def close(self) -> None:
        """End the archive; the file stays open."""
        self._entry(END, b"", 0, 0)
        self._file.write(bytes(-self._file.tell() % ALIGNMENT))

    def _entry(self, name: str, data: bytes, mode: int, mtime: int) -> None:
        self._inode += 1
        raw = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device, device of a node, length of the name, checksum
        fields = (self._inode, mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(raw), 0)
        head = (MAGIC + "".join(f"{field:08x}" for field in fields)).encode() + raw
        self._file.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))


def _walk(source: Path, folder: str, skip: Callable[[str], bool]) -> list[tuple[str, bool]]:
    """List (path, is a folder) below `source`."""
    found = []
    with os.scandir(source / folder) as entries:
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if skip(path):
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            found.append((path, is_folder))
            if is_folder:
                found += _walk(source, path, skip)
    return found
