"""Write a snapshot to a file: beside the old one, under another name, which it takes once it is on the medium."""

from __future__ import annotations

import os
from binascii import crc32
from errno import ENXIO

from .codec import encode
from .format import CHUNK, HEADER_SIZE, PAGE, Header, layout
from .image import ZERO_PAGE, runs, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Iterator
    from typing import Any

    from .image import Image
    from .plain import Saved

    Progress = Callable[[int, int], object] | None

ZEROS = bytes(CHUNK)


def save(snapshot: Saved, path: str, whole: bool, progress: Progress) -> None:
    """Do what Snapshot.save() does."""
    folder, name = os.path.split(os.path.abspath(path))
    base = None if whole else _base_in(snapshot, folder)
    temporary = os.path.join(folder, f".{name[:200]}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            _write(fd, snapshot, base, progress)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        _remove(temporary)
        raise
    _sync_folder(folder)
    snapshot.path = os.path.join(folder, name)


def _base_in(snapshot: Saved, folder: str) -> Saved | None:
    """Return the snapshot that the file is to refer to: the base, where it lies in the same folder, still the same."""
    base = snapshot.base
    if base is None or base.path is None or os.path.dirname(base.path) != folder:
        return None
    from .load import read_id

    return base if read_id(base.path) == base.id else None


def _write(fd: int, snapshot: Saved, base: Saved | None, progress: Progress) -> None:
    image = snapshot.image
    numbers = None if base is None else sorted(image.places)
    pages = image.size // PAGE if numbers is None else len(numbers)
    chunks = -(-pages * PAGE // CHUNK)
    metadata = dict(snapshot.data)
    link: dict[str, Any] | None = None
    if base is not None and numbers is not None:
        assert base.path is not None
        link = {"id": base.id, "name": os.path.basename(base.path), "runs": [x for run in runs(numbers) for x in run]}
    metadata = {"id": snapshot.id, "data": snapshot.data, "base": link, "checksums": bytes(4 * chunks)}
    place = layout(len(encode(metadata)), pages * PAGE)
    os.ftruncate(fd, place.end)
    metadata["checksums"] = _write_memory(fd, place.memory, image, numbers, pages, progress)
    encoded = encode(metadata)
    write_all(fd, memoryview(encoded), HEADER_SIZE)
    header = Header(place, len(encoded), crc32(encoded))
    write_all(fd, memoryview(header.pack()), 0)


def _write_memory(
    fd: int, offset: int, image: Image, numbers: list[int] | None, pages: int, progress: Progress
) -> bytes:
    """Write the pages from `offset` on, those of zeros as holes; return the checksum of each chunk."""
    checksums = bytearray()
    per_chunk, full = CHUNK // PAGE, crc32(ZEROS)
    busy = _busy_chunks(image) if numbers is None else None
    for first in range(0, pages, per_chunk):
        count = min(per_chunk, pages - first)
        if busy is not None and first // per_chunk not in busy:
            checksums += (full if count == per_chunk else crc32(bytes(count * PAGE))).to_bytes(4, "little")
            continue
        chunk = range(first, first + count) if numbers is None else numbers[first : first + count]
        data = b"".join(image.page(number) for number in chunk)
        checksums += crc32(data).to_bytes(4, "little")
        view = memoryview(data)
        filled = (at for at in range(count) if data[at * PAGE : at * PAGE + PAGE] != ZERO_PAGE)
        for start, end in runs(filled):
            write_all(fd, view[start * PAGE : end * PAGE], offset + (first + start) * PAGE)
        if progress is not None:
            progress((first + count) * PAGE, pages * PAGE)
    return bytes(checksums)


def _busy_chunks(image: Image) -> set[int]:
    """Return the numbers of the chunks in which the image has anything: its files' holes are zeros."""
    busy = {number * PAGE // CHUNK for layer in image.lineage() for number in layer.places}
    root = image.root
    for start, end in data_extents(root.fd, root.offset, root.offset + root.size):
        busy.update(range((start - root.offset) // CHUNK, (end - root.offset - 1) // CHUNK + 1))
    return busy


def data_extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield where between `start` and `end` the file has data; all of it where the file system does not tell."""
    at = start
    while at < end:
        try:
            first = os.lseek(fd, at, os.SEEK_DATA)
            last = os.lseek(fd, first, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != ENXIO:  # that one says: nothing but a hole
                yield at, end
            return
        if first >= end:
            return
        yield first, min(last, end)
        at = last


def _remove(path: str) -> None:
    try:  # noqa: SIM105 - contextlib takes time to import
        os.unlink(path)
    except OSError:
        pass


def _sync_folder(folder: str) -> None:
    """Have the new name on the medium, too, where the file system can."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)
