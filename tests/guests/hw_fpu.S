# flat long 0x1000
#
# x87 and SSE arithmetic at CPL 0.
#
# Exits: OUT 0xE9, a byte each, then HLT:
#    8 bytes    pi + 1, a double (fldpi, fld1, faddp)
#    8 bytes    the square root of 2, a double (cvtsi2sd, sqrtsd)
#   16 bytes    1.5, 2.5, 3.5, 4.5 times 2, floats (mulps)

        .code64
        .set    DEBUG_CONSOLE, 0xe9
        .set    EM_TS, 1 << 2 | 1 << 3          # of CR0
        .set    OSFXSR, 1 << 9                  # of CR4
        .set    RESULTS, 0x20000

        .globl  _start
_start:
        mov     %cr0, %rax
        and     $~EM_TS, %rax
        mov     %rax, %cr0
        mov     %cr4, %rax
        or      $OSFXSR, %rax
        mov     %rax, %cr4

        fninit
        fldpi
        fld1
        faddp
        fstpl   RESULTS
        mov     $2, %eax
        cvtsi2sd %eax, %xmm0
        sqrtsd  %xmm0, %xmm0
        movsd   %xmm0, RESULTS + 8
        movups  factors, %xmm1
        mulps   twos, %xmm1
        movups  %xmm1, RESULTS + 16

        mov     $RESULTS, %esi
        mov     $32, %ecx
1:      lodsb
        out     %al, $DEBUG_CONSOLE
        loop    1b
halt:   hlt
        jmp     halt

        .balign 16, 0
factors: .float 1.5, 2.5, 3.5, 4.5
twos:   .float  2, 2, 2, 2
