"""Random programs for the processor of pyvcpu.tcg: loops with branches, loads and stores, that come to an end."""

from __future__ import annotations

from random import Random

FREE = (0, 1, 2, 3)  # registers that a program may change: rAX rCX rDX rBX; rSI and rDI point to data, rBP counts
ALU = [kind << 3 | form for kind in range(8) for form in range(4)]
CONDITIONS = range(16)
CODE = [32]  # the code size that operand() writes for


def operand(rnd: Random, reg: int, memory: bool) -> bytes:
    """Return a ModRM byte with a register or a place near rSI or rDI (16-bit code: SI or DI, too)."""
    if memory:
        base = rnd.choice((4, 5)) if CODE[0] == 16 else rnd.choice((6, 7))
        return bytes((0x40 | reg << 3 | base, rnd.randrange(0, 100)))
    return bytes((0xC0 | reg << 3 | rnd.choice(FREE),))


def immediate(rnd: Random, bits: int, prefix: bool) -> bytes:
    """Return an immediate of the operand's size."""
    size = 2 if (bits == 16) != prefix else 4
    value = rnd.choice((0, 1, 0x7F, 0x80, 0xFFFF, 0x8000, rnd.getrandbits(8), rnd.getrandbits(32)))
    return (value & (1 << size * 8) - 1).to_bytes(size, "little")


def instruction(rnd: Random, bits: int) -> bytes:
    """Return one instruction that cannot fault, but perhaps DIV."""
    prefix = rnd.random() < 0.2
    wide = bits == 64 and rnd.random() < 0.4
    head = (b"\x66" if prefix else b"") + (b"\x48" if wide else b"")
    memory = rnd.random() < 0.35
    reg = rnd.choice(FREE)
    kind = rnd.randrange(22)
    if kind < 6:
        return head + bytes((rnd.choice(ALU),)) + operand(rnd, reg, memory)
    if kind == 6:
        return head + bytes((0x83,)) + operand(rnd, rnd.randrange(8), memory) + bytes((rnd.getrandbits(8),))
    if kind == 7:
        return (
            head + bytes((0x81,)) + operand(rnd, rnd.randrange(8), memory) + immediate(rnd, bits, prefix and not wide)
        )
    if kind == 8:
        return head + bytes((rnd.choice((0x88, 0x89, 0x8A, 0x8B)),)) + operand(rnd, reg, memory)
    if kind == 9:
        return head + bytes((rnd.choice((0xFE, 0xFF)),)) + operand(rnd, rnd.randrange(2), memory)
    if kind == 10:
        count = rnd.choice((1, 1, 2, 7, 15, 31, rnd.getrandbits(6)))
        return head + bytes((rnd.choice((0xC0, 0xC1)),)) + operand(rnd, rnd.randrange(8), memory) + bytes((count,))
    if kind == 11:
        return head + bytes((rnd.choice((0xD0, 0xD1, 0xD2, 0xD3)),)) + operand(rnd, rnd.randrange(8), memory)
    if kind == 12:
        return head + bytes((0x0F, rnd.choice((0xB6, 0xB7, 0xBE, 0xBF)))) + operand(rnd, reg, memory)
    if kind == 13:
        return head + bytes((0x0F, 0x40 | rnd.choice(CONDITIONS))) + operand(rnd, reg, memory)
    if kind == 14:
        return bytes((0x0F, 0x90 | rnd.choice(CONDITIONS))) + operand(rnd, 0, memory)
    if kind == 15:
        return head + bytes((rnd.choice((0xF6, 0xF7)),)) + operand(rnd, rnd.choice((2, 3, 4, 5)), memory)
    if kind == 16:
        return head + bytes((0x0F, 0xAF)) + operand(rnd, reg, memory)
    if kind == 17:
        push = 0x50 | reg
        return (b"\x66" if prefix else b"") + bytes((push,)) + (b"\x66" if prefix else b"") + bytes((0x58 | reg,))
    if kind == 18:
        return head + bytes((rnd.choice((0x84, 0x85)),)) + operand(rnd, reg, memory)
    if kind == 19:
        return head + bytes((rnd.choice((0x98, 0x99, 0x90 | reg, 0xF8, 0xF9, 0xF5)),))
    if kind == 20:
        return head + bytes((0x0F, rnd.choice((0xA3, 0xAB, 0xBC, 0xBD, 0xA4, 0xAC)))) + bits_of(rnd, reg)
    return head + bytes((0x8D,)) + operand(rnd, reg, True)


def bits_of(rnd: Random, reg: int) -> bytes:
    """Return register operands, and a byte that is NOP where it is not a count."""
    return operand(rnd, reg, False) + b"\x90"


def program(rnd: Random, bits: int, length: int) -> bytes:
    """Return a loop of about `length` instructions, with branches forward; rBP counts down, HLT ends it."""
    CODE[0] = bits
    body = [instruction(rnd, bits) for _ in range(length)]
    pieces: list[bytes] = []
    at = 0
    while at < len(body):
        count = rnd.randrange(1, 4)
        skipped = b"".join(body[at : at + count])
        at += count
        if rnd.random() < 0.4:
            pieces.append(bytes((0x70 | rnd.choice(CONDITIONS), len(skipped))))
        pieces.append(skipped)
    code = b"".join(pieces)
    down = b"\xff\xcd" if bits == 64 else b"\x4d"
    back = -(len(code) + len(down) + (4 if bits == 16 else 6))
    jump = b"\x0f\x85" + back.to_bytes(2 if bits == 16 else 4, "little", signed=True)
    return code + down + jump + b"\xf4"
