# flat long 0x1000
#
# The vCPUs share the work that a device on the host hands out, one number at a time.
#
# The device is one 32-bit port, 0x500. For each vCPU on its own:
#       IN  gives the next number to work on; 0 means there are no more
#       OUT takes the answer for the number that this vCPU was given last
# The question: how many steps does n take to reach 1, when each step halves an even n and makes an odd n 3n + 1?
# Between the two, the vCPU prints "27 takes 111 steps" to the debug console (port 0xE9). After a 0 it halts.
#
# On entry: CPL 0, own stack, interrupts off. Any number of vCPUs does, 1 included.

        .code64
        .set    DEVICE, 0x500
        .set    DEBUG_CONSOLE, 0xe9

        .globl  _start
_start:
        mov     $DEVICE, %edx
        in      %dx, %eax                       # clears the upper half of RAX
        test    %eax, %eax
        jz      halt
        mov     %rax, %r8                       # R8 = n
        call    count_steps
        mov     %rax, %r9                       # R9 = the answer
        call    lock_console
        mov     %r8, %rax
        call    put_decimal
        lea     text_takes(%rip), %rbx
        call    put_string
        mov     %r9, %rax
        call    put_decimal
        lea     text_steps(%rip), %rbx
        call    put_string
        movq    $0, console(%rip)               # x86 keeps stores in order: a plain one unlocks
        mov     %r9d, %eax
        mov     $DEVICE, %edx
        out     %eax, %dx
        jmp     _start
halt:   cli
        hlt
        jmp     halt

count_steps:                                    # RAX = n, gives RAX = steps; no n below 2^32 overflows 64 bits
        xor     %ecx, %ecx
1:      cmp     $1, %rax
        je      3f
        inc     %ecx
        test    $1, %al
        jnz     2f
        shr     %rax
        jmp     1b
2:      lea     1(%rax,%rax,2), %rax
        jmp     1b
3:      mov     %ecx, %eax
        ret

lock_console:
        mov     $1, %eax
        xchg    %rax, console(%rip)             # xchg with memory locks the bus by itself
        test    %rax, %rax
        jz      2f
1:      pause
        cmpq    $0, console(%rip)               # spin on a read: it does not bounce the cache line
        jne     1b
        jmp     lock_console
2:      ret

put_string:                                     # RBX = text, ends with a zero byte
        mov     (%rbx), %al
        test    %al, %al
        jz      1f
        out     %al, $DEBUG_CONSOLE
        inc     %rbx
        jmp     put_string
1:      ret

put_decimal:                                    # RAX = number; one level of recursion per digit
        xor     %edx, %edx
        mov     $10, %ecx
        div     %rcx                            # RAX = the digits before, RDX = the last one
        push    %rdx
        test    %rax, %rax
        jz      1f
        call    put_decimal
1:      pop     %rax
        add     $'0', %al
        out     %al, $DEBUG_CONSOLE
        ret

        .balign 8, 0
console:        .quad   0                       # 1: somebody prints
text_takes:     .asciz  " takes "
text_steps:     .asciz  " steps\n"
