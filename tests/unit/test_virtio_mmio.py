"""The virtio transport over MMIO: registers, negotiation, the interrupt, and what breaks a device."""

from __future__ import annotations

import pytest

from pyvcpu.devices import virtio_mmio as mmio
from pyvcpu.devices.queue import Chain, QueueError
from pyvcpu.devices.virtio import (
    ACKNOWLEDGE,
    DEVICE_NEEDS_RESET,
    DRIVER,
    DRIVER_OK,
    F_VERSION_1,
    FAILED,
    FEATURES_OK,
    RequestDevice,
)
from tests.virtio_driver import DATA, DESC, RAM, Driver, readable, writable

SPECIAL = 1 << 5


class Echo(RequestDevice):
    """A device that copies what it reads to what it writes."""

    name = "echo"
    device_id = 42
    features = SPECIAL
    config = bytes(range(1, 7))
    queues = 2

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[int] = []

    def serve(self, index: int, chain: Chain) -> int:
        self.requests.append(index)
        data = b"".join(chain.readable)
        if data == b"refuse":
            raise QueueError("refused")
        (into,) = chain.writable
        into[: len(data)] = data
        return len(data)


@pytest.fixture
def driver() -> Driver:
    return Driver(Echo())


def echo(driver: Driver, data: bytes) -> bytes:
    driver.ram.write(DATA, data)
    written = driver.run(readable(DATA, len(data)), writable(DATA + 0x1000, 100))
    return driver.ram.read(DATA + 0x1000, written)


def test_identity(driver: Driver) -> None:
    assert driver.mmio.read(0, 4) == b"virt"
    assert (driver.get(mmio.VERSION), driver.get(mmio.DEVICE_ID)) == (2, 42)
    assert (driver.mmio.name, driver.mmio.LENGTH) == ("virtio echo", 0x200)
    assert driver.get(mmio.SHM_LEN_LOW) == driver.get(mmio.SHM_LEN_HIGH) == 0xFFFF_FFFF


def test_a_request_goes_round(driver: Driver) -> None:
    driver.start()
    assert driver.status() == ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK
    assert echo(driver, b"hello") == b"hello"
    assert echo(driver, b"again") == b"again"


def test_features_are_offered_in_two_words(driver: Driver) -> None:
    assert driver.features() == SPECIAL | 1 << 28 | F_VERSION_1
    driver.put(mmio.DEVICE_FEATURES_SEL, 2)
    assert driver.get(mmio.DEVICE_FEATURES) == 0
    driver.put(mmio.DEVICE_FEATURES_SEL, 0xFFFF_FFFF)
    assert driver.get(mmio.DEVICE_FEATURES) == 0


@pytest.mark.parametrize(
    ("features", "agreed"),
    [
        (F_VERSION_1, True),
        (F_VERSION_1 | SPECIAL, True),
        (SPECIAL, False),  # a legacy driver
        (F_VERSION_1 | 1, False),  # what was not offered
        (F_VERSION_1 | 1 << 63, False),
    ],
)
def test_the_device_agrees_to_what_it_offered(driver: Driver, features: int, agreed: bool) -> None:
    assert driver.accept(features) is agreed


def test_features_are_fixed_once_agreed(driver: Driver) -> None:
    assert driver.accept(F_VERSION_1)
    driver.put(mmio.DRIVER_FEATURES_SEL, 0)
    driver.put(mmio.DRIVER_FEATURES, 1)
    driver.put(mmio.STATUS, FEATURES_OK | DRIVER)
    assert driver.status() & FEATURES_OK


def test_configuration_is_read_at_any_width_and_never_written(driver: Driver) -> None:
    assert driver.mmio.read(0x100, 1) == b"\x01"
    assert driver.mmio.read(0x102, 2) == b"\x03\x04"
    assert driver.mmio.read(0x100, 8) == bytes([1, 2, 3, 4, 5, 6, 0, 0])
    assert driver.mmio.read(0x1FC, 4) == bytes(4)
    driver.mmio.write(0x100, b"\xff\xff\xff\xff")
    assert driver.mmio.read(0x100, 4) == b"\x01\x02\x03\x04"
    assert driver.get(mmio.CONFIG_GENERATION) == 0


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 2), (0, 8), (1, 4), (2, 2), (3, 1)])
def test_registers_are_read_aligned_and_whole(driver: Driver, offset: int, size: int) -> None:
    assert driver.mmio.read(offset, size) == bytes(size)


@pytest.mark.parametrize(("offset", "data"), [(0x70, b"\x01"), (0x70, bytes([1] * 8)), (0x71, b"\x01\0\0\0")])
def test_registers_are_written_aligned_and_whole(driver: Driver, offset: int, data: bytes) -> None:
    driver.mmio.write(offset, data)
    assert driver.status() == 0


def test_queues_that_are_and_are_not(driver: Driver) -> None:
    sizes = []
    for queue in (0, 1, 2, 0xFFFF_FFFF):
        driver.put(mmio.QUEUE_SEL, queue)
        sizes.append(driver.get(mmio.QUEUE_NUM_MAX))
        driver.put(mmio.QUEUE_NUM, 8)
    assert sizes == [256, 256, 0, 0]
    assert driver.get(mmio.QUEUE_READY) == 0


def test_the_second_queue_is_served_as_the_second(driver: Driver) -> None:
    driver.start()
    driver.put(mmio.QUEUE_SEL, 1)
    driver.put(mmio.QUEUE_NUM, 8)
    for register, address in ((mmio.QUEUE_DESC_LOW, 0x21000), (0x90, 0x22000), (0xA0, 0x23000)):
        driver.put(register, address)
    driver.put(mmio.QUEUE_READY, 1)
    driver.describe(0, DATA, 8, 2, at=0x21000)
    driver.ram.write(0x22002, b"\x01\0")
    driver.put(mmio.QUEUE_NOTIFY, 1)
    assert isinstance(driver.mmio.device, Echo)
    assert driver.mmio.device.requests == [1]
    assert driver.ram.read(0x23002, 2) == b"\x01\0"


