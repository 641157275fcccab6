# flat protected 0x1000
#
# An exception that no handler can take: the IDT has room for no gate, so #UD becomes a double and then a triple fault.
#
# Exits: SHUTDOWN. EIP is then at the ud2 (0x1007), save on AMD processors: there KVM resets the registers first.

        .code32
        .globl  _start
_start:
        lidt    no_idt
        ud2

no_idt: .word   0                               # limit: not even the first gate fits
        .long   0
