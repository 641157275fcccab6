# flat real 0x1000
#
# A parser with a mistake in it. The input is at 0x8000. For each character that it expects it tells how far it has come.
#
# Exits: port 0x50 OUT size 1 for each right character, its number; port 0xF4 OUT size 1: 0 for any input but the one
# that nobody has thought of, 1 for that.

        .code16
        .set    INPUT, 0x8000
        .set    COVERED, 0x50
        .set    DEBUG_EXIT, 0xf4

        .globl  _start
_start: mov     $INPUT, %si
        mov     $secret, %di
        xor     %bl, %bl
1:      cmpb    $0, (%di)
        je      2f
        cmpsb                                   # (%si) with (%di), and both go on
        jne     3f
        mov     %bl, %al
        out     %al, $COVERED
        inc     %bl
        jmp     1b
2:      mov     $1, %al                         # "crash"
        out     %al, $DEBUG_EXIT
3:      xor     %al, %al
        out     %al, $DEBUG_EXIT
        hlt

secret: .asciz  "boom"
