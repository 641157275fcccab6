"""The opcode maps (SDM vol. 2D appendix A) as data: opcode to (operation, form).

Opcodes of the two-byte map are 0x100 and up, 0F38 0x200, 0F3A 0x300. Letters of a form:
  m a ModRM byte follows; M only its memory form is defined; r both operands are registers whatever mod says;
  + the register is in the opcode; g the reg field is a general register of the operand's size; h r/m is a byte;
  1 the operand is a byte; d 64 bits by default in 64-bit mode; f always 64 bits there;
  6 not in 64-bit mode; 4 only there; L LOCK is allowed (with memory); K always locked (XCHG);
  x ends a block; immediates: b u w z v j J p e o, see decode.IMMEDIATE.
An entry whose operation is None has a third member: a function that chooses the entry by ModRM and prefixes.
"""

from __future__ import annotations

from . import fastcalls, returns, transfer
from . import interp_alu as alu
from . import interp_bits as bitops
from . import interp_decimal as decimal
from . import interp_move as move
from . import interp_msrs as msrs
from . import interp_ports as ports
from . import interp_portstrings as portstrings
from . import interp_string as string
from . import interp_system as system
from . import interp_tables as tables
from .decode import MAPS, MEDIA, undefined
from .interp import CF, DF, MASK, OF
from .mmu import store

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu
    from .decode import Choose, Insn, Operation, Plain

# What is built, by the names of CPU flags; CPUID may show no more of the processor's own instructions.
FEATURES = frozenset(
    [
        "fpu",
        "de",
        "pse",
        "tsc",
        "msr",
        "pae",
        "cx8",
        "apic",
        "sep",
        "pge",
        "mca",
        "mce",
        "cmov",
        "pat",
        "pse36",
        "clflush",
        "mmx",
        "fxsr",
        "sse",
        "sse2",
        "syscall",
        "nx",
        "pdpe1gb",
        "rdtscp",
        "lm",
        "lahf_lm",
        "cx16",
        "popcnt",
        "movbe",
        "abm",
        "tsc_deadline_timer",
        "fsgsbase",
        "bmi1_tzcnt",
        "smep",
        "smap",
        "umip",
        "adx",
        "rdpid",
        "la57",
        "pcid",
        "monitor",
        "clflushopt",
        "clwb",
        "crc32",
        "nopl",
        "constant_tsc",
    ]
)


def group(*entries: Plain | None) -> Choose:
    """Choose by the reg field."""

    def choose(i: Insn, byte: int, bits: int) -> Plain | None:
        return entries[byte >> 3 & 7]

    return choose


def by_rep(plain: Plain | None, rep: Plain | None) -> Choose:
    """Choose by the prefix F3."""

    def choose(i: Insn, byte: int, bits: int) -> Plain | None:
        return rep if i.rep == 0xF3 else plain

    return choose


def fill_alu() -> None:
    """Fill in the eight basic operations and their groups."""
    for kind in range(8):
        lock = "" if kind == alu.CMP else "L"
        base = kind * 8
        for at, one in ((0, "1"), (1, "")):
            MAPS[base + at] = (alu.alu_rm_reg(kind), "mg" + lock + one)
            MAPS[base + 2 + at] = (alu.alu_reg_rm(kind), "mg" + one)
            MAPS[base + 4 + at] = (alu.alu_acc_imm(kind), "z" + one)
    plain = [(alu.alu_rm_imm(kind), "mz" + ("" if kind == alu.CMP else "L")) for kind in range(8)]
    short = [(fn, form.replace("z", "b")) for fn, form in plain]
    byte = [(fn, form.replace("z", "b") + "1") for fn, form in plain]
    MAPS[0x80] = (None, "", group(*byte))
    MAPS[0x81] = (None, "", group(*plain))
    MAPS[0x82] = (None, "", group(*((fn, form + "6") for fn, form in byte)))
    MAPS[0x83] = (None, "", group(*short))
    for op, count, form in ((0xC0, bitops.by_imm, "mu"), (0xD0, bitops.by_one, "m"), (0xD2, bitops.by_cl, "m")):
        shifts = [bitops.shift(kind, count) for kind in range(8)]
        MAPS[op] = (None, "", group(*((fn, form + "1") for fn in shifts)))
        MAPS[op + 1] = (None, "", group(*((fn, form) for fn in shifts)))
    for op, one in ((0xF6, "1"), (0xF7, "")):
        MAPS[op] = (
            None, "",
            group(
                (alu.test_rm_imm, "mz" + one), (alu.test_rm_imm, "mz" + one), (alu.not_rm, "mL" + one),
                (alu.neg_rm, "mL" + one), (alu.mul_rm, "m" + one), (alu.imul_rm, "m" + one), (alu.div_rm, "m" + one),
                (alu.idiv_rm, "m" + one),
            ),
        )  # fmt: skip
    MAPS[0xFE] = (None, "", group((alu.inc_rm, "mL1"), (alu.dec_rm, "mL1"), *(None,) * 6))
    MAPS[0xFF] = (
        None, "",
        group(
            (alu.inc_rm, "mL"), (alu.dec_rm, "mL"), (move.call_rm, "mfx"), (transfer.call_far_mem, "mMx"),
            (move.jmp_rm, "mfx"), (transfer.jmp_far_mem, "mMx"), (move.push_rm, "md"), None,
        ),
    )  # fmt: skip


