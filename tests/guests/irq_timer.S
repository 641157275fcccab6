# elf64 0x100000
#
# A hundred ticks of the local APIC's timer, of about 1 ms each.
#
# Exits: port 0xF4 OUT size 1, 100; then, if it is run on, HLT for good

        .code64
        .set    TIMER, 0x320                    # local vector table entry
        .set    PERIODIC, 1 << 17
        .set    INITIAL_COUNT, 0x380
        .set    DIVIDE, 0x3e0
        .set    DIVIDE_BY_1, 0xb
        .set    COUNT, 1000000                  # of KVM's 1 GHz
        .set    VECTOR, 0x41
        .set    TICKS, 100

        .globl  _start
_start:
        call    prepare
        mov     $tick, %eax
        mov     $VECTOR, %ecx
        call    set_gate
        xor     %ebp, %ebp
        movl    $DIVIDE_BY_1, DIVIDE(%rbx)
        movl    $(PERIODIC | VECTOR), TIMER(%rbx)
        movl    $COUNT, INITIAL_COUNT(%rbx)
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
1:      movl    $0, APIC_EOI(%rbx)
        iretq

        .include "irq_common.inc"
