# flat long 0x1000
#
# Memory-mapped I/O of every size at 0xD0000000, where there must be no RAM. For one vCPU.
# After each read, the guest writes RAX to 0xD0000080, so that the host sees what the guest made of its answer.
#
# Exits, in order (offsets from 0xD0000000, bytes in the order in which they lie in memory):
#    1  +00 WRITE size 1  11
#    2  +08 WRITE size 2  11 22
#    3  +10 WRITE size 4  11 22 33 44
#    4  +18 WRITE size 8  11 22 33 44 55 66 77 88
#    5  +20 WRITE size 4  78 56 34 12                                        (an immediate)
#    6  +28 WRITE size 8  fe ff ff ff ff ff ff ff                            (an immediate, sign-extended)
#    7  +30 READ  size 1, then +80 WRITE size 8: the byte read, 22 33 44 55 66 77 88
#    8  +32 READ  size 2, then +80 WRITE size 8: the 2 bytes read, 33 44 55 66 77 88
#    9  +34 READ  size 4, then +80 WRITE size 8: the 4 bytes read, 00 00 00 00
#   10  +38 READ  size 8, then +80 WRITE size 8: the 8 bytes read
#   11  +40 READ  size 1, then +80 WRITE size 8: the byte read, 7 times 00     (movzx)
#   12  +41 READ  size 1, then +80 WRITE size 8: the byte read, sign-extended  (movsx)
#   13  +48 READ  size 4, +48 WRITE size 4: the number read plus 1             (inc)
#   14  +FFE WRITE size 2  11 22, +1000 WRITE size 2  33 44                    (4 bytes across a page boundary)
#   15  HLT

        .code64
        .set    MMIO, 0xd0000000

        .globl  _start
_start:
        mov     $MMIO, %ebx
        mov     $0x8877665544332211, %rcx
        mov     %cl, (%rbx)
        mov     %cx, 0x08(%rbx)
        mov     %ecx, 0x10(%rbx)
        mov     %rcx, 0x18(%rbx)
        movl    $0x12345678, 0x20(%rbx)
        movq    $-2, 0x28(%rbx)

        mov     %rcx, %rax
        mov     0x30(%rbx), %al
        mov     %rax, 0x80(%rbx)
        mov     %rcx, %rax
        mov     0x32(%rbx), %ax
        mov     %rax, 0x80(%rbx)
        mov     %rcx, %rax
        mov     0x34(%rbx), %eax
        mov     %rax, 0x80(%rbx)
        mov     0x38(%rbx), %rax
        mov     %rax, 0x80(%rbx)
        movzbl  0x40(%rbx), %eax
        mov     %rax, 0x80(%rbx)
        movsbq  0x41(%rbx), %rax
        mov     %rax, 0x80(%rbx)

        incl    0x48(%rbx)
        mov     %ecx, 0xffe(%rbx)
halt:   hlt
        jmp     halt
