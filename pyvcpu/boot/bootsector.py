"""Boot sectors: the first 512 bytes of a disk, which a BIOS loads and starts."""

from __future__ import annotations

import struct

from ..errors import ImageError
from ..x86.start import StartState
from .flat import check_fits
from .plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .plan import Target

LOAD, SIZE, SIGNATURE = 0x7C00, 512, b"\x55\xaa"
FIRST_DISK = 0x80
STACK_EACH = 0x400
PARTITIONS, PARTITION, ACTIVE = 446, struct.Struct("<B3xB3xII"), 0x80  # flag, type, first sector, sectors


def matches(image: bytes) -> bool:
    """Tell whether the first 512 bytes end as a boot sector's do."""
    return image[SIZE - 2 : SIZE] == SIGNATURE


def is_partitioned(image: bytes) -> bool:
    """Tell whether the first sector is that of a disk with partitions: a table of four, at least one of them in use.

    What lies behind the table may look like anything: GRUB's core image has a Multiboot header there.
    """
    if not matches(image):
        return False
    used = 0
    for at in range(PARTITIONS, SIZE - 2, PARTITION.size):
        flag, kind, start, count = PARTITION.unpack_from(image, at)
        if flag & ~ACTIVE or (kind and not (start and count)):
            return False
        used += bool(kind)
    return used > 0


def plan(image: bytes, target: Target) -> Plan:
    """Plan a boot sector: its 512 bytes at 0x7C00, the first vCPU there in real mode with DL=0x80, stack below it.

    The BIOS that it calls, and the disk behind the sector, are the machine's. With start="all" the stacks of the other
    vCPUs follow downward, 1 KiB each.
    """
    if not matches(image):
        raise ImageError("a boot sector has 0x55 0xAA at offset 510; this image has not")
    sector = image[:SIZE]
    check_fits(sector, LOAD, target)
    count = target.vcpus if target.start == "all" else 1
    if count * STACK_EACH > LOAD - 0x1000:
        raise ImageError(f"a boot sector can be started on at most {(LOAD - 0x1000) // STACK_EACH} vCPUs, not {count}")
    starts: list[StartState | None] = [
        StartState("real", LOAD, stack=LOAD - i * STACK_EACH, registers={"rdx": FIRST_DISK}) for i in range(count)
    ]
    starts += [None] * (target.vcpus - count)
    return Plan("bootsector", [(LOAD, sector)], starts, "kernel")