def test_a_queue_in_use_keeps_its_place(driver: Driver) -> None:
    driver.start()
    driver.set_queue(desc=0x70000)
    assert echo(driver, b"unmoved") == b"unmoved"


# The interrupt


def test_the_line_rises_with_a_used_buffer_and_falls_with_the_acknowledgement(driver: Driver) -> None:
    driver.start()
    assert (driver.levels, driver.get(mmio.INTERRUPT_STATUS)) == ([], 0)
    echo(driver, b"a")
    echo(driver, b"b")
    assert (driver.levels, driver.get(mmio.INTERRUPT_STATUS)) == ([True], 1)
    driver.put(mmio.INTERRUPT_ACK, 2)
    assert driver.levels == [True]
    driver.put(mmio.INTERRUPT_ACK, 1)
    assert (driver.levels, driver.get(mmio.INTERRUPT_STATUS)) == ([True, False], 0)
    echo(driver, b"c")
    assert driver.levels == [True, False, True]


def test_a_driver_that_polls_is_not_interrupted(driver: Driver) -> None:
    driver.start()
    driver.ram.write(0x3000, b"\x01\0")  # VIRTQ_AVAIL_F_NO_INTERRUPT
    assert echo(driver, b"quiet") == b"quiet"
    assert driver.levels == []


def test_a_kick_for_nothing_does_nothing(driver: Driver) -> None:
    driver.start()
    for queue in (0, 1, 2, 0xFFFF_FFFF):
        driver.put(mmio.QUEUE_NOTIFY, queue)
    assert (driver.levels, driver.broken(), driver.take()) == ([], False, [])


def test_notify_serves_as_a_kick_does(driver: Driver) -> None:
    driver.start()
    driver.chain(writable(DATA, 4))
    driver.offer()
    driver.mmio.notify(0)
    assert driver.take() == [(0, 0)]


def test_nothing_is_served_before_the_driver_is_ready(driver: Driver) -> None:
    driver.start()
    driver.put(mmio.STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
    driver.chain(writable(DATA, 4))
    driver.offer()
    driver.kick()
    assert driver.take() == []
    driver.put(mmio.STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    driver.kick()
    assert driver.take() == [(0, 0)]


# Reset, and what needs it


def test_reset_forgets_everything(driver: Driver) -> None:
    driver.start()
    echo(driver, b"x")
    driver.mmio.reset()
    assert (driver.status(), driver.get(mmio.INTERRUPT_STATUS), driver.get(mmio.QUEUE_READY)) == (0, 0, 0)
    assert driver.levels == [True, False]
    driver.ram.bytes[:DATA] = bytes(DATA)  # as a driver that starts anew clears its rings
    assert echo(driver.start(), b"y") == b"y"


def test_a_broken_device_says_so_and_does_nothing_until_reset(driver: Driver) -> None:
    driver.start()
    driver.chain(readable(RAM, 1), writable(DATA, 1))
    driver.offer()
    driver.kick()
    assert driver.broken()
    assert (driver.get(mmio.INTERRUPT_STATUS), driver.levels, driver.take()) == (2, [True], [])
    driver.put(mmio.STATUS, driver.status() & ~DEVICE_NEEDS_RESET | FAILED)
    assert driver.broken()
    driver.chain(readable(DATA, 1), writable(DATA, 1))
    driver.offer()
    driver.kick()
    assert driver.take() == []
    driver.put(mmio.STATUS, 0)
    assert not driver.broken()
    driver.ram.bytes[:DATA] = bytes(DATA)
    assert echo(driver.start(), b"well again") == b"well again"


def test_requests_before_the_broken_one_are_used(driver: Driver) -> None:
    driver.start()
    driver.ram.write(DATA, b"refuse")
    driver.describe(0, DATA, 8, 2)
    driver.describe(1, DATA, 6)
    driver.offer(0)
    driver.offer(1)
    driver.offer(0)
    driver.kick()
    assert (driver.take(), driver.broken(), driver.get(mmio.INTERRUPT_STATUS)) == ([(0, 0)], True, 3)


@pytest.mark.parametrize("size", [0, 3, 7, 257, 512, 0x10000, 0xFFFF_FFFF])
def test_a_bad_queue_size_breaks_the_device(driver: Driver, size: int) -> None:
    driver.size = size
    driver.set_queue()
    driver.put(mmio.QUEUE_READY, 1)
    assert (driver.broken(), driver.get(mmio.QUEUE_READY)) == (True, 0)
    assert driver.levels == []  # it is not running yet: the driver reads the status


@pytest.mark.parametrize("size", [1, 2, 64, 256])
def test_good_queue_sizes(driver: Driver, size: int) -> None:
    driver.size = size
    driver.set_queue()
    driver.put(mmio.QUEUE_READY, 1)
    assert (driver.broken(), driver.get(mmio.QUEUE_READY)) == (False, 1)


@pytest.mark.parametrize("area", ["desc", "avail", "used"])
@pytest.mark.parametrize("address", [RAM, RAM - 16, 1 << 63, (1 << 64) - 16, DESC + 1])
def test_a_queue_outside_ram_or_not_aligned_breaks_the_device(driver: Driver, area: str, address: int) -> None:
    driver.set_queue(**{area: address})
    driver.put(mmio.QUEUE_READY, 1)
    assert (driver.broken(), driver.get(mmio.QUEUE_READY)) == (True, 0)
