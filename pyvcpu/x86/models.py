"""CPU models, and the way from a model and its options to leaves: expand, filter, make the rest agree. Pure."""

from __future__ import annotations

import struct

from .caches import set_generic_caches
from .cpuid import (
    ADDRESS_SIZES,
    AMD_TOPOLOGY,
    EAX,
    EBX,
    ECX,
    EDX,
    EXTENDED_FEATURES,
    FEATURES,
    MAX_BASIC,
    MAX_EXTENDED,
    XSAVE,
    Leaves,
)
from .features import AMD_ALIASES, NAMES, NEEDED_BY, NEEDS, closure, has, put

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .cpu import Cpu

# The levels of the x86-64 psABI (table 3.1), each with those before it.
_LEVELS = (
    "cmov cx8 fpu fxsr mmx syscall sse sse2",
    "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3",
    "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
    "avx512f avx512bw avx512cd avx512dq avx512vl",
)
# What any operating system for x86-64 takes for granted, beside level 1.
_SYSTEM = (
    "vme de pse tsc msr pae mce apic sep mtrr pge mca pat pse36 clflush lm nx x2apic tsc_deadline_timer hypervisor"
)
LEVELS = {f"x86-64-v{level}": frozenset(" ".join(_LEVELS[:level]).split()) for level in range(1, len(_LEVELS) + 1)}
# Family, model, stepping of the level models: Intel's first processors of 64 bits and two cores; what QEMU's qemu64 is.
_SIGNATURE = {False: (6, 15, 11), True: (15, 107, 1)}

# XSAVE components and the features that they hold the state of (SDM vol. 1 section 13.1).
COMPONENTS = {
    2: "avx",
    3: "mpx",
    4: "mpx",
    5: "avx512f",
    6: "avx512f",
    7: "avx512f",
    9: "pku",
    11: "shstk",
    12: "shstk",
    15: "arch_lbr",
    17: "amx_tile",
    18: "amx_tile",
}
LINEAR_BITS = 48  # of an address, without la57
X87_SSE = 0b11
XSAVE_HEADER_END = 576
# Leaves that say something only of one feature.
LEAF_OF = {0x5: "monitor", 0x12: "sgx", 0x14: "intel_pt", 0x1D: "amx_tile", 0x1E: "amx_tile", 0x8000_000A: "svm"}


def expand_features(cpu: Cpu, supported: Leaves) -> Leaves:
    """Return what the model is to show, whether KVM supports it or not (QEMU: x86_cpu_expand_features).

    A feature that is turned on brings what it needs; one that is turned off takes along what needs it.
    """
    leaves = supported.copy() if cpu.model == "host" else level(cpu.model, supported)
    put(leaves, closure(cpu.plus, NEEDS), True)
    put(leaves, closure(cpu.minus, NEEDED_BY), False)
    return leaves


def level(model: str, supported: Leaves) -> Leaves:
    """Return a processor of this level of the psABI; vendor and address sizes are the host's."""
    leaves = Leaves()
    amd = supported.is_amd
    vendor = supported.entries.get((MAX_BASIC, 0), [0, 0, 0, 0])
    leaves.entries[MAX_BASIC, 0] = [XSAVE, *vendor[1:]]
    leaves.entries[FEATURES, 0] = [signature(*_SIGNATURE[amd]), 8 << 8, 0, 0]  # CLFLUSH works on 8 * 8 bytes
    for basic in range(2, XSAVE):
        leaves.entries[basic, 0] = [0, 0, 0, 0]
    top = AMD_TOPOLOGY if amd else ADDRESS_SIZES
    leaves.entries[MAX_EXTENDED, 0] = [top, *(vendor[1:] if amd else (0, 0, 0))]
    for extended in range(EXTENDED_FEATURES, ADDRESS_SIZES + 1):
        leaves.entries[extended, 0] = [0, 0, 0, 0]
    brand = f"pyvcpu {model} processor".encode().ljust(48, b"\0")
    for number in range(3):
        leaves.entries[0x8000_0002 + number, 0] = list(struct.unpack_from("<4I", brand, 16 * number))
    if amd:  # who repeat the signature here
        leaves.entries[EXTENDED_FEATURES, 0][EAX] = leaves.read(FEATURES, EAX)
    leaves.entries[ADDRESS_SIZES, 0][EAX] = supported.read(ADDRESS_SIZES, EAX) or 36 | 48 << 8
    set_generic_caches(leaves)
    put(leaves, LEVELS[model] | set(_SYSTEM.split()) | ({"topoext"} if amd else set()), True)
    if has(leaves, "xsave"):
        for (function, index), registers in supported.entries.items():
            if function == XSAVE:
                leaves.entries[function, index] = [*registers]
        # XSAVEOPT and its like belong to no level.
        leaves.change(XSAVE, EAX, 0xFFFF_FFFF, 0, 1)
    return leaves


