"""Measure the processor of pyvcpu.tcg alone: python -m bench.tcg_cpu [--wall]

Five kinds of guests, with a platform that does nothing. Figures are millions of instructions for each second of
processor time (--wall: of real time), translation included. The sieve, the calls and the list are C, by gcc -O2:

    for (i = 2; i < n; i++) a[i] = 1;
    for (i = 2; i * i < n; i++) if (a[i]) for (j = i * i; j < n; j += i) a[j] = 0;
    for (i = 2; i < n; i++) count += a[i];

    int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
    for (p = list; p; p = p->next) s += p->v ^ r;        while (n--) h = h * 33 ^ *s++;
"""

from __future__ import annotations

import sys
from time import perf_counter, process_time

from pyvcpu.tcg.cpu import EXIT_HALT
from tests.tcg_machine import Machine

# mov ebp,1000000; 1: add eax,ebx; xor ecx,eax; inc esi; mov [0x8000],eax; dec ebp; jnz 1b; hlt
ALU = {16: "66bd40420f006601d86631c1664666a30080664d75f0f4", 32: "bd40420f0001d831c146a3008000004d75f3f4",
       64: "bd40420f0001d831c1ffc689042500800000ffcd75eff4"}  # fmt: skip
# mov ebp,400; 1: mov esi,0x100000; mov edi,0x140000; mov ecx,0x4000; cld; rep movsd; dec ebp; jnz 1b; hlt
COPY = "bd90010000be00001000bf00001400b900400000fcf3a54d75ebf4"
# mov ecx,30000; 1: int 0x30; dec ecx; jnz 1b; hlt. The handler: iret
INTERRUPTS = "b930750000cd304975fbf4"
SIEVE = {
    32: (
        "6a1468204e00006800001000e80f000000f466906690669066906690669066905531ed57565383ec048b4424208b7424188b5c241c85"
        "c00f8e9d00000083fb020f8e870000008d46028d3c1e890424908b042489c18d7600c6000183c00139f875f6ba02000000b804000000"
        "83fb047f13eb338d7426009083c20189d00fafc239d87d22803c160074ee39c37eea6690c604060001d039c37ff683c20189d00fafc2"
        "39d87cde31c08db42600000000900fb61183c10101d039cf75f483c5013b6c2420758b83c4045b5e5f5dc383c501396c24200f8563ff"
        "ffff31c0ebe7"
    ),
    64: (
        "bf00001000be204e0000ba14000000e80c000000f4662e0f1f8400000000009085d20f8eb2000000534531d289d383fe020f8e920000"
        "008d46fd4c8d5f024c8d4407030f1f4400004c89d94c89d86690c600014883c0014c39c075f4ba02000000b80400000083fe047f14eb"
        "3d0f1f00418d41014883c2010fafc039f07d2b803c17004189d174e839c67ee448986690c60407004801d039c67ff5418d41014883c2"
        "010fafc039f07cd531c00f1f40000fb6114883c10101d04c39c175f24183c2014439d375815bc34183c2014439d30f8558ffffff31c0"
        "5bc331c0c3"
    ),
}
CALLS = {
    32: (
        "6800001000e8d6000000f466906690905389c18d1c10b8051500008d7426009089c283c101c1e20501d00fbe51ff31d039cb75ec5bc3"
        "8db426000000008d7600565383ec048b5c241083fb017e1f83ec0c8d43ff83eb0250e8e3ffffff891c2489c6e8d9ffffff83c4108d1c"
        "0683c40489d85b5ec38db426000000008d7426005631d231c9538b44240c8db60000000089500489ce83c20789c1893083c01081faac"
        "0d000075e931db31c98d7426009089f2b8a50d0000eb0c8db426000000008b42048b1231d801c185d275f383c30183fb2875db89c85b"
        "5ec38db6000000005731d256538b5c24108db4260000000089d00fafc288041383c20181fa0010000075edbe0010000031ff8db60000"
        "000089f289d883ee01e8f4feffff01c781fee20f000075ea83ec0c81c3002000006a11e80affffff891c2489c6e840ffffff83c41001"
        "f05b5e01f85fc3"
    ),
    64: (
        "bf00001000be204e0000ba14000000e8cc000000f4662e0f1f8400000000009089f6b8051500004801fe660f1f44000089c24883c701"
        "c1e20501d00fbe57ff31d04839f775eac3660f1f840000000000555389fb4883ec0883ff017e168d7fffe8ebffffff8d7bfe89c5e8e1"
        "ffffff8d5c05004883c40889d85b5dc30f1f400031c031d20f1f40008947084989d083c0074889fa4c89074883c7103dac0d000075e6"
        "31f631c9662e0f1f8400000000004c89c2b8a50d0000eb0c660f1f4400008b4208488b1231f001c14885d275f183c60183fe2875d989"
        "c8c3660f1f4400004883ec084889f931d20f1f800000000089d00fafc28804114883c2014881fa0010000075eb41b8001000004531c9"
        "66904489c64889cf4183e801e801ffffff4101c14181f8e20f000075e5bf11000000e81bffffff488db9002000004189c2e83cffffff"
        "4883c4084401d04401c8c3"
    ),
}
GUESTS = [
    ("ALU loop, 16 bits", 16, False, ALU[16]), ("ALU loop, 32 bits", 32, False, ALU[32]),
    ("ALU loop, 64 bits, paging", 64, True, ALU[64]), ("sieve, 32 bits", 32, False, SIEVE[32]),
    ("sieve, 32 bits, paging", 32, True, SIEVE[32]), ("sieve, 64 bits, paging", 64, True, SIEVE[64]),
    ("calls, a list, a hash, 32 bits, paging", 32, True, CALLS[32]),
    ("calls, a list, a hash, 64 bits, paging", 64, True, CALLS[64]),
    ("string copies, 32 bits, paging", 32, True, COPY), ("interrupts, 32 bits, paging", 32, True, INTERRUPTS),
]  # fmt: skip


