# flat long 0x1000
#
# Every vCPU executes CPUID for each leaf in the list and writes what it got to 0x100000 + index * 0x1000: function,
# subleaf, EAX, EBX, ECX, EDX, 4 bytes each, in the list's order. Then it halts.
#
# Exits: one Halt per vCPU.

        .code64
        .set    RESULTS, 0x100000

        .globl  _start
_start:
        mov     %rdi, %r8
        shl     $12, %r8
        add     $RESULTS, %r8                   # R8 = where the next result goes
        lea     list(%rip), %r9                 # R9 = the next leaf to ask
        lea     end(%rip), %r10
1:      mov     (%r9), %eax
        mov     4(%r9), %ecx
        mov     %eax, (%r8)
        mov     %ecx, 4(%r8)
        cpuid
        mov     %eax, 8(%r8)
        mov     %ebx, 12(%r8)
        mov     %ecx, 16(%r8)
        mov     %edx, 20(%r8)
        add     $24, %r8
        add     $8, %r9
        cmp     %r10, %r9
        jne     1b
halt:   hlt
        jmp     halt

        .balign 4, 0
list:
        .long   0x0, 0
        .long   0x1, 0
        .long   0x4, 0, 0x4, 1, 0x4, 2, 0x4, 3
        .long   0x7, 0
        .long   0xb, 0, 0xb, 1, 0xb, 2
        .long   0x1f, 0, 0x1f, 1, 0x1f, 2
        .long   0x40000000, 0, 0x40000001, 0, 0x40000010, 0
        .long   0x40000100, 0, 0x40000101, 0
        .long   0x80000000, 0, 0x80000001, 0, 0x80000008, 0
        .long   0x8000001d, 0, 0x8000001d, 1, 0x8000001d, 2, 0x8000001d, 3
        .long   0x8000001e, 0
end:
