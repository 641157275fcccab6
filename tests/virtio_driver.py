"""A guest's side of a virtio device over MMIO: RAM, rings, and a driver that can also be told to misbehave."""

from __future__ import annotations

from struct import pack, unpack_from
from typing import TYPE_CHECKING

from pyvcpu.devices import virtio_mmio as mmio
from pyvcpu.devices.queue import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE
from pyvcpu.devices.virtio import (
    ACKNOWLEDGE,
    DEVICE_NEEDS_RESET,
    DRIVER,
    DRIVER_OK,
    F_VERSION_1,
    FEATURES_OK,
)
from pyvcpu.devices.virtio_mmio import VirtioMmio

if TYPE_CHECKING:
    from pyvcpu.devices.virtio import VirtioDevice

RAM = 1 << 20
DESC, AVAIL, USED = 0x1000, 0x3000, 0x4000  # where the driver puts its rings
TABLE = 0x8000  # and indirect tables
DATA = 0x10000


class Ram:
    """Guest memory from 0 to RAM, which raises IndexError elsewhere."""

    def __init__(self, size: int = RAM) -> None:
        self.bytes = bytearray(size)
        self._whole = memoryview(self.bytes)

    def view(self, address: int, length: int) -> memoryview:
        if not 0 <= address <= address + length <= len(self.bytes):
            raise IndexError(f"{length} bytes at {address:#x} are not RAM")
        return self._whole[address : address + length]

    def read(self, address: int, length: int) -> bytes:
        return bytes(self.view(address, length))

    def write(self, address: int, data: bytes) -> None:
        self.view(address, len(data))[:] = data


class Driver:
    """A driver of one device, on one queue of `size` descriptors; it uses descriptors from 0 on for each request."""

    def __init__(self, device: VirtioDevice, size: int = 8) -> None:
        self.ram = Ram()
        self.levels: list[bool] = []
        self.mmio = VirtioMmio(device, self.ram, self.levels.append)
        self.size = size
        self.offered = 0  # the available index
        self.seen = 0  # the used index up to which take() has come

    def get(self, register: int) -> int:
        (value,) = unpack_from("<I", self.mmio.read(register, 4))
        return int(value)

    def put(self, register: int, value: int) -> None:
        self.mmio.write(register, pack("<I", value))

    def status(self) -> int:
        return self.get(mmio.STATUS)

    def broken(self) -> bool:
        return bool(self.status() & DEVICE_NEEDS_RESET)

    def features(self) -> int:
        """Return what the device offers."""
        words = []
        for word in (0, 1):
            self.put(mmio.DEVICE_FEATURES_SEL, word)
            words.append(self.get(mmio.DEVICE_FEATURES))
        return words[0] | words[1] << 32

    def accept(self, features: int) -> bool:
        """Accept features; return whether the device agrees."""
        for word in (0, 1):
            self.put(mmio.DRIVER_FEATURES_SEL, word)
            self.put(mmio.DRIVER_FEATURES, features >> 32 * word & 0xFFFF_FFFF)
        self.put(mmio.STATUS, self.status() | FEATURES_OK)
        return bool(self.status() & FEATURES_OK)

    def start(self, features: int | None = None) -> Driver:
        """Initialise the device as section 3.1.1 says."""
        self.put(mmio.STATUS, 0)
        self.put(mmio.STATUS, ACKNOWLEDGE)
        self.put(mmio.STATUS, ACKNOWLEDGE | DRIVER)
        assert self.accept(self.features() if features is None else features | F_VERSION_1)
        self.set_queue()
        self.put(mmio.QUEUE_READY, 1)
        assert self.get(mmio.QUEUE_READY) == 1
        self.put(mmio.STATUS, self.status() | DRIVER_OK)
        self.offered = self.seen = 0
        return self

    def set_queue(self, desc: int = DESC, avail: int = AVAIL, used: int = USED) -> None:
        """Say where the rings are."""
        self.put(mmio.QUEUE_SEL, 0)
        self.put(mmio.QUEUE_NUM, self.size)
        for register, address in (
            (mmio.QUEUE_DESC_LOW, desc),
            (mmio.QUEUE_DRIVER_LOW, avail),
            (mmio.QUEUE_DEVICE_LOW, used),
        ):
            self.put(register, address & 0xFFFF_FFFF)
            self.put(register + 4, address >> 32)

    def describe(
        self, index: int, address: int, length: int, flags: int = 0, following: int = 0, at: int = DESC
    ) -> None:
        """Write one descriptor of the table at `at`."""
        self.ram.write(at + 16 * index, pack("<QIHH", address, length, flags, following))

    def chain(self, *buffers: tuple[int, int, int], at: int = DESC) -> None:
        """Write descriptors 0 and on: (address, length, DESC_F_WRITE or 0) each."""
        for index, (address, length, flags) in enumerate(buffers):
            following = DESC_F_NEXT if index + 1 < len(buffers) else 0
            self.describe(index, address, length, flags | following, index + 1, at)

    def indirect(self, *buffers: tuple[int, int, int]) -> None:
        """Write an indirect table, and descriptor 0 which refers to it."""
        self.chain(*buffers, at=TABLE)
        self.describe(0, TABLE, 16 * len(buffers), DESC_F_INDIRECT)

    def offer(self, head: int = 0) -> None:
        """Make a chain available."""
        self.ram.write(AVAIL + 4 + self.offered % self.size * 2, pack("<H", head))
        self.offered = (self.offered + 1) % 65536
        self.ram.write(AVAIL + 2, pack("<H", self.offered))

    def kick(self) -> None:
        self.put(mmio.QUEUE_NOTIFY, 0)

    def take(self) -> list[tuple[int, int]]:
        """Return (head, bytes written) of what came back since the last call."""
        (end,) = unpack_from("<H", self.ram.read(USED + 2, 2))
        back = []
        while self.seen != end:
            head, written = unpack_from("<II", self.ram.read(USED + 4 + self.seen % self.size * 8, 8))
            back.append((head, written))
            self.seen = (self.seen + 1) % 65536
        return back

    def run(self, *buffers: tuple[int, int, int]) -> int:
        """Do one request; return how many bytes were written."""
        self.chain(*buffers)
        self.offer()
        self.kick()
        ((head, written),) = self.take()
        assert head == 0
        return written


def readable(address: int, length: int) -> tuple[int, int, int]:
    return address, length, 0


def writable(address: int, length: int) -> tuple[int, int, int]:
    return address, length, DESC_F_WRITE
