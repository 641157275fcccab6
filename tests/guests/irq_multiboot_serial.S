# elf32 0x100000
#
# A Multiboot 1 image in 32-bit protected mode, without paging: sends back what arrives on COM1, FIFOs on, by interrupt, up
# to Ctrl-D (4).
#
# Exits, but for those of setting up, for each interrupt:
#   0x3FA IN size 1 (IIR), and while its answer has bit 0 clear: 0x3F8 IN size 1, 0x3F8 OUT of the same byte, 0x3FA IN
#   for a 4, instead of the OUT: port 0xF4 OUT size 1, the low bits of the number of interrupts; then HLT for good

        .code32
        .set    COM1, 0x3f8
        .set    COM1_PIN, 4
        .set    IER, COM1 + 1
        .set    IIR, COM1 + 2
        .set    FCR, COM1 + 2
        .set    MCR, COM1 + 4
        .set    RECEIVED, 0x01                  # in IER
        .set    FIFOS, 0xc7                     # on, cleared, an interrupt at 14 characters or when no more come
        .set    OUT2, 0x0b                      # with DTR and RTS: the interrupt is connected
        .set    CTRL_D, 4
        .set    VECTOR, 0x44

        .globl  _start
_start:
        mov     $serial, %eax
        mov     $VECTOR, %ecx
        mov     $1f, %edx
        jmp     prepare
1:      xor     %ebp, %ebp
        mov     $VECTOR, %eax
        mov     $COM1_PIN, %ecx
        call    set_pin
        mov     $FCR, %edx
        mov     $FIFOS, %al
        out     %al, %dx
        mov     $MCR, %edx
        mov     $OUT2, %al
        out     %al, %dx
        mov     $IER, %edx
        mov     $RECEIVED, %al
        out     %al, %dx
2:      sti
        hlt
        jmp     2b

serial: inc     %ebp
1:      mov     $IIR, %edx
        in      %dx, %al
        test    $1, %al                         # none pending
        jnz     2f
        mov     $COM1, %edx
        in      %dx, %al
        cmp     $CTRL_D, %al
        je      3f
        out     %al, %dx
        jmp     1b
2:      movl    $0, APIC_EOI(%ebx)
        lret    $4
3:      mov     %ebp, %eax
        out     %al, $DEBUG_EXIT
halt:   cli
        hlt
        jmp     halt

        .include "irq_multiboot.inc"
