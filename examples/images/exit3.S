# flat real 0x1000
#
# Writes 3 to the debug-exit port: the launcher ends with exit status (3 << 1) | 1 = 7.
#
#       python -m pyvcpu boot examples/images/exit3.bin; echo $?

        .code16
        .set    DEBUG_EXIT, 0xf4

        .globl  _start
_start:
        mov     $3, %al
        out     %al, $DEBUG_EXIT
halt:   cli
        hlt
        jmp     halt
