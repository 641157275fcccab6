"""Debian's cloud kernel as a guest: the command in a process, what its console says, and what is on its disk."""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Self

from tests.kvm.support import command, environment

KERNEL = os.environ.get("PYVCPU_GUEST_KERNEL", "")
INITRD = os.environ.get("PYVCPU_GUEST_INITRD", "")
LONG = 250.0  # seconds that any step may take: emulated, and on a machine that has other jobs
READY = r"^READY cpus=4\r?$"
# Warnings and errors still come to the console, all else stays in dmesg: half of a boot is the kernel's messages.
TERSE = "console=ttyS0 loglevel=5"
COMPLAINTS = re.compile(r"\bBUG\b|WARNING|Call Trace|ACPI (BIOS )?(Error|Warning|Exception)|Oops|panic|lockup|overrun")


class Console:
    """What a guest has said so far. feed() on one thread, expect() on another; `_changed` guards the rest."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._said = bytearray()
        self._closed = False
        self._seen = 0  # expect() looks from here on

    def feed(self, data: bytes) -> None:
        """Take more; nothing at all is the end."""
        with self._changed:
            self._said += data
            self._closed = not data
            self._changed.notify_all()

    @property
    def text(self) -> str:
        """All of it."""
        with self._changed:
            return self._said.decode("latin-1")

    def expect(self, pattern: str, timeout: float = LONG) -> re.Match[str]:
        """Wait for what matches, after what was expected before: at most two lines; `^` and `$` are a line's ends."""
        end = time.monotonic() + timeout
        with self._changed:
            while not (found := re.search(pattern, self._said[self._seen :].decode("latin-1"), re.MULTILINE)):
                line = self._said.rfind(b"\n", self._seen)
                self._seen = max(self._seen, self._said.rfind(b"\n", self._seen, max(line, 0)) + 1)
                left = end - time.monotonic()
                assert left > 0, f"no {pattern!r} in {timeout} s:\n{self._said.decode('latin-1')}"
                assert not self._closed, f"no {pattern!r} to the end:\n{self._said.decode('latin-1')}"
                self._changed.wait(left)
            self._seen += found.end()
            return found


class Linux:
    """`python -m pyvcpu boot` with Debian's kernel: 4 vCPUs, 256 MiB; killed at the end of `with` if it still runs.

    `run` is the shell command that init runs; without it, a shell reads the console, which send() feeds.
    """

    def __init__(self, *arguments: str, run: str = "", kernel: str = TERSE, smp: str = "4") -> None:
        append = f'{kernel} RUN="{run}"' if run else kernel
        given = ["--smp", smp, "--memory", "256M", "--cpu", "host", "--append", append, *arguments]
        self.started = time.monotonic()
        self.console = Console()
        self.process = subprocess.Popen(
            command("boot", KERNEL, "--initrd", INITRD, *given),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=environment(),
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while data := os.read(self.process.stdout.fileno(), 1 << 16):
            self.console.feed(data)
        self.console.feed(b"")

    def send(self, data: bytes) -> None:
        """Write to the guest's console; waits while the guest takes no more."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def finish(self) -> int:
        """Wait for the end; return the exit status."""
        return self.process.wait(LONG)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        status = self.process.poll()
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        print(f"status {status}, standard error {self.process.stderr.read()!r}")  # shown where the test fails
        for stream in (self.process.stderr, self.process.stdout, self.process.stdin):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):  # what was not read any more
                stream.close()


def boot(*arguments: str, **options: Any) -> str:
    """Boot, wait for user space and for power-off with status 0; return all that the guest said."""
    with Linux(*arguments, **options) as guest:
        guest.console.expect(READY)
        guest.console.expect(r"^EXIT 0\r?$")
        status = guest.finish()
        assert guest.process.stderr is not None
        errors = guest.process.stderr.read()
    assert (status, errors) == (0, b""), guest.console.text
    return guest.console.text


def make_ext4(path: Path) -> Path:
    """Write an empty ext4 file system of 32 MiB: 4 KiB blocks, a journal of 4 MiB, one block group, extents.

    mkfs.ext4 -b 4096 -m 0 -N 32 -J size=4 -O ^64bit,^resize_inode,^metadata_csum,^dir_index made it.
    """
    path.write_bytes(lzma.decompress(Path(__file__).with_name("ext4.img.xz").read_bytes()))
    return path


BLOCK = 4096
ROOT_INODE = 2
INODE_SIZE, INODE_COUNT = 88, 40  # offsets in the superblock, which is at 1024
INODE_TABLE = 8  # offset in the group descriptor, which is in block 1
EXTENT_MAGIC = 0xF30A


def read_ext4(image: bytes, name: str) -> bytes:
    """Return a file of the root folder of what make_ext4() made (Documentation/filesystems/ext4)."""
    folder = inode_content(image, ROOT_INODE)
    position = 0
    while position < len(folder):
        inode, length, name_length = struct.unpack_from("<IHB", folder, position)
        if inode and folder[position + 8 : position + 8 + name_length].decode() == name:
            return inode_content(image, inode)
        position += length
    raise FileNotFoundError(name)


def inode_content(image: bytes, number: int) -> bytes:
    """Return what an inode holds."""
    (size,) = struct.unpack_from("<H", image, 1024 + INODE_SIZE)
    (table,) = struct.unpack_from("<I", image, BLOCK + INODE_TABLE)
    inode = image[table * BLOCK + (number - 1) * size :][:size]
    (length,) = struct.unpack_from("<I", inode, 4)
    content = bytearray(-(-length // BLOCK) * BLOCK)
    for first, data in extents(image, inode[40:100]):
        content[first * BLOCK : first * BLOCK + len(data)] = data
    return bytes(content[:length])


def extents(image: bytes, node: bytes) -> list[tuple[int, bytes]]:
    """Return the pieces below a node of an extent tree: the block of the file where each begins, and its bytes."""
    magic, entries, _, depth = struct.unpack_from("<4H", node)
    assert magic == EXTENT_MAGIC
    found = []
    for i in range(entries):
        if depth:
            _, leaf = struct.unpack_from("<II", node, 12 + i * 12)
            found += extents(image, image[leaf * BLOCK : (leaf + 1) * BLOCK])
        else:
            first, count, _, start = struct.unpack_from("<IHHI", node, 12 + i * 12)
            found.append((first, image[start * BLOCK : (start + count) * BLOCK]))
    return found
