# flat protected 0x1000
#
# 32-bit paging with two levels: 4 KiB pages, one of them seen at a second address, and a page fault. For 4 MiB of RAM.
#
# Exits: OUT 0xE9, a byte each, then HLT:
#    'p'        paging is on, and the code runs on
#    5a         written at 0x400000, read at 0x30000: the same page
#    a5         written through a 4 MiB page at 0x800000 + 0x30001, read at 0x30001
#    02         the error code of the fault that a write to 0xC00123 causes: not present, a write, CPL 0
#    23 01 c0   CR2, its lower three bytes
#    'f'        the code after it

        .code32
        .set    DEBUG_CONSOLE, 0xe9
        .set    CODE, 0x08
        .set    DIRECTORY, 0x20000
        .set    TABLE, 0x21000                  # of the first 4 MiB
        .set    ALIASES, 0x22000                # of the second 4 MiB
        .set    IDT, 0x23000
        .set    PAGE, 0x30000
        .set    PRESENT_WRITABLE, 0x03
        .set    LARGE, 0x80
        .set    PSE, 1 << 4                     # of CR4
        .set    PG, 1 << 31                     # of CR0

        .globl  _start
_start:
        mov     $PRESENT_WRITABLE, %eax
        mov     $TABLE, %edi
1:      stosl
        add     $0x1000, %eax
        cmp     $0x400000, %eax
        jb      1b
        movl    $PAGE + PRESENT_WRITABLE, ALIASES
        movl    $TABLE + PRESENT_WRITABLE, DIRECTORY
        movl    $ALIASES + PRESENT_WRITABLE, DIRECTORY + 4
        movl    $LARGE + PRESENT_WRITABLE, DIRECTORY + 8

        movw    $on_page_fault, IDT + 14 * 8    # the handler lies below 64 KiB
        movw    $CODE, IDT + 14 * 8 + 2
        movw    $0x8e00, IDT + 14 * 8 + 4       # present, DPL 0, 32-bit interrupt gate
        lidt    idtr

        mov     %cr4, %eax
        or      $PSE, %eax
        mov     %eax, %cr4
        mov     $DIRECTORY, %eax
        mov     %eax, %cr3
        mov     %cr0, %eax
        or      $PG, %eax
        mov     %eax, %cr0
        jmp     1f
1:      mov     $'p', %al
        out     %al, $DEBUG_CONSOLE

        movb    $0x5a, 0x400000
        mov     PAGE, %al
        out     %al, $DEBUG_CONSOLE
        movb    $0xa5, 0x800000 + PAGE + 1
        mov     PAGE + 1, %al
        out     %al, $DEBUG_CONSOLE
        movb    $0, 0xc00123
after:  mov     $'f', %al
        out     %al, $DEBUG_CONSOLE
halt:   hlt
        jmp     halt

on_page_fault:
        pop     %eax                            # the error code
        out     %al, $DEBUG_CONSOLE
        mov     %cr2, %eax
        out     %al, $DEBUG_CONSOLE
        shr     $8, %eax
        out     %al, $DEBUG_CONSOLE
        shr     $8, %eax
        out     %al, $DEBUG_CONSOLE
        movl    $after, (%esp)
        iret

idtr:   .word   15 * 8 - 1
        .long   IDT
