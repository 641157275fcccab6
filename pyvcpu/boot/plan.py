"""Plan: what to put where in guest memory, and how each vCPU starts. Pure data."""

from __future__ import annotations

from ..errors import ImageError
from ..memory import FOUR_GIB, HOLE

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Sequence

    from ..x86.start import StartState

    Segment = tuple[int, bytes | memoryview]
    Span = tuple[int, int]

MORE = "; give the guest more memory"
MOST = 1 << 40  # more than this is no advice


class CutShort(ImageError):
    """The file ends before the image does: it is damaged, or was too large to be read as a whole."""


def reachable(start: int, end: int) -> bool:
    """Tell whether a guest with enough memory has RAM at all of (start, end): none lies in the hole below 4 GiB."""
    return end <= HOLE or FOUR_GIB <= start < end <= MOST


class Target:
    """The machine that an image is to boot on.

    `ranges`: RAM as (start, end) pairs of guest physical addresses, the first one from 0 and below 4 GiB.
    `vcpus`: how many starting states are wanted. `start`: who starts, "all" or "bsp", or None for the format's own
    way. `mode`, `load`, `entry`: for flat images; None for the default.
    `name`: the image's file name, where a protocol passes it on. `append`: the guest's command line. `initrd`: files
    that the guest gets beside the image, each a command line (its name, as a rule) and the content. `dtb`: a device
    tree for a Linux guest, b"" for none.
    `acpi`: returns the address and the bytes of the ACPI tables, the RSDP first; None for a machine without. It is
    called by the loaders whose guests look for tables, at most once each.
    """

    __slots__ = ("acpi", "append", "dtb", "entry", "initrd", "load", "mode", "name", "ranges", "start", "vcpus")

    def __init__(
        self,
        ranges: Sequence[tuple[int, int]],
        vcpus: int,
        *,
        start: str | None = None,
        mode: str | None = None,
        load: int | None = None,
        entry: int | None = None,
        name: str = "",
        append: str = "",
        initrd: Sequence[tuple[str, bytes]] = (),
        acpi: Callable[[], tuple[int, bytes]] | None = None,
        dtb: bytes = b"",
    ) -> None:
        self.ranges = ranges
        self.vcpus = vcpus
        self.start = start
        self.mode = mode
        self.load = load
        self.entry = entry
        self.name = name
        self.append = append
        self.initrd = initrd
        self.acpi = acpi
        self.dtb = dtb

    @property
    def memory(self) -> int:
        """How many bytes of RAM there are."""
        return sum(end - start for start, end in self.ranges)

    @property
    def named_command_line(self) -> str:
        """The command line as Multiboot guests expect it of all but GRUB 2: the image's name comes first."""
        return f"{self.name} {self.append}".strip()

    def holds(self, address: int, length: int) -> bool:
        """Tell whether `length` bytes at `address` are RAM."""
        return any(start <= address and address + length <= end for start, end in self.ranges)


class Plan:
    """The answer of a loader.

    `format`: its name. `segments`: (guest physical address, bytes or a view of the image's) pairs; all other RAM is
    zero. `starts`: one StartState per vCPU, None for one that waits for INIT-SIPI-SIPI. `irqchip`: what the format
    needs unless the user asks for another.
    """

    __slots__ = ("format", "irqchip", "segments", "starts")

    def __init__(
        self,
        format: str,
        segments: Sequence[Segment],
        starts: Sequence[StartState | None],
        irqchip: str,
    ) -> None:
        self.format = format
        self.segments = segments
        self.starts = starts
        self.irqchip = irqchip

    def with_segments(self, segments: Sequence[Segment]) -> Plan:
        """Return the plan with `segments` before its own, which are written later."""
        return Plan(self.format, [*segments, *self.segments], self.starts, self.irqchip)


class Free:
    """Finds room in RAM for what a guest is given beside its image, from `top` down, around what is used.

    `bound`: how far up `top` would go if the guest had more memory; the errors say whether that can help.
    """

    def __init__(self, top: int, used: Sequence[tuple[int, int]], bound: int | None = None) -> None:
        self.bound = HOLE if bound is None else min(bound, HOLE)
        self.grows = top < self.bound
        self.top = top
        self.used = sorted(used, reverse=True)

    @classmethod
    def below(cls, bound: int, used: Sequence[tuple[int, int]], target: Target) -> Free:
        """Return what is free in the first range of the target's RAM, below `bound`."""
        return cls(min(bound, target.ranges[0][1]), used, bound)

    def take(self, size: int, align: int, what: str) -> int:
        """Return the address of `size` bytes at a multiple of `align`, never page 0; raise ImageError without room."""
        address = (self.top - size) // align * align
        for start, end in self.used:
            if start < address + size and address < end:
                address = (start - size) // align * align
        if address < 0x1000:
            hint = MORE if self.grows and size < self.bound else f" and below {self.bound:#x}"
            raise ImageError(f"no room for {what} ({size} bytes) beside the image{hint}")
        self.top = address
        return address
