# flat real 0x1000
#
# A 32-bit write of debug-exit value 42: status (42 << 1) | 1 = 85.
#
# Exits: port 0xF4 OUT size 4, 2a 00 00 00; then, if it is run on, HLT.

        .code16
        .globl  _start
_start:
        mov     $42, %eax
        out     %eax, $0xf4
halt:   hlt
        jmp     halt
