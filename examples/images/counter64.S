# flat long 0x1000
#
# Each vCPU adds 1 to a counter in guest memory 1000 times and says so on COM1; the last to finish prints the total:
#
#       python -m pyvcpu boot examples/images/counter64.bin --mode long --smp 4
#
#       long mode: vCPU 0 of 4 added 1000               (one such line per vCPU, in any order)
#       long mode: 4000 in all                          (always the last line)
#
# On entry: RDI = vCPU index, RSI = number of vCPUs, CPL 0, RAM and the first 4 GiB identity-mapped, own stack,
# interrupts off. The 32-bit twin is counter32.S.

        .code64
        .set    COM1, 0x3f8
        .set    LSR, COM1 + 5
        .set    LSR_THRE, 0x20                  # transmit holding register empty
        .set    TURNS, 1000

        .globl  _start
_start:
        mov     $TURNS, %ecx
1:      lock incq counter(%rip)
        dec     %ecx
        jnz     1b

        call    lock_console
        lea     text_mode(%rip), %rbx
        call    put_string
        lea     text_vcpu(%rip), %rbx
        call    put_string
        mov     %rdi, %rax
        call    put_decimal
        lea     text_of(%rip), %rbx
        call    put_string
        mov     %rsi, %rax
        call    put_decimal
        lea     text_added(%rip), %rbx
        call    put_string
        incq    finished(%rip)                  # the console lock guards it, too
        cmp     %rsi, finished(%rip)
        jne     2f
        lea     text_mode(%rip), %rbx
        call    put_string
        mov     counter(%rip), %rax
        call    put_decimal
        lea     text_in_all(%rip), %rbx
        call    put_string
2:      movq    $0, console(%rip)               # x86 keeps stores in order: a plain one unlocks
halt:   cli
        hlt
        jmp     halt

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
        call    put_char
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

        .balign 8, 0
console:        .quad   0                       # 1: somebody prints
counter:        .quad   0
finished:       .quad   0                       # vCPUs that have printed their line
text_mode:      .asciz  "long mode: "
text_vcpu:      .asciz  "vCPU "
text_of:        .asciz  " of "
text_added:     .asciz  " added 1000\n"
text_in_all:    .asciz  " in all\n"
