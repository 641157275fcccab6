"""Single instructions from random states: registers, defined flags and memory agree with Unicorn (a development tool).

Unicorn does not report every #UD, and runs addresses that are not canonical: where the processor here raises #UD, #DE,
#GP or #SS and Unicorn goes on, the case says nothing. A failure names its seed.
"""

from __future__ import annotations

import os
from random import Random
from typing import Any

import pytest

from pyvcpu.tcg.cpu import EXIT_ATTENTION
from pyvcpu.tcg.decode import Insn, decode, undefined
from pyvcpu.tcg.exceptions import Exit, Fault
from tests.tcg_machine import Machine

os.environ.setdefault("UC_IGNORE_REG_BREAK", "1")
unicorn = pytest.importorskip("unicorn")
x86 = pytest.importorskip("unicorn.x86_const")

SIZE = 0x10000
CASES = 1500
CF, PF, AF, ZF, SF, OF = 1, 4, 0x10, 0x40, 0x80, 0x800
STATUS = CF | PF | AF | ZF | SF | OF
NAMES = ("AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI")
ONE_BYTE = [
    op
    for op in range(256)
    if op not in {0x0F, 0x26, 0x2E, 0x36, 0x3E, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3}
    and op not in {0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x8C, 0x8E, 0x9A, 0x9B, 0x9D, 0xC2, 0xC4, 0xC5, 0xC8}
    and op not in {0xCA, 0xCB, 0xCC, 0xCD, 0xCE, 0xCF, 0xEA, 0xF1, 0xF4, 0xFA, 0xFB}
    and not 0x6C <= op <= 0x6F
    and not 0xD8 <= op <= 0xDF
    and not 0xE4 <= op <= 0xE7
    and not 0xEC <= op <= 0xEF
]
TWO_BYTE = [
    *range(0x40, 0x50), *range(0x80, 0xA0), 0xA3, 0xA4, 0xA5, 0xAB, 0xAC, 0xAD, 0xAF, 0xB0, 0xB1, 0xB3, 0xB6, 0xB7,
    0xB8, 0xBA, 0xBB, 0xBC, 0xBD, 0xBE, 0xBF, 0xC0, 0xC1, 0xC3, 0xC7, *range(0xC8, 0xD0), 0x1F,
]  # fmt: skip
BRANCHES = {0xC3, 0xE8, 0xE9, 0xEB, 0xE0, 0xE1, 0xE2, 0xE3, *range(0x70, 0x80), *range(0x180, 0x190)}


def count_of(insn: Insn, regs: list[int]) -> int:
    """Return the count of a shift, rotate or double shift."""
    by_imm, by_one = insn.op in (0xC0, 0xC1, 0x1A4, 0x1AC), insn.op in (0xD0, 0xD1)
    count = insn.imm if by_imm else 1 if by_one else regs[1]
    return count & (63 if insn.size == 8 else 31)


def undefined_flags(insn: Insn, regs: list[int]) -> int:
    """Return the flags that the manual leaves undefined after an instruction."""
    op, reg = insn.op, insn.modrm >> 3 & 7
    width = insn.size * 8
    if op in (0xC0, 0xC1, 0xD0, 0xD1, 0xD2, 0xD3, 0x1A4, 0x1A5, 0x1AC, 0x1AD):
        count = count_of(insn, regs)
        if not count:
            return 0
        if op >= 0x100:
            return STATUS if count > width else AF | (OF if count != 1 else 0)
        return (AF if reg >= 4 else 0) | (OF if count != 1 else 0) | (CF if count >= width else 0)
    fixed = {
        0x69: SF | ZF | AF | PF, 0x6B: SF | ZF | AF | PF, 0x1AF: SF | ZF | AF | PF, 0x27: OF, 0x2F: OF,
        0x37: OF | SF | ZF | PF, 0x3F: OF | SF | ZF | PF, 0xD4: OF | AF | CF, 0xD5: OF | AF | CF,
    }  # fmt: skip
    if op in fixed:
        return fixed[op]
    if op in (0xF6, 0xF7) and reg >= 4:
        return SF | ZF | AF | PF if reg < 6 else STATUS
    if op in (0x1A3, 0x1AB, 0x1B3, 0x1BB, 0x1BA):
        return OF | SF | AF | PF
    if op in (0x1BC, 0x1BD):
        return OF | SF | AF | PF | (0 if insn.rep == 0xF3 else CF)
    logic = (op < 0x40 and op >> 3 in (1, 4, 6)) or (0x80 <= op <= 0x83 and reg in (1, 4, 6))
    if logic or op in (0x84, 0x85, 0xA8, 0xA9):
        return AF
    return 0


