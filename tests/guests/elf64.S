# elf64 0x100000
#
# What a plain 64-bit ELF image may count on: long mode, a stack, RDI its index, RSI the number of vCPUs, zeros where
# the file has no bytes, all RAM and the first 4 GiB mapped.
#
# Exits, on the first vCPU (the others wait, or do the same with start="all"):
#   port 0xE9 OUT size 1 for each character of "elf64 I/N\n", with I the index and N the number of vCPUs, one digit each
#   port 0xF4 OUT size 1: 00, or 01 when a byte of .bss is not zero; then, if it is run on, HLT

        .code64
        .set    DEBUG_CONSOLE, 0xe9
        .set    DEBUG_EXIT, 0xf4

        .globl  _start
_start:
        lea     text(%rip), %rbx
        call    say                             # needs the stack
        lea     '0'(%rdi), %eax
        out     %al, $DEBUG_CONSOLE
        mov     $'/', %al
        out     %al, $DEBUG_CONSOLE
        lea     '0'(%rsi), %eax
        out     %al, $DEBUG_CONSOLE
        mov     $'\n', %al
        out     %al, $DEBUG_CONSOLE
        lea     zeros(%rip), %rbx
        mov     $ZEROS, %ecx
        xor     %eax, %eax
1:      or      (%rbx), %al
        inc     %rbx
        dec     %ecx
        jnz     1b
        test    %al, %al
        setnz   %al
        out     %al, $DEBUG_EXIT
halt:   hlt
        jmp     halt

say:    mov     (%rbx), %al
        test    %al, %al
        jz      1f
        out     %al, $DEBUG_CONSOLE
        inc     %rbx
        jmp     say
1:      ret

text:   .asciz  "elf64 "

        .bss
        .set    ZEROS, 1000
zeros:  .skip   ZEROS
