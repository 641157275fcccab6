"""What an ELF file is that is no x86 executable, in words. Loaded only to refuse one."""

from __future__ import annotations

import struct

BIG_ENDIAN = 2
TYPES = {
    0: "of no type",
    1: "a relocatable object (.o, .ko); link it first",
    4: "a core file, the memory of a program that crashed",
}

# e_machine (System V gABI, and Linux, include/uapi/linux/elf-em.h).
MACHINES = {
    0: "no machine",
    1: "AT&T WE 32100",
    2: "SPARC",
    3: "i386",
    4: "Motorola 68000",
    5: "Motorola 88000",
    6: "i486",
    7: "Intel 80860",
    8: "MIPS",
    9: "IBM System/370",
    10: "MIPS (little-endian R3000)",
    15: "PA-RISC",
    18: "SPARC V8+",
    19: "Intel 80960",
    20: "PowerPC",
    21: "PowerPC64",
    22: "IBM S/390",
    23: "Cell SPU",
    36: "NEC V800",
    40: "ARM",
    41: "Alpha",
    42: "SuperH",
    43: "SPARC V9",
    44: "TriCore",
    46: "H8/300",
    50: "Itanium",
    53: "ColdFire",
    62: "x86-64",
    75: "VAX",
    76: "CRIS",
    83: "AVR",
    87: "NEC V850",
    88: "M32R",
    89: "MN10300",
    92: "OpenRISC",
    93: "ARC",
    94: "Xtensa",
    105: "MSP430",
    106: "Blackfin",
    110: "Nios II",
    140: "TI C6000",
    164: "Hexagon",
    167: "NDS32",
    180: "Xeon Phi (K1OM)",
    181: "Xeon Phi (L1OM)",
    183: "AArch64",
    185: "AVR32",
    188: "TILE",
    189: "MicroBlaze",
    190: "CUDA",
    191: "TILE-Gx",
    195: "ARCv2",
    220: "Z80",
    224: "AMD GPU",
    243: "RISC-V",
    244: "Lanai",
    247: "BPF",
    251: "Vector Engine",
    252: "C-SKY",
    255: "ARC 64-bit",
    258: "LoongArch",
    0x5441: "FR-V",
    0x9026: "Alpha",
    0x9041: "M32R",
    0xA390: "IBM S/390",
    0xBEEF: "MN10300",
}


def explain(image: bytes, bits: int, native: dict[int, int]) -> str:
    """Return why an ELF image with a whole header, of the class of `bits`, cannot be booted.

    `native`: the machines whose images can be, by their bits.
    """
    big = image[5] == BIG_ENDIAN
    kind, machine = struct.unpack_from(">HH" if big else "<HH", image, 16)
    name = MACHINES.get(machine, f"machine {machine}")
    if big:
        name += " (big-endian)"
    elif machine == native[bits]:
        what = TYPES.get(kind, f"of type {kind}")
        return f"an ELF image must be an executable (type 2 or 3); this one is {what}"
    elif machine == native[64]:
        name = "x32, whose programs have 32-bit pointers"
    elif machine == native[32]:
        name += ", and of the 64-bit class"
    return f"the ELF image is for {name}; this machine runs 32-bit images for i386 and 64-bit ones for x86-64"
