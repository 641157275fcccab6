# flat long 0x1000
#
# String instructions on ports, with more elements than one exit may hold.
#
# Exits, where one exit may hold several elements of one instruction:
#    1  port 0x500 WRITE size 1, 1024 elements: 0, 1, ... 255 four times  (rep outsb)
#    2  port 0x501 READ  size 1, 1500 elements, to 0x21000               (rep insb)
#    3  port 0x502 WRITE size 4, 1500 elements: what 2 read and what follows it, as numbers of 4 bytes (rep outsl)
#    4  HLT

        .code64
        .set    BYTES, 0x20000
        .set    INPUT, 0x21000

        .globl  _start
_start:
        mov     $BYTES, %edi
        xor     %eax, %eax
1:      stosb
        inc     %eax
        cmp     $1024, %eax
        jne     1b

        mov     $BYTES, %esi
        mov     $1024, %ecx
        mov     $0x500, %edx
        rep outsb

        mov     $INPUT, %edi
        mov     $1500, %ecx
        mov     $0x501, %edx
        rep insb

        mov     $INPUT, %esi
        mov     $1500, %ecx
        mov     $0x502, %edx
        rep outsl
halt:   hlt
        jmp     halt
