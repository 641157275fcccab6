# elf32 0x100000
#
# A Multiboot 1 image in 32-bit protected mode, without paging: ten ticks of the local APIC's timer, of about 1 ms each.
# The handler goes back with a far return past EFLAGS.
#
# Exits: port 0xE9 OUT size 1, "t", for each tick; port 0xF4 OUT size 1, 10; then, if it is run on, HLT for good

        .code32
        .set    DEBUG_CONSOLE, 0xe9
        .set    DEBUG_EXIT, 0xf4
        .set    HEADER_MAGIC, 0x1badb002
        .set    HEADER_FLAGS, 0
        .set    LOCAL_APIC, 0xfee00000
        .set    APIC_EOI, 0xb0
        .set    SPURIOUS, 0xf0
        .set    ENABLE, 0x1ff
        .set    TIMER, 0x320                    # local vector table entry
        .set    PERIODIC, 1 << 17
        .set    INITIAL_COUNT, 0x380
        .set    DIVIDE, 0x3e0
        .set    DIVIDE_BY_1, 0xb
        .set    COUNT, 1000000                  # of KVM's 1 GHz
        .set    VECTOR, 0x41
        .set    TICKS, 10
        .set    IDT, 0x20000
        .set    STACK, 0x28000
        .set    GATE, 0x8e00                    # present, DPL 0, 32-bit interrupt gate

        .align  4
        .long   HEADER_MAGIC, HEADER_FLAGS, -(HEADER_MAGIC + HEADER_FLAGS)

        .globl  _start
_start:
        mov     $STACK, %esp
        lgdt    gdtr                            # Multiboot promises descriptors, but no table of them
        ljmp    $8, $1f
1:      mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %ss
        mov     $tick, %eax
        mov     %ax, IDT + VECTOR * 8
        movw    $8, IDT + VECTOR * 8 + 2
        movw    $GATE, IDT + VECTOR * 8 + 4
        shr     $16, %eax
        mov     %ax, IDT + VECTOR * 8 + 6
        lidt    idtr
        mov     $LOCAL_APIC, %ebx
        xor     %ebp, %ebp
        movl    $ENABLE, SPURIOUS(%ebx)
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

        .align  8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff              # 32-bit code, flat
        .quad   0x00cf93000000ffff              # data, flat
gdtr:   .word   3 * 8 - 1
        .long   gdt
idtr:   .word   0x80 * 8 - 1
        .long   IDT
