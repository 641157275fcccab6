"""The virtio transport over memory-mapped registers. Source: VIRTIO 1.2, section 4.2 (register layout version 2).

Linux learns of such a device from its command line, `virtio_mmio.device=512@0xd0000000:5` (length, address,
interrupt), or from an ACPI device with the hardware id LNRO0005.
"""

from __future__ import annotations

import threading

from .device import StateDataError, anything, bits, checked, integer, record, sequence
from .line import Line
from .queue import MAX_SIZE, STATE, Queue, QueueError
from .virtio import (
    DEVICE_NEEDS_RESET,
    DRIVER_OK,
    F_INDIRECT_DESC,
    F_VERSION_1,
    FEATURES_OK,
    INTERRUPT_CONFIG,
    INTERRUPT_USED,
    DriverSide,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Sequence

    from .device import State
    from .queue import Memory
    from .virtio import VirtioDevice

# Registers, all of 32 bits
MAGIC_VALUE = 0x000
VERSION = 0x004
DEVICE_ID = 0x008
VENDOR_ID = 0x00C
DEVICE_FEATURES = 0x010
DEVICE_FEATURES_SEL = 0x014
DRIVER_FEATURES = 0x020
DRIVER_FEATURES_SEL = 0x024
QUEUE_SEL = 0x030
QUEUE_NUM_MAX = 0x034
QUEUE_NUM = 0x038
QUEUE_READY = 0x044
QUEUE_NOTIFY = 0x050
INTERRUPT_STATUS = 0x060
INTERRUPT_ACK = 0x064
STATUS = 0x070
QUEUE_DESC_LOW = 0x080
QUEUE_DESC_HIGH = 0x084
QUEUE_DRIVER_LOW = 0x090
QUEUE_DRIVER_HIGH = 0x094
QUEUE_DEVICE_LOW = 0x0A0
QUEUE_DEVICE_HIGH = 0x0A4
SHM_LEN_LOW = 0x0B0
SHM_LEN_HIGH = 0x0B4
SHM_BASE_LOW = 0x0B8
SHM_BASE_HIGH = 0x0BC
CONFIG_GENERATION = 0x0FC
CONFIG = 0x100

MAGIC = int.from_bytes(b"virt", "little")
LAYOUT = 2
VENDOR = int.from_bytes(b"pyvc", "little")

_LOW, _HIGH = 0xFFFF_FFFF, 0xFFFF_FFFF << 32
_CONSTANTS = {
    MAGIC_VALUE: MAGIC,
    VERSION: LAYOUT,
    VENDOR_ID: VENDOR,
    # No shared memory region: its length and address are all ones (section 4.2.2).
    SHM_LEN_LOW: _LOW,
    SHM_LEN_HIGH: _LOW,
    SHM_BASE_LOW: _LOW,
    SHM_BASE_HIGH: _LOW,
}
# Where the halves of a queue's addresses go: register -> (attribute of Queue, shift, the bits that stay)
_ADDRESSES = {
    QUEUE_DESC_LOW: ("desc", 0, _HIGH),
    QUEUE_DESC_HIGH: ("desc", 32, _LOW),
    QUEUE_DRIVER_LOW: ("driver", 0, _HIGH),
    QUEUE_DRIVER_HIGH: ("driver", 32, _LOW),
    QUEUE_DEVICE_LOW: ("device", 0, _HIGH),
    QUEUE_DEVICE_HIGH: ("device", 32, _LOW),
}

# What the state holds beside the queues and the device's own: attributes, without the underscore
_REGISTERS = {
    "status": integer(0, 0xFF),
    "driver_features": integer(0, (1 << 64) - 1),
    "device_features_sel": integer(0, _LOW),
    "driver_features_sel": integer(0, _LOW),
    "queue_sel": integer(0, _LOW),
    "interrupt": bits(INTERRUPT_USED | INTERRUPT_CONFIG),
    "generation": integer(0, _LOW),
}


class VirtioMmio:
    """The registers, queues and interrupt of one virtio device.

    `memory` is the guest's RAM. `set_irq(level)` gets each change of the interrupt line, which starts low, without a
    lock held.

    What a driver forges (loops, addresses outside RAM, sizes and indices that cannot be) breaks the device: it sets
    DEVICE_NEEDS_RESET, tells the driver, and does nothing more until the driver resets it.

    A notification is served where notify() is called. With `later(queue)`, a write to QUEUE_NOTIFY calls that instead,
    which is to have notify() called soon, from an event loop: then no vCPU is held up. Requests are served until
    `wanted_still()`; as long as notify() returns True, it is to be called again. Without `later`, a write to
    QUEUE_NOTIFY serves the queue before it returns.

    Threads: any may call any method. `_lock` guards the registers; it is not held while the device works, nor while
    `set_irq` or `later` is called. `_status_lock` is held while the device is activated or reset: a driver that resets
    a device waits for the request under way, and the other vCPUs can read and write all registers but STATUS meanwhile.
    """

    LENGTH = 0x200
    _status: int
    _driver_features: int
    _device_features_sel: int
    _driver_features_sel: int
    _queue_sel: int
    _interrupt: int

    def __init__(
        self,
        device: VirtioDevice,
        memory: Memory,
        set_irq: Callable[[bool], object],
        *,
        later: Callable[[int], object] | None = None,
        wanted_still: Callable[[], bool] | None = None,
    ) -> None:
        self.name = f"virtio {device.name}"
        self.device = device
        self._memory = memory
        self._later = later
        self._wanted_still = wanted_still if later is not None else None
        self._status_lock = threading.Lock()
        self._lock = threading.Lock()
        self._line = Line(self._lock, set_irq)
        self._features = device.features | F_VERSION_1 | F_INDIRECT_DESC
        self._queues: tuple[Queue, ...] = ()
        self._driver: DriverSide | None = None  # what the device got when it was activated
        self._generation = 0
        self._clear()

    def read(self, offset: int, size: int) -> bytes:
        """Read a register, aligned and whole, or any part of the configuration; all else reads as zeros."""
        if offset >= CONFIG:
            return self.device.read_config(offset - CONFIG, size)[:size].ljust(size, b"\0")
        if size != 4 or offset % 4:
            return bytes(size)
        with self._lock:
            return self._read_register(offset).to_bytes(4, "little")

    def write(self, offset: int, data: bytes) -> None:
        """Write a register, aligned and whole, or any part of the configuration; all else is ignored."""
        if offset >= CONFIG:
            self.device.write_config(offset - CONFIG, data)
            return
        if len(data) != 4 or offset % 4:
            return
        value = int.from_bytes(data, "little")
        if offset == QUEUE_NOTIFY:
            if self._later is None:
                self.notify(value)
            elif value < len(self._queues):
                self._later(value)
            return
        if offset == STATUS:
            self._write_status(value)
        else:
            with self._lock:
                try:
                    self._write_register(offset, value)
                except QueueError:
                    self._break()
                self._line.want(self._interrupt != 0)
        self._line.drive()

    def notify(self, index: int) -> bool:
        """Serve what a queue has available; return whether there is more, so that this must be called again."""
        with self._lock:
            driver = self._driver
            running = self._status & (DRIVER_OK | DEVICE_NEEDS_RESET) == DRIVER_OK
            if driver is None or not running or index >= len(self._queues) or not self._queues[index].ready:
                return False
        try:
            return bool(self.device.notified(index))
        except QueueError:
            driver.needs_reset()
            return False

    # The device's side, through its DriverSide

    def interrupt(self, driver: DriverSide, reason: int) -> None:
        """Interrupt the driver, unless the device was reset since; count changes of the configuration."""
        with self._lock:
            if self._driver is not driver:
                return
            if reason == INTERRUPT_CONFIG:
                self._generation = (self._generation + 1) & _LOW
            self._interrupt |= reason
            self._line.want(True)
        self._line.drive()

    def needs_reset(self, driver: DriverSide) -> None:
        """Break the device, unless it was reset since."""
        with self._lock:
            if self._driver is not driver:
                return
            self._break()
            self._line.want(self._interrupt != 0)
        self._line.drive()

    def wanted_still(self) -> bool:
        """Return whether the machine is to stand still."""
        return self._wanted_still is not None and self._wanted_still()

    # The machine's side

    def reset(self) -> None:
        """Return to the state after power-on, once the request under way is done."""
        with self._status_lock:
            self._reset_device()
            with self._lock:
                self._generation = 0
        self._line.drive()

    def state(self) -> State:
        """Return registers, queues and the device's own state as plain data; the machine stands still."""
        with self._status_lock:
            own = self.device.state()
            with self._lock:
                values: State = {key: getattr(self, "_" + key) for key in _REGISTERS}
                return values | {"queues": [queue.state() for queue in self._queues], "device": own}

    def restore(self, data: object) -> None:
        """Take over what state() gave; what was available then is served once the machine runs.

        Raise StateDataError for what no such device could have given, with memory of this size.
        """
        count = len(self._queues)
        fields = _REGISTERS | {"queues": sequence(record(STATE), count, count), "device": anything}
        values = checked(self.name, fields, data)
        accepted, status = values["driver_features"], values["status"]
        if status & FEATURES_OK and not self._agrees(accepted):
            raise StateDataError(f"{self.name}: features {accepted:#x} were never offered; the device is another one")
        queues = self._restored_queues(values["queues"])
        with self._status_lock:
            self.device.restore(values["device"])
            driver = DriverSide(self, accepted) if status & (DRIVER_OK | DEVICE_NEEDS_RESET) == DRIVER_OK else None
            with self._lock:
                self._close_queues()
                self._queues, self._driver = queues, driver
                for key in _REGISTERS:
                    setattr(self, "_" + key, values[key])
                if status & DEVICE_NEEDS_RESET:
                    self._close_queues()
                self._line.restore(self._interrupt != 0)
            if driver is not None:
                self.device.activate(queues, self._memory, driver)
        self._line.drive()
        self._look_at_queues()

    def _restored_queues(self, values: Sequence[State]) -> tuple[Queue, ...]:
        queues = self._new_queues()
        for index, (queue, state) in enumerate(zip(queues, values, strict=True)):
            try:
                queue.restore(state)
            except QueueError as error:
                raise StateDataError(f"{self.name}: queue {index}: {error}") from None
        return queues

    def _look_at_queues(self) -> None:
        """Have the queues served, whose notifications may have come before the device was there to take them."""
        if self._later is not None and self._driver is not None:
            for index, queue in enumerate(self._queues):
                if queue.ready:
                    self._later(index)

    # Status

    def _write_status(self, value: int) -> None:
        with self._status_lock:
            if value == 0:
                self._reset_device()
                return
            with self._lock:
                if value & FEATURES_OK and not self._agrees(self._driver_features):
                    value &= ~FEATURES_OK  # the driver reads it back and gives up
                value = value & 0xFF | self._status & DEVICE_NEEDS_RESET
                begins = value & (DRIVER_OK | DEVICE_NEEDS_RESET) == DRIVER_OK and self._driver is None
                if begins:
                    self._driver = DriverSide(self, self._driver_features)
                driver = self._driver
            if begins and driver is not None:
                self.device.activate(self._queues, self._memory, driver)
            with self._lock:
                self._status = value | self._status & DEVICE_NEEDS_RESET
        if begins:
            self._look_at_queues()

    def _agrees(self, features: int) -> bool:
        return not features & ~self._features and bool(features & F_VERSION_1)

    def _reset_device(self) -> None:
        """Have the device end its work, and clear everything; _status_lock held.

        STATUS reads 0 only after that: the driver may then use its memory otherwise.
        """
        with self._lock:
            self._driver = None
            self._close_queues()
        self.device.reset()
        with self._lock:
            self._clear()
            self._line.want(False)

    def _close_queues(self) -> None:
        for queue in self._queues:
            queue.close()

    def _new_queues(self) -> tuple[Queue, ...]:
        return tuple(Queue(self._memory) for _ in range(self.device.queues))

    # Everything below is called with _lock held.

    def _clear(self) -> None:
        self._queues = self._new_queues()
        self._status = 0
        self._driver_features = 0
        self._device_features_sel = 0
        self._driver_features_sel = 0
        self._queue_sel = 0
        self._interrupt = 0

    def _selected(self) -> Queue | None:
        return self._queues[self._queue_sel] if self._queue_sel < len(self._queues) else None

    def _read_register(self, offset: int) -> int:
        if offset in _CONSTANTS:
            return _CONSTANTS[offset]
        if offset == DEVICE_ID:
            return self.device.device_id
        if offset == DEVICE_FEATURES:
            return self._features >> 32 * self._device_features_sel & _LOW if self._device_features_sel < 2 else 0
        if offset == INTERRUPT_STATUS:
            return self._interrupt
        if offset == CONFIG_GENERATION:
            return self._generation
        if offset == STATUS:
            return self._status
        queue = self._selected()
        if queue is not None and offset == QUEUE_NUM_MAX:
            return MAX_SIZE
        return int(queue is not None and offset == QUEUE_READY and queue.ready)

    def _write_register(self, offset: int, value: int) -> None:
        if offset == INTERRUPT_ACK:
            self._interrupt &= ~value
        elif offset == DEVICE_FEATURES_SEL:
            self._device_features_sel = value
        elif offset == DRIVER_FEATURES_SEL:
            self._driver_features_sel = value
        elif offset == DRIVER_FEATURES:
            self._write_features(value)
        elif offset == QUEUE_SEL:
            self._queue_sel = value
        elif (queue := self._selected()) is not None:
            self._write_queue(queue, offset, value)

    def _write_features(self, value: int) -> None:
        if self._driver_features_sel < 2 and not self._status & FEATURES_OK:
            shift = 32 * self._driver_features_sel
            self._driver_features = self._driver_features & ~(_LOW << shift) | value << shift

    def _write_queue(self, queue: Queue, offset: int, value: int) -> None:
        if offset == QUEUE_READY:
            queue.disable()
            if value & 1:
                queue.enable()
        elif queue.ready:
            return
        elif offset == QUEUE_NUM:
            queue.size = value
        elif offset in _ADDRESSES:
            name, shift, stays = _ADDRESSES[offset]
            setattr(queue, name, getattr(queue, name) & stays | value << shift)

    def _break(self) -> None:
        if self._status & DRIVER_OK:
            self._interrupt |= INTERRUPT_CONFIG
        self._status |= DEVICE_NEEDS_RESET
        self._close_queues()
