"""The last exits of each vCPU, for crash reports and prompts; kept only where somebody debugs.

To keep them takes 0.4 us of an exit, a quarter of one on hardware. So a plain boot does not.
"""

from __future__ import annotations

from collections import deque

from ..kvm.abi import basic as abi
from ..kvm.abi.layout import EXIT_REASON, REASON_KEY_BYTE_RING

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import mmap
    from collections.abc import Callable

    Recent = deque[tuple[int, int, bytes, int, int]]

KEPT = 16


class RecentExits:
    """The last KEPT exits of each vCPU, as their threads note them. Any thread may ask."""

    def __init__(self) -> None:
        self._of: dict[int, Recent] = {}

    def noting(self, index: int, page: mmap.mmap, kvm_run: Callable[[int, int], object]) -> Callable[[int, int], None]:
        """Return a KVM_RUN that notes what comes of it, for one life of vCPU `index`."""
        note = self._of.setdefault(index, deque(maxlen=KEPT)).append
        unpack = REASON_KEY_BYTE_RING.unpack_from

        def run(fd: int, number: int) -> None:
            kvm_run(fd, number)
            note(unpack(page, EXIT_REASON))

        return run

    def lines(self, index: int) -> list[str]:
        """Return a line for each, the last one at the end."""
        return [describe(reason, key, byte) for reason, key, byte, _, _ in [*self._of.get(index, ())]]


def describe(reason: int, key: int, byte: bytes) -> str:
    """Return an exit in words: its reason, and the first quadword of what belongs to it."""
    if reason == abi.KVM_EXIT_IO:
        direction, size, port, count = key & 0xFF, key >> 8 & 0xFF, key >> 16 & 0xFFFF, key >> 32
        times = f", {count} times" if count > 1 else ""
        return (
            f"out port {port:#x}, {size} bytes: {byte.hex()}{times}"
            if direction
            else f"in port {port:#x}, {size} bytes{times}"
        )
    from ..kvm.abi.exits import Exit

    try:
        name = Exit(reason).name
    except ValueError:
        name = f"reason {reason}"
    return f"{name} at physical {key:#x}" if reason == abi.KVM_EXIT_MMIO else name
