# flat long 0x1000
#
# indices_real.S in long mode: the same memory and the same exits (indices in RDI, number of vCPUs in RSI).

        .code64
        .set    DEBUG_CONSOLE, 0xe9
        .set    STARTS, 0x2000
        .set    ARRIVED, 0x3000

        .globl  _start
_start:
        lock incw STARTS(,%rdi,2)
        mov     $1, %eax
        lock xaddw %ax, ARRIVED
        inc     %eax
        cmp     %rsi, %rax
        jne     halt

        xor     %ebp, %ebp                      # RBP = index to print
1:      mov     %rbp, %rax
        call    put_decimal
        mov     $' ', %al
        out     %al, $DEBUG_CONSOLE
        movzwl  STARTS(,%rbp,2), %eax
        call    put_decimal
        mov     $'\n', %al
        out     %al, $DEBUG_CONSOLE
        inc     %rbp
        cmp     %rsi, %rbp
        jne     1b
halt:   hlt
        jmp     halt

put_decimal:                                    # RAX = number; one level of recursion per digit
        xor     %edx, %edx
        mov     $10, %ecx
        div     %rcx
        push    %rdx
        test    %rax, %rax
        jz      1f
        call    put_decimal
1:      pop     %rax
        add     $'0', %al
        out     %al, $DEBUG_CONSOLE
        ret
