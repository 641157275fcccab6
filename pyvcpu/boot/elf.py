"""ELF images without a header of another protocol: entered where they say, with a stack."""

from __future__ import annotations

import struct

from ..errors import ImageError
from .elf_image import ET_DYN, Elf
from .flat import MODES
from .layout import BIOS_AREA, check_spans, place_firmware
from .plan import Plan, Target
from .pvh import boot as boot_pvh
from .pvh import find_entry

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from ..x86.start import StartState

DT_NULL, DT_NEEDED, DT_SONAME = 0, 1, 14
DYNAMIC = {32: struct.Struct("<2I"), 64: struct.Struct("<2Q")}
MULTIBOOT, MULTIBOOT2, MULTIBOOT_SEARCH = b"\x02\xb0\xad\x1b", b"\xd6\x50\x52\xe8", 64 << 10
NOTE_OWNER, ABI_TAG, ABI_TAG_SIZE = b"GNU\0", 1, 16  # in every program that is linked for a system with glibc
ABIS = {0: "Linux", 1: "the Hurd", 2: "Solaris", 3: "FreeBSD"}
SHOWN = 64  # of an interpreter's name


def plan(image: bytes, target: Target) -> Plan:
    """Plan an ELF image: by its PVH note when it has one; else at its entry, with a stack of 16 KiB.

    The first vCPU starts (all with start="all"): ELF32 in protected mode with paging off, ELF64 in long mode with RAM
    and the first 4 GiB mapped to themselves; (R)DI its index, (R)SI the number of vCPUs.
    """
    elf = Elf(image)
    entry = find_entry(elf)
    if entry is not None:
        return boot_pvh(elf, entry, target)
    _check_freestanding(elf)
    _check_multiboot(image)
    check_spans(elf.spans, target)
    firmware, _ = place_firmware(target, elf.spans)
    count = target.vcpus if target.start == "all" else 1
    mode = "long" if elf.bits == 64 else "protected"
    segments, starts = MODES[mode](elf.entry, [*elf.spans, BIOS_AREA], Target(target.ranges, count))
    for start in filter(None, starts):
        start.registers["rsi"] = target.vcpus
    waiting: list[StartState | None] = [None] * (target.vcpus - count)
    return Plan("elf", [*elf.segments, *firmware, *segments], starts + waiting, "kernel")


def _check_multiboot(image: bytes) -> None:
    """Raise ImageError for a Multiboot header at a wrong place: its guest would start with wrong registers, silently.

    One at the right place is there only when the image is said to be a plain ELF.
    """
    if image.find(MULTIBOOT, 0, MULTIBOOT_SEARCH) >= 0 or image.find(MULTIBOOT2, 0, MULTIBOOT_SEARCH) >= 0:
        from . import misplaced, multiboot, multiboot2

        if not multiboot.matches(image) and not multiboot2.matches(image):
            misplaced.check(image)


def _check_freestanding(elf: Elf) -> None:
    """Raise ImageError for programs and libraries of an operating system: they need one, not a machine."""
    if len(elf.interpreter):
        name = bytes(elf.interpreter[:SHOWN]).split(b"\0", 1)[0].decode("ascii", "backslashreplace")
        raise ImageError(f"this ELF image is a program for an operating system, to be run by {name!r}, not a kernel")
    system = elf.note(NOTE_OWNER, ABI_TAG)
    if system is not None and len(system) == ABI_TAG_SIZE:
        name = ABIS.get(system[0], "an operating system")
        raise ImageError(f"this ELF image is a program for {name}, not a kernel")
    if elf.kind != ET_DYN:
        return
    pair = DYNAMIC[elf.bits]
    for tag, _ in pair.iter_unpack(elf.dynamic[: len(elf.dynamic) // pair.size * pair.size]):
        if tag == DT_NULL:
            break
        if tag in (DT_NEEDED, DT_SONAME):
            raise ImageError("this ELF image is a shared library for programs of an operating system, not a kernel")
