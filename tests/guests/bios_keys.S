# bootsector 0x7c00
#
# Asks whether there is a key, then gets keys by INT 16h and says the characters, until Escape.
#
# Exits beside the BIOS's: port 0x50 OUT size 2: the code of each key; port 0xF4 OUT size 1: how many there were

        .code16
        .globl  _start
_start: xor     %bp, %bp
1:      mov     $0x10, %ah
        int     $0x16
        inc     %bp
        mov     $0x50, %dx
        out     %ax, %dx
        cmp     $0x1b, %al
        je      2f
        cmp     $0x20, %al
        jb      1b
        mov     $0x0e, %ah
        int     $0x10
        jmp     1b
2:      mov     $0x11, %ah                      # no more keys: ZF
        int     $0x16
        jnz     3f
        mov     %bp, %ax
        out     %al, $0xf4
3:      hlt

        .org    510
        .byte   0x55, 0xaa
