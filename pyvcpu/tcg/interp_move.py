"""Moves, the stack and near branches of the cold tier."""

from __future__ import annotations

from .exceptions import BR, GP, OF, Fault
from .interp import (
    AF,
    CF,
    M16,
    M32,
    M64,
    MASK,
    PF,
    SF,
    ZF,
    add_sp,
    condition,
    get_flags,
    get_reg,
    get_rm,
    overflow,
    pop,
    push,
    set_reg,
    set_rm,
)  # fmt: skip
from .interp_alu import to_signed
from .mmu import load, store
from .paging import canonical
from .segments import load_segment

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn, Operation


def nop(cpu: Cpu, i: Insn) -> None:
    """NOP, hints, prefetches and fences."""


def mov_rm_reg(cpu: Cpu, i: Insn) -> None:
    """MOV r/m, r."""
    set_rm(cpu, i, get_reg(cpu, i.reg, i.size))


def mov_reg_rm(cpu: Cpu, i: Insn) -> None:
    """MOV r, r/m."""
    set_reg(cpu, i.reg, i.size, get_rm(cpu, i))


def mov_rm_imm(cpu: Cpu, i: Insn) -> None:
    """MOV r/m, imm."""
    set_rm(cpu, i, i.imm & MASK[i.size])


def mov_reg_imm(cpu: Cpu, i: Insn) -> None:
    """MOV r, imm."""
    set_reg(cpu, i.reg, i.size, i.imm & MASK[i.size])


def mov_acc_moffs(cpu: Cpu, i: Insn) -> None:
    """MOV rAX, moffs."""
    set_reg(cpu, 0, i.size, load(cpu, i.seg, i.disp, i.size))


def mov_moffs_acc(cpu: Cpu, i: Insn) -> None:
    """MOV moffs, rAX."""
    store(cpu, i.seg, i.disp, i.size, cpu.regs[0] & MASK[i.size])


def mov_rm_sreg(cpu: Cpu, i: Insn) -> None:
    """MOV r/m, Sreg: memory gets 16 bits, a register is zero-extended."""
    selector = cpu.segs[i.reg & 7].selector
    if i.mod == 3:
        set_reg(cpu, i.rm, i.size, selector)
    else:
        store(cpu, i.seg, i.ea(cpu), 2, selector)


def mov_sreg_rm(cpu: Cpu, i: Insn) -> None:
    """MOV Sreg, r/m."""
    selector = cpu.regs[i.rm] & M16 if i.mod == 3 else load(cpu, i.seg, i.ea(cpu), 2)
    load_segment(cpu, i.reg & 7, selector)
    if i.reg & 7 == 2:
        cpu.shadow()


def movzx(source: int) -> Operation:
    """Make MOVZX from `source` bytes."""

    def operation(cpu: Cpu, i: Insn) -> None:
        value = get_reg(cpu, i.rm, source) if i.mod == 3 else load(cpu, i.seg, i.ea(cpu), source)
        set_reg(cpu, i.reg, i.size, value)

    return operation


def movsx(source: int) -> Operation:
    """Make MOVSX and MOVSXD from `source` bytes."""

    def operation(cpu: Cpu, i: Insn) -> None:
        width = min(source, i.size)
        value = get_reg(cpu, i.rm, width) if i.mod == 3 else load(cpu, i.seg, i.ea(cpu), width)
        set_reg(cpu, i.reg, i.size, to_signed(value, width) & MASK[i.size])

    return operation


def movbe_reg_mem(cpu: Cpu, i: Insn) -> None:
    """MOVBE r, m."""
    value = load(cpu, i.seg, i.ea(cpu), i.size)
    set_reg(cpu, i.reg, i.size, int.from_bytes(value.to_bytes(i.size, "little"), "big"))


def movbe_mem_reg(cpu: Cpu, i: Insn) -> None:
    """MOVBE m, r; also MOVNTI without the swap."""
    value = get_reg(cpu, i.reg, i.size)
    store(cpu, i.seg, i.ea(cpu), i.size, int.from_bytes(value.to_bytes(i.size, "little"), "big"))


def lea(cpu: Cpu, i: Insn) -> None:
    """LEA."""
    set_reg(cpu, i.reg, i.size, i.ea(cpu) & MASK[i.size])


