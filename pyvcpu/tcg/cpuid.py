"""What the software processor shows in CPUID: exactly the features that are built (KVM_GET_SUPPORTED_CPUID)."""

from __future__ import annotations

from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable

ENTRY = Struct("<7I12x")  # kvm_cpuid_entry2: function, index, flags, eax, ebx, ecx, edx
OLD_ENTRY = Struct("<5I4x")  # kvm_cpuid_entry
SIGNIFICANT = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX
MOST = 256  # entries that KVM_SET_CPUID2 takes

Entry = tuple[int, int, int, int, int, int, int]

VENDOR = b"GenuineIntel"
BRAND = b"pyvcpu software processor"
FAMILY_6_MODEL_60 = 0x306C3
PHYSICAL_BITS, LINEAR_BITS = 46, 57
XSAVE_SIZE = 576  # x87 and SSE with the header
XCR0 = 3

# Register by register: leaf, register (0 eax, 1 ebx, 2 ecx, 3 edx) and bit of each feature.
FEATURES: dict[str, tuple[int, int, int]] = {
    "fpu": (1, 3, 0), "de": (1, 3, 2), "pse": (1, 3, 3), "tsc": (1, 3, 4), "msr": (1, 3, 5), "pae": (1, 3, 6),
    "mce": (1, 3, 7), "cx8": (1, 3, 8), "apic": (1, 3, 9), "sep": (1, 3, 11), "mtrr": (1, 3, 12), "pge": (1, 3, 13),
    "mca": (1, 3, 14), "cmov": (1, 3, 15), "pat": (1, 3, 16), "pse36": (1, 3, 17), "clflush": (1, 3, 19),
    "mmx": (1, 3, 23), "fxsr": (1, 3, 24), "sse": (1, 3, 25), "sse2": (1, 3, 26), "ss": (1, 3, 27),
    "sse3": (1, 2, 0), "pclmulqdq": (1, 2, 1), "ssse3": (1, 2, 9), "cx16": (1, 2, 13), "pcid": (1, 2, 17),
    "sse4_1": (1, 2, 19), "sse4_2": (1, 2, 20), "x2apic": (1, 2, 21), "movbe": (1, 2, 22), "popcnt": (1, 2, 23),
    "tsc_deadline": (1, 2, 24), "aes": (1, 2, 25), "xsave": (1, 2, 26), "hypervisor": (1, 2, 31),
    "fsgsbase": (7, 1, 0), "tsc_adjust": (7, 1, 1), "smep": (7, 1, 7), "erms": (7, 1, 9), "adx": (7, 1, 19),
    "smap": (7, 1, 20), "clflushopt": (7, 1, 23), "clwb": (7, 1, 24), "sha_ni": (7, 1, 29),
    "umip": (7, 2, 2), "la57": (7, 2, 16), "rdpid": (7, 2, 22), "fsrm": (7, 3, 4), "arch_capabilities": (7, 3, 29),
    "xsaveopt": (0xD, 0, 0),
    "lahf_lm": (0x80000001, 2, 0), "abm": (0x80000001, 2, 5), "syscall": (0x80000001, 3, 11),
    "nx": (0x80000001, 3, 20), "pdpe1gb": (0x80000001, 3, 26), "rdtscp": (0x80000001, 3, 27), "lm": (0x80000001, 3, 29),
}  # fmt: skip

# What the processor itself has built, and the KVM objects; the FPU has a list of its own.
BUILT = (
    "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "sep", "mtrr", "pge", "mca", "cmov", "pat", "pse36",
    "clflush", "ss", "cx16", "pcid", "x2apic", "movbe", "popcnt", "tsc_deadline", "hypervisor", "fsgsbase",
    "tsc_adjust", "smep", "erms", "adx", "smap", "clflushopt", "clwb", "umip", "la57", "rdpid", "fsrm",
    "arch_capabilities", "lahf_lm", "abm", "syscall", "nx", "pdpe1gb", "rdtscp", "lm",
)  # fmt: skip
ALIASES = {"sse4.1": "sse4_1", "sse4.2": "sse4_2", "pni": "sse3", "x87": "fpu", "pclmul": "pclmulqdq", "sha": "sha_ni"}

KVM_SIGNATURE, KVM_FEATURES = 0x4000_0000, 0x4000_0001
# CLOCKSOURCE, NOP_IO_DELAY, CLOCKSOURCE2, CLOCKSOURCE_STABLE_BIT (cpuid.rst of the kernel)
PARAVIRTUAL = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24


def built() -> list[str]:
    """Return the names of all features that are built."""
    names = list(BUILT)
    try:
        from .fputables import FEATURES as media
    except ImportError:
        return names
    for name in media:
        name = ALIASES.get(name.lower(), name.lower().replace(".", "_"))
        if name in FEATURES and name not in names:
            names.append(name)
    return names


def feature_bits(names: Iterable[str]) -> dict[tuple[int, int], int]:
    """Return the bits of features by leaf and register."""
    bits: dict[tuple[int, int], int] = {}
    for name in names:
        leaf, register, bit = FEATURES[name]
        bits[leaf, register] = bits.get((leaf, register), 0) | 1 << bit
    return bits


