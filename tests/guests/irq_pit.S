# elf64 0x100000
#
# Ten ticks of the interval timer, through the IOAPIC. Needs --irqchip kernel.
#
# Exits: port 0xE9 OUT size 1, "t", for each tick; port 0xF4 OUT size 1, 10; then, if it is run on, HLT for good

        .code64
        .set    PIT, 0x40
        .set    PIT_PIN, 0                      # the pin of each ISA interrupt has its number
        .set    PERIOD, 1193                    # of 1193182 Hz: 1 ms
        .set    VECTOR, 0x42
        .set    TICKS, 10

        .globl  _start
_start:
        call    prepare
        mov     $tick, %eax
        mov     $VECTOR, %ecx
        call    set_gate
        mov     $VECTOR, %eax
        mov     $PIT_PIN, %ecx
        call    set_pin
        mov     $0x34, %al                      # counter 0, both bytes, mode 2
        out     %al, $PIT + 3
        mov     $PERIOD & 0xff, %al
        out     %al, $PIT
        mov     $PERIOD >> 8, %al
        out     %al, $PIT
        xor     %ebp, %ebp
1:      sti
        hlt
        cli
        cmp     $TICKS, %ebp
        jb      1b
        mov     %ebp, %eax
        out     %al, $DEBUG_EXIT
halt:   cli
        hlt
        jmp     halt

tick:   cmp     $TICKS, %ebp
        jae     1f                              # one more came before the last was looked at
        inc     %ebp
        mov     $'t', %al
        out     %al, $DEBUG_CONSOLE
1:      movl    $0, APIC_EOI(%rbx)
        iretq

        .include "irq_common.inc"
