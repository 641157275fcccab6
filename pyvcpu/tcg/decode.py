"""From bytes to a decoded instruction, by the tables in opcodes.py (SDM vol. 2 chapter 2 and appendix A)."""

from __future__ import annotations

from .exceptions import GP, UD, Fault

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .cpu import Cpu

    Operation = Callable[["Cpu", "Insn"], None]
    Plain = tuple[Operation, str]
    Choose = Callable[["Insn", int, int], Plain | None]
    Entry = tuple[Operation, str] | tuple[None, str, Choose]

M16, M32, M64 = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
MASKS = {2: M16, 4: M32, 8: M64}
MAPS: dict[int, Entry] = {}  # opcodes.py fills it
MEDIA: list[Callable[[Insn, int, bytes, int], Plain | None]] = []  # opcodes.media: where x87 and SSE are looked up
PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))
SEGMENT_PREFIX = {0x26: 0, 0x2E: 1, 0x36: 2, 0x3E: 3, 0x64: 4, 0x65: 5}
NO_REG = -1
NO_OPCODE = 0x400  # of what cannot be an instruction
RIP = -2  # base of a RIP-relative operand


class Insn:
    """A decoded instruction. Register numbers include REX bits; of a byte operand AH CH DH BH are 20 to 23."""

    __slots__ = (
        "amask", "asize", "base", "disp", "ea", "ends", "fn", "imm", "imm2", "index", "length", "lock", "mod", "modrm",
        "next", "op", "prefix", "reg", "rep", "rex", "rip", "rm", "scale", "seg", "size",
    )  # fmt: skip

    ea: Callable[[Cpu], int]  # the effective address of the memory operand
    fn: Operation

    def __init__(self, rip: int) -> None:
        self.rip = rip
        self.next = self.op = self.length = 0
        self.mod, self.reg, self.rm, self.modrm = 3, 0, 0, 0
        self.base = self.index = NO_REG
        self.scale = self.disp = self.imm = self.imm2 = 0
        self.seg = 3
        self.size = self.asize = 4
        self.amask = M32
        self.rep = self.prefix = self.rex = 0
        self.lock = self.ends = False


def undefined(cpu: Cpu, i: Insn) -> None:
    """Raise #UD."""
    raise Fault(UD)


def too_long(cpu: Cpu, i: Insn) -> None:
    """Raise the #GP of an instruction of more than 15 bytes."""
    raise Fault(GP, 0)


def locked(fn: Operation) -> Operation:
    """Make an operation atomic between the vCPUs of a VM."""

    def atomically(cpu: Cpu, i: Insn) -> None:
        with cpu.platform.lock:
            fn(cpu, i)

    return atomically


def address_of(base: int, index: int, scale: int, disp: int, mask: int) -> Callable[[Cpu], int]:
    """Return a function that computes an effective address."""
    if index == NO_REG:
        if base == NO_REG:
            constant = disp & mask
            return lambda cpu: constant
        return lambda cpu: cpu.regs[base] + disp & mask
    if base == NO_REG:
        return lambda cpu: (cpu.regs[index] << scale) + disp & mask
    return lambda cpu: cpu.regs[base] + (cpu.regs[index] << scale) + disp & mask


PAIRS_16 = ((3, 6), (3, 7), (5, 6), (5, 7), (6, NO_REG), (7, NO_REG), (5, NO_REG), (3, NO_REG))


def signed(code: bytes, at: int, size: int) -> int:
    """Read a signed little-endian number; IndexError where the bytes end."""
    if at + size > len(code):
        raise IndexError
    return int.from_bytes(code[at : at + size], "little", signed=True)


def modrm(code: bytes, at: int, i: Insn, bits: int, override: int) -> int:
    """Decode ModRM, SIB and displacement; returns the place behind them."""
    byte = i.modrm = code[at]
    at += 1
    mod = i.mod = byte >> 6
    rex = i.rex
    i.reg = (byte >> 3 & 7) | (rex & 4) << 1
    rm = byte & 7
    if mod == 3:
        i.rm = rm | (rex & 1) << 3
        return at
    base, index = rm, NO_REG
    if i.asize == 2:
        base, index = PAIRS_16[rm]
        stack = base == 5
        if mod == 0 and rm == 6:
            base, stack, width = NO_REG, False, 2
        else:
            width = mod  # 0, 1 or 2 bytes
    else:
        width = (0, 1, 4)[mod]
        if rm == 4:
            sib = code[at]
            at += 1
            i.scale = sib >> 6
            index = (sib >> 3 & 7) | (rex & 2) << 2
            if index == 4:
                index = NO_REG
            base = sib & 7
            if base == 5 and mod == 0:
                base, width = NO_REG, 4
        elif rm == 5 and mod == 0:
            base, width = RIP if bits == 64 else NO_REG, 4
        if base >= 0:
            base |= (rex & 1) << 3
        stack = base in (4, 5)
    if width:
        i.disp = signed(code, at, width)
    i.base, i.index, i.rm = base, index, rm
    if override >= 0:
        i.seg = override
    elif stack:
        i.seg = 2
    return at + width


