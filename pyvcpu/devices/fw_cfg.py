"""fw_cfg: what a machine's builder tells the guest, by number and by file name, as QEMU's does.

Source: QEMU, docs/specs/fw_cfg.rst, and the numbers in include/standard-headers/linux/qemu_fw_cfg.h.
"""

from __future__ import annotations

import struct
import threading

from ..errors import ConfigError
from .device import checked, integer

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Protocol

    from .device import State

    class Memory(Protocol):
        """Guest memory; methods raise IndexError outside of it."""

        def read(self, address: int, length: int) -> bytes: ...
        def write(self, address: int, data: bytes) -> None: ...


SELECTOR_PORT, LENGTH = 0x510, 12
SELECTOR, DATA, DMA = 0, 1, 4  # offsets

# Items
SIGNATURE, ID, UUID, RAM_SIZE, NOGRAPHIC, NB_CPUS = 0x00, 0x01, 0x02, 0x03, 0x04, 0x05
KERNEL_ADDR, KERNEL_SIZE, INITRD_ADDR, INITRD_SIZE = 0x07, 0x08, 0x0A, 0x0B
BOOT_DEVICE, NUMA, BOOT_MENU, MAX_CPUS = 0x0C, 0x0D, 0x0E, 0x0F
KERNEL_DATA, INITRD_DATA, CMDLINE_SIZE, CMDLINE_DATA = 0x11, 0x12, 0x14, 0x15
SETUP_SIZE, SETUP_DATA, FILE_DIR, FILE_FIRST = 0x17, 0x18, 0x19, 0x20
IRQ0_OVERRIDE = 0x8002

VERSION_TRADITIONAL, VERSION_DMA = 1, 2
DMA_SIGNATURE = b"QEMU CFG"
DMA_ERROR, DMA_READ, DMA_SKIP, DMA_SELECT, DMA_WRITE = 1, 2, 4, 8, 16
_REQUEST = struct.Struct(">IIQ")  # control, length, address
_ENTRY = struct.Struct(">IHH56s")  # size, key, reserved, name
NAME_MOST, FILES_MOST = 55, 0x2000
CHUNK = 1 << 20

_STATE = {"key": integer(0, 0xFFFF), "offset": integer(0, 1 << 32), "address": integer(0, (1 << 32) - 1)}


def basic_items(ram: int, cpus: int, most_cpus: int) -> dict[int, bytes]:
    """Return what every guest is told: how much RAM in bytes, how many processors there are, and can be."""
    return {
        SIGNATURE: b"QEMU",
        ID: struct.pack("<I", VERSION_TRADITIONAL | VERSION_DMA),
        UUID: bytes(16),
        RAM_SIZE: struct.pack("<Q", ram),
        NOGRAPHIC: struct.pack("<H", 1),
        NB_CPUS: struct.pack("<H", min(cpus, 0xFFFF)),
        NUMA: bytes(8),
        BOOT_MENU: bytes(2),
        MAX_CPUS: struct.pack("<H", min(most_cpus, 0xFFFF)),
        IRQ0_OVERRIDE: struct.pack("<I", 0),
    }


SECTOR = 512
SETUP_SECTORS, SETUP_DEFAULT = 0x1F1, 4


def kernel_items(image: bytes, command_line: bytes, initrd: bytes) -> dict[int, bytes]:
    """Return what boot ROMs ask for to start a Linux kernel: setup code, the rest, command line (ends in 0), initrd."""
    setup = ((image[SETUP_SECTORS] or SETUP_DEFAULT) + 1) * SECTOR if len(image) > SETUP_SECTORS else 0
    parts = {SETUP_DATA: image[:setup], KERNEL_DATA: image[setup:], CMDLINE_DATA: command_line, INITRD_DATA: initrd}
    sizes = {SETUP_SIZE: SETUP_DATA, KERNEL_SIZE: KERNEL_DATA, CMDLINE_SIZE: CMDLINE_DATA, INITRD_SIZE: INITRD_DATA}
    return parts | {size: struct.pack("<I", len(parts[data])) for size, data in sizes.items()}


def e820_file(entries: Iterable[tuple[int, int, int]]) -> bytes:
    """Return etc/e820, from (start, end, kind) of the memory."""
    return b"".join(struct.pack("<QQI", start, end - start, kind) for start, end, kind in entries)


