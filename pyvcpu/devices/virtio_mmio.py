"""The virtio transport over memory-mapped registers. Source: VIRTIO 1.2, section 4.2 (register layout version 2).

Linux learns of such a device from its command line, `virtio_mmio.device=512@0xd0000000:5` (length, address,
interrupt), or from an ACPI device with the hardware id LNRO0005.
"""

from __future__ import annotations

import threading

from .queue import MAX_SIZE, Queue, QueueError
from .virtio import DEVICE_NEEDS_RESET, DRIVER_OK, F_INDIRECT_DESC, F_VERSION_1, FEATURES_OK

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

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

INTERRUPT_USED = 1  # something is in a used ring
INTERRUPT_CONFIG = 2  # the configuration, or the device status, has changed

_LOW, _HIGH = 0xFFFF_FFFF, 0xFFFF_FFFF << 32
_CONSTANTS = {
    MAGIC_VALUE: MAGIC,
    VERSION: LAYOUT,
    VENDOR_ID: VENDOR,
    CONFIG_GENERATION: 0,
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


class VirtioMmio:
    """The registers, queues and interrupt of one virtio device.

    `memory` is the guest's RAM. `set_irq(level)` gets each change of the interrupt line, which starts low; it is
    called with the lock held and must not call back in.

    What a driver forges (loops, addresses outside RAM, sizes and indices that cannot be) breaks the device: it sets
    DEVICE_NEEDS_RESET, tells the driver, and does nothing more until the driver resets it.

    Threads: any may call any method; `_lock` guards all state, and is held while requests are served. A driver's
    notification is served in the thread that brings it: that of the vCPU, by write(), or one that an ioeventfd
    wakes, by notify(). One serves no more than what was available when it began.
    """

    LENGTH = 0x200
    ALIGNMENT = 0x1000

    def __init__(self, device: VirtioDevice, memory: Memory, set_irq: Callable[[bool], object]) -> None:
        self.name = f"virtio {device.name}"
        self.device = device
        self._set_irq = set_irq
        self._lock = threading.Lock()
        self._features = device.features | F_VERSION_1 | F_INDIRECT_DESC
        self._config = device.config
        self._queues = tuple(Queue(memory) for _ in range(device.queues))
        self._interrupt = 0
        self._line = False
        self._clear()

    def read(self, offset: int, size: int) -> bytes:
        """Read a register, aligned and whole, or any part of the configuration; all else reads as zeros."""
        if offset >= CONFIG:
            return self._config[offset - CONFIG : offset - CONFIG + size].ljust(size, b"\0")
        if size != 4 or offset % 4:
            return bytes(size)
        with self._lock:
            return self._read_register(offset).to_bytes(4, "little")

    def write(self, offset: int, data: bytes) -> None:
        """Write a register, aligned and whole; all else is ignored. To QUEUE_NOTIFY: serve that queue first."""
        if len(data) != 4 or offset % 4 or offset >= CONFIG:
            return
        value = int.from_bytes(data, "little")
        with self._lock:
            try:
                self._write_register(offset, value)
            except QueueError:
                self._break()
            self._drive_line()

    def notify(self, queue: int) -> None:
        """Serve what a queue has available: for a thread that an ioeventfd on QUEUE_NOTIFY wakes."""
        self.write(QUEUE_NOTIFY, queue.to_bytes(4, "little"))

    def reset(self) -> None:
        """Return to the state after power-on."""
        self.write(STATUS, bytes(4))

    # Everything below is called with _lock held.

    def _clear(self) -> None:
        for queue in self._queues:
            queue.reset()
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
        if offset == STATUS:
            return self._status
        queue = self._selected()
        if queue is not None and offset == QUEUE_NUM_MAX:
            return MAX_SIZE
        return int(queue is not None and offset == QUEUE_READY and queue.ready)

    def _write_register(self, offset: int, value: int) -> None:
        if offset == QUEUE_NOTIFY:
            self._serve(value)
        elif offset == INTERRUPT_ACK:
            self._interrupt &= ~value
        elif offset == STATUS:
            self._write_status(value)
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

    def _write_status(self, value: int) -> None:
        if value == 0:
            self._clear()
            return
        if value & FEATURES_OK and (self._driver_features & ~self._features or not self._driver_features & F_VERSION_1):
            value &= ~FEATURES_OK  # the driver reads it back and gives up
        self._status = value & 0xFF | self._status & DEVICE_NEEDS_RESET

    def _write_features(self, value: int) -> None:
        if self._driver_features_sel < 2 and not self._status & FEATURES_OK:
            shift = 32 * self._driver_features_sel
            self._driver_features = self._driver_features & ~(_LOW << shift) | value << shift

    def _write_queue(self, queue: Queue, offset: int, value: int) -> None:
        if offset == QUEUE_READY:
            queue.ready = False
            if value & 1:
                queue.enable()
        elif queue.ready:
            return
        elif offset == QUEUE_NUM:
            queue.size = value
        elif offset in _ADDRESSES:
            name, shift, stays = _ADDRESSES[offset]
            setattr(queue, name, getattr(queue, name) & stays | value << shift)

    def _serve(self, index: int) -> None:
        running = self._status & (DRIVER_OK | DEVICE_NEEDS_RESET) == DRIVER_OK
        if not running or index >= len(self._queues) or not self._queues[index].ready:
            return
        queue, served = self._queues[index], False
        try:
            for chain in queue.chains():
                queue.give_back(chain.head, self.device.serve(index, chain))
                served = True
        finally:
            if served and queue.wants_interrupt():
                self._interrupt |= INTERRUPT_USED

    def _break(self) -> None:
        if self._status & DRIVER_OK:
            self._interrupt |= INTERRUPT_CONFIG
        self._status |= DEVICE_NEEDS_RESET

    def _drive_line(self) -> None:
        level = self._interrupt != 0
        if level != self._line:
            self._line = level
            self._set_irq(level)
