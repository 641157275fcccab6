# elf64 0x100000
#
# Starts every other processor with INIT-SIPI-SIPI through its local APIC, and waits until each has counted itself.
# RSI is the number of vCPUs, at most 255.
#
# Exits: port 0xF4 OUT size 1, the number of vCPUs that run; then, if they are run on, HLT.

        .code64
        .set    DEBUG_EXIT, 0xf4
        .set    LOCAL_APIC, 0xfee00000
        .set    SPURIOUS, 0xf0                  # spurious interrupt vector register
        .set    ENABLE, 0x1ff
        .set    ICR, 0x300                      # interrupt command register, low half
        .set    INIT_OTHERS, 0x000c4500         # to all but self, assert, INIT
        .set    SIPI_OTHERS, 0x000c4600         # to all but self, assert, start-up; low byte: the page to start at
        .set    PENDING, 0x1000
        .set    TRAMPOLINE, 0x8000

        .globl  _start
_start:
        mov     %esi, %ebp
        lea     others(%rip), %rsi
        mov     $TRAMPOLINE, %edi
        mov     $(others_end - others), %ecx
        rep movsb
        mov     $LOCAL_APIC, %ebx
        movl    $ENABLE, SPURIOUS(%rbx)
        mov     $INIT_OTHERS, %eax
        call    send
        mov     $(SIPI_OTHERS | TRAMPOLINE >> 12), %eax
        call    send
        mov     $(SIPI_OTHERS | TRAMPOLINE >> 12), %eax
        call    send
1:      pause
        movzwl  TRAMPOLINE + (count - others), %eax
        cmp     %ebp, %eax
        jne     1b
        out     %al, $DEBUG_EXIT
halt:   hlt
        jmp     halt

send:   mov     %eax, ICR(%rbx)
1:      pause
        testl   $PENDING, ICR(%rbx)
        jnz     1b
        ret

        .code16
others: lock incw %cs:(count - others)
1:      hlt
        jmp     1b
count:  .word   1                               # the first one runs already
others_end:
