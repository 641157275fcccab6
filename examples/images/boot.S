# bootsector 0x7c00
#
# A boot sector that calls no firmware: it prints "boot sector alive, drive 80" to COM1 and leaves by the debug-exit
# port with value 0, that is with exit status (0 << 1) | 1 = 1. Where that port does nothing, it halts.
#
#       python -m pyvcpu boot examples/images/boot.bin
#
# On entry: real mode at 0x7C00, DL = the drive it came from. Nothing else is taken for granted.

        .code16
        .set    COM1, 0x3f8
        .set    LSR, COM1 + 5
        .set    LSR_THRE, 0x20                  # transmit holding register empty
        .set    DEBUG_EXIT, 0xf4

        .globl  _start
_start:
        cli
        cld
        ljmp    $0, $1f                         # some firmware starts at 07C0:0000 and not at 0000:7C00
1:      xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $0x7c00, %sp                    # the stack grows down from the boot sector
        mov     %dl, %cl
        mov     $text, %si
2:      lodsb
        test    %al, %al
        jz      3f
        call    put_char
        jmp     2b
3:      mov     %cl, %al
        shr     $4, %al
        call    put_hex_digit
        mov     %cl, %al
        and     $0x0f, %al
        call    put_hex_digit
        mov     $'\n', %al
        call    put_char
        xor     %al, %al
        out     %al, $DEBUG_EXIT
halt:   cli
        hlt
        jmp     halt

put_hex_digit:                                  # AL = 0 to 15
        add     $'0', %al
        cmp     $'9', %al
        jbe     put_char
        add     $'a' - '9' - 1, %al
put_char:                                       # AL = character
        mov     %al, %ah
        mov     $LSR, %dx
1:      in      %dx, %al
        test    $LSR_THRE, %al
        jz      1b
        mov     $COM1, %dx
        mov     %ah, %al
        out     %al, %dx
        ret

text:   .asciz  "boot sector alive, drive "

        .org    510, 0
        .word   0xaa55                          # the mark of a boot sector