def bytes_of(rnd: Random, bits: int) -> bytes:
    """Return a random instruction, with bytes to spare."""
    out = bytearray()
    for prefix, chance in ((0x66, 0.2), (0x67, 0.1), (0xF3, 0.05), (0xF0, 0.03)):
        if rnd.random() < chance:
            out.append(prefix)
    if bits == 64 and rnd.random() < 0.6:
        out.append(0x40 | rnd.getrandbits(4))
    if rnd.random() < 0.35:
        out += bytes((0x0F, rnd.choice(TWO_BYTE)))
    else:
        out.append(rnd.choice([op for op in ONE_BYTE if op >> 4 != 4] if bits == 64 else ONE_BYTE))
    body = bytearray(rnd.randbytes(12))
    if rnd.random() < 0.35:
        body[0] |= 0xC0
    if rnd.random() < 0.8:
        body[3:5] = b"\0\0"
        if rnd.random() < 0.5:
            body[2:4] = b"\0\0"
    return bytes(out + body)


def value(rnd: Random) -> int:
    """Return a register's value: mostly an address, else an edge or anything."""
    chance = rnd.random()
    if chance < 0.5:
        return rnd.randrange(0x2000, 0xE000)
    if chance < 0.6:
        return rnd.choice(
            [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1]
        )
    return rnd.getrandbits(64) if chance < 0.8 else rnd.getrandbits(8)


