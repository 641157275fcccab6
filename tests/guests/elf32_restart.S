# elf32 0x100000
#
# Goes back to real mode and jumps to the reset vector F000:FFF0, as a kernel does to restart a PC.
#
# Exits, on the first vCPU: those of the code at the reset vector, port 0x64 OUT size 1, fe; then, if it is run on, HLT.

        .code32
        .set    CODE16, 0x08
        .set    TRAMPOLINE, 0x8000
        .set    CR0_PE, 1

        .globl  _start
_start:
        mov     $to_real, %esi
        mov     $TRAMPOLINE, %edi
        mov     $(to_real_end - to_real), %ecx
        rep movsb
        lgdt    gdt_pointer
        ljmp    $CODE16, $TRAMPOLINE

        .code16
to_real:
        mov     %cr0, %eax
        and     $~CR0_PE, %eax
        mov     %eax, %cr0
        ljmp    $0xf000, $0xfff0
to_real_end:

        .balign 8, 0
gdt:    .quad   0
        .quad   0x00009b000000ffff              # base 0, limit 64 KiB, 16-bit code
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt
