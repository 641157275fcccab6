# flat long 0x1000
#
# Every vCPU computes a checksum over its own 16 KiB of memory, which it changes, with the interrupts of its local
# APIC's timer coming in. The first one waits for the others and sums up.
#
# Memory: 0x8ff0, set by the host: how many rounds, 0 for 12 (4 bytes);
# 0x9000 + 8 * index: the checksum of each; 0xa000 + 8 * index: how many ticks came (at least one).
# Exits: port 0xF4 OUT size 1, the low byte of the sum of all checksums

        .code64
        .set    DEBUG_EXIT, 0xf4
        .set    LOCAL_APIC, 0xfee00000
        .set    APIC_EOI, 0xb0
        .set    SPURIOUS, 0xf0
        .set    TIMER, 0x320
        .set    PERIODIC, 1 << 17
        .set    INITIAL_COUNT, 0x380
        .set    DIVIDE, 0x3e0
        .set    DIVIDE_BY_1, 0xb
        .set    COUNT, 3000000
        .set    VECTOR, 0x41
        .set    GATE, 0x8e00
        .set    WANTED, 0x8ff0
        .set    DONE, 0x8ff8
        .set    SUMS, 0x9000
        .set    TICKS, 0xa000
        .set    IDT, 0x10000
        .set    BUFFERS, 0x40000
        .set    WORDS, 2048                     # of 8 bytes
        .set    ROUNDS, 12

        .globl  _start
_start: mov     %rdi, %r8                       # index
        mov     %rsi, %r9                       # how many
        mov     $tick, %eax                     # all write the same into the one table
        mov     %ax, IDT + 16 * VECTOR
        mov     %cs, IDT + 16 * VECTOR + 2
        movw    $GATE, IDT + 16 * VECTOR + 4
        shr     $16, %eax
        mov     %ax, IDT + 16 * VECTOR + 6
        lidt    idtr(%rip)
        mov     $LOCAL_APIC, %ebx
        movl    $0x1ff, SPURIOUS(%rbx)
        movl    $DIVIDE_BY_1, DIVIDE(%rbx)
        movl    $(PERIODIC | VECTOR), TIMER(%rbx)
        movl    $COUNT, INITIAL_COUNT(%rbx)
        sti
        mov     %r8, %r10                       # R10 = this one's buffer
        shl     $14, %r10
        add     $BUFFERS, %r10
        lea     1(%r8), %rax                    # RAX = checksum
        mov     WANTED, %r11d
        test    %r11d, %r11d
        jnz     1f
        mov     $ROUNDS, %r11d
1:      xor     %ecx, %ecx
2:      rol     $7, %rax
        add     (%r10,%rcx,8), %rax
        xor     %rcx, %rax
        imul    $0x01000193, %rax, %rax
        mov     %rax, (%r10,%rcx,8)
        inc     %ecx
        cmp     $WORDS, %ecx
        jb      2b
        dec     %r11d
        jnz     1b
3:      cmpq    $0, TICKS(,%r8,8)               # with interrupts on: there was one
        je      3b
        mov     %rax, SUMS(,%r8,8)
        lock incq DONE
        test    %r8, %r8
        jnz     halt
4:      pause
        cmp     %r9, DONE
        jne     4b
        xor     %eax, %eax
5:      dec     %r9
        add     SUMS(,%r9,8), %rax
        test    %r9, %r9
        jnz     5b
        out     %al, $DEBUG_EXIT
halt:   hlt
        jmp     halt

tick:   incq    TICKS(,%r8,8)
        movl    $0, APIC_EOI(%rbx)
        iretq

idtr:   .word   0x80 * 16 - 1
        .quad   IDT