def fill_one_byte() -> None:
    """Fill in the rest of the one-byte map."""
    for at, number in ((0x06, 0), (0x0E, 1), (0x16, 2), (0x1E, 3)):
        MAPS[at] = (move.push_sreg(number), "d6")
        if number != 1:
            MAPS[at + 1] = (move.pop_sreg(number), "d6x")
    for number in range(8):
        MAPS[0x40 + number] = (alu.inc_reg, "+6")
        MAPS[0x48 + number] = (alu.dec_reg, "+6")
        MAPS[0x50 + number] = (move.push_reg, "+d")
        MAPS[0x58 + number] = (move.pop_reg, "+d")
        MAPS[0x90 + number] = (alu.xchg_acc, "+")
        MAPS[0xB0 + number] = (move.mov_reg_imm, "+b1")
        MAPS[0xB8 + number] = (move.mov_reg_imm, "+v")
    for number in range(16):
        MAPS[0x70 + number] = (move.jcc, "fjx")
    MAPS[0x90] = (None, "", choose_nop)
    MAPS.update({
        0x27: (decimal.daa, "6"), 0x2F: (decimal.das, "6"), 0x37: (decimal.aaa, "6"), 0x3F: (decimal.aas, "6"),
        0x60: (move.pusha, "6"), 0x61: (move.popa, "6"), 0x62: (move.bound, "mM6"), 0x63: (None, "", choose_63),
        0x68: (move.push_imm, "zd"), 0x69: (alu.imul_reg_rm_imm, "mgz"), 0x6A: (move.push_imm, "bd"),
        0x6B: (alu.imul_reg_rm_imm, "mgb"),
        0x6C: (portstrings.ins, "1x"), 0x6D: (None, "", port_string(portstrings.ins)), 0x6E: (portstrings.outs, "1x"),
        0x6F: (None, "", port_string(portstrings.outs)),
        0x84: (alu.test_rm_reg, "mg1"), 0x85: (alu.test_rm_reg, "mg"), 0x86: (alu.xchg_rm_reg, "mgLK1"),
        0x87: (alu.xchg_rm_reg, "mgLK"), 0x88: (move.mov_rm_reg, "mg1"), 0x89: (move.mov_rm_reg, "mg"),
        0x8A: (move.mov_reg_rm, "mg1"), 0x8B: (move.mov_reg_rm, "mg"), 0x8C: (None, "", choose_8c),
        0x8D: (move.lea, "mgM"), 0x8E: (None, "", choose_8e),
        0x8F: (None, "", group((move.pop_rm, "md"), *(None,) * 7)),
        0x98: (alu.cbw, ""), 0x99: (alu.cwd, ""), 0x9A: (transfer.call_far_imm, "p6x"), 0x9C: (system.pushf, "d"),
        0x9D: (system.popf, "dx"), 0x9E: (move.sahf, ""), 0x9F: (move.lahf, ""),
        0xA0: (move.mov_acc_moffs, "o1"), 0xA1: (move.mov_acc_moffs, "o"), 0xA2: (move.mov_moffs_acc, "o1"),
        0xA3: (move.mov_moffs_acc, "o"),
        0xA4: (string.MOVS, "1x"), 0xA5: (string.MOVS, "x"), 0xA6: (string.CMPS, "1x"), 0xA7: (string.CMPS, "x"),
        0xA8: (alu.test_acc_imm, "z1"), 0xA9: (alu.test_acc_imm, "z"),
        0xAA: (string.STOS, "1x"), 0xAB: (string.STOS, "x"), 0xAC: (string.LODS, "1x"), 0xAD: (string.LODS, "x"),
        0xAE: (string.SCAS, "1x"), 0xAF: (string.SCAS, "x"),
        0xC2: (move.ret, "wfx"), 0xC3: (move.ret, "fx"), 0xC4: (move.load_far(0), "mgM6x"),
        0xC5: (move.load_far(3), "mgM6x"), 0xC6: (None, "", group((move.mov_rm_imm, "mb1"), *(None,) * 7)),
        0xC7: (None, "", group((move.mov_rm_imm, "mz"), *(None,) * 7)), 0xC8: (move.enter, "ed"),
        0xC9: (move.leave, "d"),
        0xCA: (returns.far_ret, "wx"), 0xCB: (returns.far_ret, "x"), 0xCC: (system.int_3, "x"),
        0xCD: (system.int_n, "ux"), 0xCE: (move.into, "6x"), 0xCF: (returns.iret, "x"),
        0xD4: (decimal.aam, "u6"), 0xD5: (decimal.aad, "u6"), 0xD6: (move.salc, "6"), 0xD7: (move.xlat, ""),
        0xE0: (move.loop(0), "fjx"), 0xE1: (move.loop(1), "fjx"), 0xE2: (move.loop(2), "fjx"),
        0xE3: (move.loop(3), "fjx"), 0xE4: (ports.in_imm, "u1x"), 0xE5: (None, "", port_imm(ports.in_imm)),
        0xE6: (ports.out_imm, "u1x"), 0xE7: (None, "", port_imm(ports.out_imm)), 0xE8: (move.call_rel, "fJx"),
        0xE9: (move.jmp_rel, "fJx"), 0xEA: (transfer.jmp_far_imm, "p6x"), 0xEB: (move.jmp_rel, "fjx"),
        0xEC: (ports.in_dx, "1x"), 0xED: (None, "", port_string(ports.in_dx)), 0xEE: (ports.out_dx, "1x"),
        0xEF: (None, "", port_string(ports.out_dx)),
        0xF1: (system.int_1, "x"), 0xF4: (system.hlt, "x"), 0xF5: (move.change_flags(-1, 0, CF), ""),
        0xF8: (move.change_flags(~CF, 0, 0), ""), 0xF9: (move.change_flags(~CF, CF, 0), ""),
        0xFA: (system.cli, ""), 0xFB: (system.sti, "x"), 0xFC: (move.change_flags(~DF, 0, 0), ""),
        0xFD: (move.change_flags(~DF, DF, 0), ""),
    })  # fmt: skip


