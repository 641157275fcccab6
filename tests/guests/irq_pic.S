# flat real 0x1000
#
# Ten ticks of the interval timer, through the PICs, in real mode. Needs --irqchip kernel.
#
# Exits: port 0xE9 OUT size 1, "t", for each tick; port 0xF4 OUT size 1, 10; then, if it is run on, HLT for good

        .code16
        .set    DEBUG_CONSOLE, 0xe9
        .set    DEBUG_EXIT, 0xf4
        .set    PIC, 0x20                       # command port of the first, data port next to it
        .set    PIC2, 0xa0
        .set    PIT, 0x40
        .set    TICKS, 10
        .set    PERIOD, 1193                    # of 1193182 Hz: 1 ms

        .globl  _start
_start:
        cli
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $0x8000, %sp
        movw    $tick, 0x20 * 4                 # the vector of the first line, as set below
        mov     %cs, 0x20 * 4 + 2

        mov     $0x11, %al                      # ICW1: edge, cascade, ICW4 follows
        out     %al, $PIC
        out     %al, $PIC2
        mov     $0x20, %al                      # ICW2: vectors from 0x20 on, from 0x28 on
        out     %al, $PIC + 1
        mov     $0x28, %al
        out     %al, $PIC2 + 1
        mov     $4, %al                         # ICW3: the second is on line 2
        out     %al, $PIC + 1
        mov     $2, %al
        out     %al, $PIC2 + 1
        mov     $1, %al                         # ICW4: 8086 mode
        out     %al, $PIC + 1
        out     %al, $PIC2 + 1
        mov     $0xfe, %al                      # all masked, save the timer
        out     %al, $PIC + 1
        mov     $0xff, %al
        out     %al, $PIC2 + 1

        mov     $0x34, %al                      # counter 0, both bytes, mode 2
        out     %al, $PIT + 3
        mov     $PERIOD & 0xff, %al
        out     %al, $PIT
        mov     $PERIOD >> 8, %al
        out     %al, $PIT
        xor     %bx, %bx
1:      sti
        hlt
        cli
        cmp     $TICKS, %bx
        jb      1b
        mov     %bl, %al
        out     %al, $DEBUG_EXIT
halt:   cli
        hlt
        jmp     halt

tick:   cmp     $TICKS, %bx
        jae     1f                              # one more came before the last was looked at
        inc     %bx
        mov     $'t', %al
        out     %al, $DEBUG_CONSOLE
1:      mov     $0x20, %al                      # non-specific end of interrupt
        out     %al, $PIC
        iret
