# flat protected 0x1000
#
# 32-bit paging with three levels (PAE): hw_paging32.S with 64-bit entries and 2 MiB pages, and a page that must not be
# executed. For 4 MiB of RAM.
#
# Exits: OUT 0xE9, a byte each, then HLT:
#    'p'        paging is on, and the code runs on
#    5a         written at 0x40000000, read at 0x30000: the same page
#    a5         written through a 2 MiB page at 0x600000 + 0x30001, read at 0x30001
#    11         the error code of the fault that a jump to 0x40000000 causes: present, an instruction fetch, CPL 0
#    00 00 00   CR2, its lower three bytes
#    'f'        the code after it

        .code32
        .set    DEBUG_CONSOLE, 0xe9
        .set    CODE, 0x08
        .set    POINTERS, 0x20000
        .set    DIRECTORY, 0x21000              # of the first GiB
        .set    DIRECTORY2, 0x22000             # of the second GiB
        .set    ALIASES, 0x24000                # of its first 2 MiB
        .set    IDT, 0x23000
        .set    PAGE, 0x30000
        .set    PRESENT, 0x01                   # all that an entry of POINTERS may say
        .set    PRESENT_WRITABLE, 0x03
        .set    LARGE, 0x80
        .set    NO_EXECUTE, 1 << 31             # in the upper half of an entry
        .set    PAE, 1 << 5                     # of CR4
        .set    PG, 1 << 31                     # of CR0
        .set    EFER, 0xc0000080
        .set    NXE, 1 << 11

        .globl  _start
_start:
        movl    $LARGE + PRESENT_WRITABLE, DIRECTORY
        movl    $0x200000 + LARGE + PRESENT_WRITABLE, DIRECTORY + 8
        movl    $LARGE + PRESENT_WRITABLE, DIRECTORY + 3 * 8
        movl    $ALIASES + PRESENT_WRITABLE, DIRECTORY2
        movl    $PAGE + PRESENT_WRITABLE, ALIASES
        movl    $NO_EXECUTE, ALIASES + 4
        movl    $DIRECTORY + PRESENT, POINTERS
        movl    $DIRECTORY2 + PRESENT, POINTERS + 8

        movw    $on_page_fault, IDT + 14 * 8    # the handler lies below 64 KiB
        movw    $CODE, IDT + 14 * 8 + 2
        movw    $0x8e00, IDT + 14 * 8 + 4       # present, DPL 0, 32-bit interrupt gate
        lidt    idtr

        mov     $EFER, %ecx
        rdmsr
        or      $NXE, %eax
        wrmsr
        mov     %cr4, %eax
        or      $PAE, %eax
        mov     %eax, %cr4
        mov     $POINTERS, %eax
        mov     %eax, %cr3
        mov     %cr0, %eax
        or      $PG, %eax
        mov     %eax, %cr0
        jmp     1f
1:      mov     $'p', %al
        out     %al, $DEBUG_CONSOLE

        movb    $0x5a, 0x40000000
        mov     PAGE, %al
        out     %al, $DEBUG_CONSOLE
        movb    $0xa5, 0x600000 + PAGE + 1
        mov     PAGE + 1, %al
        out     %al, $DEBUG_CONSOLE
        mov     $0x40000000, %eax
        jmp     *%eax
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
