"""What both versions of Multiboot share: how an image is loaded, and the two sizes of memory that a guest gets."""

from __future__ import annotations

from ..errors import ImageError
from ..memory import HOLE
from .elf_image import MAGIC, Elf
from .layout import EBDA, MIB, RAM
from .plan import CutShort

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Sequence

    from .plan import Segment, Span

    Loaded = tuple[list[Segment], list[Span], int]  # what lies where, what is taken, the entry


def from_elf(image: bytes) -> Loaded:
    """Load as the ELF headers say."""
    if not image.startswith(MAGIC):
        from .foreign import refuse

        refuse(image)  # an EFI application of a kernel has that kernel's headers in it
        raise ImageError("a Multiboot image must be an ELF image, or its header must have addresses")
    elf = Elf(image)
    return elf.segments, elf.spans, elf.entry


def by_addresses(
    image: bytes, at: int, header: int, load: int, load_end: int, bss_end: int
) -> tuple[Segment, tuple[int, int]]:
    """Load as the addresses in the Multiboot header at offset `at` say; return the bytes in their place, and the span.

    Sources: Multiboot 0.6.96 section 3.1.3, Multiboot 2.0 section 3.1.5.
    """
    offset = at - (header - load)
    if not load <= header or offset < 0:
        raise ImageError(
            f"the Multiboot header, at offset {at:#x} of the image, cannot be at {header:#x} when loading starts"
            f" at {load:#x}"
        )
    if load >= HOLE:
        from .foreign import refuse_rom

        refuse_rom(image)
    length = load_end - load if load_end else len(image) - offset
    if length <= 0:
        raise ImageError(f"the Multiboot header's load end {load_end:#x} must be above its start {load:#x}")
    if offset + length > len(image):
        raise CutShort(
            f"the Multiboot image is cut short: its header wants {length} bytes from offset {offset:#x},"
            f" and the image has {len(image)}"
        )
    if bss_end and bss_end < load + length:
        raise ImageError(f"the Multiboot header's bss end {bss_end:#x} must not be below its load end")
    return (load, memoryview(image)[offset : offset + length]), (load, max(bss_end, load + length))


def check_entry(entry: int, spans: Sequence[Span]) -> None:
    """Raise ImageError unless the entry that the header names lies in what is loaded."""
    if not any(start <= entry < end for start, end in spans):
        loaded = " and ".join(f"{start:#x}-{end - 1:#x}" for start, end in spans[:4])
        raise ImageError(f"the Multiboot header's entry {entry:#x} must be in what it loads, {loaded}")


def lower_and_upper(ram: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
    """Return the KiB of RAM from 0 up to the EBDA, and from 1 MiB up to the first hole."""
    lower, upper = min(ram[0][1], EBDA), 0
    for start, end, kind in ram:
        if kind == RAM and start == MIB:
            upper = end - start
    return lower >> 10, upper >> 10
