"""`pyvcpu cpuid`: what the CPUID instruction shows a guest."""

from __future__ import annotations

from ..boot.plan import Plan
from ..errors import ConfigError
from ..machine import Machine
from ..x86.cpuid import (
    ADDRESS_SIZES,
    AMD_CACHES,
    AMD_TOPOLOGY,
    CACHES,
    EAX,
    EBX,
    ECX,
    EDX,
    FEATURES,
    MAX_BASIC,
    MAX_EXTENDED,
    TOPOLOGY,
    Leaves,
)
from ..x86.features import shown
from ..x86.paravirt import HYPERVISOR
from . import say
from .info import as_json, emit, filled
from .options import ACCEL_OPTION, CPU_OPTION, KVM_OPTION, SMP_OPTION, Option, named_kvm

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from types import SimpleNamespace
    from typing import Any

    from ..x86.topology import Topology

HELP = "tell what CPUID shows a guest"
DESCRIPTION = """\
Tell what the CPUID instruction shows a vCPU of a machine with these processors: KVM is told, and
asked what it made of it. All zero leaves are left out."""
EPILOG = """\
with --raw, a line per leaf in the form of `cpuid -r`. With --json, one object; new keys may be added:
  schema    1
  vcpu      index, apic_id, package, core, thread
  vendor, family, model, stepping, brand, hypervisors (signatures), tsc_khz
  bits      physical, virtual: widths of an address
  features  names, as in /proc/cpuinfo
  caches    list of {level, kind, size (bytes), ways, line, sharing (APIC ids)}
  leaves    list of {function, index, eax, ebx, ecx, edx}

exit status: 0; 2 bad usage, or processors that cannot be had; 4 KVM is missing or refused.

example: python -m pyvcpu cpuid --smp 8,sockets=2,cores=2,threads=2 --index 5"""

OPTIONS = (
    SMP_OPTION,
    CPU_OPTION,
    Option("--index", "the vCPU to ask (default 0)", "N", "0"),
    Option("--irqchip", "kernel (default), split or none: without a local APIC there is no x2APIC", "KIND", "kernel"),
    Option("--raw", "print the bare leaves"),
    Option("--json", "print JSON for programs"),
    ACCEL_OPTION,
    KVM_OPTION,
)

SCHEMA = 1
CACHE_KINDS = {1: "data", 2: "instruction", 3: "unified"}
HYPERVISORS = (HYPERVISOR, HYPERVISOR + 0x100)


def run(options: SimpleNamespace) -> int:
    """Print the leaves of one vCPU, and return the exit status."""
    if options.raw and options.json:
        raise ConfigError("the leaves are printed with --raw or with --json, not with both")
    with Machine(
        "64K",
        options.smp,
        cpu=options.cpu,
        irqchip=options.irqchip,
        warn=say,
        accel=options.accel,
        kvm=named_kvm(options.kvm),
    ) as machine:
        index = vcpu_index(options.index, machine.topology)
        machine.load_plan(Plan("flat", (), [None] * len(machine.vcpus), "kernel"))  # nothing runs
        leaves, tsc_khz = ask(machine, index)
        place = machine.topology.place(index)
        apic_id = machine.topology.apic_id(index)
    if options.raw:
        return emit("\n".join(["CPU:", *raw(leaves)]))
    facts = survey(leaves)
    facts = {
        "schema": SCHEMA,
        "vcpu": {"index": index, "apic_id": apic_id, **dict(zip(("package", "core", "thread"), place, strict=True))},
        "tsc_khz": tsc_khz,
        **facts,
    }
    return emit(as_json(facts) if options.json else "\n".join([*lines(facts), "", *table(leaves)]))


def vcpu_index(text: str, topology: Topology) -> int:
    """Return the number in `text`, when there is such a vCPU."""
    if not (text.isascii() and text.isdigit()) or int(text) >= topology.maxcpus:
        raise ConfigError(f"--index takes a number from 0 to {topology.maxcpus - 1}, with this --smp; not {text!r}")
    return int(text)


def ask(machine: Machine, index: int) -> tuple[Leaves, int]:
    """Return what KVM shows vCPU `index` once it is created, in order, and the rate of its TSC."""
    machine.start()
    vcpu = machine.vcpus[index]
    if not vcpu.created:  # one that only maxcpus has room for
        machine.plug(index)
    leaves = Leaves.unpack(bytes(vcpu.run_on_cpu(lambda vcpu: vcpu.fd.get_cpuid2())))
    leaves.entries = dict(sorted(leaves.entries.items()))
    return leaves, vcpu.tsc_khz


def raw(leaves: Leaves) -> list[str]:
    """Return the leaves as the program `cpuid -r` prints them."""
    return [
        f"   0x{function:08x} 0x{index:02x}: eax=0x{a:08x} ebx=0x{b:08x} ecx=0x{c:08x} edx=0x{d:08x}"
        for (function, index), (a, b, c, d) in leaves.entries.items()
        if a | b | c | d
    ]


def survey(leaves: Leaves) -> dict[str, Any]:
    """Return what the leaves say, in the form of the JSON."""
    family, model, stepping = signature(leaves.read(FEATURES, EAX))
    sizes = leaves.read(ADDRESS_SIZES, EAX)
    return {
        "vendor": words(leaves.read(MAX_BASIC, r) for r in (EBX, EDX, ECX)),
        "family": family,
        "model": model,
        "stepping": stepping,
        "brand": words(leaves.read(0x8000_0002 + i, r) for i in range(3) for r in range(4)).strip(),
        "hypervisors": [
            words(leaves.read(base, r) for r in (EBX, ECX, EDX)) for base in HYPERVISORS if leaves.read(base, EBX)
        ],
        "bits": {"physical": sizes & 0xFF, "virtual": sizes >> 8 & 0xFF},
        "features": shown(leaves),
        "caches": caches(leaves),
        "leaves": [
            {"function": function, "index": index, **dict(zip(("eax", "ebx", "ecx", "edx"), registers, strict=True))}
            for (function, index), registers in leaves.entries.items()
            if any(registers)
        ],
    }


def words(registers: Any) -> str:
    """Return the characters in registers."""
    return b"".join(value.to_bytes(4, "little") for value in registers).rstrip(b"\0").decode("latin-1")


def signature(eax: int) -> tuple[int, int, int]:
    """Return family, model and stepping out of leaf 1 EAX (SDM vol. 2A, CPUID, figure 3-6)."""
    family, model = eax >> 8 & 0xF, eax >> 4 & 0xF
    if family in (6, 15):
        model |= (eax >> 16 & 0xF) << 4
    if family == 15:
        family += eax >> 20 & 0xFF
    return family, model, eax & 0xF


def caches(leaves: Leaves) -> list[dict[str, Any]]:
    """Return the caches of leaf 4, or of AMD's 0x8000001D."""
    leaf = AMD_CACHES if leaves.is_amd else CACHES
    found = []
    for (function, _), (eax, ebx, ecx, _) in leaves.entries.items():
        if function == leaf and eax & 0x1F in CACHE_KINDS:
            ways, partitions, line = (ebx >> 22) + 1, (ebx >> 12 & 0x3FF) + 1, (ebx & 0xFFF) + 1
            found.append(
                {
                    "level": eax >> 5 & 7,
                    "kind": CACHE_KINDS[eax & 0x1F],
                    "size": ways * partitions * line * (ecx + 1),
                    "ways": ways,
                    "line": line,
                    "sharing": (eax >> 14 & 0xFFF) + 1,
                }
            )
    return found


def lines(facts: dict[str, Any]) -> list[str]:
    """Return `facts` for people, without the leaves."""
    vcpu, bits, khz = facts["vcpu"], facts["bits"], facts["tsc_khz"]
    told = {
        "vCPU": "{index}: APIC id {apic_id}, package {package}, core {core}, thread {thread}".format(**vcpu),
        "processor": f"{facts['brand'] or 'no brand'} ({facts['vendor']}), family {facts['family']}, "
        f"model {facts['model']}, stepping {facts['stepping']}",
        "addresses": f"{bits['physical']} bits physical, {bits['virtual']} virtual",
        "hypervisor": ", ".join(facts["hypervisors"]) or "none told",
        "TSC": f"{khz} kHz" if khz else "rate not told",
    }
    cache_lines = [
        f"  L{cache['level']} {cache['kind']}: {cache['size'] >> 10} KiB, {cache['ways']} ways, "
        f"lines of {cache['line']} bytes, for {cache['sharing']} APIC id{'s' if cache['sharing'] > 1 else ''}"
        for cache in facts["caches"]
    ]
    return [
        *(f"{label:<10} {value}" for label, value in told.items()),
        *(["", "caches:", *cache_lines] if cache_lines else []),
        *filled(f"{len(facts['features'])} features:", facts["features"]),
    ]


NAMES = {
    MAX_BASIC: "vendor, highest basic leaf",
    FEATURES: "signature, features, initial APIC id",
    CACHES: "cache",
    0x7: "features",
    TOPOLOGY: "topology",
    0x1F: "topology",
    0xD: "XSAVE areas",
    0x15: "TSC and crystal",
    HYPERVISOR: "hypervisor",
    HYPERVISOR + 1: "hypervisor's features",
    HYPERVISOR + 0x10: "TSC and APIC bus in kHz",
    HYPERVISOR + 0x100: "KVM",
    HYPERVISOR + 0x101: "KVM's features",
    MAX_EXTENDED: "highest extended leaf",
    0x8000_0001: "features",
    0x8000_0007: "power management",
    ADDRESS_SIZES: "address sizes, processors in the package",
    AMD_CACHES: "cache",
    AMD_TOPOLOGY: "APIC id, core, node",
}
LEVELS = {1: "threads", 2: "cores"}


def table(leaves: Leaves) -> list[str]:
    """Return the leaves for people: the registers, and what they are about."""
    head = "leaf        sub  eax      ebx      ecx      edx"
    rows = []
    for (function, index), registers in leaves.entries.items():
        if any(registers):
            name = NAMES.get(function, "")
            if function in (TOPOLOGY, 0x1F):
                level = LEVELS.get(registers[ECX] >> 8 & 0xFF)
                name = f"{name}: {level}, id {registers[EDX]}" if level else name
            sub = f"{index:>3}" if function in leaves.indexed else "   "
            values = " ".join(f"{value:08x}" for value in registers)
            rows.append(f"{function:#010x}  {sub}  {values}  {name}".rstrip())
    return [head, *rows]
