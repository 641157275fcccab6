# flat real 0x1000
#
# Each vCPU prints one whole line to the debug console, such as "hello from vCPU 2 of 4", and halts.
#
#       python -m pyvcpu boot examples/images/hello.bin --smp 4
#
# On entry: DI = vCPU index, SI = number of vCPUs, CS = DS = ES = 0, own stack, interrupts off.
# The lines come in any order but never mixed: a vCPU holds a lock in guest memory while it prints.

        .code16
        .set    DEBUG_CONSOLE, 0xe9

        .globl  _start
_start:
        call    lock_console
        mov     $text_hello, %bx
        call    put_string
        mov     %di, %ax
        call    put_decimal
        mov     $text_of, %bx
        call    put_string
        mov     %si, %ax
        call    put_decimal
        mov     $'\n', %al
        call    put_char
        movw    $0, console                     # x86 keeps stores in order: a plain one unlocks
halt:   cli
        hlt
        jmp     halt

lock_console:
        lock btsw $0, console                   # CF = it was taken already
        jnc     2f
1:      pause
        testw   $1, console                     # spin on a read: it does not bounce the cache line
        jnz     1b
        jmp     lock_console
2:      ret

put_string:                                     # BX = text, ends with a zero byte
        mov     (%bx), %al
        test    %al, %al
        jz      1f
        call    put_char
        inc     %bx
        jmp     put_string
1:      ret

put_decimal:                                    # AX = number; one level of recursion per digit
        xor     %dx, %dx
        mov     $10, %cx
        div     %cx                             # AX = the digits before, DX = the last one
        push    %dx
        test    %ax, %ax
        jz      1f
        call    put_decimal
1:      pop     %ax
        add     $'0', %al
put_char:                                       # AL = character
        out     %al, $DEBUG_CONSOLE
        ret

        .balign 2, 0
console:        .word   0                       # bit 0: somebody prints
text_hello:     .asciz  "hello from vCPU "
text_of:        .asciz  " of "