def prepare(bits: int, paging: bool, code: str) -> Machine:
    """Return a machine with a guest at 0x1000, a stack below 0x7f000, and one interrupt gate."""
    machine = Machine(4 << 20)
    cpu = machine.real() if bits == 16 else machine.flat(bits, sp=0x7F000)
    machine.put(0x1000, bytes.fromhex(code))
    if bits == 32:
        machine.table(0x600, 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)
        machine.table(0xA00 + 0x30 * 8, 0x2000 | 8 << 16 | 0x8E << 40)
        machine.put(0x2000, b"\xcf")
        cpu.gdt_base, cpu.gdt_limit, cpu.idt_base, cpu.idt_limit = 0x600, 0x17, 0xA00, 0x1FF
    if bits == 32 and paging:
        entries = [at << 12 | 3 for at in range(1024)]
        machine.put(0x90000, (0x91003).to_bytes(4, "little"))
        machine.put(0x91000, b"".join(entry.to_bytes(4, "little") for entry in entries))
        cpu.cr3 = 0x90000
        cpu.cr0 |= 0x80010000
        cpu.state_changed()
    return machine


def main() -> int:
    """Print a table."""
    clock = perf_counter if "--wall" in sys.argv else process_time
    for name, bits, paging, code in GUESTS:
        best = 0.0
        for _ in range(3):
            machine = prepare(bits, paging, code)
            start = clock()
            if machine.cpu.execute(1 << 60) != EXIT_HALT:
                print(f"{name}: did not end at its HLT", file=sys.stderr)
                return 1
            taken = clock() - start
            count = machine.cpu.instructions
            if code == COPY:
                count += 400 * 0x4000  # an element counts as an instruction
            best = max(best, count / taken / 1e6)
        print(f"{name:42} {best:8.2f} M instructions/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
