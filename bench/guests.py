"""The guests that both sides run: flat, real mode unless it says otherwise, one instruction in an endless loop."""

from __future__ import annotations

PORT = 0x500
MMIO = 0x100000  # right behind 1 MiB of RAM

# mov $0x500,%dx; 1: out %al,%dx; jmp 1b
PIO_LOOP = b"\xba\x00\x05\xee\xeb\xfd"
# mov $0xffff,%ax; mov %ax,%ds; 1: mov %al,0x10; jmp 1b
MMIO_LOOP = b"\xb8\xff\xff\x8e\xd8\xa2\x10\x00\xeb\xfb"
# mov $'x',%al; 1: out %al,$0xe9; jmp 1b
CONSOLE_LOOP = b"\xb0x\xe6\xe9\xeb\xfc"
# 1: jmp 1b
SPIN = b"\xeb\xfe"
# 64-bit: 1: movb $1,0x200000(%rdi); jmp 1b
MARKS = 0x200000
MARK = b"\xc6\x87\x00\x00\x20\x00\x01\xeb\xf7"
