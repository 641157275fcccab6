"""A stage for single x87, MMX and SSE instructions: a processor that has no more than they need, and the real one.

The native side is tcg_native.c, compiled in a temporary directory: the processor itself is the oracle.
"""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyvcpu.tcg import xsave
from pyvcpu.tcg.decode import decode
from pyvcpu.tcg.exceptions import GP, MF, NM, PF, UD, XM, Fault
from pyvcpu.tcg.fpu import Fpu

BASE = 0x10000
SIGNALS = {UD: 4, MF: 8, XM: 8, GP: 11, PF: 11, NM: 11}
STATUS = 0x8D5
TEST = struct.Struct("<B15s512s64s4Q")
RESULT = struct.Struct("<Q512s64s4Q")


class Segment:
    selector = 0
    base = 0
    l = 1  # noqa: E741


class StageCpu:
    """Registers, 64 bytes of memory at BASE, and an Fpu."""

    def __init__(self, mode: int = 64) -> None:
        self.regs = [0] * 16
        self.bits = mode
        self.read_tlb: dict[int, memoryview] = {}  # always empty: every access comes to load and store
        self.write_tlb: dict[int, memoryview] = {}
        self.regs[3] = BASE
        self.segs = [Segment() for _ in range(8)]
        self.cr0, self.cr4, self.xcr0 = 0x21, 0x40600, 3
        self.efer = 0x500 if mode == 64 else 0
        self.flags = 2
        self.fpu = Fpu()
        self.memory = bytearray(64)

    def load_bytes(self, seg: int, offset: int, count: int) -> bytes:
        at = offset - BASE
        if not 0 <= at <= len(self.memory) - count:
            raise Fault(PF, 0)
        return bytes(self.memory[at : at + count])

    def store_bytes(self, seg: int, offset: int, data: bytes) -> None:
        self.load_bytes(seg, offset, len(data))
        self.memory[offset - BASE : offset - BASE + len(data)] = data

    def load(self, seg: int, offset: int, size: int) -> int:
        return int.from_bytes(self.load_bytes(seg, offset, size), "little")

    def store(self, seg: int, offset: int, size: int, value: int) -> None:
        self.store_bytes(seg, offset, value.to_bytes(size, "little"))

    def get_rflags(self) -> int:
        return self.flags

    def set_status(self, flags: int) -> None:
        self.flags = self.flags & ~STATUS | flags


class Case:
    """An instruction and the state before it."""

    def __init__(self, code: bytes, image: bytes, memory: bytes, regs: Iterable[int], flags: int) -> None:
        self.code, self.image, self.memory, self.regs, self.flags = code, image, memory, list(regs), flags

    def packed(self) -> bytes:
        return TEST.pack(len(self.code), self.code, self.image, self.memory, *self.regs, self.flags)


def run(case: Case) -> tuple[int, bytes, bytes, list[int]]:
    """Run a case here: signal, FXSAVE image, memory, rax rcx rdx rflags."""
    cpu: Any = StageCpu()
    xsave.set_legacy(cpu.fpu, case.image)
    cpu.memory[:] = case.memory
    cpu.regs[:3] = case.regs
    cpu.flags = case.flags
    i = decode(case.code, 0, 64, 0x1000)
    assert i.length == len(case.code), (case.code.hex(), i.length)
    signal = 0
    try:
        i.fn(cpu, i)
    except Fault as fault:
        signal = SIGNALS[fault.vector]
    return signal, xsave.legacy(cpu.fpu), bytes(cpu.memory), [*cpu.regs[:3], cpu.flags]


def fxsave_image(
    registers: Iterable[int], xmm: Iterable[int], cw: int = 0x37F, sw: int = 0, valid: int = 0xFF, mxcsr: int = 0x1F80
) -> bytes:
    """Lay out an FXSAVE image."""
    head = struct.pack("<HHBxHQQII", cw, sw, valid, 0, 0, 0, mxcsr, 0xFFFF)
    body = b"".join(v.to_bytes(16, "little") for v in registers) + b"".join(v.to_bytes(16, "little") for v in xmm)
    return (head + body).ljust(512, b"\0")


