"""The block device: requests of every shape against a file, and files and requests that fail."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from struct import pack, unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.devices import virtio_blk as blk
from pyvcpu.devices.disk_file import SECTOR, DiskFile
from pyvcpu.devices.virtio_blk import VirtioBlk, split
from pyvcpu.errors import ConfigError
from tests.virtio_driver import DATA, RAM, Driver, readable, writable

SECTORS = 64
HEADER, STATUS = DATA, DATA + 0x100
BUFFER = DATA + 0x1000
UNTOUCHED = 0xEE


class MemoryDisk:
    """A disk in memory that moves at most `step` bytes at once, and notes what it was asked for."""

    def __init__(self, size: int = SECTORS * SECTOR, step: int = 1 << 30, readonly: bool = False) -> None:
        self.bytes = bytearray(b"".join(bytes([n]) * SECTOR for n in range(1, size // SECTOR + 1)))
        self.size, self.step, self.readonly = size, step, readonly
        self.calls: list[str] = []
        self.error: OSError | None = None

    def _move(self, call: str, buffers: list[memoryview], offset: int) -> int:
        self.calls.append(call)
        if self.error:
            raise self.error
        done = 0
        for view in buffers:
            end = max(min(len(view), self.step - done, len(self.bytes) - offset - done), 0)
            part = slice(offset + done, offset + done + end)
            if call == "read":
                view[:end] = self.bytes[part]
            else:
                self.bytes[part] = view[:end]
            done += end
        return done

    def preadv(self, buffers: list[memoryview], offset: int) -> int:
        return self._move("read", buffers, offset)

    def pwritev(self, buffers: list[memoryview], offset: int) -> int:
        return self._move("write", buffers, offset)

    def fsync(self) -> None:
        self.calls.append("fsync")
        if self.error:
            raise self.error


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk()


@pytest.fixture
def driver(disk: MemoryDisk) -> Driver:
    return Driver(VirtioBlk(disk, "disk0")).start()


def request(
    driver: Driver, kind: int, sector: int = 0, *buffers: tuple[int, int, int], status: int = STATUS
) -> tuple[int, int]:
    """Do a request as Linux lays it out; return its status, and how many bytes of data were written."""
    driver.ram.write(HEADER, pack("<IIQ", kind, 0, sector))
    driver.ram.write(status, bytes([UNTOUCHED]))
    written = driver.run(readable(HEADER, 16), *buffers, writable(status, 1))
    return driver.ram.read(status, 1)[0], written - 1


def read(driver: Driver, sector: int, length: int) -> tuple[int, int]:
    return request(driver, blk.T_IN, sector, writable(BUFFER, length))


def write(driver: Driver, sector: int, data: bytes) -> int:
    driver.ram.write(BUFFER, data)
    return request(driver, blk.T_OUT, sector, readable(BUFFER, len(data)))[0]


def test_what_the_driver_is_told(driver: Driver) -> None:
    assert driver.get(0x008) == 2
    capacity, size_max, seg_max, _, block = unpack("<QIIII", driver.mmio.read(0x100, 24))
    assert (capacity, size_max, seg_max, block) == (SECTORS, 65536, 254, 512)
    assert driver.features() == 1 << 1 | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 28 | 1 << 32
    assert driver.mmio.name == "virtio disk disk0"


@pytest.mark.parametrize(("sector", "count"), [(0, 1), (5, 3), (SECTORS - 1, 1), (0, SECTORS)])
def test_reading(driver: Driver, disk: MemoryDisk, sector: int, count: int) -> None:
    assert read(driver, sector, count * SECTOR) == (0, count * SECTOR)
    assert driver.ram.read(BUFFER, count * SECTOR) == disk.bytes[sector * SECTOR :][: count * SECTOR]


@pytest.mark.parametrize(("sector", "count"), [(0, 1), (5, 3), (SECTORS - 1, 1), (0, SECTORS)])
def test_writing(driver: Driver, disk: MemoryDisk, sector: int, count: int) -> None:
    expected = disk.bytes.copy()
    data = bytes(i * 7 % 251 for i in range(count * SECTOR))
    expected[sector * SECTOR :][: count * SECTOR] = b""
    expected = expected[: sector * SECTOR] + data + expected[(sector + count) * SECTOR :]
    assert write(driver, sector, data) == 0
    assert disk.bytes == expected
    assert disk.calls == ["write"]


@pytest.mark.parametrize("step", [1, 500, 512, 700])
def test_a_file_that_moves_less_than_asked_is_asked_again(step: int) -> None:
    disk = MemoryDisk(step=step)
    driver = Driver(VirtioBlk(disk)).start()
    assert write(driver, 3, bytes(range(256)) * 6) == 0
    assert disk.bytes[3 * SECTOR : 6 * SECTOR] == bytes(range(256)) * 6
    assert read(driver, 2, 3 * SECTOR) == (0, 3 * SECTOR)
    assert driver.ram.read(BUFFER, 3 * SECTOR) == disk.bytes[2 * SECTOR : 5 * SECTOR]


def test_scattered_buffers(driver: Driver, disk: MemoryDisk) -> None:
    places = [(BUFFER, 100), (BUFFER + 0x1000, 0), (BUFFER + 0x2000, 412), (BUFFER + 0x3000, 512)]
    assert request(driver, blk.T_IN, 7, *(writable(*place) for place in places)) == (0, 1024)
    assert b"".join(driver.ram.read(*place) for place in places) == disk.bytes[7 * SECTOR : 9 * SECTOR]


def test_the_cuts_between_buffers_mean_nothing(driver: Driver, disk: MemoryDisk) -> None:
    """Section 2.7.4: header and data in one buffer, data and status in one."""
    driver.ram.write(HEADER, pack("<IIQ", blk.T_OUT, 0, 1) + b"w" * SECTOR)
    assert driver.run(readable(HEADER, 7), readable(HEADER + 7, 9 + SECTOR), writable(STATUS, 1)) == 1
    assert disk.bytes[SECTOR : 2 * SECTOR] == b"w" * SECTOR
    driver.ram.write(HEADER, pack("<IIQ", blk.T_IN, 0, 1))
    driver.ram.write(BUFFER + SECTOR, bytes([UNTOUCHED]))
    assert driver.run(readable(HEADER, 16), writable(BUFFER, SECTOR + 1)) == SECTOR + 1
    assert driver.ram.read(BUFFER, SECTOR + 1) == b"w" * SECTOR + b"\0"


def test_flush_is_fsync(driver: Driver, disk: MemoryDisk) -> None:
    assert write(driver, 0, bytes(SECTOR)) == 0
    assert request(driver, blk.T_FLUSH) == (0, 0)
    assert disk.calls == ["write", "fsync"]


def test_the_serial_number(driver: Driver) -> None:
    assert request(driver, blk.T_GET_ID, 0, writable(BUFFER, 20)) == (0, 20)
    assert driver.ram.read(BUFFER, 20) == b"disk0".ljust(20, b"\0")
    assert request(driver, blk.T_GET_ID, 0, writable(BUFFER, 3)) == (0, 3)


@pytest.mark.parametrize("kind", [2, 5, 11, 13, 0xFFFF_FFFF])
def test_an_unknown_request_is_unsupported(driver: Driver, kind: int) -> None:
    assert request(driver, kind, 0, writable(BUFFER, SECTOR)) == (2, 0)
    assert not driver.broken()


@pytest.mark.parametrize(
    ("sector", "length"),
    [(SECTORS, SECTOR), (SECTORS - 1, 2 * SECTOR), ((1 << 64) - 1, SECTOR), (1 << 55, SECTOR), (0, 100), (0, 513)],
)
def test_what_is_not_on_the_disk_is_an_io_error(driver: Driver, disk: MemoryDisk, sector: int, length: int) -> None:
    before = disk.bytes.copy()
    assert read(driver, sector, length) == (1, 0)
    assert write(driver, sector, b"w" * length) == 1
    assert (disk.bytes, disk.calls, driver.broken()) == (before, [], False)


def test_a_file_that_fails_is_an_io_error(driver: Driver, disk: MemoryDisk) -> None:
    disk.error = OSError(28, "No space left on device")
    assert write(driver, 0, bytes(SECTOR)) == 1
    assert read(driver, 0, SECTOR) == (1, 0)
    assert request(driver, blk.T_FLUSH) == (1, 0)
    disk.error = None
    assert read(driver, 0, SECTOR) == (0, SECTOR)


def test_a_file_that_has_shrunk_is_an_io_error(driver: Driver, disk: MemoryDisk) -> None:
    del disk.bytes[SECTOR + 100 :]
    assert read(driver, 0, 2 * SECTOR) == (1, SECTOR + 100)
    assert read(driver, 2, SECTOR) == (1, 0)


def test_a_readonly_disk_is_not_written() -> None:
    disk = MemoryDisk(readonly=True)
    driver = Driver(VirtioBlk(disk)).start()
    assert driver.features() & 1 << 5
    assert write(driver, 0, bytes(SECTOR)) == 1
    assert request(driver, blk.T_FLUSH) == (0, 0)
    assert disk.calls == []
    assert read(driver, 0, SECTOR) == (0, SECTOR)


@pytest.mark.parametrize(
    "buffers",
    [
        [readable(HEADER, 15), writable(STATUS, 1)],
        [readable(HEADER, 16)],
        [readable(HEADER, 16), writable(STATUS, 0)],
        [writable(STATUS, 1)],
        [readable(HEADER, 16), writable(RAM - 1, 2)],
    ],
)
def test_a_request_without_header_or_status_breaks_the_device(
    driver: Driver, disk: MemoryDisk, buffers: list[tuple[int, int, int]]
) -> None:
    driver.chain(*buffers)
    driver.offer()
    driver.kick()
    assert (driver.broken(), driver.take(), disk.calls) == (True, [], [])


@given(st.lists(st.integers(0, 5), max_size=6), st.integers(-1, 30))
def test_split(lengths: list[int], at: int) -> None:
    data = bytes(range(sum(lengths)))
    ends = list(itertools.accumulate(lengths))
    views = [memoryview(data)[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    before, behind = split(views, at)
    cut = max(at, 0)
    assert (b"".join(before), b"".join(behind)) == (data[:cut], data[cut:])
    assert all(len(view) for view in before + behind)


# Files


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 2 * SECTORS)
    return path


@pytest.fixture
def fd(image: Path) -> Iterator[int]:
    fd = os.open(image, os.O_RDWR)
    yield fd
    os.close(fd)


def test_a_file_as_a_disk(image: Path, fd: int) -> None:
    driver = Driver(VirtioBlk(DiskFile(fd, "disk.img"))).start()
    assert read(driver, 1, SECTOR) == (0, SECTOR)
    assert driver.ram.read(BUFFER, SECTOR) == bytes(range(256)) * 2
    assert write(driver, SECTORS - 1, b"w" * SECTOR) == 0
    assert image.read_bytes()[-SECTOR - 1 :] == b"\xff" + b"w" * SECTOR  # before any flush
    assert request(driver, blk.T_FLUSH) == (0, 0)
    assert image.stat().st_size == SECTORS * SECTOR


def test_a_file_opened_for_reading_only_fails_writes_in_the_guest(image: Path) -> None:
    fd = os.open(image, os.O_RDONLY)
    driver = Driver(VirtioBlk(DiskFile(fd, "disk.img"))).start()
    assert write(driver, 0, b"w" * SECTOR) == 1
    os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 511, 513])
def test_a_file_that_is_no_whole_disk_is_refused(image: Path, fd: int, size: int) -> None:
    os.truncate(image, size)
    with pytest.raises(ConfigError, match=rf"whole sectors of 512 bytes, .* disk\.img has {size} bytes"):
        DiskFile(fd, "disk.img")


def test_a_disk_has_one_writer_or_many_readers(image: Path, fd: int) -> None:
    other = os.open(image, os.O_RDWR)
    DiskFile(fd, "disk.img", readonly=True)
    DiskFile(other, "disk.img", readonly=True)
    with pytest.raises(ConfigError, match=r"disk\.img is in use as a disk already; it can be used more .* ,ro"):
        DiskFile(fd, "disk.img")
    os.close(other)
    DiskFile(fd, "disk.img")
    other = os.open(image, os.O_RDONLY)
    with pytest.raises(ConfigError, match=r"in use as a disk already$"):
        DiskFile(other, "disk.img", readonly=True)
    os.close(other)
