# flat real 0x1000
#
# A 16-bit write of debug-exit value 5: status (5 << 1) | 1 = 11.
#
# Exits: port 0xF4 OUT size 2, 05 00; then, if it is run on, HLT.

        .code16
        .globl  _start
_start:
        mov     $5, %ax
        out     %ax, $0xf4
halt:   hlt
        jmp     halt
