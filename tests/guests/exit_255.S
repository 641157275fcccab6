# flat real 0x1000
#
# Debug-exit value 255: (255 << 1) | 1 = 511, of which a process status keeps 8 bits: 255.
#
# Exits: port 0xF4 OUT size 1, ff; then, if it is run on, HLT.

        .code16
        .globl  _start
_start:
        mov     $255, %al
        out     %al, $0xf4
halt:   hlt
        jmp     halt