def build(folder: Path) -> Path | None:
    """Compile the native side; None where there is no compiler."""
    target = folder / "native"
    source = Path(__file__).with_name("tcg_native.c")
    flags = ["-O1", "-mno-red-zone", "-fno-pie", "-no-pie"]
    try:
        subprocess.run(["gcc", *flags, "-o", str(target), str(source)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return target


def native(program: Path, cases: list[Case]) -> list[tuple[int, bytes, bytes, list[int]]]:
    """Run cases on the processor."""
    done = subprocess.run([str(program)], input=b"".join(c.packed() for c in cases), capture_output=True, check=True)
    return [(r[0], r[1], r[2], list(r[3:])) for r in RESULT.iter_unpack(done.stdout)]


def is_intel() -> bool:
    """Tell whether the processor is Intel's: others differ in details."""
    return "GenuineIntel" in Path("/proc/cpuinfo").read_text()


def describe(image: bytes, memory: bytes, regs: list[int]) -> str:
    """Show a state for a failure's message."""
    cw, sw, valid = struct.unpack_from("<HHB", image)
    mxcsr = struct.unpack_from("<I", image, 24)[0]
    lines = [f"cw {cw:04x} sw {sw:04x} valid {valid:02x} mxcsr {mxcsr:04x} regs {[hex(r) for r in regs]}"]
    for n in range(2):
        st = int.from_bytes(image[32 + n * 16 : 42 + n * 16], "little")
        x = int.from_bytes(image[160 + n * 16 : 176 + n * 16], "little")
        lines.append(f"  st{n} {st:020x}  xmm{n} {x:032x}")
    return "\n".join([*lines, "  mem " + memory[:32].hex()])


SPECIAL_MANTISSAS = (
    1 << 63,
    (1 << 64) - 1,
    1 << 63 | 1,
    3 << 62,
    0x8000000000000400,
    0xFFFFFFFFFFFFF800,
    0x8000008000000000,
)


def random80(r: random.Random) -> int:
    """Return an 80-bit pattern: often special, often of medium size."""
    sign = r.getrandbits(1) << 79
    choice = r.randrange(16)
    mantissa = r.choice(SPECIAL_MANTISSAS) if r.randrange(3) == 0 else 1 << 63 | r.getrandbits(63)
    if r.randrange(4) == 0:
        mantissa = mantissa >> 40 << 40 | 1 << 63
    if choice == 0:
        return sign
    if choice == 1:
        return sign | 0x7FFF << 64 | r.choice((1 << 63, 1 << 63, 3 << 62, mantissa, mantissa & ~(1 << 62) | 1))
    if choice == 2:
        return sign | r.choice((1, 1 << 62, r.getrandbits(63) >> r.randrange(63), mantissa))
    if choice == 3:
        return sign | r.getrandbits(15) << 64 | (r.getrandbits(64) if r.randrange(3) == 0 else mantissa)
    if choice == 4:
        return (
            sign
            | r.choice((1, 2, 0x7FFE, 0x7FFD, 0x3FFF - 1023, 0x3FFF + 1023, 0x3FFF - 126, 0x3FFF + 127, 0x403E)) << 64
            | mantissa
        )
    if choice == 5:
        value = r.getrandbits(r.randrange(1, 64)) | 1
        return sign | (0x3FFE + value.bit_length()) << 64 | value << (64 - value.bit_length())
    return sign | (0x3FFF + r.randrange(-40, 40)) << 64 | mantissa


def random_memory(r: random.Random) -> bytes:
    """Return 64 bytes; the operand at their start is often a special number of some format."""
    kind = r.randrange(8)
    if kind == 0:
        start = r.choice((0, 1, 0x7F800000, 0x7F800001, 0x7FC00001, 0x80000000, 0x00800000, 0x7FFFFF, 0x3F800000))
        head = struct.pack("<I", start | r.getrandbits(1) << 31)
    elif kind == 1:
        start = r.choice((0, 1, 0x7FF << 52, 0x7FF << 52 | 1, 0xFFF << 51, 1 << 52, (1 << 52) - 1, 0x3FF << 52))
        head = struct.pack("<Q", start | r.getrandbits(1) << 63)
    elif kind == 2:
        head = struct.pack("<d", r.uniform(-1000, 1000))
    elif kind == 3:
        head = struct.pack("<f", r.uniform(-1000, 1000))
    elif kind == 4:
        head = random80(r).to_bytes(10, "little")
    elif kind == 5:
        head = bytes((r.randrange(10) << 4 | r.randrange(10)) for _ in range(9)) + bytes([r.choice((0, 0x80))])
    else:
        head = b""
    return head + r.randbytes(64 - len(head))
