"""Snapshot: all that a machine is, as plain data, and its memory as an image."""

from __future__ import annotations

import os

from .plain import ID_BYTES
from .plain import SnapshotError as SnapshotError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Any, Self

    from .image import Image

    Progress = Callable[[int, int], object] | None


class Snapshot:
    """The state of a machine at one moment. It never changes, and any thread may use it.

    `data`: everything but the memory, as plain data; docs/snapshots.md names each field. `image`: the memory. `id`: 16
    bytes that no other snapshot has. `base`: the snapshot from which the machine had been restored, where this one has
    only the pages that differ from it; else None. `path`: the file that it was loaded from or saved to, or None.

    It holds a file open, or memory; close() gives that back, as does dropping it and the machines made of it.
    """

    def __init__(
        self, data: dict[str, Any], image: Image, base: Snapshot | None = None, id: bytes | None = None
    ) -> None:
        self.data = data
        self.image = image
        self.base = base
        self.id = os.urandom(ID_BYTES) if id is None else id
        self.path: str | None = None

    @property
    def memory_size(self) -> int:
        """The machine's memory in bytes."""
        return self.image.size

    @property
    def created(self) -> int:
        """When it was taken: ns since 1970."""
        return int(self.data["created"])

    def save(self, path: str | os.PathLike[str], *, whole: bool = False, progress: Progress = None) -> None:
        """Write it to the file `path`; that one is replaced once the new one is complete and on the medium.

        A snapshot with a `base` that lies in a file of the same folder refers to that one, and has its own pages only;
        `whole`: has all of the memory, whatever its base. `progress(done, total)` is called now and then, in bytes.
        Raise OSError; the file is then as it was.
        """
        from .save import save

        save(self, os.fspath(path), whole, progress)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = False, progress: Progress = None) -> Self:
        """Read the snapshot in the file `path`; its memory is read when it is used.

        `verify`: read all of the memory now, and compare its checksums. The file must not be changed while the
        snapshot, or a machine made of it, is in use: save() does not, it puts another in its place. Raise
        SnapshotError, which says what is wrong with it, or OSError.
        """
        from .load import load

        found: Any = load(cls, os.fspath(path), verify, progress)
        return found  # type: ignore[no-any-return]  # it is made by `cls`

    def close(self) -> None:
        """Give back the open file. Machines that were made of it are not concerned, but can be restored no more."""
        self.image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        vcpus = sum(vcpu is not None for vcpu in self.data["vcpus"])
        return f"<Snapshot {self.id.hex()[:8]} vcpus={vcpus} memory={self.memory_size >> 10}K>"
