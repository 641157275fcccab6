"""Segmentation: what code a vCPU runs, and what a selector names (SDM vol. 3A sections 3.4 and 20.1). Pure functions.

Registers come in a dict: for each of cs, ss, ds, es, fs, gs, tr and ldtr its selector under that name, and its hidden
part under NAME_base, NAME_limit (in bytes) and NAME_access: bits 40 to 55 of a descriptor without the limit, as VMX has
them (SDM vol. 3C table 24-2): type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15, unusable 16.
"""

from __future__ import annotations

from ..errors import PyvcpuError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Mapping

SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
SYSTEM_SEGMENTS = ("tr", "ldtr")
CR0_PE, RFLAGS_VM, EFER_LMA = 1 << 0, 1 << 17, 1 << 10
CODE, S, PRESENT, LONG, BIG, GRANULAR, UNUSABLE = 1 << 3, 1 << 4, 1 << 7, 1 << 13, 1 << 14, 1 << 15, 1 << 16
REAL_ACCESS, VM86_ACCESS = 0x93, 0xF3  # present, read and write, accessed; CPL 3 in virtual-8086 mode
LOCAL, DESCRIPTOR, PRIVILEGE = 1 << 2, ~7, 3  # in a selector


class SegmentError(PyvcpuError, ValueError):
    """A selector that no segment register can be given."""


def is_real(registers: Mapping[str, int]) -> bool:
    """Tell whether selectors are paragraphs: real mode and virtual-8086 mode."""
    return not registers.get("cr0", 0) & CR0_PE or _is_vm86(registers)


def _is_vm86(registers: Mapping[str, int]) -> bool:
    return bool(registers.get("rflags", 0) & RFLAGS_VM) and not registers.get("efer", 0) & EFER_LMA


def code_bits(registers: Mapping[str, int]) -> int:
    """Return the size of code that a vCPU runs: 16, 32 or 64 bits."""
    if is_real(registers):
        return 16
    access = registers.get("cs_access", 0)
    if registers.get("efer", 0) & EFER_LMA and access & LONG:
        return 64
    return 32 if access & BIG else 16


def mode_name(registers: Mapping[str, int]) -> str:
    """Return the mode in words."""
    if not registers.get("cr0", 0) & CR0_PE:
        return "real mode"
    if _is_vm86(registers):
        return "virtual-8086 mode"
    bits = code_bits(registers)
    if bits == 64:
        return "64-bit mode"
    return f"{bits}-bit {'compatibility' if registers.get('efer', 0) & EFER_LMA else 'protected'} mode"


def linear(registers: Mapping[str, int], segment: str, offset: int) -> int:
    """Return the linear address of `offset` in a segment; in 64-bit code only fs and gs have a base."""
    if code_bits(registers) == 64:
        base = registers.get(f"{segment}_base", 0) if segment in ("fs", "gs") else 0
        return (base + offset) & (1 << 64) - 1
    return (registers.get(f"{segment}_base", 0) + offset) & 0xFFFF_FFFF


def load(
    registers: Mapping[str, int], segment: str, selector: int, read_linear: Callable[[int, int], bytes]
) -> dict[str, int]:
    """Return what changes in the registers when `segment` is given `selector`: itself and its hidden part.

    In protected mode the descriptor is read with read_linear(address, size) from the table in the guest. Raises
    SegmentError for a selector with no descriptor that fits.
    """
    if is_real(registers):
        access = VM86_ACCESS if _is_vm86(registers) else REAL_ACCESS
        return _changes(segment, selector, selector << 4, 0xFFFF, access)
    if not selector & ~PRIVILEGE:
        if segment == "cs":
            raise SegmentError("cs cannot be given a null selector")
        return _changes(segment, selector, 0, 0, UNUSABLE)
    base, limit, access = parse(_descriptor(registers, selector, read_linear))
    if not access & S or not access & PRESENT:
        raise SegmentError(f"selector {selector:#x} names no segment of code or data that is present")
    if (segment == "cs") != bool(access & CODE) and segment in ("cs", "ss"):
        raise SegmentError(f"{segment} cannot be given selector {selector:#x}, which names a segment of another kind")
    return _changes(segment, selector, base, limit, access)


def _changes(segment: str, selector: int, base: int, limit: int, access: int) -> dict[str, int]:
    return {
        segment: selector,
        f"{segment}_base": base,
        f"{segment}_limit": limit,
        f"{segment}_access": access,
    }


def _descriptor(registers: Mapping[str, int], selector: int, read_linear: Callable[[int, int], bytes]) -> int:
    table = "ldtr" if selector & LOCAL else "gdtr"
    offset = selector & DESCRIPTOR & 0xFFFF
    if offset + 7 > registers.get(f"{table}_limit", 0):
        raise SegmentError(f"selector {selector:#x} lies beyond the limit of its table")
    address = registers.get(f"{table}_base", 0) + offset
    try:
        data = read_linear(address, 8)
    except (LookupError, PyvcpuError):
        data = b""
    if len(data) != 8:
        raise SegmentError(f"the descriptor of selector {selector:#x}, at {address:#x}, is not in memory")
    return int.from_bytes(data, "little")


def parse(descriptor: int) -> tuple[int, int, int]:
    """Return base, limit in bytes, and access of a descriptor of code or data (SDM vol. 3A figure 3-8)."""
    base = descriptor >> 16 & 0xFF_FFFF | (descriptor >> 56 & 0xFF) << 24
    limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF_0000
    access = descriptor >> 40 & 0xF0FF
    if access & GRANULAR:
        limit = limit << 12 | 0xFFF
    return base, limit, access