def finish_address(i: Insn) -> None:
    """Make the function that computes the effective address, when the instruction's length is known."""
    if i.base == RIP:
        i.base, i.disp = NO_REG, (i.next + i.disp) & i.amask
    i.ea = address_of(i.base, i.index, i.scale, i.disp, i.amask)


def decode(code: bytes, at: int, bits: int, rip: int) -> Insn:
    """Decode one instruction at code[at:]. IndexError: the bytes end within it."""
    i = Insn(rip)
    start = at
    override = -1
    operand16 = address_other = False
    while True:
        byte = code[at]
        if byte not in PREFIXES and (bits != 64 or byte & 0xF0 != 0x40):
            break
        if byte in SEGMENT_PREFIX:
            seg = SEGMENT_PREFIX[byte]
            if bits != 64 or seg >= 4:
                override = seg
            i.rex = 0
        elif byte == 0x66:
            operand16 = True
            i.rex = 0
        elif byte == 0x67:
            address_other = True
            i.rex = 0
        elif byte == 0xF0:
            i.lock = True
            i.rex = 0
        elif byte in (0xF2, 0xF3):
            i.rep = byte
            i.rex = 0
        else:
            i.rex = byte
        at += 1
        if at - start > 14:
            i.fn, i.ends, i.length, i.next, i.op = too_long, True, 15, rip, NO_OPCODE
            return i
    rex = i.rex
    if bits == 64:
        i.asize = 4 if address_other else 8
        i.size = 8 if rex & 8 else 2 if operand16 else 4
    else:
        i.asize = 4 if (bits == 32) != address_other else 2
        i.size = 4 if (bits == 32) != operand16 else 2
    i.amask = MASKS[i.asize]
    i.prefix = i.rep or (0x66 if operand16 else 0)
    at += 1
    table = 0
    if byte == 0x0F:
        byte = code[at]
        at += 1
        table = 1
        if byte in (0x38, 0x3A):
            table = 2 if byte == 0x38 else 3
            byte = code[at]
            at += 1
    i.op = op = table << 8 | byte
    entry = MAPS.get(op)
    if entry is None or (op in (0x62, 0xC4, 0xC5) and bits != 64 and code[at] >= 0xC0):
        entry = MEDIA[0](i, bits, code, at) if entry is None else None
    if entry is not None and entry[0] is None:  # a group: the opcode goes on in ModRM
        entry = entry[2](i, code[at], bits)
    if entry is None:
        i.fn, i.ends = undefined, True
        i.length = at - start
        i.next = rip + i.length & (M64 if bits == 64 else M32)
        return i
    fn = entry[0]
    form = FORMS.get(entry[1]) or add_form(entry[1])
    assert fn is not None
    if form.byte:
        i.size = 1
    elif form.wide and bits == 64:
        i.size = 2 if form.wide == "d" and operand16 and not rex & 8 else 8
    if override >= 0:
        i.seg = override
    if form.modrm:
        if form.registers:  # MOV CR and DR: a register whatever the mod field says
            i.modrm = code[at]
            at += 1
            i.reg = (i.modrm >> 3 & 7) | (rex & 4) << 1
            i.rm = (i.modrm & 7) | (rex & 1) << 3
        else:
            at = modrm(code, at, i, bits, override)
    elif form.plus:
        i.reg = (byte & 7) | (rex & 1) << 3
    if not rex and (form.byte or form.byte_rm):
        if form.byte and 4 <= i.reg < 8 and (form.general or form.plus):
            i.reg += 16
        if i.mod == 3 and 4 <= i.rm < 8 and form.modrm:
            i.rm += 16
    for take in form.immediates:
        at = take(code, at, i, bits)
    length = i.length = at - start
    if length > 15:
        i.fn, i.ends, i.next, i.op = too_long, True, rip, NO_OPCODE
        return i
    if at > len(code):
        raise IndexError
    i.next = rip + length & (M64 if bits == 64 else M32)
    i.ends = form.ends
    i.fn = fn
    if form.only is not None and form.only != (bits == 64):
        i.fn, i.ends = undefined, True
    elif i.mod == 3:
        if form.memory_only or i.lock:
            i.fn, i.ends = undefined, True
    elif i.lock:
        if form.lockable:
            i.fn = locked(fn)
        else:
            i.fn, i.ends = undefined, True
    elif form.always_locked:
        i.fn = locked(fn)
        i.lock = True
    if i.mod != 3 and form.modrm:
        finish_address(i)
    return i


