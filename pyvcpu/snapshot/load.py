"""Read a snapshot from a file, which anybody may have made: it is checked, and no length in it is believed.

Only the header and the metadata are read; memory is mapped when a machine is made of the snapshot.
"""

from __future__ import annotations

import os
import stat
from array import array
from binascii import crc32

from .codec import CodecError, decode
from .format import CHUNK, HEADER_SIZE, PAGE, Header
from .image import Image
from .plain import ID_BYTES, SnapshotError, check

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Any

    from .plain import Saved

    Progress = Callable[[int, int], object] | None
    Kind = Callable[[dict[str, Any], Image, Saved | None, bytes], Saved]

MOST_LAYERS = 64
LINK = {"id", "name", "runs"}


def load(kind: Kind, path: str, verify: bool, progress: Progress) -> Saved:
    """Do what Snapshot.load() does."""
    return _load(kind, path, verify, progress, 0)


def read_id(path: str) -> bytes | None:
    """Return the id of the snapshot in a file; None where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return bytes(_metadata(fd)[1]["id"])
    except (SnapshotError, OSError):
        return None
    finally:
        os.close(fd)


def _load(kind: Kind, path: str, verify: bool, progress: Progress, depth: int) -> Saved:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    image = None
    try:
        try:
            header, metadata = _metadata(fd)
            base = _base(kind, path, metadata["base"], verify, progress, depth)
            image = _image(fd, header, metadata, base)
        except BaseException:
            if image is None:
                os.close(fd)
            raise
        if verify:
            _verify(image, metadata["checksums"], progress)
    except SnapshotError as error:
        raise error if depth else SnapshotError(f"{path}: {error}") from None
    snapshot = kind(metadata["data"], image, base, metadata["id"])
    snapshot.path = os.path.abspath(path)
    return snapshot


def _metadata(fd: int) -> tuple[Header, dict[str, Any]]:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise SnapshotError("it is no file")
    header = Header.unpack(os.pread(fd, HEADER_SIZE, 0), status.st_size)
    data = os.pread(fd, header.metadata, HEADER_SIZE)
    if len(data) != header.metadata or crc32(data) != header.metadata_sum:
        raise SnapshotError("it is damaged: the metadata do not have their checksum")
    try:
        metadata = decode(data)
    except CodecError as error:
        raise SnapshotError(f"its metadata cannot be read: {error}") from None
    if type(metadata) is not dict or set(metadata) != {"id", "data", "base", "checksums"}:
        raise SnapshotError("its metadata are not those of a snapshot")
    identity, checksums = metadata["id"], metadata["checksums"]
    if type(identity) is not bytes or len(identity) != ID_BYTES:
        raise SnapshotError(f"its id must be {ID_BYTES} bytes")
    memory = header.layout.end - header.layout.memory
    if type(checksums) is not bytes or len(checksums) != -(-memory // CHUNK) * 4:
        raise SnapshotError("it does not have a checksum for each MiB of memory")
    check(metadata["data"])
    return header, metadata


def _image(fd: int, header: Header, metadata: dict[str, Any], base: Saved | None) -> Image:
    size, stored = metadata["data"]["memory"], header.layout.end - header.layout.memory
    if base is None:
        if stored != size:
            raise SnapshotError(f"it has {stored} bytes of memory in place of {size}")
        return Image(fd, header.layout.memory, size)
    if base.image.size != size:
        raise SnapshotError(f"its base has {base.image.size} bytes of memory in place of {size}")
    numbers = _numbers(metadata["base"]["runs"], size // PAGE, stored // PAGE)
    return Image(fd, header.layout.memory, size, base.image, numbers)


def _numbers(runs: Any, pages: int, stored: int) -> array[int]:
    """Return the numbers of the pages that a layer has; there are as many as the file has pages."""
    if type(runs) is not list or len(runs) % 2 or not all(type(number) is int for number in runs):
        raise SnapshotError("its pages must be named by pairs of numbers")
    last = total = 0
    for first, end in zip(runs[::2], runs[1::2], strict=True):
        total += end - first
        if not last <= first < end <= pages or total > stored:
            raise SnapshotError("its pages must be named in rising order, within memory, as many as there are")
        last = end
    if total != stored:
        raise SnapshotError(f"it has {stored} pages, and names {total}")
    numbers = array("Q")
    for first, end in zip(runs[::2], runs[1::2], strict=True):
        numbers.extend(range(first, end))
    return numbers


def _base(kind: Kind, path: str, link: Any, verify: bool, progress: Progress, depth: int) -> Saved | None:
    """Load the snapshot that this one is a layer of: a file of the same folder, and of no other."""
    if link is None:
        return None
    if type(link) is not dict or set(link) != LINK or type(link["id"]) is not bytes or type(link["name"]) is not str:
        raise SnapshotError("it does not say what it is a layer of")
    name = link["name"]
    if os.path.basename(name) != name or name in ("", ".", "..") or "\0" in name or len(os.fsencode(name)) > 255:
        raise SnapshotError("its base must be a file of the same folder")
    if depth == MOST_LAYERS:
        raise SnapshotError(f"more than {MOST_LAYERS} layers lie upon one another")
    try:
        base = _load(kind, os.path.join(os.path.dirname(path), name), verify, progress, depth + 1)
    except OSError as error:
        raise SnapshotError(f"its base {name} cannot be read: {error.strerror}") from None
    except SnapshotError as error:
        raise SnapshotError(f"its base {name}: {error}") from None
    if base.id != link["id"]:
        base.image.close()
        raise SnapshotError(f"{name} is another snapshot than its base")
    return base


def _verify(image: Image, checksums: bytes, progress: Progress) -> None:
    """Read all of the memory, and compare."""
    total = image.stored * PAGE
    for at in range(0, total, CHUNK):
        length = min(CHUNK, total - at)
        wanted = int.from_bytes(checksums[at // CHUNK * 4 :][:4], "little")
        if crc32(os.pread(image.fd, length, image.offset + at)) != wanted:
            raise SnapshotError(f"it is damaged: the memory at byte {image.offset + at} does not have its checksum")
        if progress is not None:
            progress(at + length, total)
