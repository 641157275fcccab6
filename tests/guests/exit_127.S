# flat real 0x1000
#
# Debug-exit value 127: status (127 << 1) | 1 = 255, the largest that fits.
#
# Exits: port 0xF4 OUT size 1, 7f; then, if it is run on, HLT.

        .code16
        .globl  _start
_start:
        mov     $127, %al
        out     %al, $0xf4
halt:   hlt
        jmp     halt
