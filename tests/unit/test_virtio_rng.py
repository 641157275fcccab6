"""The entropy device."""

from __future__ import annotations

from pyvcpu.devices.virtio_rng import AT_MOST, VirtioRng
from tests.virtio_driver import DATA, Driver, readable, writable


def test_it_is_an_entropy_device() -> None:
    driver = Driver(VirtioRng())
    assert (driver.get(0x008), driver.mmio.name) == (4, "virtio entropy")


def test_every_buffer_is_filled_and_nothing_beyond() -> None:
    driver = Driver(VirtioRng()).start()
    assert driver.run(writable(DATA, 64), writable(DATA + 0x100, 32)) == 96
    first, second = driver.ram.read(DATA, 64), driver.ram.read(DATA + 0x100, 32)
    assert len(set(first + second)) > 20  # 96 bytes that are not random enough for this come once in 10^50 runs
    assert driver.ram.read(DATA + 64, 0x100 - 64) == bytes(0x100 - 64)
    assert driver.run(writable(DATA, 64)) == 64
    assert driver.ram.read(DATA, 64) != first


def test_one_request_gets_so_much_and_no_more() -> None:
    driver = Driver(VirtioRng()).start()
    assert driver.run(writable(DATA, AT_MOST - 1), writable(DATA, 100), writable(DATA + 0x2000, 100)) == AT_MOST
    assert driver.ram.read(DATA + 0x2000, 100) == bytes(100)


def test_a_request_without_room_gets_nothing() -> None:
    driver = Driver(VirtioRng()).start()
    assert driver.run(readable(DATA, 64)) == 0
    assert not driver.broken()