def load_far(number: int) -> Operation:
    """Make LES LDS LSS LFS LGS."""

    def operation(cpu: Cpu, i: Insn) -> None:
        offset = i.ea(cpu)
        value = load(cpu, i.seg, offset, i.size)
        selector = load(cpu, i.seg, offset + i.size & i.amask, 2)
        load_segment(cpu, number, selector)
        set_reg(cpu, i.reg, i.size, value)
        if number == 2:
            cpu.shadow()

    return operation


def xlat(cpu: Cpu, i: Insn) -> None:
    """XLAT."""
    offset = cpu.regs[3] + (cpu.regs[0] & 0xFF) & i.amask
    set_reg(cpu, 0, 1, load(cpu, i.seg, offset, 1))


# The stack.
def push_reg(cpu: Cpu, i: Insn) -> None:
    """PUSH r."""
    push(cpu, get_reg(cpu, i.reg, i.size), i.size)


def push_rm(cpu: Cpu, i: Insn) -> None:
    """PUSH r/m."""
    push(cpu, get_rm(cpu, i), i.size)


def push_imm(cpu: Cpu, i: Insn) -> None:
    """PUSH imm."""
    push(cpu, i.imm & MASK[i.size], i.size)


def push_sreg(number: int) -> Operation:
    """Make PUSH Sreg: 16 bits are written, the stack pointer moves by the operand's size."""

    def operation(cpu: Cpu, i: Insn) -> None:
        top = cpu.regs[4] - i.size & cpu.stack_mask
        store(cpu, 2, top, 2 if i.size < 8 else 8, cpu.segs[number].selector)
        add_sp(cpu, -i.size)

    return operation


def pop_reg(cpu: Cpu, i: Insn) -> None:
    """POP r."""
    value = pop(cpu, i.size)
    set_reg(cpu, i.reg, i.size, value)


def pop_rm(cpu: Cpu, i: Insn) -> None:
    """POP r/m: an address with rsp in it uses the rsp after the pop."""
    old = cpu.regs[4]
    value = pop(cpu, i.size)
    try:
        set_rm(cpu, i, value)
    except Exception:
        cpu.regs[4] = old
        raise


def pop_sreg(number: int) -> Operation:
    """Make POP Sreg."""

    def operation(cpu: Cpu, i: Insn) -> None:
        selector = load(cpu, 2, cpu.regs[4] & cpu.stack_mask, 2 if i.size < 8 else 8) & M16
        mask = cpu.stack_mask  # POP SS moves the old stack's pointer
        load_segment(cpu, number, selector)
        old = cpu.regs[4]
        cpu.regs[4] = old + i.size & mask if mask != M16 else old & ~M16 | (old + i.size & M16)
        if number == 2:
            cpu.shadow()

    return operation


def pusha(cpu: Cpu, i: Insn) -> None:
    """PUSHA PUSHAD."""
    size, mask, regs = i.size, cpu.stack_mask, cpu.regs
    top = regs[4]
    if mask == M16 and size * 8 > (top & M16) != 0 and not cpu.protected and top & 1 and (top & M16) < 16:
        raise Fault(GP, 0)
    for at in range(8):
        cpu.probe_store(2, top - size * (at + 1) & mask, size)
    for at in range(8):
        store(cpu, 2, top - size * (at + 1) & mask, size, regs[at] & MASK[size])
    add_sp(cpu, -8 * size)


def popa(cpu: Cpu, i: Insn) -> None:
    """POPA POPAD: the place of rSP is skipped."""
    size, mask = i.size, cpu.stack_mask
    top = cpu.regs[4]
    values = [load(cpu, 2, top + size * at & mask, size) for at in range(8) if at != 3]
    for number, value in zip((7, 6, 5, 3, 2, 1, 0), values, strict=True):
        set_reg(cpu, number, size, value)
    add_sp(cpu, 8 * size)


def enter(cpu: Cpu, i: Insn) -> None:
    """ENTER: a frame with up to 31 copied frame pointers."""
    size, mask, regs = i.size, cpu.stack_mask, cpu.regs
    level = i.imm2 & 31
    top = regs[4]
    base = regs[5]
    top -= size
    store(cpu, 2, top & mask, size, base & MASK[size])
    frame = top
    if level:
        for at in range(1, level):
            value = load(cpu, 2, base - size * at & mask, size)
            top -= size
            store(cpu, 2, top & mask, size, value)
        top -= size
        store(cpu, 2, top & mask, size, frame & mask & MASK[size] if size > 2 else frame & M16)
    top -= i.imm
    cpu.probe_store(2, top & mask, size)
    new = frame & mask if mask != M16 else regs[4] & ~M16 | frame & M16
    add_sp(cpu, top - regs[4])
    set_reg(cpu, 5, size, new & MASK[size])


