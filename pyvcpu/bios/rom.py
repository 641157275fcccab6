"""What the BIOS puts into guest memory: its ROM with the stubs, the interrupt vectors, the data area. Pure functions.

The machine code stands beside its assembly; a test puts the latter through an assembler.
"""

from __future__ import annotations

import struct

from . import layout as at

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Container

    Code = tuple[tuple[str, str], ...]  # hexadecimal bytes, assembly

EBDA, EBDA_KIB = 0x9FC00, 1

# A stub: ask the BIOS; where it says so, sleep until an interrupt, and ask again, or ask again at once.
STUB: Code = (
    ("e6 ec", "0: out %al, $0xec"),
    ("cf", "iret"),
    ("90 90", "nop; nop"),
    ("fb", "sti"),
    ("f4", "hlt"),
    ("eb f7", "jmp 0b"),
    ("fb", "sti"),
    ("90", "nop"),
    ("eb f3", "jmp 0b"),
)
# Behind the OUT of a hardware interrupt's stub: the end of interrupt for the first 8259, or for both.
END_FIRST: Code = (
    ("50", "push %ax"),
    ("b0 20", "mov $0x20, %al"),
    ("e6 20", "out %al, $0x20"),
    ("58", "pop %ax"),
    ("cf", "iret"),
)
END_BOTH: Code = (
    ("50", "push %ax"),
    ("b0 20", "mov $0x20, %al"),
    ("e6 a0", "out %al, $0xa0"),
    ("e6 20", "out %al, $0x20"),
    ("58", "pop %ax"),
    ("cf", "iret"),
)
# IRQ 0: count the tick, from midnight on; then INT 1Ch.
COUNT: Code = (
    ("1e", "push %ds"),
    ("50", "push %ax"),
    ("31 c0", "xor %ax, %ax"),
    ("8e d8", "mov %ax, %ds"),
    ("66 ff 06 6c 04", "incl 0x46c"),
    ("66 81 3e 6c 04 b0 00 18 00", "cmpl $0x1800b0, 0x46c"),
    ("72 0e", "jb 1f"),
    ("66 c7 06 6c 04 00 00 00 00", "movl $0, 0x46c"),
    ("c6 06 70 04 01", "movb $1, 0x470"),
    ("cd 1c", "1: int $0x1c"),
    ("b0 20", "mov $0x20, %al"),
    ("e6 20", "out %al, $0x20"),
    ("58", "pop %ax"),
    ("1f", "pop %ds"),
    ("cf", "iret"),
)
# The first code of all: 8259s at vectors 8 and 70h, timer, keyboard and the second one let in; the timer at 18.2 Hz.
SET_UP: Code = (
    ("b0 11", "mov $0x11, %al"),
    ("e6 20", "out %al, $0x20"),
    ("e6 a0", "out %al, $0xa0"),
    ("b0 08", "mov $0x08, %al"),
    ("e6 21", "out %al, $0x21"),
    ("b0 70", "mov $0x70, %al"),
    ("e6 a1", "out %al, $0xa1"),
    ("b0 04", "mov $0x04, %al"),
    ("e6 21", "out %al, $0x21"),
    ("b0 02", "mov $0x02, %al"),
    ("e6 a1", "out %al, $0xa1"),
    ("b0 01", "mov $0x01, %al"),
    ("e6 21", "out %al, $0x21"),
    ("e6 a1", "out %al, $0xa1"),
    ("b0 f8", "mov $0xf8, %al"),
    ("e6 21", "out %al, $0x21"),
    ("b0 fe", "mov $0xfe, %al"),
    ("e6 a1", "out %al, $0xa1"),
    ("b0 36", "mov $0x36, %al"),
    ("e6 43", "out %al, $0x43"),
    ("30 c0", "xor %al, %al"),
    ("e6 40", "out %al, $0x40"),
    ("e6 40", "out %al, $0x40"),
)
# What real-mode programs jump to for a reset: the keyboard controller pulses the line.
RESTART: Code = (
    ("b0 fe", "mov $0xfe, %al"),
    ("e6 64", "out %al, $0x64"),
    ("f4", "1: hlt"),
    ("eb fd", "jmp 1b"),
)


def machine_code(code: Code) -> bytes:
    """Return the bytes of a piece of code."""
    return bytes.fromhex("".join(part for part, _ in code))


def _jump(frm: int, to: int) -> bytes:
    """Return `jmp to`, put at offset `frm`."""
    return b"\xe9" + struct.pack("<H", to - frm - 3 & 0xFFFF)


