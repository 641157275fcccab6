"""CPUID leaves as numbers, and the topology in them. Pure; in KVM's form they are kvm.cpuid.CpuidTable.

Sources: SDM vol. 2A, CPUID; APM vol. 3, appendix E; where they leave a choice, QEMU's (target/i386/cpu.c).
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable

    from .topology import Topology

    Key = tuple[int, int]

EAX, EBX, ECX, EDX = range(4)
ENTRY = struct.Struct("<7I12x")  # struct kvm_cpuid_entry2: function, index, flags, eax, ebx, ecx, edx
FIRST_REGISTER = 12
SIGNIFICANT_INDEX = 1

MAX_BASIC, MAX_EXTENDED = 0x0, 0x8000_0000
FEATURES, CACHES, TOPOLOGY, XSAVE, TOPOLOGY_V2 = 0x1, 0x4, 0xB, 0xD, 0x1F
EXTENDED_FEATURES, ADDRESS_SIZES = 0x8000_0001, 0x8000_0008
AMD_CACHES, AMD_TOPOLOGY, AMD_TOPOLOGY_V2 = 0x8000_001D, 0x8000_001E, 0x8000_0026
SUBLEAVES = frozenset({CACHES, 0x7, TOPOLOGY, XSAVE, TOPOLOGY_V2, AMD_CACHES})

# Feature bits that the topology sets.
HT = 1 << 28  # leaf 1 EDX: a package may have more than one processor
CMP_LEGACY = 1 << 1  # leaf 0x80000001 ECX: and these are cores
TOPOEXT = 1 << 22  # leaf 0x80000001 ECX: there are the leaves 0x8000001D and 0x8000001E
X2APIC = 1 << 21  # leaf 1 ECX

# Level types of leaves 0xB and 0x1F, ECX bits 15-8.
SMT, CORE = 1 << 8, 2 << 8

AMD_VENDORS = (b"AuthenticAMD", b"HygonGenuine")


class Leaves:
    """The leaves of a processor: `entries` maps (function, index) to [eax, ebx, ecx, edx].

    `indexed` are the functions that have subleaves.
    """

    __slots__ = ("entries", "indexed")

    def __init__(self, entries: dict[Key, list[int]] | None = None, indexed: Iterable[int] = SUBLEAVES) -> None:
        self.entries = entries or {}
        self.indexed = set(indexed)

    @classmethod
    def unpack(cls, raw: bytes) -> Leaves:
        """Make leaves of an array of struct kvm_cpuid_entry2."""
        leaves = cls()
        for function, index, flags, *registers in ENTRY.iter_unpack(raw):
            leaves.entries[function, index] = registers
            if flags & SIGNIFICANT_INDEX:
                leaves.indexed.add(function)
        return leaves

    def pack(self) -> bytes:
        """Return an array of struct kvm_cpuid_entry2."""
        pack, indexed = ENTRY.pack, self.indexed
        return b"".join(
            pack(function, index, function in indexed, *registers)
            for (function, index), registers in self.entries.items()
        )

    def copy(self) -> Leaves:
        """Return leaves that can be changed without changing these."""
        return Leaves({key: [*registers] for key, registers in self.entries.items()}, self.indexed)

    def read(self, function: int, register: int, index: int = 0) -> int:
        """Return one register of a leaf, 0 where there is no such leaf."""
        registers = self.entries.get((function, index))
        return registers[register] if registers else 0

    def change(self, function: int, register: int, mask: int, value: int, index: int = 0) -> None:
        """Put `value` into the bits `mask` of one register; make the leaf where there is none."""
        registers = self.entries.setdefault((function, index), [0, 0, 0, 0])
        registers[register] = registers[register] & ~mask | value & mask

    def drop(self, function: int) -> None:
        """Take a leaf out, with all its subleaves."""
        for key in [key for key in self.entries if key[0] == function]:
            del self.entries[key]

    @property
    def vendor(self) -> bytes:
        """The 12 characters of the vendor's name."""
        registers = self.entries.get((MAX_BASIC, 0), [0, 0, 0, 0])
        return struct.pack("<3I", registers[EBX], registers[EDX], registers[ECX])

    @property
    def is_amd(self) -> bool:
        """Whether AMD's manual is the one that counts."""
        return self.vendor in AMD_VENDORS

    @property
    def has_topoext(self) -> bool:
        """Whether AMD's leaves 0x8000001D and 0x8000001E count."""
        return self.is_amd and bool(self.read(EXTENDED_FEATURES, ECX) & TOPOEXT)


def set_topology(leaves: Leaves, topology: Topology) -> None:
    """Write into `leaves` what all processors of a machine say alike about its topology."""
    several = topology.per_package > 1
    # AMD counts processors here. Intel counts ids, also those that no processor has.
    count = topology.per_package if leaves.is_amd else 1 << topology.package_shift
    leaves.change(FEATURES, EBX, 0x00FF_0000, min(count, 0xFF) << 16 if several else 0)
    leaves.change(FEATURES, EDX, HT, HT if several else 0)
    _extended_topology(leaves, topology)
    if leaves.is_amd:
        _amd_topology(leaves, topology, several)
    elif (EXTENDED_FEATURES, 0) in leaves.entries:
        # Linux takes CmpLegacy for "no threads at all"; Intel's processors have neither of these.
        leaves.change(EXTENDED_FEATURES, ECX, CMP_LEGACY | TOPOEXT, 0)


def _extended_topology(leaves: Leaves, topology: Topology) -> None:
    """Write leaf 0xB, and 0x1F where the processor is an Intel one that reaches so far: threads, then cores."""
    if leaves.read(MAX_BASIC, EAX) < TOPOLOGY and leaves.read(FEATURES, ECX) & X2APIC:
        leaves.entries[MAX_BASIC, 0][EAX] = TOPOLOGY  # ids beyond 8 bits are nowhere else
    maximum = leaves.read(MAX_BASIC, EAX)
    for leaf in (TOPOLOGY, TOPOLOGY_V2):
        there = (leaf, 0) in leaves.entries
        leaves.drop(leaf)
        if there or maximum >= leaf:
            leaves.indexed.add(leaf)
            if leaf == TOPOLOGY_V2 and leaves.is_amd:
                continue
            leaves.entries[leaf, 0] = [topology.core_shift, topology.threads & 0xFFFF, SMT, 0]
            leaves.entries[leaf, 1] = [topology.package_shift, topology.per_package & 0xFFFF, CORE | 1, 0]
            leaves.entries[leaf, 2] = [0, 0, 2, 0]


def share_caches(leaves: Leaves, leaf: int, topology: Topology) -> None:
    """Say in `leaf` (4 or 0x8000001D) who shares a cache: levels 1 and 2 a core's threads, those above a package.

    Bits 25-14 of EAX hold the number of APIC ids less one, those without a processor included; in leaf 4, bits 31-26
    hold that of cores. AMD's manual speaks of processors, and rounds them up to a power of two. Where ids have gaps,
    only the number of ids says who shares.
    """
    cores = (1 << (topology.package_shift - topology.core_shift)) - 1 if leaf == CACHES else 0
    for (function, _), registers in leaves.entries.items():
        if function != leaf or not registers[EAX] & 0x1F:
            continue
        level = registers[EAX] >> 5 & 7
        sharing = 1 << (topology.core_shift if level < 3 else topology.package_shift)
        registers[EAX] = registers[EAX] & 0x3FFF | min(sharing - 1, 0xFFF) << 14 | min(cores, 0x3F) << 26


def _amd_topology(leaves: Leaves, topology: Topology, several: bool) -> None:
    """Write the leaves that AMD defines."""
    leaves.change(EXTENDED_FEATURES, ECX, CMP_LEGACY, CMP_LEGACY if several else 0)
    count = min(topology.per_package - 1, 0xFF)
    leaves.change(ADDRESS_SIZES, ECX, 0xF0FF, topology.package_shift << 12 | count if several else 0)
    leaves.drop(AMD_TOPOLOGY)
    leaves.drop(AMD_TOPOLOGY_V2)  # older guests ask 0x8000001E, newer ones fall back to leaf 0xB
    if leaves.has_topoext:
        leaves.change(MAX_EXTENDED, EAX, 0xFFFF_FFFF, max(leaves.read(MAX_EXTENDED, EAX), AMD_TOPOLOGY))
        leaves.entries[AMD_TOPOLOGY, 0] = [0, 0, 0, 0]


class Template:
    """The leaves of all processors of a machine, to be completed for each of them."""

    __slots__ = ("_at", "_raw", "_topology")

    def __init__(self, leaves: Leaves, topology: Topology) -> None:
        self._raw = leaves.pack()
        self._topology = topology
        wanted = (FEATURES, TOPOLOGY, TOPOLOGY_V2, *((AMD_TOPOLOGY,) if leaves.has_topoext else ()))
        self._at = [
            (function, number * ENTRY.size + FIRST_REGISTER)
            for number, (function, _) in enumerate(leaves.entries)
            if function in wanted
        ]

    def of(self, index: int) -> bytearray:
        """Return the leaves of processor `index`, packed: its ids are in them."""
        raw = bytearray(self._raw)
        apic_id = self._topology.apic_id(index)
        for function, at in self._at:
            if function == FEATURES:
                raw[at + 4 * EBX + 3] = apic_id & 0xFF
            elif function == AMD_TOPOLOGY:
                struct.pack_into("<3I", raw, at, *self._amd_ids(index, apic_id))
            else:
                struct.pack_into("<I", raw, at + 4 * EDX, apic_id)
        return raw

    def _amd_ids(self, index: int, apic_id: int) -> tuple[int, int, int]:
        """Return leaf 0x8000001E: extended APIC id; threads less one, and core; node. A package is one node.

        Core and node have 8 bits. QEMU clears the leaf when they do not fit, but there guests look for their APIC id.
        """
        package, core, _ = self._topology.place(index)
        return apic_id, min(self._topology.threads - 1, 0xFF) << 8 | core & 0xFF, package & 0xFF
