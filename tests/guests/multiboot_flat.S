# flat protected 0x100000
#
# A Multiboot 1 image without a format of its own: its header says what is loaded where.
#
# Exits, on the first vCPU:
#   port 0xF4 OUT size 1: 2a, or 00 when EAX was not the magic number, or 01 when its bss is not zero;
#   then, if it is run on, HLT

        .code32
        .set    DEBUG_EXIT, 0xf4
        .set    HEADER_MAGIC, 0x1badb002
        .set    HEADER_FLAGS, 1 << 16           # the addresses are given
        .set    BOOT_MAGIC, 0x2badb002
        .set    BSS, 4096

header: .long   HEADER_MAGIC, HEADER_FLAGS, -(HEADER_MAGIC + HEADER_FLAGS)
        .long   header, header, end, end + BSS, _start

        .globl  _start
_start:
        cmp     $BOOT_MAGIC, %eax
        mov     $0, %al
        jne     done
        inc     %eax
        cmpl    $0, end + BSS - 4
        jne     done
        mov     $0x2a, %al
done:   out     %al, $DEBUG_EXIT
halt:   hlt
        jmp     halt
        .balign 4, 0
end:
