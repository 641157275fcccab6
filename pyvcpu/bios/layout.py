"""Where the BIOS is: addresses in its ROM, in the BIOS data area, and the port through which its stubs ask for service.

Sources: IBM PC/AT Technical Reference (1984), section 5; Ralf Brown's interrupt list, MEMORY.LST.
"""

from __future__ import annotations

PORT = 0xEC  # what the stubs write to; no device of a PC is there

SEGMENT = 0xF000
ROM = SEGMENT << 4

# Offsets in the F segment. Those with an odd place are where programs look for them.
STUBS, STUB_SIZE = 0xD000, 16
STARTED = 0x100  # the number of the stub behind the interrupts': what the start code ends with
ADAPTER = 0xE020  # code of the BIOS's own, up to 0xE05B
RESET, CONFIGURATION, DISKETTE, TICK, IRET = 0xE05B, 0xE6F5, 0xEFC7, 0xFEA5, 0xFF53
RESET_VECTOR, DATE, MODEL = 0xFFF0, 0xFFF5, 0xFFFE
START = 0xE080  # where the BIOS's life begins

# In a stub: where it returns, where it sleeps until an interrupt and asks again, where it asks again at once.
RETURN, SLEEP, AGAIN = 2, 5, 9

# Hardware interrupts of the two 8259s.
IRQ0, IRQ8 = 0x08, 0x70
IRQS = (*range(IRQ0, IRQ0 + 8), *range(IRQ8, IRQ8 + 8))
UNUSED = range(0x60, 0x68)  # for programs, which look for zeros

# The BIOS data area, at its linear addresses.
COM_PORTS, EBDA_SEGMENT, EQUIPMENT, KIB = 0x400, 0x40E, 0x410, 0x413
SHIFTS, KEY_HEAD, KEY_TAIL, KEYS, KEYS_END = 0x417, 0x41A, 0x41C, 0x41E, 0x43E
DISKETTE_STATUS = 0x441
MODE, COLUMNS, PAGE_SIZE, PAGE_OFFSET, CURSORS, CURSOR_SHAPE, PAGE, CRTC = (
    0x449,
    0x44A,
    0x44C,
    0x44E,
    0x450,
    0x460,
    0x462,
    0x463,
)
TICKS, MIDNIGHT = 0x46C, 0x470
DISK_STATUS, DISK_COUNT = 0x474, 0x475
KEYS_FIRST, KEYS_LAST = 0x480, 0x482  # offsets of the ring from 0x400
ROWS, CHARACTER_HEIGHT, VIDEO_CONTROL = 0x484, 0x485, 0x487
KEYBOARD_KIND = 0x496
BDA, BDA_SIZE = 0x400, 0x100

TEXT_MEMORY = 0xB8000
TICKS_A_DAY = 0x1800B0
LOAD = 0x7C00