def choose_nop(i: Insn, byte: int, bits: int) -> Plain:
    """90: NOP, PAUSE, or XCHG r8, rAX."""
    if i.rex & 1:
        return alu.xchg_acc, "+"
    return (system.pause, "x") if i.rep == 0xF3 else (move.nop, "")


def choose_63(i: Insn, byte: int, bits: int) -> Plain:
    """63: MOVSXD in 64-bit mode, else ARPL."""
    return (move.movsx(4), "mg") if bits == 64 else (tables.arpl, "m")


def choose_8c(i: Insn, byte: int, bits: int) -> Plain | None:
    """8C: MOV from a segment register."""
    return (move.mov_rm_sreg, "m") if byte >> 3 & 7 < 6 else None


def choose_8e(i: Insn, byte: int, bits: int) -> Plain | None:
    """8E: MOV to a segment register; CS cannot be one."""
    number = byte >> 3 & 7
    return (move.mov_sreg_rm, "mx") if number < 6 and number != 1 else None


def four_at_most(i: Insn) -> None:
    """Port instructions have no 8-byte form."""
    i.size = min(i.size, 4)


def port_string(fn: Operation) -> Choose:
    """Make a port instruction of 2 or 4 bytes."""

    def choose(i: Insn, byte: int, bits: int) -> Plain:
        four_at_most(i)
        return fn, "x"

    return choose


def port_imm(fn: Operation) -> Choose:
    """Make a port instruction of 2 or 4 bytes with the port in it."""

    def choose(i: Insn, byte: int, bits: int) -> Plain:
        four_at_most(i)
        return fn, "ux"

    return choose


