# bootsector 0x7c00
#
# What INT 10h, 11h and 12h do: says "teletype", writes "string" by AH=13h and "xxx" by AH=09h, a line each.
#
# Exits beside the BIOS's: port 0x50 OUT size 2: the mode and the columns, what is under the cursor, where the cursor
# is, the equipment, the KiB of memory, 1 when an interrupt that nobody serves came back; port 0xF4 OUT size 1: 1

        .code16
        .globl  _start
_start: mov     $teletype, %si
1:      lodsb
        test    %al, %al
        jz      2f
        mov     $0x0e, %ah
        int     $0x10
        jmp     1b
2:      mov     $0x1301, %ax                    # and move the cursor
        mov     $0x0007, %bx
        mov     $6, %cx
        mov     $0x0102, %dx
        mov     $string, %bp
        int     $0x10
        mov     $0x0200, %ax
        xor     %bx, %bx
        mov     $0x0200, %dx
        int     $0x10
        mov     $0x0978, %ax                    # x
        mov     $0x001e, %bx
        mov     $3, %cx
        int     $0x10
        mov     $0x0f, %ah
        int     $0x10
        call    show
        mov     $0x08, %ah
        xor     %bx, %bx
        int     $0x10
        call    show
        mov     $0x03, %ah
        xor     %bx, %bx
        int     $0x10
        mov     %dx, %ax
        call    show
        int     $0x11
        call    show
        int     $0x12
        call    show
        int     $0x69                           # said on standard error, once
        int     $0x69
        mov     $1, %ax
        call    show
        out     %al, $0xf4
        hlt

show:   mov     $0x50, %dx
        out     %ax, %dx
        ret

teletype:
        .asciz  "teletype\r\n"
string: .ascii  "string"
        .org    510
        .byte   0x55, 0xaa