class Form:
    """What the letters of a form mean (see opcodes.py)."""

    __slots__ = (
        "always_locked", "byte", "byte_rm", "ends", "general", "immediates", "lockable", "memory_only", "modrm", "only",
        "plus", "registers", "wide",
    )  # fmt: skip

    def __init__(self, letters: str) -> None:
        self.byte, self.byte_rm, self.plus, self.general = (
            "1" in letters,
            "h" in letters,
            "+" in letters,
            "g" in letters,
        )
        self.registers = "r" in letters
        self.modrm = "m" in letters or self.registers
        self.wide = "d" if "d" in letters else "f" if "f" in letters else ""
        self.ends, self.lockable, self.always_locked = "x" in letters, "L" in letters, "K" in letters
        self.memory_only = "M" in letters
        self.only = False if "6" in letters else True if "4" in letters else None  # in 64-bit mode, not there, both
        self.immediates = tuple(IMMEDIATE[kind] for kind in letters if kind in IMMEDIATE)


FORMS: dict[str, Form] = {}


def add_form(letters: str) -> Form:
    """Take the letters of a form apart, once."""
    form = FORMS[letters] = Form(letters)
    return form


def imm_b(code: bytes, at: int, i: Insn, bits: int) -> int:
    """Take a sign-extended byte."""
    i.imm = signed(code, at, 1)
    return at + 1


def imm_ub(code: bytes, at: int, i: Insn, bits: int) -> int:
    """Take an unsigned byte."""
    i.imm = code[at]
    return at + 1


def imm_w(code: bytes, at: int, i: Insn, bits: int) -> int:
    """Take an unsigned 16-bit number."""
    i.imm = signed(code, at, 2) & M16
    return at + 2


def imm_z(code: bytes, at: int, i: Insn, bits: int) -> int:
    """Take a sign-extended number of the operand's size, 4 bytes at most."""
    size = min(i.size, 4)
    i.imm = signed(code, at, size)
    return at + size


def imm_v(code: bytes, at: int, i: Insn, bits: int) -> int:
    """Take a number of the operand's size, 8 bytes too."""
    i.imm = signed(code, at, i.size)
    return at + i.size


def imm_j(code: bytes, at: int, i: Insn, bits: int) -> int:
    """Take the displacement of a near branch: a rel32 in 64-bit mode whatever the prefixes."""
    size = 4 if bits == 64 else i.size
    i.imm = signed(code, at, size)
    return at + size


def imm_far(code: bytes, at: int, i: Insn, bits: int) -> int:
    """Take a far pointer: offset into imm, selector into imm2."""
    i.imm = signed(code, at, i.size) & MASKS[i.size]
    i.imm2 = signed(code, at + i.size, 2) & M16
    return at + i.size + 2


def imm_enter(code: bytes, at: int, i: Insn, bits: int) -> int:
    """Take ENTER's two operands."""
    i.imm = signed(code, at, 2) & M16
    i.imm2 = code[at + 2]
    return at + 3


def imm_moffs(code: bytes, at: int, i: Insn, bits: int) -> int:
    """Take the address of MOV's moffs form, of the address size."""
    i.mod = 0
    i.disp = signed(code, at, i.asize) & i.amask
    finish_address(i)
    return at + i.asize


IMMEDIATE = {
    "b": imm_b, "u": imm_ub, "w": imm_w, "z": imm_z, "v": imm_v, "j": imm_b, "J": imm_j, "p": imm_far,
    "e": imm_enter, "o": imm_moffs,
}  # fmt: skip
