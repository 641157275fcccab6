# elf32 0x100000
#
# elf64.S in 32-bit protected mode with paging off: the same exits, with "elf32" (index in EDI, number of vCPUs in ESI).

        .code32
        .set    DEBUG_CONSOLE, 0xe9
        .set    DEBUG_EXIT, 0xf4

        .globl  _start
_start:
        mov     $text, %ebx
        call    say                             # needs the stack
        lea     '0'(%edi), %eax
        out     %al, $DEBUG_CONSOLE
        mov     $'/', %al
        out     %al, $DEBUG_CONSOLE
        lea     '0'(%esi), %eax
        out     %al, $DEBUG_CONSOLE
        mov     $'\n', %al
        out     %al, $DEBUG_CONSOLE
        mov     $zeros, %ebx
        mov     $ZEROS, %ecx
        xor     %eax, %eax
1:      or      (%ebx), %al
        inc     %ebx
        dec     %ecx
        jnz     1b
        test    %al, %al
        setnz   %al
        out     %al, $DEBUG_EXIT
halt:   hlt
        jmp     halt

say:    mov     (%ebx), %al
        test    %al, %al
        jz      1f
        out     %al, $DEBUG_CONSOLE
        inc     %ebx
        jmp     say
1:      ret

text:   .asciz  "elf32 "

        .bss
        .set    ZEROS, 1000
zeros:  .skip   ZEROS
