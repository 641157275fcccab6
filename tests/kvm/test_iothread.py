"""Virtqueues served beside the vCPUs: a notification is no exit, and nothing is served during a pause."""

from __future__ import annotations

import os

import pytest

from pyvcpu import Machine, Vcpu
from pyvcpu.devices.queue import Chain
from pyvcpu.devices.virtio_mmio import QUEUE_NOTIFY
from pyvcpu.devices.virtio_rng import VirtioRng
from pyvcpu.exits import Halt, PortOut
from pyvcpu.machine.board import VIRTIO_BASE
from tests.kvm.support import is_access, machine, record
from tests.threads import DEADLINE, Caller, Hold, until
from tests.virtio_driver import DATA, Driver, writable

pytestmark = pytest.mark.kvm

CODE = 0x20000  # behind what the driver has
# 32-bit: movl $0,0xd0000050
NOTIFY = bytes.fromhex("c705") + (VIRTIO_BASE + QUEUE_NOTIFY).to_bytes(4, "little") + bytes(4)
OUT_50 = bytes.fromhex("e650")  # out %al,$0x50
AGAIN = b"\xeb" + bytes([256 - len(NOTIFY) - 2])  # jmp to a NOTIFY right before it
HLT = b"\xf4"


class Slow(VirtioRng):
    """An entropy device that is held up in each request."""

    def __init__(self) -> None:
        super().__init__()
        self.hold = Hold()

    def serve(self, index: int, chain: Chain) -> int:
        self.hold()
        return super().serve(index, chain)


def with_device(code: bytes, device: VirtioRng) -> tuple[Machine, Driver]:
    """Return a machine whose device has one request to serve, once the guest says so, and its driver."""
    made = machine(code, mode="protected", load=CODE)
    driver = Driver(device)
    driver.ram, driver.mmio = made.memory, made.board.add_virtio(device)  # type: ignore[assignment]  # it has all of Ram
    driver.start()
    driver.chain(writable(DATA, 64))
    driver.offer()
    return made, driver


def test_a_notification_is_no_exit_and_is_served_by_the_end_of_the_run() -> None:
    made, driver = with_device(NOTIFY + OUT_50 + HLT, VirtioRng())
    with made:
        events = record(made)
        assert made.run(timeout=DEADLINE).reason == "halted"
        assert [event for event in events if is_access(event) or event == Halt()] == [PortOut(0x50, b"\0"), Halt()]
        assert driver.take() == [(0, 64)]


@pytest.mark.smp
def test_the_guest_runs_on_while_a_request_is_served() -> None:
    device = Slow()
    made, driver = with_device(NOTIFY + OUT_50 + HLT, device)
    with made:

        def release(vcpu: Vcpu, data: bytes) -> None:
            device.hold.wait()
            device.hold.release()

        made.on_port(0x50, write=release)
        assert made.run(timeout=DEADLINE).reason == "halted"
        assert driver.take() == [(0, 64)]


@pytest.mark.smp
def test_a_pause_waits_for_what_is_being_served() -> None:
    device = Slow()
    made, driver = with_device(NOTIFY + AGAIN, device)
    with made:
        made.start()
        made.resume()
        device.hold.wait()
        pausing = Caller(made.pause)
        assert made.wait(0.01) is None  # gives it time to be wrong in; right it is without
        assert pausing.is_alive()
        device.hold.release()
        assert pausing.done()
        assert driver.take() == [(0, 64)]


@pytest.mark.smp
def test_a_guest_that_notifies_without_end_stands_still_in_a_pause() -> None:
    made, driver = with_device(NOTIFY + AGAIN, VirtioRng())
    with made:
        made.start()
        for _ in range(20):
            made.resume()
            assert made.pause(DEADLINE)
            driver.take()
            driver.offer()  # nobody looks at it now
            assert [driver.take() for _ in range(50)] == [[]] * 50
            made.resume()
            until(driver.take)
            assert made.pause(DEADLINE)
            driver.take()
            driver.offer()


def test_what_a_device_raises_by_mistake_comes_out_of_run() -> None:
    class Broken(VirtioRng):
        def serve(self, index: int, chain: Chain) -> int:
            raise ZeroDivisionError

    made, _ = with_device(NOTIFY + b"\xeb\xfe", Broken())
    with made, pytest.raises(ZeroDivisionError):
        made.run(timeout=DEADLINE)


def test_a_machine_that_is_never_started_leaves_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    made, _ = with_device(HLT, VirtioRng())
    made.close()
    made.close()
    assert len(os.listdir("/proc/self/fd")) == before
