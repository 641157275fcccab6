"""Segmentation: modes, linear addresses, and what a selector loads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.x86 import segments
from pyvcpu.x86.start import CODE32, CODE64, DATA, gdt

PE, VM, LMA = 1, 1 << 17, 1 << 10
CODE16_ACCESS, CODE32_ACCESS, CODE64_ACCESS = 0x009B, 0xC09B, 0xA09B

MODES = [
    ({"cr0": 0x60000010}, 16, "real mode"),
    ({"cr0": 0x60000010, "cs_access": CODE32_ACCESS}, 16, "real mode"),
    ({"cr0": PE, "rflags": VM, "cs_access": 0xF3}, 16, "virtual-8086 mode"),
    ({"cr0": PE, "cs_access": CODE16_ACCESS}, 16, "16-bit protected mode"),
    ({"cr0": PE, "cs_access": CODE32_ACCESS}, 32, "32-bit protected mode"),
    ({"cr0": PE, "cs_access": CODE64_ACCESS}, 16, "16-bit protected mode"),
    ({"cr0": PE, "efer": LMA, "cs_access": CODE32_ACCESS}, 32, "32-bit compatibility mode"),
    ({"cr0": PE, "efer": LMA, "cs_access": CODE64_ACCESS}, 64, "64-bit mode"),
]


@pytest.mark.parametrize(("registers", "bits", "name"), MODES)
def test_modes(registers: dict[str, int], bits: int, name: str) -> None:
    assert segments.code_bits(registers) == bits
    assert segments.mode_name(registers) == name


def test_linear_addresses() -> None:
    real = {"cr0": 0, "cs_base": 0xF0000}
    assert segments.linear(real, "cs", 0xFFF0) == 0xFFFF0
    assert segments.linear({"cr0": 0, "cs_base": 0xFFFF_0000}, "cs", 0x1_0000) == 0
    long = {"cr0": PE, "efer": LMA, "cs_access": CODE64_ACCESS, "cs_base": 16, "fs_base": 1 << 63}
    assert segments.linear(long, "cs", 1 << 40) == 1 << 40
    assert segments.linear(long, "fs", (1 << 63) + 5) == 5


def guest_table(address: int, size: int) -> bytes:
    return gdt()[address - 0x1000 :][:size]


PROTECTED = {"cr0": PE, "gdtr_base": 0x1000, "gdtr_limit": len(gdt()) - 1}


def test_a_selector_in_real_mode_is_a_paragraph() -> None:
    assert segments.load({"cr0": 0}, "ds", 0xB800, guest_table) == {
        "ds": 0xB800,
        "ds_base": 0xB8000,
        "ds_limit": 0xFFFF,
        "ds_access": 0x93,
    }
    assert segments.load({"cr0": PE, "rflags": VM}, "ds", 1, guest_table)["ds_access"] == 0xF3


@pytest.mark.parametrize(
    ("segment", "selector", "access"),
    [("cs", CODE32, 0xC09B), ("ds", CODE32 | 3, 0xC09B), ("ss", DATA, 0xC093), ("cs", CODE64, 0xA09B)],
)
def test_a_selector_in_protected_mode_is_looked_up(segment: str, selector: int, access: int) -> None:
    assert segments.load(PROTECTED, segment, selector, guest_table) == {
        segment: selector,
        f"{segment}_base": 0,
        f"{segment}_limit": 0xFFFF_FFFF,
        f"{segment}_access": access,
    }


def test_a_null_selector() -> None:
    assert segments.load(PROTECTED, "fs", 3, guest_table)["fs_access"] == segments.UNUSABLE
    with pytest.raises(segments.SegmentError, match="cs cannot be given a null selector"):
        segments.load(PROTECTED, "cs", 0, guest_table)


@pytest.mark.parametrize(
    ("segment", "selector", "words"),
    [
        ("cs", DATA, "names a segment of another kind"),
        ("ss", CODE32, "names a segment of another kind"),
        ("ds", 0x20, "beyond the limit"),
        ("ds", DATA | 4, "beyond the limit"),
    ],
)
def test_a_selector_that_does_not_fit(segment: str, selector: int, words: str) -> None:
    with pytest.raises(segments.SegmentError, match=words):
        segments.load(PROTECTED, segment, selector, guest_table)


def test_a_table_that_is_not_in_memory() -> None:
    with pytest.raises(segments.SegmentError, match="at 0x2008, is not in memory"):
        segments.load(PROTECTED | {"gdtr_base": 0x2000}, "ds", CODE32, guest_table)


@given(st.integers(0, (1 << 32) - 1), st.integers(0, 0xFFFFF), st.integers(0, 0xFFF))
def test_descriptors_are_taken_apart(base: int, limit: int, bits: int) -> None:
    access = bits & 0xFF | (bits & 0xF00) << 4
    descriptor = limit & 0xFFFF | (base & 0xFFFFFF) << 16 | access << 40 | (limit >> 16) << 48 | (base >> 24) << 56
    assert segments.parse(descriptor) == (base, limit << 12 | 0xFFF if access & 0x8000 else limit, access)