def supported() -> list[Entry]:
    """Return all leaves."""
    names = built()
    bits = feature_bits(names)

    def registers(leaf: int) -> tuple[int, int, int, int]:
        return (bits.get((leaf, 0), 0), bits.get((leaf, 1), 0), bits.get((leaf, 2), 0), bits.get((leaf, 3), 0))

    _, _, ecx1, edx1 = registers(1)
    _, ebx7, ecx7, edx7 = registers(7)
    _, _, ecx8, edx8 = registers(0x8000_0001)
    vendor = [int.from_bytes(VENDOR[at : at + 4], "little") for at in (0, 4, 8)]
    brand = BRAND.ljust(48, b"\0")
    has_xsave = "xsave" in names
    leaves: list[Entry] = [
        (0, 0, 0, 0xD if has_xsave else 0xB, vendor[0], vendor[2], vendor[1]),
        (1, 0, 0, FAMILY_6_MODEL_60, 8 << 8, ecx1, edx1),  # CLFLUSH of 64 bytes
        (2, 0, 0, 0x00FF_FF01, 0, 0, 0),  # descriptor 0xFF: see leaf 4
        (4, 0, SIGNIFICANT, 0x121, 7 << 22 | 63, 63, 0),  # 32 KiB of L1 data, 8 ways
        (4, 1, SIGNIFICANT, 0x122, 7 << 22 | 63, 63, 0),
        (4, 2, SIGNIFICANT, 0x143, 15 << 22 | 63, 4095, 0),  # 4 MiB of L2, 16 ways
        (4, 3, SIGNIFICANT, 0, 0, 0, 0),
        (6, 0, 0, 4, 0, 0, 0),  # ARAT: the APIC timer never stops
        (7, 0, SIGNIFICANT, 0, ebx7, ecx7, edx7),
        (0xB, 0, SIGNIFICANT, 0, 0, 0, 0),
    ]
    if has_xsave:
        leaves += [
            (0xD, 0, SIGNIFICANT, XCR0, XSAVE_SIZE, XSAVE_SIZE, 0),
            (0xD, 1, SIGNIFICANT, bits.get((0xD, 0), 0), 0, 0, 0),
        ]
    leaves += [
        (KVM_SIGNATURE, 0, 0, KVM_FEATURES, 0x4B4D_564B, 0x564B_4D56, 0x4D),
        (KVM_FEATURES, 0, 0, PARAVIRTUAL, 0, 0, 0),
        (0x8000_0000, 0, 0, 0x8000_0008, 0, 0, 0),
        (0x8000_0001, 0, 0, 0, 0, ecx8, edx8),
    ]
    for part in range(3):
        words = [int.from_bytes(brand[at : at + 4], "little") for at in range(16 * part, 16 * part + 16, 4)]
        leaves.append((0x8000_0002 + part, 0, 0, words[0], words[1], words[2], words[3]))
    leaves += [
        (0x8000_0006, 0, 0, 0, 0, 4096 << 16 | 8 << 12 | 64, 0),
        (0x8000_0007, 0, 0, 0, 0, 0, 1 << 8),  # the TSC is invariant
        (0x8000_0008, 0, 0, PHYSICAL_BITS | LINEAR_BITS << 8, 0, 0, 0),
    ]
    return leaves


class Table:
    """What a guest sees in CPUID: the entries that user space has set."""

    __slots__ = ("basic", "by_leaf", "entries", "intel")

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.by_leaf: dict[tuple[int, int], tuple[int, int, int, int]] = {}
        for function, index, flags, *values in entries:
            key = function, index if flags & SIGNIFICANT else -1
            self.by_leaf.setdefault(key, (values[0], values[1], values[2], values[3]))
        zero = self.find(0, 0)
        self.basic = zero[0] if zero else 0
        self.intel = zero is None or (zero[1], zero[3], zero[2]) not in (
            (0x6874_7541, 0x6974_6E65, 0x444D_4163),
            (0x6F67_7948, 0x6E65_476E, 0x656E_6975),
        )

    def find(self, function: int, index: int) -> tuple[int, int, int, int] | None:
        """Return the registers of a leaf, None where there is none."""
        return self.by_leaf.get((function, -1)) or self.by_leaf.get((function, index))

    def has(self, name: str) -> bool:
        """Tell whether a feature is shown."""
        leaf, register, bit = FEATURES[name]
        found = self.find(leaf, 1 if leaf == 0xD else 0)
        return found is not None and bool(found[register] >> bit & 1)

    def look_up(self, function: int, index: int) -> tuple[int, int, int, int]:
        """Answer CPUID as a processor does: leaves out of range give the highest basic one on Intel's, else zeros."""
        found = self.find(function, index)
        if found is not None:
            return found
        if not self.entries:
            return 0, 0, 0, 0
        base = function & 0xFFFF_0000 if function >= 0x4000_0000 else 0
        limit = self.find(base if base & 0xC000_0000 else 0, 0)
        in_range = limit is not None and base <= function <= limit[0]
        if not in_range and self.intel and function >> 30 != 1:
            found = self.find(self.basic, index)
            if found is not None:
                return found
            function = self.basic
        if function in (0xB, 0x1F):  # an unknown level: its number, and the APIC id (SDM vol. 2A, CPUID)
            first = self.find(function, 1) or self.find(function, 0)
            return 0, 0, index & 0xFF, first[3] if first else 0
        return 0, 0, 0, 0


def pack(entries: Iterable[Entry]) -> bytes:
    """Return entries as kvm_cpuid_entry2 structures."""
    return b"".join(ENTRY.pack(*entry) for entry in entries)


def unpack(data: bytes) -> list[Entry]:
    """Return the entries of kvm_cpuid_entry2 structures."""
    return [(a, b, c, d, e, f, g) for a, b, c, d, e, f, g in ENTRY.iter_unpack(data)]
