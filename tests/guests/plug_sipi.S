# flat long 0x1000
#
# The first processor, alone at the start, goes to x2APIC mode and sends INIT and SIPI to each id that port 0x52 tells; 0 is
# none. Whoever gets them tells, in real mode, the id that leaf 0xB has for it.
#
# Exits: on the first processor, port 0x52 IN size 4, for ever; on each other, port 0x53 OUT size 4, its x2APIC id, then Halt.

        .code64
        .set    WHOM, 0x52
        .set    ALIVE, 0x53
        .set    APIC_BASE, 0x1b
        .set    X2APIC, 1 << 10
        .set    SPURIOUS, 0x80f
        .set    ENABLE, 0x1ff
        .set    ICR, 0x830                      # interrupt command register: the destination in EDX
        .set    INIT, 0x4500                    # assert, INIT
        .set    SIPI, 0x4600                    # assert, start-up; low byte: the page to start at
        .set    TRAMPOLINE, 0x8000

        .globl  _start
_start:
        lea     others(%rip), %rsi
        mov     $TRAMPOLINE, %edi
        mov     $(end - others), %ecx
        rep movsb
        mov     $APIC_BASE, %ecx
        rdmsr
        or      $X2APIC, %eax
        wrmsr
        mov     $SPURIOUS, %ecx
        mov     $ENABLE, %eax
        xor     %edx, %edx
        wrmsr
        mov     $ICR, %ecx
1:      in      $WHOM, %eax
        test    %eax, %eax
        jz      1b
        mov     %eax, %edx
        mov     $INIT, %eax
        wrmsr
        mov     $(SIPI | TRAMPOLINE >> 12), %eax
        wrmsr
        jmp     1b

        .code16
others: mov     $0xb, %eax
        xor     %ecx, %ecx
        cpuid
        mov     %edx, %eax
        out     %eax, $ALIVE
1:      hlt
        jmp     1b
end:
