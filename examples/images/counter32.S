# flat protected 0x1000
#
# Each vCPU adds 1 to a counter in guest memory 1000 times and says so on COM1; the last to finish prints the total:
#
#       python -m pyvcpu boot examples/images/counter32.bin --mode protected --smp 4
#
#       protected mode: vCPU 0 of 4 added 1000          (one such line per vCPU, in any order)
#       protected mode: 4000 in all                     (always the last line)
#
# On entry: EDI = vCPU index, ESI = number of vCPUs, flat 4 GiB segments, paging off, own stack, interrupts off.
# Without the lock prefix of the `incl` below the total may fall short.

        .code32
        .set    COM1, 0x3f8
        .set    LSR, COM1 + 5
        .set    LSR_THRE, 0x20                  # transmit holding register empty
        .set    TURNS, 1000

        .globl  _start
_start:
        mov     $TURNS, %ecx
1:      lock incl counter
        dec     %ecx
        jnz     1b

        call    lock_console
        mov     $text_mode, %ebx
        call    put_string
        mov     $text_vcpu, %ebx
        call    put_string
        mov     %edi, %eax
        call    put_decimal
        mov     $text_of, %ebx
        call    put_string
        mov     %esi, %eax
        call    put_decimal
        mov     $text_added, %ebx
        call    put_string
        incl    finished                        # the console lock guards it, too
        cmp     %esi, finished
        jne     2f
        mov     $text_mode, %ebx
        call    put_string
        mov     counter, %eax
        call    put_decimal
        mov     $text_in_all, %ebx
        call    put_string
2:      movl    $0, console                     # x86 keeps stores in order: a plain one unlocks
halt:   cli
        hlt
        jmp     halt

lock_console:
        mov     $1, %eax
        xchg    %eax, console                   # xchg with memory locks the bus by itself
        test    %eax, %eax
        jz      2f
1:      pause
        cmpl    $0, console                     # spin on a read: it does not bounce the cache line
        jne     1b
        jmp     lock_console
2:      ret

put_string:                                     # EBX = text, ends with a zero byte
        mov     (%ebx), %al
        test    %al, %al
        jz      1f
        call    put_char
        inc     %ebx
        jmp     put_string
1:      ret

put_decimal:                                    # EAX = number; one level of recursion per digit
        xor     %edx, %edx
        mov     $10, %ecx
        div     %ecx                            # EAX = the digits before, EDX = the last one
        push    %edx
        test    %eax, %eax
        jz      1f
        call    put_decimal
1:      pop     %eax
        add     $'0', %al
put_char:                                       # AL = character
        mov     %al, %ah
        mov     $LSR, %edx
1:      in      %dx, %al
        test    $LSR_THRE, %al
        jz      1b
        mov     $COM1, %edx
        mov     %ah, %al
        out     %al, %dx
        ret

        .balign 4, 0
console:        .long   0                       # 1: somebody prints
counter:        .long   0
finished:       .long   0                       # vCPUs that have printed their line
text_mode:      .asciz  "protected mode: "
text_vcpu:      .asciz  "vCPU "
text_of:        .asciz  " of "
text_added:     .asciz  " added 1000\n"
text_in_all:    .asciz  " in all\n"
