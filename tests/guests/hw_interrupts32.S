# flat protected 0x1000
#
# Interrupts and exceptions through an IDT in 32-bit code, and iret from each. Hardware only: not every KVM that
# interprets knows `int` and `iret`.
#
# Exits: OUT 0xE9, a byte each, then HLT:
#    '3'  int3
#    'n'  int $0x30
#    'c'  the carry flag that the handler of int $0x30 cleared is set again
#    'u'  ud2
#    'd'  a division by zero
#    '.'  the code after the last of them

        .code32
        .set    DEBUG_CONSOLE, 0xe9
        .set    CODE, 0x08
        .set    IDT, 0x20000
        .set    GATE, 0x8e00                    # present, DPL 0, 32-bit interrupt gate

        .globl  _start
_start:
        mov     $on_divide, %eax
        mov     $0, %ebx
        call    set_gate
        mov     $on_breakpoint, %eax
        mov     $3, %ebx
        call    set_gate
        mov     $on_undefined, %eax
        mov     $6, %ebx
        call    set_gate
        mov     $on_number, %eax
        mov     $0x30, %ebx
        call    set_gate
        lidt    idtr

        int3
        stc
        int     $0x30
        jnc     1f
        mov     $'c', %al
        out     %al, $DEBUG_CONSOLE
1:      ud2
        xor     %ecx, %ecx
        div     %ecx                            # 2 bytes
        mov     $'.', %al
        out     %al, $DEBUG_CONSOLE
halt:   hlt
        jmp     halt

set_gate:                                       # EAX = handler, EBX = vector
        mov     %ax, IDT(,%ebx,8)
        movw    $CODE, IDT + 2(,%ebx,8)
        movw    $GATE, IDT + 4(,%ebx,8)
        shr     $16, %eax
        mov     %ax, IDT + 6(,%ebx,8)
        ret

on_breakpoint:
        mov     $'3', %al
        out     %al, $DEBUG_CONSOLE
        iret
on_number:
        mov     $'n', %al
        out     %al, $DEBUG_CONSOLE
        clc
        iret
on_undefined:
        mov     $'u', %al
        out     %al, $DEBUG_CONSOLE
        addl    $2, (%esp)                      # past ud2
        iret
on_divide:
        mov     $'d', %al
        out     %al, $DEBUG_CONSOLE
        addl    $2, (%esp)                      # past div
        iret

idtr:   .word   0x31 * 8 - 1
        .long   IDT
