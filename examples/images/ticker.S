# flat real 0x1000
#
# Each vCPU counts for ever: the 32-bit word at 0x8000 + 4 * index goes up by 1 each turn and wraps.
# Nothing is printed and nothing exits, so whoever looks at the words from outside sees which vCPUs run:
# two looks at a paused vCPU's word find the same number, two looks at a running one's find different ones.
#
#       python -m pyvcpu boot examples/images/ticker.bin --smp 4 --timeout 1
#
# On entry: DI = vCPU index (up to 1023: the words end at 0x9000), DS = 0.

        .code16
        .set    COUNTERS, 0x8000

        .globl  _start
_start:
        mov     %di, %bx
        shl     $2, %bx
1:      incl    COUNTERS(%bx)                   # nobody else writes this word: no lock prefix
        jmp     1b
