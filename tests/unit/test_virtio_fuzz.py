"""Hostile drivers: any registers, any rings. No exception, nothing outside the disk, and bounded work.

PYVCPU_FUZZ=N runs N examples of each instead of 200.
"""

from __future__ import annotations

import os
from struct import pack

from hypothesis import given, settings
from hypothesis import strategies as st

from pyvcpu.devices import virtio_mmio as mmio
from pyvcpu.devices.disk_file import SECTOR
from pyvcpu.devices.queue import DESC_F_INDIRECT, MAX_BYTES, MAX_SIZE
from pyvcpu.devices.virtio_blk import SEG_MAX, SIZE_MAX, VirtioBlk
from pyvcpu.devices.virtio_rng import VirtioRng
from tests.virtio_driver import AVAIL, DATA, DESC, RAM, TABLE, USED, Driver, readable, writable

EXAMPLES = int(os.environ.get("PYVCPU_FUZZ", "200"))

REGISTERS = sorted(
    value for name, value in vars(mmio).items() if name.isupper() and isinstance(value, int) and value < 0x200
)
BIG = st.integers(0, (1 << 64) - 1)
ADDRESS = st.sampled_from([0, DATA, TABLE, DESC, AVAIL, USED, RAM - 16, RAM - 1, RAM, (1 << 64) - 1]) | BIG
LENGTH = st.sampled_from([0, 1, 15, 16, 17, 20, 32, 512, 513, 1024, 4096, 65536, RAM, 0xFFFF_FFFF]) | st.integers(
    0, 2048
)
DESCRIPTORS = st.lists(
    st.tuples(ADDRESS, LENGTH, st.integers(0, 7), st.integers(0, 8) | st.integers(0, 65535)), min_size=8, max_size=8
)
HEADERS = st.tuples(st.sampled_from([0, 1, 4, 8, 9]), st.integers(0, 1), st.integers(0, 70) | BIG)
VALUES = st.sampled_from([0, 1, 2, 4, 8, 15, 64, 256, 0xFFFF_FFFF]) | st.integers(0, 0xFFFF_FFFF)


class CountingDisk:
    """A disk without bytes that checks what it is asked for, and counts it."""

    size, readonly = 64 * SECTOR, False

    def __init__(self) -> None:
        self.calls = 0

    def _move(self, buffers: list[memoryview], offset: int) -> int:
        self.calls += 1
        length = sum(map(len, buffers))
        assert 0 < length <= MAX_BYTES
        assert 0 <= offset <= offset + length <= self.size
        return length

    preadv = pwritev = _move

    def fsync(self) -> None:
        self.calls += 1


def devices() -> tuple[Driver, ...]:
    return Driver(VirtioBlk(CountingDisk())), Driver(VirtioRng())


@settings(max_examples=EXAMPLES)
@given(
    DESCRIPTORS,
    DESCRIPTORS,
    HEADERS,
    st.lists(st.integers(0, 8) | st.integers(0, 65535), max_size=9),
    st.integers(0, 8) | st.integers(0, 65535),
)
def test_any_rings(
    descriptors: list[tuple[int, int, int, int]],
    table: list[tuple[int, int, int, int]],
    header: tuple[int, int, int],
    heads: list[int],
    index: int,
) -> None:
    for driver in devices():
        driver.start()
        driver.ram.write(DATA, pack("<IIQ", *header))
        for at, (address, length, flags, following) in enumerate(descriptors):
            driver.describe(at, address, length, flags, following)
        for at, (address, length, flags, following) in enumerate(table):
            driver.describe(at, address, length, flags, following, at=TABLE)
        driver.ram.write(AVAIL + 2, pack(f"<H{len(heads)}H", index, *heads))
        driver.kick()
        back = driver.take() if driver.ram.read(USED + 2, 1)[0] <= 8 else []
        assert driver.broken() or index <= 8
        if isinstance(driver.mmio.device, VirtioRng) and not driver.broken():
            assert len(back) in (index, 0)  # 0: a buffer lay over the used ring
        driver.kick()
        driver.mmio.reset()
        assert not driver.broken()


@settings(max_examples=EXAMPLES)
@given(st.lists(st.tuples(st.sampled_from(REGISTERS), VALUES) | st.just((mmio.QUEUE_NOTIFY, 0)), max_size=60))
def test_any_registers(writes: list[tuple[int, int]]) -> None:
    for driver in devices():
        driver.start()
        for register, value in writes:
            driver.put(register, value)
            driver.get(register)
        assert all(a != b for a, b in zip(driver.levels, driver.levels[1:], strict=False))
        assert (driver.levels or [False])[-1] == bool(driver.get(mmio.INTERRUPT_STATUS))


@settings(max_examples=EXAMPLES)
@given(st.lists(st.tuples(st.integers(0, 0x1FF), st.binary(min_size=1, max_size=8)), max_size=30))
def test_any_accesses(writes: list[tuple[int, bytes]]) -> None:
    for driver in devices():
        for offset, data in writes:
            driver.mmio.write(offset, data)
            assert len(driver.mmio.read(offset, len(data))) == len(data)


def test_the_most_work_that_one_kick_can_ask_for() -> None:
    """Every chain as long as it may be, all of them available: so many calls, and the device is well."""
    disk = CountingDisk()
    disk.size = 1 << 40
    driver = Driver(VirtioBlk(disk), MAX_SIZE).start()
    driver.ram.write(DATA, pack("<IIQ", 0, 0, 0))
    driver.chain(readable(DATA, 16), *[writable(0, SIZE_MAX)] * SEG_MAX, writable(DATA, 1), at=0x20000)
    driver.describe(0, 0x20000, 16 * MAX_SIZE, DESC_F_INDIRECT)
    for _ in range(MAX_SIZE):
        driver.offer()
    driver.kick()
    assert (driver.broken(), len(driver.take()), disk.calls) == (False, MAX_SIZE, MAX_SIZE)
