# elf32 0x100000
#
# A Multiboot 1 image in 32-bit protected mode, without paging: ten ticks of the interval timer, through the IOAPIC. Needs
# --irqchip kernel.
#
# Exits: port 0xE9 OUT size 1, "t", for each tick; port 0xF4 OUT size 1, 10; then, if it is run on, HLT for good

        .code32
        .set    PIT, 0x40
        .set    PIT_PIN, 0                      # the pin of each ISA interrupt has its number
        .set    PERIOD, 1193                    # of 1193182 Hz: 1 ms
        .set    VECTOR, 0x42
        .set    TICKS, 10

        .globl  _start
_start:
        mov     $tick, %eax
        mov     $VECTOR, %ecx
        mov     $1f, %edx
        jmp     prepare
1:      xor     %ebp, %ebp
        mov     $VECTOR, %eax
        mov     $PIT_PIN, %ecx
        call    set_pin
        mov     $0x34, %al                      # counter 0, both bytes, mode 2
        out     %al, $PIT + 3
        mov     $PERIOD & 0xff, %al
        out     %al, $PIT
        mov     $PERIOD >> 8, %al
        out     %al, $PIT
2:      sti
        hlt
        cmp     $TICKS, %ebp
        jb      2b
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
1:      movl    $0, APIC_EOI(%ebx)
        lret    $4

        .include "irq_multiboot.inc"
