"""Floating point and vector registers by name, from and to an XSAVE area in its standard form. Pure functions.

SDM vol. 1 section 10.5.1 (the FXSAVE area, table 10-2 for 64-bit) and chapter 13 (XSAVE). The names are gdb's: st0 to
st7 (80 bits, st0 on top), fctrl fstat ftag fiseg fioff foseg fooff fop, xmm0 to xmm15, mxcsr, ymm0h to ymm15h (upper
128 bits), k0 to k7, zmm0h to zmm31h (upper 256 bits), xmm16 to xmm31, ymm16h to ymm31h. ftag has two bits for each
register of the stack as it lies: 0 valid, 1 zero, 2 special, 3 empty.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterator, Mapping

# Components of XSAVE, by their bit in XCR0 and XSTATE_BV.
X87, SSE, AVX, OPMASK, ZMM_HIGH, HIGH_ZMM = 0, 1, 2, 5, 6, 7
XSTATE_BV, AVX_OFFSET, LEGACY_SIZE = 512, 576, 512
STACK, XMM = 32, 160  # offsets in the FXSAVE area; 16 bytes for each register
VALID, ZERO, SPECIAL, EMPTY = range(4)
FSW_TOP = 11  # bits 13:11

# name -> (component, offset within the FXSAVE area, bytes)
LEGACY = {
    "fctrl": (X87, 0, 2),
    "fstat": (X87, 2, 2),
    "fop": (X87, 6, 2),
    "fioff": (X87, 8, 4),
    "fiseg": (X87, 12, 2),
    "fooff": (X87, 16, 4),
    "foseg": (X87, 20, 2),
    **{f"st{n}": (X87, STACK + 16 * n, 10) for n in range(8)},
    "mxcsr": (SSE, 24, 4),
    **{f"xmm{n}": (SSE, XMM + 16 * n, 16) for n in range(16)},
}
FTAG = 4  # one bit a register: whether it is in use


def extended() -> Iterator[tuple[str, int, int, int]]:
    """Yield (name, component, offset within it, bytes) of the registers that lie beyond the FXSAVE area."""
    for n in range(16):
        yield f"ymm{n}h", AVX, 16 * n, 16
    for n in range(8):
        yield f"k{n}", OPMASK, 8 * n, 8
    for n in range(16):
        yield f"zmm{n}h", ZMM_HIGH, 32 * n, 32
        yield f"xmm{n + 16}", HIGH_ZMM, 64 * n, 16
        yield f"ymm{n + 16}h", HIGH_ZMM, 64 * n + 16, 16
        yield f"zmm{n + 16}h", HIGH_ZMM, 64 * n + 32, 32


def places(offsets: Mapping[int, int]) -> dict[str, tuple[int, int, int]]:
    """Return name -> (component, offset in the area, bytes). `offsets`: of the components that there are beyond SSE.

    CPUID leaf 0xD gives them, EBX of the subleaf with the component's number; AVX is at 576 on all processors.
    """
    beyond = {
        name: (component, offsets[component] + offset, size)
        for name, component, offset, size in extended()
        if component in offsets
    }
    return LEGACY | beyond


def from_xsave(area: bytes, offsets: Mapping[int, int]) -> dict[str, int]:
    """Return the registers in an XSAVE area, whose components are all filled in, as KVM gives it."""
    values = {
        name: int.from_bytes(area[offset : offset + size], "little")
        for name, (_, offset, size) in places(offsets).items()
        if offset + size <= len(area)
    }
    values["ftag"] = full_tags(area[FTAG], values)
    return values


def to_xsave(area: bytearray, offsets: Mapping[int, int], values: Mapping[str, int]) -> None:
    """Put registers into an XSAVE area, and say in XSTATE_BV that their components are there. Ignores other names."""
    where = places(offsets)
    present = int.from_bytes(area[XSTATE_BV : XSTATE_BV + 8], "little")
    for name, value in values.items():
        if name == "ftag":
            area[FTAG] = sum(1 << n for n in range(8) if value >> 2 * n & 3 != EMPTY)
            present |= 1 << X87
        elif name in where:
            component, offset, size = where[name]
            area[offset : offset + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
            present |= 1 << component
    struct.pack_into("<Q", area, XSTATE_BV, present)


def full_tags(used: int, values: Mapping[str, int]) -> int:
    """Return the tag word. `used`: one bit for each register of the stack as it lies; their values tell the rest."""
    top = values["fstat"] >> FSW_TOP & 7
    tags = 0
    for n in range(8):
        tag = _tag(values[f"st{(n - top) % 8}"]) if used >> n & 1 else EMPTY
        tags |= tag << 2 * n
    return tags


def _tag(value: int) -> int:
    exponent, mantissa = value >> 64 & 0x7FFF, value & (1 << 64) - 1
    if exponent == 0:
        return ZERO if mantissa == 0 else SPECIAL
    return SPECIAL if exponent == 0x7FFF or not mantissa >> 63 else VALID