def directory(files: Sequence[tuple[str, bytes]]) -> dict[int, bytes]:
    """Return the items of the files, and their directory. Raise ConfigError for names that it cannot hold."""
    if len(files) > FILES_MOST:
        raise ConfigError(f"fw_cfg has room for {FILES_MOST} files, not for {len(files)}")
    items, entries, seen = {}, [], set()
    for key, (name, content) in enumerate(sorted(files), FILE_FIRST):
        encoded = name.encode("utf-8", "surrogateescape")
        if not 0 < len(encoded) <= NAME_MOST or b"\0" in encoded:
            raise ConfigError(f"a fw_cfg file has a name of 1 to {NAME_MOST} bytes, not {name!r}")
        if name in seen:
            raise ConfigError(f"there are two fw_cfg files {name!r}")
        seen.add(name)
        items[key] = content
        entries.append(_ENTRY.pack(len(content), key, 0, encoded))
    return items | {FILE_DIR: struct.pack(">I", len(files)) + b"".join(entries)}


class FwCfg:
    """The selector and data registers at ports 0x510 and 0x511, and the DMA address at 0x514.

    `items`: contents by number. The guest reads them byte by byte, or has them put into memory; it changes none.
    Threads: `_lock` guards the registers.
    """

    name = "fw_cfg"
    LENGTH = LENGTH

    def __init__(self, items: Mapping[int, bytes], memory: Memory) -> None:
        self._items = items
        self._memory = memory
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Select item 0 from its start."""
        with self._lock:
            self._key = self._offset = self._address = 0

    def state(self) -> State:
        """Return the registers as plain data; the items are the builder's."""
        with self._lock:
            return {"key": self._key, "offset": self._offset, "address": self._address}

    def restore(self, data: object) -> None:
        """Take over what state() gave; raise StateDataError for anything else."""
        values = checked(self.name, _STATE, data)
        with self._lock:
            self._key, self._offset, self._address = values["key"], values["offset"], values["address"]

    def read(self, offset: int, size: int) -> bytes:
        """Read on in the item at DATA; at DMA, the signature that tells of DMA. The selector reads 0."""
        if offset == DATA:
            with self._lock:
                return self._take(size)
        if offset >= DMA:
            return DMA_SIGNATURE[offset - DMA : offset - DMA + size].ljust(size, b"\0")
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        """Select an item by 16 bits; give the address of a DMA request, big-endian, its low half last."""
        with self._lock:
            if offset == SELECTOR and len(data) >= 2:
                self._key, self._offset = int.from_bytes(data[:2], "little"), 0
            elif offset == DMA and len(data) == 4:
                self._address = int.from_bytes(data, "big")
            elif offset == DMA + 4 and len(data) == 4:
                high, self._address = self._address, 0
                self._transfer(high << 32 | int.from_bytes(data, "big"))

    # With _lock held.

    def _take(self, size: int) -> bytes:
        """Return the next `size` bytes of the item, zeros behind its end."""
        data = self._items.get(self._key, b"")[self._offset : self._offset + size]
        self._offset = min(self._offset + size, 1 << 32)
        return data.ljust(size, b"\0")

    def _transfer(self, address: int) -> None:
        """Do the request at `address`; its control word becomes 0, or says that it failed."""
        try:
            control, length, target = _REQUEST.unpack(self._memory.read(address, _REQUEST.size))
        except IndexError:
            return  # nobody could be told
        if control & DMA_SELECT:
            self._key, self._offset = control >> 16, 0
        failed = 0
        if control & DMA_READ:
            failed = self._copy(target, length)
        elif control & DMA_WRITE:
            failed = DMA_ERROR  # there is nothing to write
        elif control & DMA_SKIP:
            self._offset = min(self._offset + length, 1 << 32)
        self._memory.write(address, failed.to_bytes(4, "big"))

    def _copy(self, target: int, length: int) -> int:
        """Copy `length` bytes of the item to guest memory; return DMA_ERROR where that is not all RAM."""
        try:
            for done in range(0, length, CHUNK):
                self._memory.write(target + done, self._take(min(CHUNK, length - done)))
        except IndexError:
            return DMA_ERROR
        return 0
