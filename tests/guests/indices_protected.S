# flat protected 0x1000
#
# indices_real.S in 32-bit protected mode: the same memory and the same exits (indices in EDI, number of vCPUs in ESI).

        .code32
        .set    DEBUG_CONSOLE, 0xe9
        .set    STARTS, 0x2000
        .set    ARRIVED, 0x3000

        .globl  _start
_start:
        lock incw STARTS(,%edi,2)
        mov     $1, %eax
        lock xaddw %ax, ARRIVED
        inc     %eax
        cmp     %esi, %eax
        jne     halt

        xor     %ebp, %ebp                      # EBP = index to print
1:      mov     %ebp, %eax
        call    put_decimal
        mov     $' ', %al
        out     %al, $DEBUG_CONSOLE
        movzwl  STARTS(,%ebp,2), %eax
        call    put_decimal
        mov     $'\n', %al
        out     %al, $DEBUG_CONSOLE
        inc     %ebp
        cmp     %esi, %ebp
        jne     1b
halt:   hlt
        jmp     halt

put_decimal:                                    # EAX = number; one level of recursion per digit
        xor     %edx, %edx
        mov     $10, %ecx
        div     %ecx
        push    %edx
        test    %eax, %eax
        jz      1f
        call    put_decimal
1:      pop     %eax
        add     $'0', %al
        out     %al, $DEBUG_CONSOLE
        ret
