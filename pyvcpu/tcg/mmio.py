"""Memory of devices: what an instruction has read and written there is kept until it is complete."""

from __future__ import annotations

from .contract import EXIT_MMIO
from .exceptions import Exit

TYPE_CHECKING = False

if TYPE_CHECKING:  # mypy reads this as True
    from .blocks import PageCode
    from .cpu import Cpu

    Mixed = tuple[memoryview, int, PageCode]


AFTER_MMIO, AFTER_WATCH, AFTER_CODE = 1, 2, 4  # Cpu.after: what is to be done when the instruction is complete


# Devices. The accesses of one instruction are kept in a list until it is complete: an instruction that user space must
# answer is run again from its start, and then takes from the list what was already answered.
def mmio_read(cpu: Cpu, physical: int, size: int) -> bytes:
    """Read a device: by the list, the platform, or an exit to user space (8 bytes at a time)."""
    if size > 8:
        return b"".join(mmio_read(cpu, physical + at, min(8, size - at)) for at in range(0, size, 8))
    at = cpu.mmio_at
    cpu.mmio_at = at + 1
    cpu.after |= AFTER_MMIO
    replay = cpu.mmio_replay
    if at < len(replay):
        answer = replay[at]
        if answer is not None and len(answer) == size:
            return answer
    data = cpu.platform.mmio_read(physical, size)
    if data is None:
        cpu.exit_address, cpu.exit_size, cpu.exit_write, cpu.exit_data = physical, size, False, b""
        raise Exit(EXIT_MMIO)
    replay[at:] = [data]
    return data


def mmio_write(cpu: Cpu, physical: int, data: bytes) -> None:
    """Write a device: done already by the list, by the platform, or an exit to user space."""
    if len(data) > 8:
        for at in range(0, len(data), 8):
            mmio_write(cpu, physical + at, data[at : at + 8])
        return
    at = cpu.mmio_at
    cpu.mmio_at = at + 1
    cpu.after |= AFTER_MMIO
    if at < len(cpu.mmio_replay):
        return
    if not cpu.platform.mmio_write(physical, data):
        cpu.exit_address, cpu.exit_size, cpu.exit_write, cpu.exit_data = physical, len(data), True, data
        raise Exit(EXIT_MMIO)
    cpu.mmio_replay.append(None)
