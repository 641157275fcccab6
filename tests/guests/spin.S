# flat real 0x1000
#
# Runs for ever without an exit: only a kick gets it out of KVM_RUN.
#
# Exits: none.

        .code16
        .globl  _start
_start:
        jmp     _start
