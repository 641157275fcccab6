# flat long 0x1000
#
# SYSRET to CPL 3 and SYSCALL back, on page tables of its own. For 2 MiB of RAM.
#
# Exits: OUT 0xE9, a byte each, then HLT:
#    23         CS in user code
#    1b         SS in user code
#    08         CS after SYSCALL
#    'r'        RCX is the address after the SYSCALL instruction
#    'i'        the interrupt flag that user code had is clear, as FMASK says, and set in R11

        .code64
        .set    DEBUG_CONSOLE, 0xe9
        .set    PML4, 0x20000
        .set    POINTERS, 0x21000
        .set    DIRECTORY, 0x22000
        .set    USER_ALL, 0x07                  # present, writable, for user code too
        .set    LARGE, 0x80
        .set    KERNEL_CODE, 0x08               # kernel data follows it; user data and user code follow that
        .set    KERNEL_DATA, 0x10
        .set    EFER, 0xc0000080
        .set    SCE, 1
        .set    STAR, 0xc0000081
        .set    LSTAR, 0xc0000082
        .set    FMASK, 0xc0000084
        .set    IF, 1 << 9

        .globl  _start
_start:
        movq    $POINTERS + USER_ALL, PML4
        movq    $DIRECTORY + USER_ALL, POINTERS
        movq    $LARGE + USER_ALL, DIRECTORY
        mov     $PML4, %eax
        mov     %rax, %cr3
        mov     $0x30000, %esp

        lgdt    gdtr
        pushq   $KERNEL_CODE
        pushq   $1f
        lretq
1:      mov     $KERNEL_DATA, %eax
        mov     %eax, %ss

        mov     $EFER, %ecx
        rdmsr
        or      $SCE, %eax
        wrmsr
        mov     $STAR, %ecx
        xor     %eax, %eax
        mov     $KERNEL_DATA << 16 | KERNEL_CODE, %edx
        wrmsr
        mov     $LSTAR, %ecx
        mov     $on_syscall, %eax
        xor     %edx, %edx
        wrmsr
        mov     $FMASK, %ecx
        mov     $IF, %eax
        wrmsr

        mov     $user, %ecx
        mov     $IF | 2, %r11d
        sysretq

user:   mov     %cs, %eax
        mov     %ss, %ebx
        syscall
back:

on_syscall:
        out     %al, $DEBUG_CONSOLE
        mov     %ebx, %eax
        out     %al, $DEBUG_CONSOLE
        mov     %cs, %eax
        out     %al, $DEBUG_CONSOLE
        cmp     $back, %rcx
        jne     halt
        mov     $'r', %al
        out     %al, $DEBUG_CONSOLE
        pushfq
        pop     %rax
        test    $IF, %eax
        jnz     halt
        test    $IF, %r11d
        jz      halt
        mov     $'i', %al
        out     %al, $DEBUG_CONSOLE
halt:   hlt
        jmp     halt

        .balign 8, 0
gdt:    .quad   0
        .quad   0x00af9b000000ffff              # kernel code, 64-bit
        .quad   0x00cf93000000ffff              # kernel data
        .quad   0x00cff3000000ffff              # user data
        .quad   0x00affb000000ffff              # user code, 64-bit
gdtr:   .word   gdtr - gdt - 1
        .quad   gdt
