# flat real 0x1000
#
# Every vCPU writes down with what it starts, in rows of 64 bytes from 0x8000 on that hold 8 bytes for each: EAX, EBX, ECX,
# EDX, ESI, EDI, EBP, ESP, FLAGS, DS, CR0, CR2, DR0, DR7, SYSENTER_CS, KERNEL_GS_BASE, and bits 47-16 of the time-stamp
# counter. It tells so, and leaves traces in all of them; vCPU 2 also sets its counter forward by 2^44. Then it counts, in
# the upper half of its 8 bytes at 0x9000, and notes bits 47-16 of the counter in the lower half, for ever.
#
# Exits: port 0x51 OUT size 1, once per life.

        .code16
        .set    ROWS, 0x8000
        .set    NOTES, 0x9000
        .set    BORN, 0x51
        .set    TSC, 0x10
        .set    SYSENTER_CS, 0x174
        .set    KERNEL_GS_BASE, 0xc0000102

        .macro  note row, register
        mov     \register, ROWS + 64 * \row(, %edi, 8)
        .endm

        .globl  _start
_start:
        note    0, %eax
        note    1, %ebx
        note    2, %ecx
        note    3, %edx
        note    4, %esi
        note    5, %edi
        note    6, %ebp
        note    7, %esp
        pushf
        popw    ROWS + 64 * 8(, %edi, 8)
        note    9, %ds
        mov     %cr0, %eax
        note    10, %eax
        mov     %cr2, %eax
        note    11, %eax
        mov     %dr0, %eax
        note    12, %eax
        mov     %dr7, %eax
        note    13, %eax
        mov     $SYSENTER_CS, %ecx
        rdmsr
        note    14, %eax
        mov     $KERNEL_GS_BASE, %ecx
        rdmsr
        note    15, %eax
        rdtsc
        shrd    $16, %edx, %eax
        note    16, %eax
        out     %al, $BORN

        mov     $0x5a5a5a5a, %eax
        mov     %eax, %ebx
        mov     %eax, %esi
        mov     %eax, %ebp
        mov     %eax, %esp
        mov     %eax, %cr2
        mov     %eax, %dr0
        xor     %edx, %edx
        mov     $SYSENTER_CS, %ecx
        wrmsr
        mov     $KERNEL_GS_BASE, %ecx
        wrmsr
        cmp     $2, %edi
        jne     1f
        rdtsc
        add     $1 << 12, %edx
        mov     $TSC, %ecx
        wrmsr
1:      rdtsc
        shrd    $16, %edx, %eax
        mov     %eax, NOTES(, %edi, 8)
        incl    NOTES + 4(, %edi, 8)
        jmp     1b
