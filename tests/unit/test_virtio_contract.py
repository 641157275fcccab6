"""Virtio devices at work: from an event loop, late, out of order, held up, reset meanwhile, saved and restored."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from copy import deepcopy
from struct import pack
from typing import TYPE_CHECKING

import pytest

from pyvcpu.devices import virtio_blk as blk
from pyvcpu.devices import virtio_mmio as mmio
from pyvcpu.devices.device import StateDataError
from pyvcpu.devices.disk_file import SECTOR
from pyvcpu.devices.queue import Chain, Queue
from pyvcpu.devices.virtio import ACKNOWLEDGE, DRIVER, DRIVER_OK, F_VERSION_1, FEATURES_OK, RequestDevice
from pyvcpu.devices.virtio_blk import VirtioBlk
from pyvcpu.devices.virtio_mmio import VirtioMmio
from pyvcpu.devices.virtio_notify import Notifiers
from pyvcpu.devices.virtio_rng import VirtioRng
from pyvcpu.machine.eventloop import EventLoop
from tests.threads import DEADLINE, Caller, Hold, until
from tests.virtio_driver import AVAIL, DATA, RAM, USED, Driver, readable, writable

if TYPE_CHECKING:
    from pyvcpu.devices.queue import Memory
    from pyvcpu.devices.virtio import Interrupt, VirtioDevice

SPECIAL = 1 << 5
HEADER, BUFFER, STATUS = DATA, DATA + 0x1000, DATA + 0x100


class SlowDisk:
    """A disk of zeros whose calls can be held up; `threads` has the name of each call's."""

    size, readonly = 64 * SECTOR, False

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.hold: Hold | None = None
        self.error: OSError | None = None

    def _move(self, buffers: list[memoryview], offset: int) -> int:
        self.threads.append(threading.current_thread().name)
        if self.hold is not None:
            self.hold()
        if self.error is not None:
            raise self.error
        for view in buffers:
            view[:] = b"d" * len(view)
        return sum(map(len, buffers))

    preadv = pwritev = _move

    def fsync(self) -> None:
        self._move([], 0)


class Bench:
    """A disk whose queue is served by a loop, and the driver of it."""

    def __init__(self, size: int = 8) -> None:
        self.errors: list[BaseException] = []
        self.loop = EventLoop(self.errors.append)
        self.disk = SlowDisk()
        self.warnings: list[str] = []
        device = VirtioBlk(self.disk, "disk0", self.warnings.append)
        self.driver = Driver(device, size)
        self.notifiers = Notifiers(self.loop, device.queues)
        self.driver.mmio = VirtioMmio(
            device,
            self.driver.ram,
            self.driver.levels.append,
            later=self.notifiers.notify,
            wanted_still=self.loop.wanted_still,
        )
        self.notifiers.serve(self.driver.mmio.notify)
        self.driver.start()

    def offer(self, count: int, kind: int = blk.T_IN) -> None:
        """Make the same request available `count` times."""
        self.driver.ram.write(HEADER, pack("<IIQ", kind, 0, 0))
        data = [writable(BUFFER, SECTOR)] if kind == blk.T_IN else []
        self.driver.chain(readable(HEADER, 16), *data, writable(STATUS, 1))
        for _ in range(count):
            self.driver.offer()

    def close(self) -> None:
        if self.disk.hold is not None:
            self.disk.hold.release()
        self.notifiers.close()
        self.loop.close()
        assert self.errors == []


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def busy(bench: Bench, count: int) -> Hold:
    """Return once the loop is in the first of `count` requests, held up by what is returned."""
    hold = bench.disk.hold = Hold()
    bench.offer(count)
    bench.driver.kick()
    hold.wait()
    return hold


# From an event loop


def test_a_notification_is_served_by_the_loop_and_not_by_the_vcpu(bench: Bench) -> None:
    bench.offer(3)
    bench.driver.kick()
    assert bench.loop.drain(DEADLINE)
    assert bench.disk.threads == ["io"] * 3
    assert bench.driver.take() == [(0, SECTOR + 1)] * 3
    assert bench.driver.levels == [True]


def test_a_notification_for_no_queue_is_nothing(bench: Bench) -> None:
    for queue in (1, 2, 0xFFFF_FFFF):
        bench.driver.put(mmio.QUEUE_NOTIFY, queue)
    assert bench.loop.drain(DEADLINE)


def test_registers_answer_while_the_disk_is_at_work(bench: Bench) -> None:
    hold = busy(bench, 8)
    for register in range(0, 0x110, 4):
        bench.driver.get(register)
    for register in (mmio.INTERRUPT_ACK, mmio.QUEUE_SEL, mmio.DEVICE_FEATURES_SEL, mmio.QUEUE_NOTIFY):
        bench.driver.put(register, 0)
    bench.driver.put(mmio.STATUS, bench.driver.status())
    assert bench.driver.take() == []
    hold.release()
    until(lambda: len(bench.disk.threads) == 8)
    assert bench.loop.drain(DEADLINE)
    assert len(bench.driver.take()) == 8


@pytest.mark.parametrize("kind", [blk.T_IN, blk.T_FLUSH])
def test_a_pause_waits_for_one_request_and_the_others_come_later(kind: int) -> None:
    bench = Bench(256)
    hold = bench.disk.hold = Hold()
    bench.offer(256, kind)
    bench.driver.kick()
    hold.wait()
    pausing = Caller(lambda: bench.loop.hold(DEADLINE))
    until(bench.loop.wanted_still)
    hold.release()
    assert pausing.done()
    assert pausing.result is True
    assert (len(bench.disk.threads), len(bench.driver.take())) == (1, 1)
    bench.driver.kick()
    assert len(bench.disk.threads) == 1
    bench.loop.release()
    assert bench.loop.drain(DEADLINE)
    assert (len(bench.disk.threads), len(bench.driver.take())) == (256, 255)
    bench.close()


def test_what_was_queued_before_the_driver_was_ready_is_served(bench: Bench) -> None:
    """Drivers fill a queue for reception first, and the notification may come too early."""
    driver = bench.driver
    driver.put(mmio.STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
    driver.mmio.reset()
    driver.put(mmio.STATUS, ACKNOWLEDGE | DRIVER)
    assert driver.accept(F_VERSION_1)
    driver.set_queue()
    driver.put(mmio.QUEUE_READY, 1)
    bench.offer(1)
    driver.kick()
    assert bench.loop.drain(DEADLINE)
    assert driver.take() == []
    driver.put(mmio.STATUS, driver.status() | DRIVER_OK)
    assert bench.loop.drain(DEADLINE)
    assert driver.take() == [(0, SECTOR + 1)]


# Reset meanwhile


def test_a_reset_waits_for_one_request_which_is_dropped(bench: Bench) -> None:
    driver = bench.driver
    hold = busy(bench, 8)
    resetting = Caller(lambda: driver.put(mmio.STATUS, 0))
    until(lambda: driver.mmio._driver is None)
    assert driver.status() != 0, "the memory is the device's until the register says 0"
    assert resetting.is_alive()
    hold.release()
    assert resetting.done()
    assert (driver.status(), driver.take(), len(bench.disk.threads), driver.levels) == (0, [], 1, [])
    memory = driver.ram.bytes.copy()
    assert bench.loop.drain(DEADLINE)
    assert (driver.ram.bytes, len(bench.disk.threads)) == (memory, 1)
    driver.ram.bytes[:DATA] = bytes(DATA)
    driver.start()
    bench.offer(2)
    driver.kick()
    assert bench.loop.drain(DEADLINE)
    assert len(driver.take()) == 2


def test_a_reset_of_the_machine_waits_as_well(bench: Bench) -> None:
    hold = busy(bench, 8)
    resetting = Caller(bench.driver.mmio.reset)
    until(lambda: bench.driver.mmio._driver is None)
    hold.release()
    assert resetting.done()
    assert (len(bench.disk.threads), bench.driver.take()) == (1, [])


class Receiver(RequestDevice):
    """A device that completes when something comes for it, as a network card does; each queue is alike."""

    name = "receiver"
    device_id = 42
    features = SPECIAL
    queues = 2

    def __init__(self) -> None:
        super().__init__()
        self.queue: Sequence[Queue] = ()
        self.interrupt: Interrupt | None = None
        self.memory: Memory | None = None
        self.events: list[str] = []
        self.configuration = bytearray(b"config")

    def activate(self, queues: Sequence[Queue], memory: Memory, interrupt: Interrupt) -> None:
        self.events.append("activate")
        self.queue, self.memory, self.interrupt = queues, memory, interrupt

    def notified(self, index: int) -> bool:
        self.events.append(f"notified {index}")
        self.queue[index].peek()
        return False

    def reset(self) -> None:
        self.events.append("reset")

    def read_config(self, offset: int, size: int) -> bytes:
        return bytes(self.configuration[offset : offset + size])

    def write_config(self, offset: int, data: bytes) -> None:
        self.configuration[offset : offset + len(data)] = data

    def complete(self, chain: Chain, data: bytes) -> tuple[int, bool]:
        written = self.queue[0].fill(chain, data)
        used = self.queue[0].add_used(chain.head, written)
        assert self.interrupt is not None
        self.interrupt.used(self.queue[0])
        return written, used


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


def receiving(receiver: Receiver) -> Driver:
    """Return a driver that has made two buffers available."""
    driver = Driver(receiver).start()
    driver.describe(0, DATA, 8, 2)
    driver.describe(1, DATA + 8, 8, 2)
    driver.offer(0)
    driver.offer(1)
    driver.kick()
    return driver


def test_a_device_is_activated_once_with_what_it_needs(receiver: Receiver) -> None:
    driver = Driver(receiver)
    driver.start(SPECIAL)
    assert receiver.events == ["reset", "activate"]
    assert receiver.interrupt is not None
    assert (len(receiver.queue), receiver.memory, receiver.interrupt.features) == (2, driver.ram, SPECIAL | F_VERSION_1)
    driver.put(mmio.STATUS, driver.status())
    driver.put(mmio.STATUS, driver.status() & ~DRIVER_OK)
    driver.put(mmio.STATUS, driver.status() | DRIVER_OK)
    driver.kick()
    assert receiver.events == ["reset", "activate", "notified 0"]


def test_what_comes_later_is_received_from_any_thread_in_any_order(receiver: Receiver) -> None:
    driver = receiving(receiver)
    assert driver.take() == []
    first, second = receiver.queue[0].pop(), receiver.queue[0].pop()
    assert first is not None
    assert second is not None
    caller = Caller(lambda: receiver.complete(second, b"second"))
    assert caller.done()
    assert (caller.result, driver.take(), driver.levels) == ((6, True), [(1, 6)], [True])
    driver.put(mmio.INTERRUPT_ACK, 1)
    assert receiver.complete(first, b"first") == (5, True)
    assert (driver.take(), driver.levels) == ([(0, 5)], [True, False, True])
    assert driver.ram.read(DATA, 16) == b"first\0\0\0second\0\0"


@pytest.mark.parametrize("end", ["reset", "break"])
def test_a_completion_that_comes_late_touches_nothing(receiver: Receiver, end: str) -> None:
    driver = receiving(receiver)
    chain = receiver.queue[0].pop()
    assert chain is not None
    if end == "reset":
        driver.put(mmio.STATUS, 0)
    else:
        driver.describe(1, RAM, 8, 2)
        driver.kick()
        assert driver.broken()
    memory, levels = driver.ram.bytes.copy(), driver.levels.copy()
    status = driver.get(mmio.INTERRUPT_STATUS)
    assert receiver.complete(chain, b"late") == (0, False)
    assert (driver.ram.bytes, driver.levels, driver.get(mmio.INTERRUPT_STATUS)) == (memory, levels, status)


def test_what_a_former_life_says_does_not_reach_the_next(receiver: Receiver) -> None:
    driver = receiving(receiver)
    old_interrupt, old_queue = receiver.interrupt, receiver.queue[0]
    chain = old_queue.pop()
    assert old_interrupt is not None
    assert chain is not None
    driver.start()
    generation = driver.get(mmio.CONFIG_GENERATION)
    old_interrupt.needs_reset()
    old_interrupt.config_changed()
    old_interrupt.used(old_queue)
    assert not old_queue.add_used(chain.head, 0)
    assert (driver.broken(), driver.levels, driver.get(mmio.CONFIG_GENERATION)) == (False, [], generation)


def test_the_configuration_is_the_devices_and_its_changes_are_counted(receiver: Receiver) -> None:
    driver = Driver(receiver).start()
    assert driver.mmio.read(0x100, 8) == b"config\0\0"
    driver.mmio.write(0x102, b"NF")
    assert driver.mmio.read(0x100, 8) == b"coNFig\0\0"
    assert receiver.interrupt is not None
    for count in (1, 2):
        receiver.interrupt.config_changed()
        assert driver.get(mmio.CONFIG_GENERATION) == count
    assert (driver.get(mmio.INTERRUPT_STATUS), driver.levels) == (2, [True])
    driver.mmio.reset()
    assert (driver.get(mmio.CONFIG_GENERATION), driver.levels) == (0, [True, False])


def test_set_irq_may_wait_for_another_thread_that_uses_the_device() -> None:
    def set_irq(level: bool) -> None:
        caller = Caller(lambda: driver.get(mmio.INTERRUPT_STATUS))
        assert caller.done()
        levels.append((level, caller.result))

    levels: list[tuple[bool, object]] = []
    driver = Driver(VirtioRng())
    driver.mmio = VirtioMmio(driver.mmio.device, driver.ram, set_irq)
    driver.start()
    assert driver.run(writable(DATA, 8)) == 8
    driver.put(mmio.INTERRUPT_ACK, 1)
    assert levels == [(True, 1), (False, 0)]


# Files that fail


def test_a_disk_that_fails_is_said_once_for_each_reason(bench: Bench) -> None:
    for number in (errno.ENOSPC, errno.ENOSPC, errno.EIO, errno.ENOSPC):
        bench.disk.error = OSError(number, {errno.ENOSPC: "No space left on device"}.get(number, "Input/output error"))
        bench.offer(2)
        bench.driver.kick()
        assert bench.loop.drain(DEADLINE)
        assert bench.driver.ram.read(STATUS, 1) == b"\x01"
    assert bench.warnings == [
        "disk disk0: No space left on device; the guest sees an I/O error",
        "disk disk0: Input/output error; the guest sees an I/O error",
    ]


# Saved and restored


def fresh(device: VirtioDevice, like: Driver) -> Driver:
    """Return a driver that goes on with a copy of another's memory, and a device that was not used."""
    driver = Driver(device)
    driver.ram.bytes[:] = like.ram.bytes
    driver.offered, driver.seen = like.offered, like.seen
    return driver


def test_a_restored_device_goes_on_with_what_was_available(bench: Bench) -> None:
    bench.offer(2)
    bench.driver.kick()
    assert bench.loop.drain(DEADLINE)
    assert bench.loop.hold(DEADLINE)
    bench.offer(3)
    bench.driver.kick()
    assert len(bench.driver.take()) == 2
    state = bench.driver.mmio.state()
    other = Bench()
    assert other.loop.hold(DEADLINE)
    other.driver.ram.bytes[:] = bench.driver.ram.bytes
    other.driver.levels.clear()
    other.driver.mmio.restore(deepcopy(state))
    assert other.driver.mmio.state() == state
    assert other.driver.levels == [True]
    other.driver.seen = bench.driver.seen
    assert other.driver.take() == []
    other.loop.release()
    assert other.loop.drain(DEADLINE)
    assert len(other.driver.take()) == 3
    other.close()
    bench.loop.release()


@pytest.mark.parametrize("make", [VirtioRng, lambda: VirtioBlk(SlowDisk())])
def test_a_restored_device_shows_what_the_saved_one_does(make: type[VirtioRng]) -> None:
    driver = Driver(make()).start()
    driver.ram.write(HEADER, pack("<IIQ", 0, 0, 0))
    driver.run(readable(HEADER, 16), writable(BUFFER, SECTOR), writable(STATUS, 1))
    driver.put(mmio.QUEUE_SEL, 7)
    driver.put(mmio.DEVICE_FEATURES_SEL, 1)
    other = fresh(make(), driver)
    other.mmio.restore(driver.mmio.state())
    assert other.mmio.state() == driver.mmio.state()
    assert other.levels == [True]
    for register in range(0, 0x120, 4):
        assert other.get(register) == driver.get(register)
    for one in (driver, other):
        one.run(readable(HEADER, 16), writable(BUFFER, SECTOR), writable(STATUS, 1))
    assert other.mmio.state() == driver.mmio.state()
    for one in (driver, other):
        one.mmio.reset()
    assert other.mmio.state() == driver.mmio.state() == Driver(make()).mmio.state()
    assert other.levels == driver.levels == [True, False]


def test_a_broken_device_is_broken_after_a_restore(receiver: Receiver) -> None:
    driver = receiving(receiver)
    driver.describe(0, RAM, 8, 2)
    driver.kick()
    other = fresh(Receiver(), driver)
    other.mmio.restore(driver.mmio.state())
    assert (other.broken(), other.levels) == (True, [True])
    other.ram.bytes[:DATA] = bytes(DATA)
    assert not other.start().broken()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"driver_features": 1}, "features 0x1 were never offered"),
        ({"interrupt": 4}, "interrupt must have no bits other than 0x3, not 0x4"),
        ({"queues": []}, "queues must hold 1 values, not 0"),
        ({"device": {"sectors": 63, "readonly": False}}, "must be a writable one of 32256 bytes"),
        ({"device": None}, "disk disk0 must be a dict, not NoneType"),
        ({"device": {"sectors": 64, "readonly": True}}, "must be a read-only one of 32768 bytes"),
    ],
)
def test_forged_state_is_refused_whole(bench: Bench, change: dict[str, object], message: str) -> None:
    bench.offer(1)
    before = bench.driver.mmio.state()
    with pytest.raises(StateDataError, match=message):
        bench.driver.mmio.restore(before | change)
    assert bench.driver.mmio.state() == before
    bench.driver.kick()
    assert bench.loop.drain(DEADLINE)
    assert len(bench.driver.take()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"desc": RAM},
        {"driver": AVAIL + 1},
        {"device": (1 << 64) - 4},
        {"size": 3},
        {"size": 512},
        {"next_avail": 9},
        {"next_used": 1},
        {"next_used": 65536},
        {"more": 1},
    ],
)
def test_queues_that_cannot_be_are_refused(bench: Bench, change: dict[str, int]) -> None:
    before = bench.driver.mmio.state()
    assert before["queues"][0]["device"] == USED
    forged = deepcopy(before)
    forged["queues"][0].update(change)
    with pytest.raises(StateDataError, match="queue"):
        bench.driver.mmio.restore(forged)
    assert bench.driver.mmio.state() == before
