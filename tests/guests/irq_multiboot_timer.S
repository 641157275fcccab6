# elf32 0x100000
#
# A Multiboot 1 image in 32-bit protected mode, without paging: ten ticks of the local APIC's timer, of about 1 ms each.
#
# Exits: port 0xE9 OUT size 1, "t", for each tick; port 0xF4 OUT size 1, 10; then, if it is run on, HLT for good

        .code32
        .set    TIMER, 0x320                    # local vector table entry
        .set    PERIODIC, 1 << 17
        .set    INITIAL_COUNT, 0x380
        .set    DIVIDE, 0x3e0
        .set    DIVIDE_BY_1, 0xb
        .set    COUNT, 1000000                  # of KVM's 1 GHz
        .set    VECTOR, 0x41
        .set    TICKS, 10

        .globl  _start
_start:
        mov     $tick, %eax
        mov     $VECTOR, %ecx
        mov     $1f, %edx
        jmp     prepare
1:      xor     %ebp, %ebp
        movl    $DIVIDE_BY_1, DIVIDE(%ebx)
        movl    $(PERIODIC | VECTOR), TIMER(%ebx)
        movl    $COUNT, INITIAL_COUNT(%ebx)
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
