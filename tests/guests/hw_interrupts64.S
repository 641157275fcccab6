# flat long 0x1000
#
# hw_interrupts32.S in long mode: the same exits.

        .code64
        .set    DEBUG_CONSOLE, 0xe9
        .set    CODE, 0x18
        .set    IDT, 0x20000
        .set    GATE, 0x8e00                    # present, DPL 0, 64-bit interrupt gate, no stack of its own

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

set_gate:                                       # RAX = handler, below 4 GiB; RBX = vector
        shl     $4, %ebx
        mov     %ax, IDT(%rbx)
        movw    $CODE, IDT + 2(%rbx)
        movw    $GATE, IDT + 4(%rbx)
        shr     $16, %eax
        mov     %ax, IDT + 6(%rbx)
        movq    $0, IDT + 8(%rbx)
        ret

on_breakpoint:
        mov     $'3', %al
        out     %al, $DEBUG_CONSOLE
        iretq
on_number:
        mov     $'n', %al
        out     %al, $DEBUG_CONSOLE
        clc
        iretq
on_undefined:
        mov     $'u', %al
        out     %al, $DEBUG_CONSOLE
        addq    $2, (%rsp)                      # past ud2
        iretq
on_divide:
        mov     $'d', %al
        out     %al, $DEBUG_CONSOLE
        addq    $2, (%rsp)                      # past div
        iretq

idtr:   .word   0x31 * 16 - 1
        .quad   IDT
