# elf64 0x100000
#
# Says "interrupts", one character for each transmitter-empty interrupt of COM1. Port 0x50 as in irq_serial.S.
#
# Exits: 0x50 IN size 1; then, but for those of setting up, for each interrupt:
#   0x3FA IN size 1 (IIR): 02; 0x3F8 OUT size 1, the next character
#   at the end: 0x3FA IN; 0x3F9 OUT size 1, 00; port 0xF4 OUT size 1, the number of interrupts; then HLT for good

        .code64
        .set    ASK, 0x50
        .set    COM1, 0x3f8
        .set    COM1_PIN, 4
        .set    IER, COM1 + 1
        .set    IIR, COM1 + 2
        .set    MCR, COM1 + 4
        .set    EMPTY, 0x02                     # in IER, and in IIR
        .set    OUT2, 0x0b
        .set    VECTOR, 0x44

        .globl  _start
_start:
        call    prepare
        mov     $serial, %eax
        mov     $VECTOR, %ecx
        call    set_gate
        xor     %ebp, %ebp
        mov     $text, %esi
        in      $ASK, %al
        test    %al, %al
        mov     $VECTOR, %eax
        jz      1f
        mov     $(LEVEL | VECTOR), %eax
1:      mov     $COM1_PIN, %ecx
        call    set_pin
        mov     $MCR, %edx
        mov     $OUT2, %al
        out     %al, %dx
        mov     $IER, %edx
        mov     $EMPTY, %al
        out     %al, %dx
1:      sti
        hlt
        jmp     1b

serial: inc     %ebp
        mov     $IIR, %edx
        in      %dx, %al
        cmp     $EMPTY, %al
        mov     $0xff, %eax
        jne     done                            # not what was asked for
        mov     (%rsi), %al
        inc     %esi
        test    %al, %al
        jz      1f
        mov     $COM1, %edx
        out     %al, %dx
        movl    $0, APIC_EOI(%rbx)
        iretq
1:      mov     $IER, %edx
        out     %al, %dx
        mov     %ebp, %eax
done:   out     %al, $DEBUG_EXIT
halt:   cli
        hlt
        jmp     halt

text:   .asciz  "interrupts"

        .include "irq_common.inc"