def signature(family: int, model: int, stepping: int) -> int:
    """Return family, model and stepping as leaf 1 EAX holds them."""
    extra, base = (family - 15, 15) if family > 15 else (0, family)
    return extra << 20 | model >> 4 << 16 | base << 8 | (model & 15) << 4 | stepping


def filter_features(cpu: Cpu, leaves: Leaves, supported: Leaves) -> list[str]:
    """Hide what KVM does not support, and return the names of it that were asked for, by the level or by name.

    What needs a hidden feature is hidden with it (QEMU: x86_cpu_filter_features).
    """
    missing = []
    for (function, index, register), names in NAMES.items():
        lacking = leaves.read(function, register, index) & ~supported.read(function, register, index)
        missing += [name for bit, name in names.items() if lacking >> bit & 1]
    wanted = closure(cpu.plus, NEEDS) | LEVELS.get(cpu.model, frozenset())
    if missing:
        put(leaves, closure(missing, NEEDED_BY), False)
    return [name for name in missing if name in wanted]


def settle(leaves: Leaves, supported: Leaves) -> None:
    """Make the leaves that depend on features agree with them: XSAVE areas, AMD's copies, the highest leaves."""
    if leaves.is_amd:
        copies = leaves.read(FEATURES, EDX) & AMD_ALIASES
        leaves.change(EXTENDED_FEATURES, EDX, AMD_ALIASES, copies)
    _settle_xsave(leaves, supported)
    if not has(leaves, "la57") and leaves.read(ADDRESS_SIZES, EAX) >> 8 & 0xFF > LINEAR_BITS:
        leaves.change(ADDRESS_SIZES, EAX, 0xFF00, LINEAR_BITS << 8)
    for key in leaves.entries:
        if key[0] in LEAF_OF and not has(leaves, LEAF_OF[key[0]]):
            leaves.entries[key] = [0, 0, 0, 0]
    basic = [function for function, _ in leaves.entries if function < 0x4000_0000]
    leaves.change(MAX_BASIC, EAX, 0xFFFF_FFFF, max(leaves.read(MAX_BASIC, EAX), *basic, 1))
    extended = [function for function, _ in leaves.entries if function > MAX_EXTENDED]
    if extended:
        leaves.change(MAX_EXTENDED, EAX, 0xFFFF_FFFF, max(leaves.read(MAX_EXTENDED, EAX), *extended))


def _settle_xsave(leaves: Leaves, supported: Leaves) -> None:
    """Leave in leaf 0xD the components whose features are shown, and the sizes that come of it.

    SDM vol. 1 section 13.2: subleaf n says EAX size and EBX offset of component n; subleaf 0 which ones XCR0 takes and
    what they need, subleaf 1 which ones IA32_XSS takes.
    """
    if not has(leaves, "xsave"):
        subleaves = [key for key in leaves.entries if key[0] == XSAVE]
        for key in subleaves:
            leaves.entries[key] = [0, 0, 0, 0]
        return
    shown = X87_SSE
    for component, feature in COMPONENTS.items():
        if has(leaves, feature):
            shown |= 1 << component
    user, system = (supported.read(XSAVE, EAX) | X87_SSE) & shown, supported.read(XSAVE, ECX, 1) & shown
    end = XSAVE_HEADER_END
    for component in range(2, 64):
        key = (XSAVE, component)
        if not (user | system) >> component & 1:
            leaves.entries.pop(key, None)
            continue
        if key in supported.entries:
            leaves.entries[key] = [*supported.entries[key]]
        if user >> component & 1:
            end = max(end, leaves.read(XSAVE, EAX, component) + leaves.read(XSAVE, EBX, component))
    leaves.entries[XSAVE, 0] = [user & 0xFFFF_FFFF, end, end, user >> 32]
    leaves.change(XSAVE, ECX, 0xFFFF_FFFF, system, 1)
    if not leaves.read(XSAVE, EAX, 1):
        leaves.entries[XSAVE, 1] = [0, 0, 0, 0]
