"""Operands and flags, for the operations of the cold tier.

Flags are lazy. Cpu.fw is 0: RFLAGS is whole in Cpu.flags. Else the low byte of fw is the width of the last operation in
bits, fr its result (not cut to the width: a carry or borrow is bit `width`), fa and fb its operands; a logical one has
fa = fr and fb = 0. INC and DEC leave CF alone: then fw >> 8 is 1 plus the number of the bit of fc that is CF.
"""

from __future__ import annotations

from .mmu import load, load_for_store, store

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Insn

M8, M16, M32, M64 = 0xFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
MASK = (0, M8, M16, 0, M32, 0, 0, 0, M64)
CF, PF, AF, ZF, SF, TF, IF, DF, OF = 1, 4, 0x10, 0x40, 0x80, 0x100, 0x200, 0x400, 0x800
IOPL, NT, RF, VM, ACF, VIF, VIP, ID = 0x3000, 0x4000, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21
STATUS = CF | PF | AF | ZF | SF | OF
PARITY = tuple(4 * (1 - bin(number).count("1") % 2) for number in range(256))


def get_reg(cpu: Cpu, number: int, size: int) -> int:
    """Read a general register."""
    if size == 8:
        return cpu.regs[number]
    if size == 4:
        return cpu.regs[number] & M32
    if size == 2:
        return cpu.regs[number] & M16
    return cpu.regs[number - 20] >> 8 & M8 if number >= 20 else cpu.regs[number] & M8


def set_reg(cpu: Cpu, number: int, size: int, value: int) -> None:
    """Write a general register; `value` fits the size."""
    regs = cpu.regs
    if size >= 4:
        regs[number] = value
    elif size == 2:
        regs[number] = regs[number] & ~M16 | value
    elif number >= 20:
        regs[number - 20] = regs[number - 20] & ~0xFF00 | value << 8
    else:
        regs[number] = regs[number] & ~M8 | value


def get_rm(cpu: Cpu, i: Insn) -> int:
    """Read the operand that ModRM names."""
    if i.mod == 3:
        return get_reg(cpu, i.rm, i.size)
    return load(cpu, i.seg, i.ea(cpu), i.size)


def get_rm_for_store(cpu: Cpu, i: Insn) -> int:
    """Read the operand that ModRM names and the instruction is going to write."""
    if i.mod == 3:
        return get_reg(cpu, i.rm, i.size)
    return load_for_store(cpu, i.seg, i.ea(cpu), i.size)


def set_rm(cpu: Cpu, i: Insn, value: int) -> None:
    """Write the operand that ModRM names."""
    if i.mod == 3:
        set_reg(cpu, i.rm, i.size, value)
    else:
        store(cpu, i.seg, i.ea(cpu), i.size, value)


def flags_of(fw: int, fr: int, fa: int, fb: int, fc: int, flags: int) -> int:
    """Work out RFLAGS from the lazy parts."""
    if not fw:
        return flags
    width = fw & 0xFF
    carries = fr ^ fa ^ fb
    carry = fc >> (fw >> 8) - 1 & 1 if fw >> 8 else fr >> width & 1
    result = (
        carry
        | PARITY[fr & M8]
        | carries & AF
        | (fr >> width - 8 & SF)
        | ((carries >> width ^ carries >> width - 1) & 1) << 11
    )
    if not fr & ((1 << width) - 1):
        result |= ZF
    return flags & ~STATUS | result


def get_flags(cpu: Cpu) -> int:
    """Return RFLAGS, and keep them worked out."""
    if cpu.fw:
        cpu.flags = flags_of(cpu.fw, cpu.fr, cpu.fa, cpu.fb, cpu.fc, cpu.flags)
        cpu.fw = 0
    return cpu.flags


def set_status(cpu: Cpu, value: int) -> None:
    """Replace all six status flags."""
    cpu.flags = cpu.flags & ~STATUS | value
    cpu.fw = 0


def carry(cpu: Cpu) -> int:
    """Return CF."""
    width = cpu.fw
    if not width:
        return cpu.flags & 1
    if width < 256:
        return cpu.fr >> width & 1
    return cpu.fc >> (width >> 8) - 1 & 1


def zero(cpu: Cpu) -> bool:
    """Return ZF."""
    width = cpu.fw
    if not width:
        return bool(cpu.flags & ZF)
    return not cpu.fr & ((1 << (width & 0xFF)) - 1)


def sign(cpu: Cpu) -> int:
    """Return SF."""
    width = cpu.fw & 0xFF
    return cpu.fr >> width - 1 & 1 if width else cpu.flags >> 7 & 1


def overflow(cpu: Cpu) -> int:
    """Return OF."""
    width = cpu.fw & 0xFF
    if not width:
        return cpu.flags >> 11 & 1
    carries = cpu.fr ^ cpu.fa ^ cpu.fb
    return (carries >> width ^ carries >> width - 1) & 1


def parity(cpu: Cpu) -> int:
    """Return PF as 0 or another number."""
    return PARITY[cpu.fr & M8] if cpu.fw else cpu.flags & PF


def condition(cpu: Cpu, code: int) -> bool:
    """Tell whether a condition code (the low four bits of Jcc, SETcc, CMOVcc) holds."""
    kind = code >> 1 & 7
    if kind == 0:
        held: int = overflow(cpu)
    elif kind == 1:
        held = carry(cpu)
    elif kind == 2:
        held = zero(cpu)
    elif kind == 3:
        held = zero(cpu) or carry(cpu)
    elif kind == 4:
        held = sign(cpu)
    elif kind == 5:
        held = parity(cpu)
    elif kind == 6:
        held = sign(cpu) != overflow(cpu)
    else:
        held = zero(cpu) or sign(cpu) != overflow(cpu)
    return not held if code & 1 else bool(held)


def set_lazy(cpu: Cpu, width: int, result: int, first: int, second: int) -> None:
    """Note an operation that sets all six status flags."""
    cpu.fw, cpu.fr, cpu.fa, cpu.fb = width, result, first, second


def set_with_carry(cpu: Cpu, width: int, result: int, carry_bit: int, overflow_bit: int) -> None:
    """Set SF, ZF and PF from a result, CF and OF as given, AF to 0."""
    mask = (1 << width) - 1
    result = result & mask | carry_bit << width
    # fr ^ fa must have OF between its two upper bits, and nothing in bit 4
    cpu.fw, cpu.fr, cpu.fa, cpu.fb = width, result, result ^ overflow_bit << width, 0


# The stack.
def push(cpu: Cpu, value: int, size: int) -> None:
    """Push onto the stack: the store first, then rsp."""
    mask = cpu.stack_mask
    regs = cpu.regs
    top = regs[4] - size & mask
    store(cpu, 2, top, size, value)
    regs[4] = top if mask != M16 else regs[4] & ~M16 | top


def pop(cpu: Cpu, size: int) -> int:
    """Pop from the stack."""
    mask = cpu.stack_mask
    regs = cpu.regs
    value = load(cpu, 2, regs[4] & mask, size)
    add_sp(cpu, size)
    return value


def add_sp(cpu: Cpu, count: int) -> None:
    """Add to the stack pointer, as wide as the stack is."""
    mask = cpu.stack_mask
    old = cpu.regs[4]
    cpu.regs[4] = old + count & mask if mask != M16 else old & ~M16 | (old + count & M16)