class Pair:
    """The processor and Unicorn, side by side with equal memory."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.machine = Machine(0x90000 if bits == 64 else SIZE)
        self.cpu = self.machine.flat(bits) if bits != 16 else self.machine.real()
        for gfn in range(16, 128 if bits == 64 else 16):
            self.machine.memory.pages[gfn] = None  # type: ignore[call-overload]
        mode = {16: unicorn.UC_MODE_16, 32: unicorn.UC_MODE_32, 64: unicorn.UC_MODE_64}[bits]
        self.uc: Any = unicorn.Uc(unicorn.UC_ARCH_X86, mode)
        self.uc.mem_map(0, SIZE)
        self.interrupted = False
        self.uc.hook_add(unicorn.UC_HOOK_INTR, self.interrupt)
        names = [("R" if bits == 64 else "E") + name for name in NAMES]
        names += [f"R{number}" for number in range(8, 16)] if bits == 64 else []
        self.registers = [getattr(x86, f"UC_X86_REG_{name}") for name in names]
        self.ip = x86.UC_X86_REG_RIP if bits == 64 else x86.UC_X86_REG_EIP
        self.faults: list[Fault] = []
        self.cpu.fault = self.fault  # type: ignore[method-assign]

    def interrupt(self, uc: Any, number: int, data: object) -> None:
        """Stop at an exception in Unicorn."""
        self.interrupted = True
        uc.emu_stop()

    def fault(self, fault: Fault, insn: Insn | None) -> None:
        """Stop at an exception here."""
        self.faults.append(fault)
        self.cpu.after = 0
        self.cpu.mmio_done()
        raise Exit(99)

    def put(self, address: int, data: bytes) -> None:
        """Write the memory of both."""
        self.uc.mem_write(address, data)
        self.machine.memory.data[address : address + len(data)] = data

    def load(self, rnd: Random, ip: int, code: bytes) -> tuple[list[int], int]:
        """Give both the same random state; returns registers and flags."""
        mask = (1 << (64 if self.bits == 64 else 32)) - 1
        regs = [value(rnd) & mask for _ in self.registers]
        regs[4] = rnd.randrange(0x4000, 0xC000)
        if rnd.random() < 0.5:
            regs[1] = rnd.randrange(20)
        flags = rnd.getrandbits(12) & (STATUS | 0x400) | 2
        self.put(rnd.randrange(0x2000, 0xE000), rnd.randbytes(256))
        self.put(ip, code)
        self.uc.ctl_remove_cache(ip, ip + 32)
        self.cpu.recheck()
        for number, register in enumerate(self.registers):
            self.uc.reg_write(register, regs[number])
        self.cpu.regs[: len(regs)] = regs
        self.uc.reg_write(x86.UC_X86_REG_EFLAGS, flags)
        self.cpu.set_rflags(flags)
        self.cpu.rip = ip
        self.cpu.pending = None
        self.interrupted = False
        self.faults.clear()
        self.cpu.mmio_replay.clear()
        return regs, flags

    def run(self, ip: int) -> tuple[bool, bool]:
        """Run one instruction in both; returns whether each completed it."""
        try:
            self.uc.emu_start(ip, 0xFFFFFFF0 if self.bits != 16 else 0xFFFF0, count=1)
            other = not self.interrupted
        except unicorn.UcError as problem:
            # the next instruction's fetch is not this one's failure
            other = problem.errno == unicorn.UC_ERR_FETCH_UNMAPPED
        return self.cpu.step() == EXIT_ATTENTION, other

    def differences(self, insn: Insn, regs: list[int]) -> list[str]:
        """Compare both after an instruction."""
        found = []
        for number, register in enumerate(self.registers):
            theirs = self.uc.reg_read(register)
            if theirs != self.cpu.regs[number]:
                found.append(f"r{number}: {self.cpu.regs[number]:#x}, Unicorn {theirs:#x}, before {regs[number]:#x}")
        flags = (self.uc.reg_read(x86.UC_X86_REG_EFLAGS) ^ self.cpu.get_rflags()) & (STATUS | 0x400)
        if flags & ~undefined_flags(insn, regs):
            found.append(f"flags differ in {flags:#x}")
        if self.uc.reg_read(self.ip) != self.cpu.rip and not insn.rep:
            found.append(f"rip: {self.cpu.rip:#x}, Unicorn {self.uc.reg_read(self.ip):#x}")
        return found


def says_nothing(insn: Insn, bits: int) -> bool:
    """Tell whether Unicorn is known to be wrong, or unsure, about an instruction."""
    op, reg = insn.op, insn.modrm >> 3 & 7
    return (
        insn.fn is undefined
        or (op in BRANCHES and insn.prefix == 0x66 and bits == 64)  # AMD's reading of the prefix
        or (insn.rex != 0 and op in (0x9E, 0x9F))  # it takes SPL for AH
        or (op in (0x1A4, 0x1AC) and bits == 64 and insn.mod == 0 and insn.modrm & 7 == 5)  # the immediate and rip
        or (op in (0xF6, 0xF7) and reg == 1)  # the second TEST
        or (op == 0xFF and reg in (2, 3, 5))
        or (op in (0x1BC, 0x1BD) and not insn.rep)  # a zero source
        or op in (0xC6, 0xC7)  # it fails on some REX prefixes
    )


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_instructions_do_what_unicorn_does(bits: int) -> None:
    pair = Pair(bits)
    compared = 0
    for seed in range(CASES):
        rnd = Random(seed * 3 + bits)
        code, ip = bytes_of(rnd, bits), 0x1000 + seed % 16 * 16
        insn = decode(code, 0, bits, ip)
        if says_nothing(insn, bits):
            continue
        regs, _ = pair.load(rnd, ip, code)
        complete, other = pair.run(ip)
        here = bytes(pair.machine.memory.data[:SIZE])
        there = bytes(pair.uc.mem_read(0, SIZE))
        name = f"seed {seed}, {bits} bits: {code[: insn.length].hex()}"
        if complete and other:
            found = pair.differences(insn, regs)
            own = there[ip : ip + 64] != code.ljust(64)[:64]  # it may have written itself: Unicorn is late with that
            if here != there and not own:
                found.append("memory differs")
            changed = here[ip : ip + len(code)] != code
            assert changed or insn.rep or not found, f"{name}: {found}"
            compared += not insn.rep
        elif not complete and other:
            assert pair.faults, f"{name}: an exit, where Unicorn goes on"
            assert pair.faults[0].vector in (0, 6, 12, 13), f"{name}: {pair.faults[0]}"
        elif complete:
            assert insn.rep, f"{name}: completed, where Unicorn does not"
        pair.machine.memory.data[:SIZE] = there
    assert compared > CASES // 3
