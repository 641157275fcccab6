"""Target descriptions, and the way of registers between the dict and gdb's bytes."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.gdb.registers import ARCHITECTURES, Layout, changes, view
from pyvcpu.gdb.target import TargetError
from pyvcpu.x86.start import CODE32, DATA, gdt
from tests.gdb_target import long_registers, real_registers

LONG = long_registers()
AVX512 = (
    LONG
    | {f"k{n}": 0 for n in range(8)}
    | {f"{name}": 0 for n in range(32) for name in (f"zmm{n}h", f"xmm{n}", f"ymm{n}h")}
)
PROTECTED = real_registers() | {"cr0": 0x11, "cs_access": 0xC09B, "cs_base": 0, "cs_limit": 0xFFFF_FFFF}
PROTECTED |= {"gdtr_base": 0x1000, "gdtr_limit": len(gdt()) - 1}


def no_memory(address: int, size: int) -> bytes:
    raise TargetError("not read")


def read_gdt(address: int, size: int) -> bytes:
    return gdt()[address - 0x1000 :][:size]


def parsed(layout: Layout) -> list[tuple[str, int, str]]:
    """Read the XML as gdb does: name, bits and type of each register, whose numbers must go up by one."""
    root = ElementTree.fromstring(layout.xml)
    assert [child.tag for child in root][:2] == ["architecture", "osabi"]
    assert root.findtext("architecture") == ARCHITECTURES[layout.bits]
    found: list[tuple[str, int, str]] = []
    builtin = {"int", "int32", "int64", "uint64", "uint128", "code_ptr", "data_ptr", "i387_ext"}
    for feature in root.findall("feature"):
        known = builtin | {child.get("id", "") for child in feature if child.tag != "reg"}
        for register in feature.findall("reg"):
            assert register.get("regnum") == str(len(found))
            assert register.get("type") in known
            found.append((register.get("name", ""), int(register.get("bitsize", "")), register.get("type", "")))
    return found


SEGMENTS = ["cs", "ss", "ds", "es", "fs", "gs"]
GENERAL64 = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)), "rip", "eflags"]
GENERAL32 = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eip", "eflags"]
FPU = [*(f"st{n}" for n in range(8)), "fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"]


@pytest.mark.parametrize(("bits", "general", "xmm"), [(64, GENERAL64, 16), (32, GENERAL32, 8), (16, GENERAL32, 8)])
def test_the_order_is_gdbs_own(bits: int, general: list[str], xmm: int) -> None:
    names = [name for name, _, _ in parsed(Layout(bits, LONG))]
    start = [*general, *SEGMENTS, *FPU, *(f"xmm{n}" for n in range(xmm)), "mxcsr"]
    assert names[: len(start)] == start
    assert len(set(names)) == len(names)


def test_the_features_of_a_long_mode_processor() -> None:
    root = ElementTree.fromstring(Layout(64, AVX512).xml)
    assert [feature.get("name") for feature in root.findall("feature")] == [
        "org.gnu.gdb.i386.core",
        "org.gnu.gdb.i386.sse",
        "org.gnu.gdb.i386.segments",
        "org.gnu.gdb.i386.avx",
        "org.gnu.gdb.i386.avx512",
        "org.pyvcpu.x86.system",
    ]


def test_what_is_not_there_is_not_offered() -> None:
    plain = {key: value for key, value in LONG.items() if not key.startswith(("xmm", "ymm", "mxcsr", "cr8"))}
    names = {name for name, _, _ in parsed(Layout(64, plain))}
    assert {"rax", "st0", "fs_base", "cr0"} <= names
    assert not {"xmm0", "mxcsr", "ymm0h", "cr8", "k0"} & names


def test_the_bytes_of_a_g_packet() -> None:
    values = LONG | {"rax": 0x1122334455667788, "rflags": 0x246, "st0": 1 << 79, "xmm1": 5 << 120}
    layout = Layout(64, values)
    data = layout.pack_all(view(values))
    assert data[:8] == bytes.fromhex("8877665544332211")
    assert data[16 * 8 :][:8] == (0x1000).to_bytes(8, "little")
    assert data[17 * 8 :][:4] == bytes.fromhex("46020000")
    assert len(data) == sum(register.size for register in layout.registers)


@given(st.data())
def test_only_what_a_g_packet_changes_is_written(data: st.DataObject) -> None:
    layout = Layout(data.draw(st.sampled_from([16, 32, 64])), AVX512)
    seen = view(AVX512)
    chosen = data.draw(st.lists(st.integers(0, len(layout.registers) - 1), unique=True, max_size=5))
    new = dict(seen)
    for number in chosen:
        register = layout.registers[number]
        new[register.key] = data.draw(st.integers(0, (1 << 8 * register.size) - 1))
    raw = layout.pack_all(new)
    mask = {register.key: (1 << 8 * register.size) - 1 for register in layout.registers}
    assert layout.changed(seen, raw) == {k: v for k, v in new.items() if k in mask and v != seen[k] & mask[k]}


def test_a_g_packet_may_end_early_but_not_within_a_register() -> None:
    layout = Layout(64, LONG)
    assert layout.changed(view(LONG), bytes([7]).ljust(8, b"\0")) == {"rax": 7}
    with pytest.raises(ValueError, match="rbx has 8 bytes, not 3"):
        layout.changed(view(LONG), bytes(11))
    with pytest.raises(ValueError, match="more than there are"):
        layout.changed(view(LONG), layout.pack_all(view(LONG)) + b"\0")


def test_the_view_in_each_mode() -> None:
    upper = 0xFFFF_FFFF_0000_0000
    assert view(LONG | {"rip": upper, "rax": upper + 1})["rip"] == upper
    assert view(LONG | {"rax": upper + 1})["rax"] == upper + 1
    real = view(real_registers() | {"rax": upper + 1, "r8": upper})
    assert (real["rip"], real["rax"], real["r8"]) == (0x1000, 1, upper)


def test_rip_is_set_by_its_linear_address() -> None:
    real = real_registers()
    assert changes(real, "rip", 0x1010, no_memory) == {"rip": 0x20}
    assert changes(LONG, "rip", 1 << 50, no_memory) == {"rip": 1 << 50}
    for outside in (0xFEF, 0x10FF0, 0x1_0000_1000):
        with pytest.raises(TargetError, match=r"not in the code segment, which is 0xff0-0x10fef; set cs first"):
            changes(real, "rip", outside, no_memory)


def test_a_selector_brings_its_hidden_part() -> None:
    assert changes(real_registers(), "ds", 0xB800, no_memory)["ds_base"] == 0xB8000
    assert changes(PROTECTED, "ds", DATA, read_gdt)["ds_access"] == 0xC093
    assert changes(PROTECTED, "cs", CODE32, read_gdt)["cs_limit"] == 0xFFFF_FFFF
    with pytest.raises(TargetError, match="beyond the limit"):
        changes(PROTECTED, "ds", 0x100, read_gdt)
    with pytest.raises(TargetError, match="ds has 16 bits"):
        changes(real_registers(), "ds", 0x10000, no_memory)
    with pytest.raises(TargetError, match="not in memory"):
        changes(PROTECTED, "ds", DATA, no_memory)


def test_other_registers_are_just_set() -> None:
    assert changes(LONG, "rax", 1 << 63, no_memory) == {"rax": 1 << 63}
    assert changes(real_registers(), "rax", (1 << 40) + 1, no_memory) == {"rax": 1}
    assert changes(LONG, "cr3", 0x5000, no_memory) == {"cr3": 0x5000}