def choose_c3(i: Insn, byte: int, bits: int) -> Plain | None:
    """0F C3: MOVNTI, of 4 or 8 bytes."""
    i.size = max(i.size, 4)
    return None if i.prefix else (movnti, "mM")


def movnti(cpu: Cpu, i: Insn) -> None:
    """MOVNTI."""
    store(cpu, i.seg, i.ea(cpu), i.size, cpu.regs[i.reg] & MASK[i.size])


def choose_c7(i: Insn, byte: int, bits: int) -> Plain | None:
    """0F C7: CMPXCHG8B, RDPID."""
    reg = byte >> 3 & 7
    if reg == 1 and byte < 0xC0:
        return alu.cmpxchg8b, "mL"
    if reg == 7 and byte >= 0xC0 and i.rep == 0xF3:
        return msrs.rdpid, "mf"
    return media(i, bits) if reg == 4 and byte < 0xC0 else None


def choose_01(i: Insn, byte: int, bits: int) -> Plain | None:
    """0F 01: descriptor tables, SMSW, LMSW, INVLPG, and those with a fixed ModRM."""
    if byte >= 0xC0:
        fixed = SYSTEM_FIXED.get(byte)
        if fixed is not None:
            return fixed
    return (
        (tables.table_store(False), "mM"), (tables.table_store(True), "mM"), (tables.table_load(False), "mM"),
        (tables.table_load(True), "mM"), (system.smsw, "m"), None, (system.lmsw, "mx"), (system.invlpg, "mMx"),
    )[byte >> 3 & 7]  # fmt: skip


SYSTEM_FIXED: dict[int, Plain] = {
    0xC8: (system.monitor, "m"), 0xC9: (system.mwait, "mx"), 0xCA: (system.access_flag(0), "mx"),
    0xCB: (system.access_flag(1 << 18), "mx"), 0xD0: (msrs.xgetbv, "m"), 0xD1: (msrs.xsetbv, "mx"),
    0xF8: (msrs.swapgs, "mx4"), 0xF9: (msrs.rdtscp, "m"),
}  # fmt: skip


def choose_ae(i: Insn, byte: int, bits: int) -> Plain | None:
    """0F AE: fences, CLFLUSH, FS and GS bases; the FPU has the rest."""
    reg = byte >> 3 & 7
    if byte >= 0xC0:
        if i.rep == 0xF3 and reg < 4:
            return msrs.segment_base(4 + (reg & 1), reg >= 2), "m4x"
        return (move.nop, "m") if reg >= 5 and not i.prefix else None
    if reg == 7 or (reg == 6 and i.prefix == 0x66):
        return system.clflush, "m"
    return media(i, bits)


def choose_f0(store_form: bool) -> Choose:
    """0F38 F0 and F1: MOVBE, or CRC32 with F2."""

    def choose(i: Insn, byte: int, bits: int) -> Plain:
        if i.rep == 0xF2:
            return crc32(store_form), "m" if store_form else "mh"
        return (move.movbe_mem_reg if store_form else move.movbe_reg_mem), "mM"

    return choose


def crc32(wide: bool) -> Operation:
    """Make CRC32 of a byte, or of the operand's size."""

    def operation(cpu: Cpu, i: Insn) -> None:
        if not wide:
            i.size = 1
        bitops.crc32(cpu, i)

    return operation


def choose_f6(i: Insn, byte: int, bits: int) -> Plain | None:
    """0F38 F6: ADCX (66), ADOX (F3)."""
    if i.rep == 0xF3:
        return alu.add_with(OF), "m"
    if i.prefix == 0x66 and not i.rep:
        i.size = 8 if i.rex & 8 else 4
        return alu.add_with(CF), "m"
    return media(i, bits)


