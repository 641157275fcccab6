# bootsector 0x7c00
#
# Gets the memory map by INT 15h AX=E820h, and other sizes.
#
# Exits beside the BIOS's: port 0x50 OUT size 4: start, length (the low halves) and kind of each entry, -1, AX of AH=88h,
# CX and DX of AX=E801h, the segment of the EBDA; port 0xF4 OUT size 1: 1

        .code16
        .set    BUFFER, 0x8000
        .globl  _start
_start: xor     %ebx, %ebx
1:      mov     $0xe820, %eax
        mov     $24, %ecx
        mov     $0x534d4150, %edx
        mov     $BUFFER, %di
        int     $0x15
        jc      2f
        mov     BUFFER, %eax
        call    show
        mov     BUFFER + 8, %eax
        call    show
        mov     BUFFER + 16, %eax
        call    show
        test    %ebx, %ebx
        jnz     1b
2:      mov     $-1, %eax
        call    show
        mov     $0x88, %ah
        int     $0x15
        movzx   %ax, %eax
        call    show
        mov     $0xe801, %ax
        int     $0x15
        movzx   %cx, %eax
        push    %dx
        call    show
        pop     %ax
        movzx   %ax, %eax
        call    show
        movzwl  0x40e, %eax
        call    show
        mov     $1, %al
        out     %al, $0xf4
        hlt

show:   mov     $0x50, %dx
        out     %eax, %dx
        ret

        .org    510
        .byte   0x55, 0xaa
