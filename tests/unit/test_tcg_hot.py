"""The two tiers agree: random programs give the same registers, flags and memory, translated or not."""

from __future__ import annotations

from random import Random

import pytest

from pyvcpu.tcg.cpu import EXIT_HALT
from tests.tcg_machine import Machine
from tests.tcg_programs import program

NEVER = 1 << 60
ROUNDS = 40  # programs for each seed and mode


def start(bits: int, hot_after: int, seed: int, code: bytes) -> Machine:
    """Prepare a machine: the program at 0x1000, data at 0x4000 and 0x5000, a loop of 40 turns."""
    machine = Machine(0x90000)
    cpu = machine.real() if bits == 16 else machine.flat(bits)
    cpu.hot_after = hot_after
    rnd = Random(seed)
    machine.put(0x1000, code)
    machine.put(0x3F80, rnd.randbytes(0x2000))
    for reg in range(4):
        cpu.regs[reg] = rnd.choice((rnd.getrandbits(bits), rnd.getrandbits(bits), rnd.getrandbits(8), 0x80000000 >> 16))
    cpu.regs[5], cpu.regs[6], cpu.regs[7] = 40, 0x4000, 0x5000
    cpu.set_rflags(rnd.getrandbits(12) & 0x8D5 | 2)
    return machine


def run(bits: int, hot_after: int, seed: int, code: bytes) -> tuple[list[int], int, int, bytes]:
    """Run a program to its HLT, or to the first #DE; return registers, flags, rip and memory."""
    machine = start(bits, hot_after, seed, code)
    cpu = machine.cpu
    assert cpu.execute(100_000) == EXIT_HALT
    return list(cpu.regs), cpu.get_rflags(), cpu.rip, bytes(machine.memory.data[:0x80000])


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("length", [1, 3, 12, 30])
@pytest.mark.parametrize("hot_after", [1, 3])
def test_translated_programs_do_what_the_cold_tier_does(bits: int, length: int, hot_after: int) -> None:
    for seed in range(ROUNDS // length + 3):
        number = seed * 1000 + length * 10 + hot_after
        code = program(Random(number), bits, length)
        assert run(bits, hot_after, number, code) == run(bits, NEVER, number, code), (
            f"seed {number}, {bits} bits: {code.hex()}"
        )