# INT 1Eh points to it (Technical Reference, DISK_BASE): what programs change, and the controller here does not mind.
DISKETTE_TABLE = bytes((0xAF, 0x02, 0x25, 0x02, 18, 0x1B, 0xFF, 0x6C, 0xF6, 0x0F, 0x08))
# INT 15h AH=C0h: length, model FC (AT), submodel, revision, features: two 8259s, a real-time clock, an EBDA, INT 9h
# calls INT 15h AH=4Fh no.
CONFIGURATION_TABLE = struct.pack("<HBBB5B", 8, 0xFC, 1, 0, 0x64, 0x40, 0, 0, 0)


def rom() -> bytes:
    """Return the F segment from the stubs up."""
    area = bytearray(b"\0" * (0x10000 - at.STUBS))

    def put(offset: int, data: bytes) -> None:
        area[offset - at.STUBS : offset - at.STUBS + len(data)] = data

    stub, end_first = machine_code(STUB), at.ADAPTER
    end_both = end_first + len(machine_code(END_FIRST))
    put(end_first, machine_code(END_FIRST))
    put(end_both, machine_code(END_BOTH))
    for number in range(at.STARTED + 1):
        offset = at.STUBS + number * at.STUB_SIZE
        put(offset, stub)
        if number in at.IRQS:
            put(offset + at.RETURN, _jump(offset + at.RETURN, end_first if number < at.IRQ8 else end_both))
    set_up = machine_code(SET_UP)
    put(at.START, set_up)
    put(at.START + len(set_up), _jump(at.START + len(set_up), at.STUBS + at.STARTED * at.STUB_SIZE))
    put(at.RESET, machine_code(RESTART))
    put(at.CONFIGURATION, CONFIGURATION_TABLE)
    put(at.DISKETTE, DISKETTE_TABLE)
    put(at.TICK, machine_code(COUNT))
    put(at.IRET, b"\xcf")
    put(at.RESET_VECTOR, b"\xea" + struct.pack("<2H", at.RESET, at.SEGMENT))
    put(at.DATE, b"01/01/26")
    put(at.MODEL, b"\xfc\0")
    return bytes(area)


def default_vector(number: int, asked: Container[int] = ()) -> int:
    """Return the offset in the F segment that vector `number` points to; 0 for none.

    `asked`: the interrupts whose handlers somebody has replaced: these come to the BIOS in any case.
    """
    if number in at.UNUSED:
        return 0
    if number not in asked:
        special = {0x08: at.TICK, 0x1C: at.IRET, 0x1E: at.DISKETTE}.get(number)
        if special is not None:
            return special
    return at.STUBS + number * at.STUB_SIZE


def vectors(asked: Container[int] = ()) -> bytes:
    """Return the table of interrupt vectors."""
    offsets = [default_vector(number, asked) for number in range(256)]
    return b"".join(struct.pack("<2H", offset, at.SEGMENT if offset else 0) for offset in offsets)


def data_area(*, floppies: int, disks: int, ticks: int) -> bytes:
    """Return the BIOS data area of a PC with so many drives, `ticks` after midnight."""
    area = bytearray(at.BDA_SIZE)

    def put(address: int, format: str, *values: int) -> None:
        struct.pack_into(format, area, address - at.BDA, *values)

    put(at.COM_PORTS, "<H", 0x3F8)
    put(at.EBDA_SEGMENT, "<H", EBDA >> 4)
    put(at.EQUIPMENT, "<H", equipment(floppies))
    put(at.KIB, "<H", EBDA >> 10)
    put(at.KEY_HEAD, "<2H", at.KEYS - at.BDA, at.KEYS - at.BDA)
    put(at.KEYS_FIRST, "<2H", at.KEYS - at.BDA, at.KEYS_END - at.BDA)
    put(at.MODE, "<BHHH", 3, 80, 0x1000, 0)
    put(at.CURSOR_SHAPE, "<HBH", 0x0607, 0, 0x3D4)
    put(at.ROWS, "<BHBBB", 24, 16, 0x60, 0xF9, 0x51)
    put(at.TICKS, "<I", ticks)
    put(at.DISK_COUNT, "<B", disks)
    put(at.KEYBOARD_KIND, "<B", 0x10)  # 101 keys
    return bytes(area)


def equipment(floppies: int) -> int:
    """Return what INT 11h says: floppies, an FPU, a screen of 80 columns in colour, one serial port."""
    return (1 | (floppies - 1) << 6 if floppies else 0) | 1 << 1 | 2 << 4 | 1 << 9
