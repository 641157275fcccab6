# elf64 0x100000
#
# Starts the application processors one after the other: INIT, SIPI, and a second SIPI, which must change nothing, to each
# id from 1 on. RSI is the number of vCPUs, whose ids are 0 to RSI - 1. Each says its id in protected mode.
#
# Exits: on each application processor, port 0xE9 OUT size 1, its local APIC's id; on the first, when all have counted
# themselves: port 0xF4 OUT size 1, how many times an application processor started

        .code64
        .set    DEBUG_CONSOLE, 0xe9
        .set    DEBUG_EXIT, 0xf4
        .set    LOCAL_APIC, 0xfee00000
        .set    APIC_ID, 0x20
        .set    SPURIOUS, 0xf0
        .set    ENABLE, 0x1ff
        .set    ICR, 0x300                      # interrupt command register, low half
        .set    ICR_HIGH, 0x310
        .set    INIT, 0x4500                    # assert, INIT
        .set    SIPI, 0x4600                    # assert, start-up; low byte: the page to start at
        .set    PENDING, 0x1000
        .set    TRAMPOLINE, 0x8000

        .globl  _start
_start:
        mov     %esi, %ebp
        lea     others(%rip), %rsi
        mov     $TRAMPOLINE, %edi
        mov     $(others_end - others), %ecx
        rep movsb
        mov     $LOCAL_APIC, %ebx
        movl    $ENABLE, SPURIOUS(%rbx)
        mov     $1, %edi                        # the next id
1:      cmp     %ebp, %edi
        je      2f
        mov     $INIT, %eax
        call    send
        mov     $(SIPI | TRAMPOLINE >> 12), %eax
        call    send
        mov     $(SIPI | TRAMPOLINE >> 12), %eax
        call    send
        inc     %edi
        jmp     1b
2:      dec     %ebp
3:      pause
        mov     TRAMPOLINE + (count - others), %eax
        cmp     %ebp, %eax
        jb      3b
        out     %al, $DEBUG_EXIT
halt:   hlt
        jmp     halt

send:   mov     %edi, %ecx
        shl     $24, %ecx
        mov     %ecx, ICR_HIGH(%rbx)
        mov     %eax, ICR(%rbx)
1:      pause
        testl   $PENDING, ICR(%rbx)
        jnz     1b
        ret

        .code16
others: cli
        mov     %cs, %ax
        mov     %ax, %ds
        lgdtl   gdtr - others
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   $8, $(TRAMPOLINE + (1f - others))
        .code32
1:      mov     $16, %eax
        mov     %eax, %ds
        mov     LOCAL_APIC + APIC_ID, %eax
        shr     $24, %eax
        out     %al, $DEBUG_CONSOLE
        lock incl TRAMPOLINE + (count - others)
2:      hlt
        jmp     2b

        .balign 8, 0
gdt:    .quad   0
        .quad   0x00cf9b000000ffff              # 32-bit code, flat
        .quad   0x00cf93000000ffff              # data, flat
gdtr:   .word   3 * 8 - 1
        .long   TRAMPOLINE + (gdt - others)
        .balign 4, 0
count:  .long   0
others_end:
