"""The topology in the leaves, for Intel and for AMD; paravirtual leaves; caches."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.x86 import paravirt
from pyvcpu.x86.caches import complete_amd_caches, set_generic_caches
from pyvcpu.x86.cpuid import (
    AMD_CACHES,
    CACHES,
    EAX,
    EBX,
    ECX,
    EDX,
    TOPOEXT,
    Leaves,
    Template,
    set_topology,
    share_caches,
)
from pyvcpu.x86.topology import parse

INTEL, AMD, HYGON = b"GenuineIntel", b"AuthenticAMD", b"HygonGenuine"


def leaves_of(vendor: bytes, maximum: int = 0x1F) -> Leaves:
    leaves = Leaves()
    b, d, c = struct.unpack("<3I", vendor)
    leaves.entries[0, 0] = [maximum, b, c, d]
    leaves.entries[1, 0] = [0x906EA, 0x00AA_0800, 1 << 21, 0]
    leaves.entries[0x8000_0000, 0] = [0x8000_0008, 0, 0, 0]
    leaves.entries[0x8000_0001, 0] = [0, 0, TOPOEXT if vendor != INTEL else 0, 0]
    leaves.entries[0x8000_0008, 0] = [0x3030, 0, 0xFFFF_F0FF, 0]
    set_generic_caches(leaves)
    return leaves


def seen_by(leaves: Leaves, smp: str, index: int) -> Leaves:
    topology = parse(smp)
    set_topology(leaves, topology)
    share_caches(leaves, CACHES, topology)
    share_caches(leaves, AMD_CACHES, topology)
    return Leaves.unpack(bytes(Template(leaves, topology).of(index)))


@pytest.mark.parametrize(("vendor", "told"), [(INTEL, 8), (AMD, 6)])
def test_leaf_1_and_0xb(vendor: bytes, told: int) -> None:
    """Leaf 1 tells Intel's guests how many ids a package has, AMD's how many processors."""
    leaves = seen_by(leaves_of(vendor), "12,sockets=2,cores=3,threads=2", 9)
    apic_id = 1 << 3 | 1 << 1 | 1
    assert leaves.read(1, EBX) == apic_id << 24 | told << 16 | 0x0800
    assert leaves.read(1, EDX) & 1 << 28
    assert leaves.entries[0xB, 0] == [1, 2, 1 << 8 | 0, apic_id]
    assert leaves.entries[0xB, 1] == [3, 6, 2 << 8 | 1, apic_id]
    assert leaves.entries[0xB, 2] == [0, 0, 2, apic_id]


def test_leaf_0x1f_is_intels_alone_and_says_what_0xb_says() -> None:
    intel = seen_by(leaves_of(INTEL), "8,sockets=2,cores=2,threads=2", 5)
    assert [intel.entries[0x1F, i] for i in range(3)] == [intel.entries[0xB, i] for i in range(3)]
    assert (0x1F, 0) not in seen_by(leaves_of(INTEL, 0x16), "8", 5).entries
    assert (0x1F, 0) not in seen_by(leaves_of(AMD), "8", 5).entries


def test_one_processor_in_a_package_has_no_others_to_tell_of() -> None:
    leaves = seen_by(leaves_of(AMD), "4,sockets=4", 3)
    assert leaves.read(1, EBX) >> 16 & 0xFF == 0
    assert not leaves.read(1, EDX) & 1 << 28
    assert not leaves.read(0x8000_0001, ECX) & 1 << 1
    assert leaves.read(0x8000_0008, ECX) & 0xF0FF == 0
    assert leaves.entries[0xB, 0] == [0, 1, 1 << 8, 3]


@pytest.mark.parametrize("vendor", [AMD, HYGON])
def test_amds_leaves(vendor: bytes) -> None:
    leaves = seen_by(leaves_of(vendor), "12,sockets=2,cores=3,threads=2", 9)
    assert leaves.read(0x8000_0000, EAX) >= 0x8000_001E
    assert leaves.read(0x8000_0001, ECX) == 1 << 1 | 1 << 22, "CmpLegacy, TopologyExtensions"
    assert leaves.read(0x8000_0008, ECX) & 0xF0FF == 3 << 12 | 5, "3 bits of ids, 6 processors"
    assert leaves.entries[0x8000_001E, 0] == [1 << 3 | 1 << 1 | 1, 1 << 8 | 1, 1, 0], "id; 2 threads, core 1; node 1"


def test_intel_has_none_of_amds_leaves() -> None:
    leaves = leaves_of(INTEL)
    leaves.change(0x8000_0001, ECX, 0xFFFF_FFFF, 1 << 1 | 1 << 22)
    leaves = seen_by(leaves, "8,threads=2", 1)
    assert leaves.read(0x8000_0001, ECX) == 0
    assert leaves.read(0x8000_0008, ECX) == 0xFFFF_F0FF, "left alone"
    assert (0x8000_001E, 0) not in leaves.entries


def test_ids_beyond_8_bits() -> None:
    intel = seen_by(leaves_of(INTEL, 0x5), "300", 299)
    assert intel.read(0, EAX) == 0xB, "where else could they be told?"
    assert intel.read(1, EBX) >> 24 == 299 & 0xFF
    assert intel.read(0xB, EDX, 1) == 299
    assert intel.read(0xB, EBX, 1) == 300
    amd = seen_by(leaves_of(AMD), "300,sockets=300", 299)
    assert amd.entries[0x8000_001E, 0] == [299, 0, 299 & 0xFF, 0], "a node number has 8 bits"
    assert seen_by(leaves_of(AMD), "300", 299).entries[0x8000_001E, 0] == [299, 299 & 0xFF, 0, 0], "so has a core's"


@pytest.mark.parametrize(
    ("smp", "low", "high", "cores"),
    [
        ("1", 1, 1, 1),
        ("8,sockets=2,cores=2,threads=2", 2, 4, 2),
        ("6,cores=3,threads=2", 2, 8, 4),
        ("64", 1, 64, 64),
        ("512", 1, 512, 64),
    ],
)
def test_leaf_4_says_who_shares_a_cache(smp: str, low: int, high: int, cores: int) -> None:
    leaves = seen_by(leaves_of(INTEL), smp, 0)
    told = [leaves.read(4, EAX, i) for i in range(5)]
    assert [(eax >> 14 & 0xFFF) + 1 for eax in told[:4]] == [low, low, low, high]
    assert {(eax >> 26) + 1 for eax in told[:4]} == {cores}
    assert told[4] == 0, "no more caches"
    assert [eax & 0x1F for eax in told[:4]] == [1, 2, 3, 3]
    assert [eax >> 5 & 7 for eax in told[:4]] == [1, 1, 2, 3]


@pytest.mark.parametrize(
    ("smp", "low", "high"),
    [("12,sockets=2,cores=3,threads=2", 2, 8), ("9,cores=3,threads=3", 4, 16), ("30,cores=5,threads=3", 4, 32)],
)
def test_leaf_0x8000001d_says_it_too(smp: str, low: int, high: int) -> None:
    leaves = seen_by(leaves_of(AMD), smp, 0)
    assert [(leaves.read(AMD_CACHES, EAX, i) >> 14 & 0xFFF) + 1 for i in range(4)] == [low, low, low, high]
    assert {leaves.read(AMD_CACHES, EAX, i) >> 26 for i in range(4)} == {0}


def test_without_topology_extensions_their_leaves_are_not_there() -> None:
    leaves = leaves_of(AMD)
    leaves.change(0x8000_0001, ECX, TOPOEXT, 0)
    leaves.entries[0x8000_001E, 0] = [7, 7, 7, 7]
    leaves = seen_by(leaves, "8,sockets=2,cores=2,threads=2", 5)
    assert leaves.read(0x8000_0000, EAX) == 0x8000_0008
    assert (0x8000_001E, 0) not in leaves.entries
    assert leaves.read(0x8000_0008, ECX) & 0xF0FF == 2 << 12 | 3, "the older way to say it is there"


SIZES = st.integers(1, 9)


@given(st.integers(1, 4), SIZES, SIZES, st.sampled_from([INTEL, AMD]))
def test_guests_of_every_age_find_the_same_packages(sockets: int, cores: int, threads: int, vendor: bytes) -> None:
    """Each way that Linux has taken over the years to get from leaves to packages and cores, for the last processor."""
    smp = parse(f"sockets={sockets},cores={cores},threads={threads}")
    leaves = seen_by(leaves_of(vendor), f"sockets={sockets},cores={cores},threads={threads}", smp.maxcpus - 1)
    package, core, _ = smp.place(smp.maxcpus - 1)
    apic_id = leaves.read(0xB, EDX)
    assert apic_id >> leaves.read(0xB, EAX, 1) == package
    if cores * threads == 1:
        return
    initial, count = leaves.read(1, EBX) >> 24, leaves.read(1, EBX) >> 16 & 0xFF
    if vendor == INTEL:
        core_ids = (leaves.read(4, EAX) >> 26) + 1
        assert initial >> order(count) == package & 0xFF >> order(count)
        assert initial >> order(count) - order(core_ids) & core_ids - 1 == core
        llc = (leaves.read(4, EAX, 3) >> 14 & 0xFFF) + 1
    else:
        assert count == (leaves.read(0x8000_0008, ECX) & 0xFF) + 1 == cores * threads
        assert apic_id >> (leaves.read(0x8000_0008, ECX) >> 12 & 0xF) == package
        assert [leaves.read(0x8000_001E, r) for r in (EAX, EBX, ECX)] == [apic_id, threads - 1 << 8 | core, package]
        llc = (leaves.read(AMD_CACHES, EAX, 3) >> 14 & 0xFFF) + 1
    assert apic_id >> order(llc) == apic_id // llc == package, "one cache of level 3 in each package"


def order(count: int) -> int:
    """Return how many bits number so many things."""
    return (count - 1).bit_length()


def test_amd_caches_out_of_the_older_leaves() -> None:
    leaves = leaves_of(AMD)
    leaves.drop(AMD_CACHES)
    leaves.entries[0x8000_0005, 0] = [0, 0, 64 << 24 | 2 << 16 | 1 << 8 | 64, 32 << 24 | 8 << 16 | 1 << 8 | 64]
    leaves.entries[0x8000_0006, 0] = [0, 0, 512 << 16 | 8 << 12 | 1 << 8 | 64, 16 << 18 | 8 << 12 | 1 << 8 | 64]
    complete_amd_caches(leaves)
    sizes = []
    for i in range(4):
        eax, ebx, ecx, _ = leaves.entries[AMD_CACHES, i]
        sizes.append((eax & 0x1F, eax >> 5 & 7, ((ebx >> 22) + 1) * ((ebx & 0xFFF) + 1) * (ecx + 1) >> 10))
    assert sizes == [(1, 1, 64), (2, 1, 32), (3, 2, 512), (3, 3, 8192)]


def test_packing_keeps_everything() -> None:
    leaves = leaves_of(INTEL)
    again = Leaves.unpack(leaves.pack())
    assert again.entries == leaves.entries
    flags = {function: flag for function, _, flag, *_ in struct.iter_unpack("<7I12x", leaves.pack())}
    assert flags[4] == 1
    assert flags[1] == 0


# Paravirtual leaves.

KVM = {(0x4000_0000, 0): [0x4000_0001, 0, 0, 0], (0x4000_0001, 0): [0x0100_7EFB, 0, 0, 1]}


def signature(leaves: Leaves, base: int = 0x4000_0000) -> bytes:
    return struct.pack("<3I", *leaves.entries[base, 0][1:])


def test_kvms_leaves() -> None:
    leaves = paravirt.kvm_leaves(KVM, apic=True)
    assert signature(leaves) == b"KVMKVMKVM\0\0\0"
    assert leaves.read(0x4000_0000, EAX) == 0x4000_0001
    assert leaves.entries[0x4000_0001, 0] == [0x0100_7EFB, 0, 0, 1]


def test_without_a_local_apic_nobody_can_be_woken_by_a_hypercall() -> None:
    assert paravirt.kvm_leaves(KVM, apic=False).read(0x4000_0001, EAX) == 0x0100_7E7B


def test_the_rate_of_the_tsc() -> None:
    leaves = paravirt.kvm_leaves(KVM, apic=True, tsc_khz=2_600_000)
    assert leaves.read(0x4000_0000, EAX) == 0x4000_0010
    assert leaves.entries[0x4000_0010, 0] == [2_600_000, 1_000_000, 0, 0]


def test_hyperv_moves_kvm_aside_and_shows_what_needs_no_more() -> None:
    everything = Leaves({(0x4000_0000 + i, 0): [0xFFFF_FFFF] * 4 for i in range(0x100)})
    leaves = paravirt.hyperv_leaves(everything, apic=True)
    leaves.entries.update(paravirt.kvm_leaves(KVM, apic=True, beside_hyperv=True, tsc_khz=1).entries)
    assert signature(leaves) == b"Microsoft Hv"
    assert leaves.read(0x4000_0000, EAX) == 0x4000_0005
    assert leaves.read(0x4000_0003, EAX) & 0b1100 == 0, "no synthetic interrupts or timers"
    assert signature(leaves, 0x4000_0100) == b"KVMKVMKVM\0\0\0"
    assert leaves.read(0x4000_0100, EAX) == 0x4000_0101
    assert (0x4000_0010, 0) not in leaves.entries
    assert not paravirt.hyperv_leaves(everything, apic=False).read(0x4000_0004, EAX) & 1 << 3
