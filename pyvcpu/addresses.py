"""AddressSpace: what a guest's processors can address, RAM, MMIO and ports, and who answers there."""

from __future__ import annotations

from .bus import MMIO_SIZE, PORTS_SIZE, Bus
from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterator

    from .bus import ReadHandler, Region, WriteHandler
    from .memory import GuestMemory


class AddressSpace:
    """The address spaces of one machine (QEMU: address_space_memory, address_space_io)."""

    __slots__ = ("memory", "mmio", "ports")

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.ports = Bus("port", PORTS_SIZE)
        self.mmio = Bus("MMIO", MMIO_SIZE)

    def claim_mmio(
        self, address: int, length: int, *, read: ReadHandler | None, write: WriteHandler | None, name: str
    ) -> Region:
        """Give a range outside RAM to handlers; raise ConfigError where it is taken, or RAM."""
        region = self.mmio.claim(address, length, read=read, write=write, name=name)
        for first, last, _ in self.memory.ranges:
            if address < last and first < address + length:
                self.mmio.release(region)
                raise ConfigError(
                    f"MMIO at {address:#x} would lie in RAM, which is {first:#x}-{last - 1:#x}: it would never be asked"
                )
        return region

    def describe(self) -> Iterator[str]:
        """Yield lines for people, as QEMU's `info mtree` has them: what lies where, by address."""
        ranges = [(first, last - 1, "ram", "RAM") for first, last, _ in self.memory.ranges]
        ranges += [(region.start, region.stop - 1, "i/o", region.name) for region in self.mmio.regions]
        yield "address-space: memory"
        for first, last, kind, name in sorted(ranges):
            yield f"  {first:016x}-{last:016x} ({kind}): {name}"
        yield "address-space: I/O"
        for region in self.ports.regions:
            yield f"  {region.start:016x}-{region.stop - 1:016x} (i/o): {region.name}"
