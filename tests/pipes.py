"""Pipes for tests, with either end to be closed early, and what fills and empties them."""

from __future__ import annotations

import os


class Pipe:
    """A pipe, either end of which can be closed early."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        self._files = os.fdopen(reader, "rb", 0), os.fdopen(writer, "wb", 0)
        self.reader, self.writer = reader, writer

    def close_reader(self) -> None:
        self._files[0].close()

    def close_writer(self) -> None:
        self._files[1].close()


def read_all(fd: int) -> bytes:
    chunks = []
    while chunk := os.read(fd, 1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


def fill(fd: int) -> int:
    """Fill a pipe to the brim; return how many bytes that took. It blocks again afterwards."""
    os.set_blocking(fd, False)
    size = 0
    try:
        while True:
            size += os.write(fd, bytes(4096))
    except BlockingIOError:
        os.set_blocking(fd, True)
        return size
