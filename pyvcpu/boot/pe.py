"""PE files (Windows and EFI programs) in words. Loaded only to refuse one.

Source: Microsoft, PE Format; Linux, Documentation/arch/x86/boot.rst for what kernels put there.
"""

from __future__ import annotations

import struct

PE_OFFSET = 0x3C
COFF = struct.Struct("<2H12xH2x")  # machine, number of sections, size of the optional header
SUBSYSTEM = 68  # in the optional header, of either size
SECTION_SIZE, MOST_SECTIONS = 40, 96
MACHINES = {
    0x14C: "i386",
    0x1C0: "ARM",
    0x1C2: "ARM",
    0x1C4: "ARM",
    0x200: "Itanium",
    0xEBC: "EFI byte code",
    0x5032: "RISC-V",
    0x5064: "RISC-V",
    0x6232: "LoongArch",
    0x6264: "LoongArch",
    0x8664: "x86-64",
    0xAA64: "AArch64",
}
EFI_SUBSYSTEMS = {10: "application", 11: "driver", 12: "driver", 13: "ROM"}
TAKE_OUT = "; objcopy -O binary --only-section=.linux takes the kernel out"


def what_is(image: bytes) -> tuple[str, str] | None:
    """Return what a file that begins with MZ is, and what to do with it."""
    if image[4:8] == b"zimg":
        return "an EFI zboot image, a kernel that only EFI unpacks", ""
    at = int.from_bytes(image[PE_OFFSET : PE_OFFSET + 4], "little")
    header = at + 4
    if image[at:header] != b"PE\0\0" or header + COFF.size > len(image):
        return _dos(image)
    machine, count, optional = COFF.unpack_from(image, header)
    sections = header + COFF.size + optional
    subsystem_at = header + COFF.size + SUBSYSTEM
    subsystem = int.from_bytes(image[subsystem_at : subsystem_at + 2], "little") if optional > SUBSYSTEM + 1 else 0
    name = MACHINES.get(machine, f"machine {machine:#x}")
    if subsystem not in EFI_SUBSYSTEMS:
        return f"a Windows program (PE) for {name}", ""
    starts = range(sections, sections + min(count, MOST_SECTIONS) * SECTION_SIZE, SECTION_SIZE)
    if b".linux" in {image[start : start + 8].rstrip(b"\0") for start in starts}:
        return f"a unified kernel image for EFI ({name})", TAKE_OUT
    return f"an EFI {EFI_SUBSYSTEMS[subsystem]} for {name}", "; there is no EFI here"


def _dos(image: bytes) -> tuple[str, str] | None:
    """Recognise a DOS program: its header must say a size that the file has."""
    if len(image) < 0x1C:
        return None
    last, pages, _, header = struct.unpack_from("<4H", image, 2)
    size = pages * 512 - (512 - last if last else 0)
    return ("a DOS program (MZ)", "") if last < 512 and header * 16 <= size <= len(image) and pages else None
