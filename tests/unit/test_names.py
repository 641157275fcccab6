"""Registers by name: what goes into the structures of the KVM ABI comes out again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.kvm.abi.basic import kvm_regs, kvm_sregs
from pyvcpu.x86 import names, segments
from pyvcpu.x86.start import StartState, gdt, set_start

EVERY = sorted(names.from_structures(kvm_regs(), kvm_sregs()))


def bits(name: str) -> int:
    part = name.partition("_")[2]
    if name in names.GENERAL or name in names.CONTROL or part == "base":
        return 64
    if name in ("gdtr_limit", "idtr_limit"):
        return 16
    return {"": 16, "limit": 32, "access": 17}[part]


def test_every_field_has_a_name() -> None:
    fields = {field[0] for field in kvm_sregs._fields_} - {"interrupt_bitmap"}
    assert fields == {*names.CONTROL, *names.SEGMENT_FIELDS.values(), *names.TABLE_FIELDS.values()}
    assert {field[0] for field in kvm_regs._fields_} == set(names.GENERAL)


@given(st.dictionaries(st.sampled_from(EVERY), st.integers(0, (1 << 64) - 1)))
def test_what_is_put_in_comes_out(values: dict[str, int]) -> None:
    regs, sregs = kvm_regs(), kvm_sregs()
    values = {name: value & ((1 << bits(name)) - 1) for name, value in values.items()}
    values = {name: value & ~0xF00 if name.endswith("_access") else value for name, value in values.items()}
    in_regs = bool(values.keys() & set(names.GENERAL))
    assert names.to_structures(values, regs, sregs) == (in_regs, bool(values.keys() - set(names.GENERAL)))
    assert names.from_structures(regs, sregs) == {**dict.fromkeys(EVERY, 0), **values}


@pytest.mark.parametrize("name", EVERY)
def test_what_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has {bits(name)} bits, which"):
        names.to_structures({name: 1 << bits(name)}, kvm_regs(), kvm_sregs())


def test_names_of_others_are_ignored() -> None:
    assert names.to_structures({"xmm0": 1, "cs_nothing": 2}, kvm_regs(), kvm_sregs()) == (False, False)


@pytest.mark.parametrize(("mode", "code_bits"), [("real", 16), ("protected", 32), ("long", 64)])
def test_modes_are_known_by_the_names(mode: str, code_bits: int) -> None:
    regs, sregs = kvm_regs(), kvm_sregs()
    set_start(StartState(mode, 0x1000, gdt=0x800), regs, sregs)  # type: ignore[arg-type]  # one of its three
    values = names.from_structures(regs, sregs)
    assert segments.code_bits(values) == code_bits
    assert segments.linear(values, "cs", values["rip"]) == 0x1000


def test_a_segment_that_is_loaded_from_our_own_table() -> None:
    regs, sregs = kvm_regs(), kvm_sregs()
    set_start(StartState("protected", 0x1000, gdt=0x800), regs, sregs)
    values = names.from_structures(regs, sregs)
    loaded = segments.load(values, "ds", values["ds"], lambda address, size: gdt()[address - 0x800 :][:size])
    assert loaded == {name: values[name] for name in loaded}
