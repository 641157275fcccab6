"""Registers by name, one dict for all of them, from and to the structures of the KVM ABI. Pure functions.

The names are those of struct kvm_regs, and of struct kvm_sregs where it has plain numbers; of a segment its selector
under its name and its hidden part under NAME_base, NAME_limit and NAME_access, as in segments.py; ldtr for ldt;
gdtr_base, gdtr_limit, idtr_base, idtr_limit.
"""

from __future__ import annotations

from .segments import SEGMENTS

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Mapping

    from ..kvm.abi.basic import kvm_regs, kvm_segment, kvm_sregs

GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *(f"r{n}" for n in range(8, 16)),
    *("rip", "rflags"),
)
CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
SEGMENT_FIELDS = {**{name: name for name in SEGMENTS}, "tr": "tr", "ldtr": "ldt"}
TABLE_FIELDS = {"gdtr": "gdt", "idtr": "idt"}
# Fields of struct kvm_segment that make up an access word: their lowest bit and how many they are.
ACCESS_BITS = {
    "type": (0, 4),
    "s": (4, 1),
    "dpl": (5, 2),
    "present": (7, 1),
    "avl": (12, 1),
    "l": (13, 1),
    "db": (14, 1),
    "g": (15, 1),
    "unusable": (16, 1),
}


def from_structures(regs: kvm_regs, sregs: kvm_sregs) -> dict[str, int]:
    """Return all that is in both structures, by name."""
    values = {name: getattr(regs, name) for name in GENERAL}
    values |= {name: getattr(sregs, name) for name in CONTROL}
    for name, field in SEGMENT_FIELDS.items():
        segment: kvm_segment = getattr(sregs, field)
        values |= {name: segment.selector, f"{name}_base": segment.base, f"{name}_limit": segment.limit}
        values[f"{name}_access"] = access(segment)
    for name, field in TABLE_FIELDS.items():
        table = getattr(sregs, field)
        values |= {f"{name}_base": table.base, f"{name}_limit": table.limit}
    return values


def to_structures(values: Mapping[str, int], regs: kvm_regs, sregs: kvm_sregs) -> tuple[bool, bool]:
    """Put what `values` names into the structures; return whether regs and whether sregs has changed. Ignores the rest.

    Numbers must fit their fields: ValueError says which does not.
    """
    general = sorted(values.keys() & set(GENERAL))
    for name in general:
        setattr(regs, name, _fitting(name, values[name], 64))
    changed = [name for name in values if _put(sregs, name, values[name])]
    return bool(general), bool(changed)


def _put(sregs: kvm_sregs, name: str, value: int) -> bool:
    """Put one value into sregs; False when it has none of that name."""
    if name in CONTROL:
        setattr(sregs, name, _fitting(name, value, 64))
        return True
    segment, _, part = name.partition("_")
    if segment in SEGMENT_FIELDS and part in ("", "base", "limit", "access"):
        _put_segment(getattr(sregs, SEGMENT_FIELDS[segment]), name, part, value)
        return True
    if segment in TABLE_FIELDS and part in ("base", "limit"):
        table = getattr(sregs, TABLE_FIELDS[segment])
        setattr(table, part, _fitting(name, value, 64 if part == "base" else 16))
        return True
    return False


def _put_segment(segment: kvm_segment, name: str, part: str, value: int) -> None:
    if part == "access":
        _fitting(name, value, 17)
        for field, (bit, width) in ACCESS_BITS.items():
            setattr(segment, field, value >> bit & ((1 << width) - 1))
    elif part:
        setattr(segment, part, _fitting(name, value, 64 if part == "base" else 32))
    else:
        segment.selector = _fitting(name, value, 16)


def access(segment: kvm_segment) -> int:
    """Return a segment's access word, as segments.py has it."""
    word = 0
    for field, (bit, width) in ACCESS_BITS.items():
        word |= (getattr(segment, field) & ((1 << width) - 1)) << bit
    return word


def _fitting(name: str, value: int, bits: int) -> int:
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{name} has {bits} bits, which {value:#x} does not fit")
    return value
