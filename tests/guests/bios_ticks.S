# bootsector 0x7c00
#
# Counts four ticks by INT 1Ah, which a handler of its own for INT 1Ch counts, too; then waits 20 ms by INT 15h AH=86h.
#
# Exits beside the BIOS's: port 0xF4 OUT size 1: how often INT 1Ch came, at least 4

        .code16
        .globl  _start
_start: cli
        movw    $tick, 4 * 0x1c
        movw    $0, 4 * 0x1c + 2
        sti
        xor     %ah, %ah
        int     $0x1a
        mov     %dx, %si
        add     $4, %si
1:      hlt
        xor     %ah, %ah
        int     $0x1a
        cmp     %dx, %si
        jne     1b
        mov     $0x8600, %ax
        xor     %cx, %cx
        mov     $20000, %dx
        int     $0x15
        jc      2f
        mov     count, %al
        out     %al, $0xf4
2:      hlt

tick:   incb    %cs:count
        iret

count:  .byte   0
        .org    510
        .byte   0x55, 0xaa
