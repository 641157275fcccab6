# flat real 0x1000
#
# Shows that every vCPU started exactly once, with an index of its own and the right number of vCPUs. No spin locks:
# it does as well with 1024 vCPUs on 2 processors.
#
# Memory: 0x2000 + 2 * index: 16-bit count of starts with that index (1024 of them, up to 0x2800); 0x3000: 16-bit
# number of vCPUs that have arrived. Both must be zero at the start.
#
# Exits, with N vCPUs:
#   the last to arrive: port 0xE9 OUT size 1, byte by byte: "0 1\n1 1\n" ... "N-1 1\n" (index, blank, count); HLT
#   each of the others: HLT
# A vCPU that is run on after its HLT halts again.

        .code16
        .set    DEBUG_CONSOLE, 0xe9
        .set    STARTS, 0x2000
        .set    ARRIVED, 0x3000

        .globl  _start
_start:
        mov     %di, %bx
        add     %bx, %bx
        lock incw STARTS(%bx)
        mov     $1, %ax
        lock xaddw %ax, ARRIVED
        inc     %ax
        cmp     %si, %ax
        jne     halt

        xor     %bp, %bp                        # BP = index to print
1:      mov     %bp, %ax
        call    put_decimal
        mov     $' ', %al
        out     %al, $DEBUG_CONSOLE
        mov     %bp, %bx
        add     %bx, %bx
        mov     STARTS(%bx), %ax
        call    put_decimal
        mov     $'\n', %al
        out     %al, $DEBUG_CONSOLE
        inc     %bp
        cmp     %si, %bp
        jne     1b
halt:   hlt
        jmp     halt

put_decimal:                                    # AX = number; one level of recursion per digit
        xor     %dx, %dx
        mov     $10, %cx
        div     %cx
        push    %dx
        test    %ax, %ax
        jz      1f
        call    put_decimal
1:      pop     %ax
        add     $'0', %al
        out     %al, $DEBUG_CONSOLE
        ret
