"""Floating point registers by name, from and to an XSAVE area."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.gdb.registers import Layout
from pyvcpu.x86 import fpu
from pyvcpu.x86.reset import xsave_area

INTEL = {fpu.AVX: 576, fpu.OPMASK: 1088, fpu.ZMM_HIGH: 1152, fpu.HIGH_ZMM: 1664}
AMD = {fpu.AVX: 576, fpu.OPMASK: 832, fpu.ZMM_HIGH: 896, fpu.HIGH_ZMM: 1408}
ONE = 0x3FFF_8000_0000_0000_0000
NAMES = [*fpu.places(INTEL), "ftag"]


def test_registers_after_reset() -> None:
    values = fpu.from_xsave(xsave_area(), {})
    assert (values["fctrl"], values["fstat"], values["ftag"], values["mxcsr"]) == (0x37F, 0, 0xFFFF, 0x1F80)
    assert values["st0"] == values["xmm15"] == 0
    assert "ymm0h" not in values


def test_the_names_are_those_that_gdb_is_offered() -> None:
    offered = {register.key for register in Layout(64, {*NAMES, "r8"}).registers}
    assert set(NAMES) <= offered


@pytest.mark.parametrize("offsets", [{}, {fpu.AVX: 576}, INTEL, AMD])
def test_what_is_put_in_is_found(offsets: dict[int, int]) -> None:
    area = bytearray(xsave_area())
    values = {name: n + 1 for n, name in enumerate(fpu.places(offsets))}
    fpu.to_xsave(area, offsets, values)
    found = fpu.from_xsave(bytes(area), offsets)
    assert {name: found[name] for name in values} == values
    assert struct.unpack_from("<Q", area, fpu.XSTATE_BV)[0] == sum(1 << n for n in {0, 1, *offsets})


def test_where_registers_lie() -> None:
    area = bytearray(4096)
    fpu.to_xsave(area, AMD, {"st1": ONE, "xmm1": 7, "ymm2h": 8, "k1": 9, "zmm1h": 10, "zmm17h": 11, "unknown": 12})
    assert area[48:58] == ONE.to_bytes(10, "little")
    assert (area[176], area[576 + 32], area[832 + 8], area[896 + 32], area[1408 + 64 + 32]) == (7, 8, 9, 10, 11)
    assert sum(1 for byte in area if byte) == 5 + 3 + 1  # three bytes of ONE, one of XSTATE_BV


@given(st.dictionaries(st.sampled_from(NAMES), st.integers(0, (1 << 256) - 1)))
def test_only_what_is_changed_changes(values: dict[str, int]) -> None:
    area = bytearray(xsave_area())
    before = fpu.from_xsave(bytes(area), INTEL)
    fpu.to_xsave(area, INTEL, values)
    after = fpu.from_xsave(bytes(area), INTEL)
    sizes = {name: 8 * size for name, (_, _, size) in fpu.places(INTEL).items()}
    for name in sizes:
        assert after[name] == (values[name] & ((1 << sizes[name]) - 1) if name in values else before[name])


TAGS = [
    (ONE, fpu.VALID),
    (0, fpu.ZERO),
    (1 << 79, fpu.ZERO),  # minus zero
    (1, fpu.SPECIAL),  # denormal
    (0x7FFF << 64 | 1 << 63, fpu.SPECIAL),  # infinity
    (0x4000 << 64 | 1, fpu.SPECIAL),  # unnormal
]


@pytest.mark.parametrize(("value", "tag"), TAGS)
@pytest.mark.parametrize("top", [0, 5])
def test_tags_are_worked_out(value: int, tag: int, top: int) -> None:
    area = bytearray(xsave_area())
    fpu.to_xsave(area, {}, {"st0": value, "fstat": top << 11, "ftag": 0xFFFF & ~(3 << 2 * top)})
    assert area[fpu.FTAG] == 1 << top
    assert fpu.from_xsave(bytes(area), {})["ftag"] == 0xFFFF & ~(3 << 2 * top) | tag << 2 * top
