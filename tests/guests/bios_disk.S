# bootsector 0x7c00
#
# What INT 13h does with the drive in DL: says the first eight characters of the sectors 2 (by cylinder, head and
# sector) and 3 (by number), then writes the latter to sector 4.
#
# Exits beside the BIOS's: port 0x50 OUT size 2: CX and DX of AH=08h, AH after a read of sector 0, which there is not;
# port 0xF4 OUT size 1: 1, or the status in AH of the call that failed

        .code16
        .set    BUFFER, 0x8000
        .globl  _start
_start: mov     %dl, drive
        mov     $0x0201, %ax
        mov     $0x0003, %cx                    # cylinder 0, sector 3, which is number 2
        xor     %dh, %dh
        mov     $BUFFER, %bx
        int     $0x13
        jc      fail
        call    say
        mov     $0x41, %ah
        mov     $0x55aa, %bx
        mov     drive, %dl
        int     $0x13
        jc      fail
        cmp     $0xaa55, %bx
        jne     fail
        mov     $0x42, %ah
        mov     drive, %dl
        mov     $packet, %si
        int     $0x13
        jc      fail
        call    say
        incb    packet + 8
        mov     $0x4300, %ax
        mov     drive, %dl
        mov     $packet, %si
        int     $0x13
        jc      fail
        mov     $0x08, %ah
        mov     drive, %dl
        int     $0x13
        jc      fail
        mov     %cx, %ax
        call    show
        mov     %bp, %ax
        call    show
        mov     $0x0201, %ax
        xor     %cx, %cx
        xor     %dh, %dh
        mov     drive, %dl
        mov     $BUFFER, %bx
        int     $0x13
        jnc     fail
        call    show
        mov     $0x0101, %ax
fail:   mov     %ah, %al
        out     %al, $0xf4
        hlt

show:   mov     %dx, %bp
        mov     $0x50, %dx
        out     %ax, %dx
        ret

say:    mov     $BUFFER, %si
        mov     $8, %cx
1:      lodsb
        mov     $0x0e, %ah
        int     $0x10
        loop    1b
        ret

packet: .byte   0x10, 0
        .word   1, BUFFER, 0
        .quad   3
drive:  .byte   0
        .org    510
        .byte   0x55, 0xaa
