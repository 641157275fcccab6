"""What loaders share: the memory map of a PC, and room in it for what a guest is given beside its image."""

from __future__ import annotations

import struct

from ..errors import ImageError
from ..memory import HOLE
from .plan import MORE, Free, reachable

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Sequence

    from ..x86.start import StartState
    from .plan import Segment, Span, Target

PAGE, MIB = 4096, 1 << 20
EBDA = 0x9FC00  # the extended BIOS data area: conventional memory ends here, at 639 KiB
BIOS_AREA = (EBDA, MIB)  # EBDA, video memory, option ROMs, BIOS
LATE_TOP = 1 << 30  # Linux reaches no more than this before it has page tables of its own

# mov $0xfe, %al; out %al, $0x64; 1: hlt; jmp 1b: the keyboard controller pulses the reset line.
RESET_VECTOR, RESET_CODE = 0xFFFF0, b"\xb0\xfe\xe6\x64\xf4\xeb\xfd"

# The BIOS data area, as far as guests read it that boot without a BIOS: four serial and three parallel ports, the
# segment of the EBDA, the equipment (one serial port), the KiB of conventional memory. Xen hangs without the last.
BIOS_DATA = 0x400
BIOS_DATA_AREA = struct.pack("<4H3HHHxH", 0x3F8, 0, 0, 0, 0, 0, 0, EBDA >> 4, 1 << 9, EBDA >> 10)

# Kinds of memory, by the same numbers in every protocol (ACPI 6.4 table 15.4).
RAM, RESERVED = 1, 2


def memory_map(ranges: Sequence[Span]) -> list[tuple[int, int, int]]:
    """Return (start, end, kind) of the RAM, with a PC's BIOS area reserved, by address."""
    low = ranges[0][1]
    entries = [(0, min(low, EBDA), RAM)]
    if low > EBDA:
        entries.append((EBDA, min(low, MIB), RESERVED))
    if low > MIB:
        entries.append((MIB, low, RAM))
    return entries + [(start, end, RAM) for start, end in ranges[1:]]


def check_spans(spans: Sequence[Span], target: Target) -> None:
    """Raise ImageError unless the (start, end) pairs of an image are RAM and lie side by side."""
    before = 0
    for start, end in sorted(spans):
        if not target.holds(start, end - start):
            where = " and ".join(f"{first:#x}-{last - 1:#x}" for first, last in target.ranges)
            hint = f"{MORE}, or link" if reachable(start, end) else ", nor can be; link"
            raise ImageError(
                f"the image loads at {start:#x}-{end - 1:#x}, which is not all RAM ({where}){hint} the image elsewhere"
            )
        if start < before:
            raise ImageError(f"two segments of the image overlap in memory, at {start:#x}")
        before = end


def place_firmware(target: Target, used: Sequence[Span]) -> tuple[list[Segment], int]:
    """Return what guests may expect of a BIOS (ACPI tables, data area, code at the reset vector) and the RSDP's place.

    Linux on hardware-reduced ACPI, and many a small kernel, jumps to F000:FFF0 to restart the machine. Guests that do
    not ask for any of this must not lack room because of it: where the image lies, or no RAM is, it is left out (and
    the address is 0).
    """
    tables = _if_free(*target.acpi(), target, used) if target.acpi else []
    data = _if_free(BIOS_DATA, BIOS_DATA_AREA, target, used) if target.holds(0, EBDA) else []
    return [*_if_free(RESET_VECTOR, RESET_CODE, target, used), *data, *tables], tables[0][0] if tables else 0


def _if_free(address: int, data: bytes, target: Target, used: Sequence[Span]) -> list[Segment]:
    end = address + len(data)
    taken = any(start < end and address < last for start, last in used)
    return [(address, data)] if target.holds(address, len(data)) and not taken else []


def place_info(build: Callable[[int], bytes], used: Sequence[Span], target: Target) -> tuple[int, bytes]:
    """Return the address and the bytes of what a guest is handed; `build` makes them for an address.

    In conventional memory where there is room, below 1 GiB otherwise.
    """
    size, what = len(build(0)), "the boot information"
    try:
        address = Free.below(EBDA, used, target).take(size, PAGE, what)
    except ImageError:
        address = Free.below(LATE_TOP, [*used, BIOS_AREA], target).take(size, PAGE, what)
    return address, build(address)


def place_files(target: Target, used: list[Span], top: int = HOLE) -> list[Segment]:
    """Give each file of the target's initrd whole pages, from `top` down and above 1 MiB; adds them to `used`."""
    free = Free.below(top, [*used, (0, MIB)], target)
    placed: list[Segment] = []
    for name, data in target.initrd:
        address = free.take(max(len(data), 1), PAGE, f"the initrd {name!r}")
        used.append((address, address + max(len(data), 1)))
        placed.append((address, data))
    return placed


def c_string(text: str) -> bytes:
    """Return a command line as C wants it; bytes that came from the host's command line stay as they were."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ImageError(f"a command line must be text that UTF-8 can hold, not {text!r}") from None
    if b"\0" in data:
        raise ImageError(f"a command line must not hold a zero character: {text!r}")
    return data + b"\0"


def started(state: StartState, target: Target) -> list[StartState | None]:
    """Return the starting states of all vCPUs: the first one's, or everybody's with start="all"."""
    others = state if target.start == "all" else None
    return [state, *[others] * (target.vcpus - 1)]