def leave(cpu: Cpu, i: Insn) -> None:
    """LEAVE."""
    size, mask, regs = i.size, cpu.stack_mask, cpu.regs
    base = regs[5]
    value = load(cpu, 2, base & mask, size)
    regs[4] = base + size & mask if mask != M16 else regs[4] & ~M16 | (base + size & M16)
    set_reg(cpu, 5, size, value)


# Near branches.
def go(cpu: Cpu, target: int) -> None:
    """Jump near: #GP where the target lies outside the code segment."""
    if cpu.bits == 64:
        if not canonical(cpu, target):
            raise Fault(GP, 0)
    elif target > cpu.segs[1].limit:
        raise Fault(GP, 0)
    cpu.rip = target


def branch_target(cpu: Cpu, i: Insn) -> int:
    """Return where a relative branch leads."""
    if cpu.bits == 64:
        return i.next + i.imm & M64
    return i.next + i.imm & (M16 if i.size == 2 else M32)


def jmp_rel(cpu: Cpu, i: Insn) -> None:
    """JMP rel."""
    go(cpu, branch_target(cpu, i))


def jcc(cpu: Cpu, i: Insn) -> None:
    """Jcc rel."""
    if condition(cpu, i.op):
        go(cpu, branch_target(cpu, i))


def call_rel(cpu: Cpu, i: Insn) -> None:
    """CALL rel."""
    call_to(cpu, i, branch_target(cpu, i))


def call_to(cpu: Cpu, i: Insn, target: int) -> None:
    """Call near."""
    old = cpu.rip
    go(cpu, target)
    try:
        push(cpu, old & MASK[i.size], i.size)
    except Exception:
        cpu.rip = old
        raise


def call_rm(cpu: Cpu, i: Insn) -> None:
    """CALL r/m."""
    call_to(cpu, i, get_rm(cpu, i))


def jmp_rm(cpu: Cpu, i: Insn) -> None:
    """JMP r/m."""
    go(cpu, get_rm(cpu, i))


def ret(cpu: Cpu, i: Insn) -> None:
    """RET and RET imm16."""
    target = load(cpu, 2, cpu.regs[4] & cpu.stack_mask, i.size)
    go(cpu, target)
    add_sp(cpu, i.size + i.imm)


def loop(kind: int) -> Operation:
    """Make LOOPNE LOOPE LOOP JCXZ (0 to 3)."""

    def operation(cpu: Cpu, i: Insn) -> None:
        count = get_reg(cpu, 1, i.asize)
        if kind == 3:
            if not count:
                go(cpu, branch_target(cpu, i))
            return
        count = count - 1 & i.amask
        if count and (kind == 2 or condition(cpu, 4) == (kind == 1)):
            go(cpu, branch_target(cpu, i))
        set_reg(cpu, 1, i.asize, count)

    return operation


# Flags.
def change_flags(keep: int, put: int, flip: int) -> Operation:
    """Make CLC STC CMC CLD STD."""

    def operation(cpu: Cpu, i: Insn) -> None:
        cpu.flags = (get_flags(cpu) & keep | put) ^ flip

    return operation


def lahf(cpu: Cpu, i: Insn) -> None:
    """LAHF."""
    set_reg(cpu, 20, 1, get_flags(cpu) & 0xD7 | 2)


def sahf(cpu: Cpu, i: Insn) -> None:
    """SAHF."""
    keep = SF | ZF | AF | PF | CF
    cpu.flags = get_flags(cpu) & ~keep | (cpu.regs[0] >> 8 & keep)


def salc(cpu: Cpu, i: Insn) -> None:
    """SALC (D6): AL becomes 0 or FF as CF is."""
    set_reg(cpu, 0, 1, 0xFF if get_flags(cpu) & CF else 0)


def bound(cpu: Cpu, i: Insn) -> None:
    """BOUND."""
    size = i.size
    index = to_signed(get_reg(cpu, i.reg, size), size)
    offset = i.ea(cpu)
    low = to_signed(load(cpu, i.seg, offset, size), size)
    high = to_signed(load(cpu, i.seg, offset + size & i.amask, size), size)
    if not low <= index <= high:
        raise Fault(BR)


def into(cpu: Cpu, i: Insn) -> None:
    """INTO."""
    if overflow(cpu):
        cpu.software_interrupt(OF)