def fill_two_byte() -> None:
    """Fill in the two- and three-byte maps."""
    for code in range(16):
        MAPS[0x140 + code] = (alu.cmov, "mg")
        MAPS[0x180 + code] = (move.jcc, "fJx")
        MAPS[0x190 + code] = (alu.setcc, "m1")
    for number in range(8):
        MAPS[0x1C8 + number] = (bitops.bswap, "+")
        if number:
            MAPS[0x118 + number] = (move.nop, "m")
    for kind, op in ((0, 0x1A3), (1, 0x1AB), (2, 0x1B3), (3, 0x1BB)):
        MAPS[op] = (bitops.bit_test(kind, False), "mg" + ("L" if kind else ""))
    bits = [(bitops.bit_test(kind, True), "mu" + ("L" if kind else "")) for kind in range(4)]
    MAPS.update({
        0x100: (None, "", group(
            (tables.store_selector(6), "m"), (tables.store_selector(7), "m"), (tables.lldt, "m"), (tables.ltr, "m"),
            (tables.verify(False), "m"), (tables.verify(True), "m"), None, None)),
        0x101: (None, "", choose_01), 0x102: (tables.lar, "mg"), 0x103: (tables.lsl, "mg"),
        0x105: (fastcalls.syscall, "x"), 0x106: (system.clts, "x"), 0x107: (fastcalls.sysret, "x"),
        0x108: (system.cache_control, ""), 0x109: (system.cache_control, ""), 0x10B: (undefined, "x"),
        0x10D: (move.nop, "m"), 0x118: (move.nop, "m"),
        0x120: (system.mov_reg_cr, "r"), 0x121: (system.mov_reg_dr, "r"), 0x122: (system.mov_cr_reg, "rx"),
        0x123: (system.mov_dr_reg, "rx"),
        0x130: (msrs.wrmsr, "x"), 0x131: (msrs.rdtsc, ""), 0x132: (msrs.rdmsr, "x"), 0x133: (msrs.rdpmc, "x"),
        0x134: (fastcalls.sysenter, "x"), 0x135: (fastcalls.sysexit, "x"),
        0x1A0: (move.push_sreg(4), "d"), 0x1A1: (move.pop_sreg(4), "dx"), 0x1A2: (msrs.cpuid, "x"),
        0x1A4: (bitops.shift_double(True, bitops.by_imm), "mgu"),
        0x1A5: (bitops.shift_double(True, bitops.by_cl), "mg"),
        0x1A8: (move.push_sreg(5), "d"), 0x1A9: (move.pop_sreg(5), "dx"), 0x1AA: (system.rsm, "x"),
        0x1AC: (bitops.shift_double(False, bitops.by_imm), "mgu"),
        0x1AD: (bitops.shift_double(False, bitops.by_cl), "mg"),
        0x1AE: (None, "", choose_ae), 0x1AF: (alu.imul_reg_rm, "mg"),
        0x1B0: (alu.cmpxchg, "mgL1"), 0x1B1: (alu.cmpxchg, "mgL"), 0x1B2: (move.load_far(2), "mgMx"),
        0x1B4: (move.load_far(4), "mgMx"), 0x1B5: (move.load_far(5), "mgMx"),
        0x1B6: (move.movzx(1), "mh"), 0x1B7: (move.movzx(2), "m"),
        0x1B8: (None, "", by_rep(None, (bitops.popcnt, "m"))),
        0x1B9: (undefined, "x"), 0x1BA: (None, "", group(None, None, None, None, *bits)),
        0x1BC: (None, "", by_rep((bitops.bsf, "m"), (bitops.tzcnt, "m"))),
        0x1BD: (None, "", by_rep((bitops.bsr, "m"), (bitops.lzcnt, "m"))),
        0x1BE: (move.movsx(1), "mh"), 0x1BF: (move.movsx(2), "m"),
        0x1C0: (alu.xadd, "mgL1"), 0x1C1: (alu.xadd, "mgL"), 0x1C3: (None, "", choose_c3), 0x1C7: (None, "", choose_c7),
        0x1FF: (undefined, "x"),
        0x2F0: (None, "", choose_f0(False)), 0x2F1: (None, "", choose_f0(True)), 0x2F6: (None, "", choose_f6),
    })  # fmt: skip


def media(i: Insn, bits: int, code: bytes = b"", at: int = 0) -> Plain | None:
    """Look an instruction up among those of x87, MMX and SSE; None is #UD."""
    op = i.op
    try:
        from . import fputables
    except ImportError:
        return None
    if op == 0x9B:
        return fputables.WAIT, ""
    if op == 0x177:
        return fputables.EMMS, ""
    if 0xD8 <= op <= 0xDF:
        byte = code[at]
        key = (op & 7) << 8 | (byte if byte >= 0xC0 else byte >> 3 & 7)
        fn = fputables.X87.get(key)
        return None if fn is None else (fn, "m")
    if op < 0x100:
        return None
    found = fputables.SSE.get((i.prefix, op >> 8, op & 0xFF))
    if found is None:
        return None
    return found[0], "mu" if found[1] else "m"


MEDIA.append(media)
fill_alu()
fill_one_byte()
fill_two_byte()
