# flat real 0x1000
#
# Sends back each byte that arrives on COM1, up to Ctrl-D (4), which ends the run with debug-exit value 0 (status 1).
#
# Exits:
#   port 0x3FD IN size 1 again and again, while bit 0 (data ready) of the answer is clear
#   for each byte that is not 4: 0x3F8 IN size 1; 0x3FD IN size 1 until bit 5 (THR empty) is set; 0x3F8 OUT that byte
#   for a 4: 0x3F8 IN size 1; 0xF4 OUT size 1, 00; then, if it is run on, HLT

        .code16
        .set    COM1, 0x3f8
        .set    LSR, COM1 + 5
        .set    LSR_DR, 0x01                    # data ready
        .set    LSR_THRE, 0x20                  # transmit holding register empty
        .set    CTRL_D, 4
        .set    DEBUG_EXIT, 0xf4

        .globl  _start
_start:
        mov     $LSR, %dx
1:      pause
        in      %dx, %al
        test    $LSR_DR, %al
        jz      1b
        mov     $COM1, %dx
        in      %dx, %al
        cmp     $CTRL_D, %al
        je      done
        mov     %al, %ah
        mov     $LSR, %dx
2:      in      %dx, %al
        test    $LSR_THRE, %al
        jz      2b
        mov     $COM1, %dx
        mov     %ah, %al
        out     %al, %dx
        jmp     _start

done:   xor     %al, %al
        out     %al, $DEBUG_EXIT
halt:   hlt
        jmp     halt
