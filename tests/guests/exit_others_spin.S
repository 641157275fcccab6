# flat real 0x1000
#
# The last vCPU leaves by the debug-exit port with its index as the value, while the others run for ever: they must be
# stopped from outside.
#
# Exits, with N vCPUs:
#   vCPU N-1: port 0xF4 OUT size 1, the byte N-1; then, if it is run on, HLT
#   the others: none

        .code16
        .globl  _start
_start:
        mov     %di, %ax
        inc     %ax
        cmp     %si, %ax
        jne     spin
        mov     %di, %ax
        out     %al, $0xf4
halt:   hlt
        jmp     halt
spin:   jmp     spin
