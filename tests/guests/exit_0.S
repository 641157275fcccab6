# flat real 0x1000
#
# Debug-exit value 0: status (0 << 1) | 1 = 1.
#
# Exits: port 0xF4 OUT size 1, 00; then, if it is run on, HLT.

        .code16
        .globl  _start
_start:
        mov     $0, %al
        out     %al, $0xf4
halt:   hlt
        jmp     halt
