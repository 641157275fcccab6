# flat long 0x1000
#
# Port I/O of every size, plain and as string instructions in both directions. For one vCPU.
#
# Exits, in order (bytes in the order in which they lie in memory):
#    1  0x600 OUT size 1  11
#    2  0x602 OUT size 2  11 22
#    3  0x604 OUT size 4  11 22 33 44
#    4  0x608 IN  size 1, then 0x60C OUT size 4: the byte read, 22 33 44     (IN AL keeps the rest of EAX)
#    5  0x608 IN  size 2, then 0x60C OUT size 4: the 2 bytes read, 33 44     (IN AX keeps the upper half of EAX)
#    6  0x608 IN  size 4, then 0x60C OUT size 4: the 4 bytes read; 0x60C OUT size 4: 00 00 00 00
#                                                                            (IN EAX clears the upper half of RAX)
#    7  0x60F OUT size 1  fe                                                 (port number in the high range of 0x60x)
#    8  0x610 OUT size 1, 4 elements:  "a" "b" "c" "d"                       (rep outsb)
#    9  0x612 OUT size 2, 2 elements:  "ab" "cd"                             (rep outsw)
#   10  0x614 OUT size 4, 2 elements:  "abcd" "efgh"                         (rep outsl)
#   11  0x610 OUT size 1, 4 elements:  "d" "c" "b" "a"                       (rep outsb with DF set)
#   12  0x618 IN  size 1, 6 elements into 0x4000 upwards, then 0x61C OUT size 1, 6 elements: the same bytes again
#   13  0x618 IN  size 2, 3 elements into 0x4000 upwards, then 0x61C OUT size 2, 3 elements: the same again
#   14  0x618 IN  size 4, 2 elements into 0x4000 upwards, then 0x61C OUT size 4, 2 elements: the same again
#   15  0x618 IN  size 1, 4 elements into 0x4003 downwards, then 0x61C OUT size 1, 4 elements upwards: reversed
#   16  rep insb and rep outsb with a count of 0: no exit at all
#   17  0x61D OUT size 1: the low byte of what is left of the count of step 15, 00
#   18  HLT
# How many elements of a string instruction come in one exit is up to KVM: only their order is fixed.

        .code64
        .set    BUFFER, 0x4000

        .globl  _start
_start:
        cld
        mov     $0x8877665544332211, %rax
        mov     $0x600, %edx
        out     %al, %dx
        mov     $0x602, %edx
        out     %ax, %dx
        mov     $0x604, %edx
        out     %eax, %dx

        mov     $0x608, %edx
        in      %dx, %al
        call    show_eax
        mov     $0x8877665544332211, %rax
        in      %dx, %ax
        call    show_eax
        mov     $0x8877665544332211, %rax
        in      %dx, %eax
        call    show_eax
        shr     $32, %rax
        call    show_eax
        mov     $0xfe, %al
        mov     $0x60f, %edx
        out     %al, %dx

        lea     text(%rip), %rsi
        mov     $4, %ecx
        mov     $0x610, %edx
        rep outsb
        lea     text(%rip), %rsi
        mov     $2, %ecx
        mov     $0x612, %edx
        rep outsw
        lea     text(%rip), %rsi
        mov     $2, %ecx
        mov     $0x614, %edx
        rep outsl
        std
        lea     text+3(%rip), %rsi
        mov     $4, %ecx
        mov     $0x610, %edx
        rep outsb
        cld

        mov     $BUFFER, %edi
        mov     $6, %ecx
        mov     $0x618, %edx
        rep insb
        mov     $BUFFER, %esi
        mov     $6, %ecx
        mov     $0x61c, %edx
        rep outsb

        mov     $BUFFER, %edi
        mov     $3, %ecx
        mov     $0x618, %edx
        rep insw
        mov     $BUFFER, %esi
        mov     $3, %ecx
        mov     $0x61c, %edx
        rep outsw

        mov     $BUFFER, %edi
        mov     $2, %ecx
        mov     $0x618, %edx
        rep insl
        mov     $BUFFER, %esi
        mov     $2, %ecx
        mov     $0x61c, %edx
        rep outsl

        std
        mov     $BUFFER + 3, %edi
        mov     $4, %ecx
        mov     $0x618, %edx
        rep insb
        mov     %ecx, %ebx                      # 0 when the instruction has finished
        cld
        mov     $BUFFER, %esi
        mov     $4, %ecx
        mov     $0x61c, %edx
        rep outsb

        xor     %ecx, %ecx
        mov     $0x618, %edx
        rep insb
        rep outsb
        mov     $0x61d, %edx
        mov     %bl, %al
        out     %al, %dx
halt:   hlt
        jmp     halt

show_eax:                                       # keeps RAX and RDX
        push    %rdx
        mov     $0x60c, %edx
        out     %eax, %dx
        pop     %rdx
        ret

text:   .ascii  "abcdefgh"
