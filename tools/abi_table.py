#!/usr/bin/env python3
"""Compare pyvcpu.kvm.abi with the kernel's headers, through the C compiler.

    tools/abi_table.py --index      write pyvcpu/kvm/abi/index.py: which submodule has which name
    tools/abi_table.py --table      write tests/unit/abi_layout.json: what the headers of this machine say
    tools/abi_table.py --missing    list what the headers have for x86 and the binding lacks

A *probe* is one number with a key: `ioctl KVM_RUN`, `value KVM_MSI_VALID_DEVID`, `size kvm_regs`,
`field kvm_run.io.port` (offset, size; for a bit field the bits it covers). probes() computes all of them from the
ctypes classes, header_probes() from C. Where no compiler is installed, the committed table stands in for the header.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import pkgutil
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(ROOT))

from pyvcpu.kvm import abi  # noqa: E402  # after the path is set
from pyvcpu.kvm.abi.base import Ioctl  # noqa: E402

TABLE = ROOT / "tests/unit/abi_layout.json"
INDEX = ROOT / "pyvcpu/kvm/abi/index.py"
ENUMS = {
    "Cap": "KVM_CAP_",
    "Exit": "KVM_EXIT_",
    "InternalError": "KVM_INTERNAL_ERROR_",
    "SystemEvent": "KVM_SYSTEM_EVENT_",
}
CC = ("gcc", "-xc", "-std=gnu11", "-w")

Probes = dict[str, list[int]]

# What Debian's header of Linux 6.1 does not have yet, by the kernel that brought it: written down by hand, from the
# documentation (api.rst, amd-memory-encryption.rst, intel-tdx.rst), not computed. A newer header checks it for real.
# "name": since; "name": (since, size) for a structure or an ioctl's number.
NEWER: dict[str, str | tuple[str, int]] = {
    "KVM_SET_USER_MEMORY_REGION2": ("6.8", 0x40A0AE49),
    "KVM_SET_MEMORY_ATTRIBUTES": ("6.8", 0x4020AED2),
    "KVM_CREATE_GUEST_MEMFD": ("6.8", 0xC040AED4),
    "KVM_PRE_FAULT_MEMORY": ("6.11", 0xC040AED5),
    "kvm_userspace_memory_region2": ("6.8", 160),
    "kvm_memory_attributes": ("6.8", 32),
    "kvm_create_guest_memfd": ("6.8", 64),
    "kvm_pre_fault_memory": ("6.11", 64),
    "kvm_sev_init": ("6.10", 48),
    "kvm_sev_snp_launch_start": ("6.11", 64),
    "kvm_sev_snp_launch_update": ("6.11", 64),
    "kvm_sev_snp_launch_finish": ("6.11", 88),
    "kvm_tdx_cmd": ("6.16", 24),
    "kvm_tdx_capabilities": ("6.16", 2056),
    "kvm_tdx_init_vm": ("6.16", 264),
    "kvm_tdx_init_mem_region": ("6.16", 24),
    "kvm_exit_snp_req_certs": ("7.0", 24),
    # Fields that came into structures of old, without moving others.
    "kvm_run.flags": "6.6",
    "kvm_run.hypercall.flags": "6.4",
    "kvm_run.memory_fault": "6.8",
    "kvm_run.tdx": "6.16",
    "kvm_run.snp_req_certs": "7.0",
    "kvm_svm_nested_state_hdr.gpat": "7.2",
    "kvm_xen_hvm_attr.u.runstate_update_flag": "6.3",
    "kvm_xen_hvm_attr.u.shared_info.hva": "6.9",
    "kvm_xen_vcpu_attr.u.hva": "6.9",
    "kvm_sev_*.pad*": "6.10",
    # Constants.
    "KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP": "6.2",
    "KVM_CAP_PMU_EVENT_MASKED_EVENTS": "6.3",
    "KVM_CAP_USER_MEMORY2": "6.8",
    "KVM_CAP_MEMORY_FAULT_INFO": "6.8",
    "KVM_CAP_MEMORY_ATTRIBUTES": "6.8",
    "KVM_CAP_GUEST_MEMFD": "6.8",
    "KVM_CAP_VM_TYPES": "6.8",
    "KVM_CAP_PRE_FAULT_MEMORY": "6.11",
    "KVM_CAP_X86_APIC_BUS_CYCLES_NS": "6.11",
    "KVM_CAP_X86_GUEST_MODE": "6.11",
    "KVM_CAP_GUEST_MEMFD_FLAGS": "6.18",
    "KVM_EXIT_MEMORY_FAULT": "6.8",
    "KVM_EXIT_TDX": "6.16",
    "KVM_EXIT_SNP_REQ_CERTS": "7.0",
    "KVM_EXIT_HYPERCALL_LONG_MODE": "6.4",
    "KVM_SYSTEM_EVENT_TDX_FATAL": "6.16",
    "KVM_MEMORY_EXIT_FLAG_PRIVATE": "6.8",
    "KVM_MEMORY_ATTRIBUTE_PRIVATE": "6.8",
    "KVM_MEM_GUEST_MEMFD": "6.8",
    "KVM_RUN_X86_GUEST_MODE": "6.11",
    "KVM_MSR_EXIT_REASON_VALID_MASK": "6.4",
    "KVM_MSR_FILTER_RANGE_VALID_MASK": "6.2",
    "KVM_MSR_FILTER_VALID_MASK": "6.2",
    "GUEST_MEMFD_FLAG_*": "6.18",
    "KVM_X86_*_VM": "6.8",
    "KVM_X86_DISABLE_EXITS_APERFMPERF": "6.17",
    "KVM_X86_QUIRK_SLOT_ZAP_ALL": "6.12",
    "KVM_X86_QUIRK_STUFF_FEATURE_MSRS": "6.13",
    "KVM_X86_QUIRK_IGNORE_GUEST_PAT": "6.16",
    "KVM_X86_QUIRK_VMCS12_ALLOW_FREEZE_IN_SMM": "7.0",
    "KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT": "7.2",
    "KVM_X2APIC_*_SUPPRESS_EOI_BROADCAST": "7.0",
    "KVM_X86_REG_TYPE_*": "6.18",
    "KVM_REG_GUEST_SSP": "6.18",
    "KVM_PMU_EVENT_FLAG*": "6.3",
    "KVM_PMU_MASKED_ENTRY_*": "6.3",
    "KVM_X86_GRP_*": "6.10",
    "KVM_X86_SEV_*": "6.10",
    "KVM_X86_SNP_POLICY_BITS": "7.0",
    "KVM_DEV_VFIO_FILE*": "6.6",
    "KVM_SEV_INIT2": "6.10",
    "KVM_SEV_SNP_*": "6.11",
    "KVM_SEV_PAGE_TYPE_INVALID": "6.11",
    "KVM_TDX_*": "6.16",
    "KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG": "6.3",
    "KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE": "6.8",
    "KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA": "6.9",
    "KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG": "6.3",
    "KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA": "6.9",
    "KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA": "6.9",
    "KVM_XEN_MSR_M*_INDEX": "6.14",
    "KVM_XEN_INVALID_G*": "6.3",
    "CP_VECTOR": "6.18",
    "HV_VECTOR": "6.18",
    "VC_VECTOR": "6.18",
    "SX_VECTOR": "6.18",
}

# What was smaller before: the kernel that made it grow, and what a header older than that says.
GREW: dict[str, tuple[str, list[int]]] = {
    "size kvm_svm_nested_state_hdr": ("7.2", [8]),
    "field kvm_nested_state.hdr.svm": ("7.2", [8, 8]),
}

# What the headers have and the binding leaves out on purpose, with the reason.
OTHER_ARCHITECTURE = "of another architecture"
GONE = "the kernel has dropped it"
LEFT_OUT: dict[str, str] = {
    r".*_(S390|PPC|SPAPR|ARM|ARM64|MIPS|RISCV|LOONGARCH|IA64)(_.*|$)": OTHER_ARCHITECTURE,
    r"KVM_EXIT_(OSI|PAPR|DCR|EPR|WATCHDOG)(_.*|$)": OTHER_ARCHITECTURE,
    r".*(s390|_ppc_|_arm_|spapr|papr).*": OTHER_ARCHITECTURE,
    r"KVM_(PV_.*|MMU_FSL_.*|DIRTY_TLB|CAP_SW_TLB|CAP_PPC.*|ALLOCATE_RMA|CAP_COUNTER_OFFSET)": OTHER_ARCHITECTURE,
    r"kvm_(pv_cmd|config_tlb|dirty_tlb)": OTHER_ARCHITECTURE,
    r"KVM_DEV_TYPE_(FSL.*|XICS|XIVE|FLIC|LOONGARCH.*|RISCV.*)": OTHER_ARCHITECTURE,
    r"KVM_DEV_TYPE_MAX|KVM_SEV_NR_MAX|KVM_TDX_CMD_NR_MAX": "the end of an enumeration: it changes with the header",
    r"KVM_SMCCC.*|kvm_smccc.*": OTHER_ARCHITECTURE,
    r"KVM_(TRC|TRACE)_.*|kvm_user_trace_setup": GONE,
    r"kvm_breakpoint|kvm_debug_guest|KVM_DEBUG_GUEST": GONE,
    r"KVM_SET_MEMORY_REGION|kvm_memory_region|KVM_SET_MEMORY_ALIAS|kvm_memory_alias": GONE,
    r"KVM_(DE)?ASSIGN_.*|kvm_assigned_.*|KVM_DEV_(ASSIGN|IRQ)_.*|KVM_MAX_MSIX_PER_DEV": GONE,
    r"KVM_X86_DISABLE_VALID_EXITS": GONE,
    r"KVMIO": "abi.base.KVMIO",
    r"KVM_(REG_SIZE|X86_REG_.*|X86_KVM_REG_SIZE|PMU_ENCODE_MASKED_ENTRY)|HINT_UNSAFE_IN_KVM": "a macro with arguments",
    r"kvm_device_type|sev_cmd_id|kvm_tdx_cmd_id": "an enumeration; its constants are there",
    r"KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY": OTHER_ARCHITECTURE,
}


def submodules() -> dict[str, Any]:
    """Import every submodule of the ABI that holds data."""
    names = sorted(info.name for info in pkgutil.iter_modules(abi.__path__) if info.name not in ("index", "layout"))
    return {name: importlib.import_module(f"pyvcpu.kvm.abi.{name}") for name in names}


def own_names(module: Any) -> list[str]:
    """Return the public names that `module` itself defines."""

    def own(name: str, value: object) -> bool:
        if isinstance(value, type):
            return bool(value.__module__ == module.__name__)
        return isinstance(value, int | Ioctl)

    return [
        name for name, value in vars(module).items() if (name[0].isupper() or name[:4] == "kvm_") and own(name, value)
    ]


def module_of() -> dict[str, str]:
    """Return which submodule has which name; basic's come first, the others' in the order of their names."""
    modules = submodules()
    where: dict[str, str] = {"Ioctl": "base"}
    for name in ("basic", *(name for name in modules if name not in ("base", "basic", "index"))):
        for public in own_names(modules[name]):
            where.setdefault(public, name)
    return where


def index_source() -> str:
    """Return what abi/index.py must hold."""
    by_module: dict[str, list[str]] = {}
    for name, module in module_of().items():
        by_module.setdefault(module, []).append(name)
    lines = [
        '"""Which submodule has which name. Written by tools/abi_table.py --index; a test compares."""',
        "",
        "from __future__ import annotations",
        "",
        "_NAMES = {",
    ]
    for module in sorted(by_module):
        lines.append(f'    "{module}": """')
        line = ""
        for name in sorted(by_module[module]):
            if len(line) + len(name) > 115:
                lines.append(line.rstrip())
                line = ""
            line += name + " "
        lines += [line.rstrip(), '    """,']
    lines += ["}", "", "MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}", ""]
    return "\n".join(lines)


# What ctypes says.


def names() -> dict[str, Any]:
    """Return every name of the ABI with its value; members of the enumerations under their kernel names, too."""
    modules = submodules()
    found: dict[str, Any] = {name: vars(modules[module])[name] for name, module in module_of().items()}
    del found["Ioctl"]
    for enum, prefix in ENUMS.items():
        found.update({prefix + member.name: int(member) for member in found.pop(enum)})
    return found


def probes() -> Probes:
    """Return all probes as the ctypes classes and constants say."""
    found: Probes = {}
    for name, value in names().items():
        if isinstance(value, Ioctl):
            found[f"ioctl {name}"] = [value.number]
        elif isinstance(value, int):
            found[f"value {name}"] = [int(value)]
        else:
            found[f"size {name}"] = [ctypes.sizeof(value)]
            found.update({f"field {name}.{path}": place for path, place in fields(value)})
    return found


def fields(kind: Any, at: int = 0) -> list[tuple[str, list[int]]]:
    """Return (path in C, [offset, size]) of the fields of `kind` and of its unnamed inner structures."""
    found: list[tuple[str, list[int]]] = []
    for field in kind._fields_:
        name, its_kind = field[0], field[1]
        offset = at + getattr(kind, name).offset
        if len(field) == 3:
            found.append((name, bits(kind, name, at)))
            continue
        if name in getattr(kind, "_anonymous_", ()):
            found += fields(its_kind, offset)
            continue
        found.append((name, [offset, ctypes.sizeof(its_kind)]))
        inner, index = its_kind, ""
        while hasattr(inner, "_length_") and inner._length_:
            inner, index = inner._type_, index + "[0]"
        if hasattr(inner, "_fields_") and inner.__name__.startswith("_"):
            found += [(f"{name}{index}.{path}", place) for path, place in fields(inner, offset)]
    return found


def bits(kind: Any, name: str, at: int) -> list[int]:
    """Return [offset, mask] of a bit field in the structure `kind`: the bytes that all ones in it set."""
    value = kind()
    setattr(value, name, 0xFF)
    raw = bytes(value)
    return [at, int.from_bytes(raw, "little")]


# What C says.


def probe_lines(wanted: Probes) -> list[tuple[str, str]]:
    """Return (key, C statement) for each probe."""
    lines = []
    for key in wanted:
        kind, _, what = key.partition(" ")
        if kind == "size":
            lines.append((key, f'P("{key}", sizeof(struct {what}), 0);'))
        elif kind == "field":
            struct, _, path = what.partition(".")
            if ".fields." in f".{path}." and path.rsplit(".", 1)[1] in BIT_FIELDS:
                whole, _, last = path.rpartition(".")
                inner = f"union {{ typeof(((struct {struct} *)0)->{whole}) s; unsigned long long u; }} x = {{0}};"
                bit = f"({{ {inner} x.s.{last} = -1; x.u; }})"
                lines.append((key, f'P("{key}", __builtin_offsetof(struct {struct}, {whole}), {bit});'))
            elif not wanted[key][1]:  # a flexible array has no size in C
                lines.append((key, f'P("{key}", __builtin_offsetof(struct {struct}, {path}), 0);'))
            else:
                field = f"((struct {struct} *)0)->{path}"
                lines.append((key, f'P("{key}", __builtin_offsetof(struct {struct}, {path}), sizeof({field}));'))
        else:
            lines.append((key, f'P("{key}", (unsigned long long)({what}), 0);'))
    return lines


BIT_FIELDS = {"delivery_mode", "dest_mode", "delivery_status", "polarity", "remote_irr", "trig_mode", "mask", "reserve"}


def source(lines: list[tuple[str, str]]) -> str:
    """Return the C program that prints the probes, one per line of source."""
    head = (
        "#include <stdio.h>\n#include <linux/kvm.h>\n#define PAGE_SIZE 4096\n"
        '#define P(key, a, b) printf("%s=%llu,%llu\\n", key, (unsigned long long)(a), (unsigned long long)(b))\n'
        "int main(void) {\n"
    )
    return head + "\n".join(line for _, line in lines) + "\nreturn 0; }\n"


def header_probes(wanted: Probes) -> tuple[Probes, set[str]]:
    """Ask the installed header: return what it says, and the keys that it does not know."""
    lines = probe_lines(wanted)
    unknown: set[str] = set()
    first_line = 6
    for _ in range(5):  # an error may hide another one in the same statement
        done = subprocess.run(
            [*CC, "-fsyntax-only", "-fmax-errors=0", "-"], input=source(lines), capture_output=True, text=True
        )
        bad = {int(line) for line in re.findall(r"^<stdin>:(\d+):\d+: error", done.stderr, re.M)}
        if not bad:
            break
        unknown |= {lines[line - first_line][0] for line in bad}
        lines = [entry for entry in lines if entry[0] not in unknown]
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/probe"
        subprocess.run(
            [*CC, "-O0", "-o", program, "-"], input=source(lines), text=True, check=True, capture_output=True
        )
        output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    found: Probes = {}
    for line in output.splitlines():
        key, _, numbers = line.partition("=")
        values = [int(number) for number in numbers.split(",")]
        found[key] = values if key.startswith("field ") else values[:1]
    return found, unknown


def is_newer(key: str) -> bool:
    """Tell whether NEWER explains that a header does not know `key`."""
    from fnmatch import fnmatchcase

    what = key.partition(" ")[2]
    parts = what.split(".")
    heads = {".".join(parts[: i + 1]) for i in range(len(parts))}
    return any(fnmatchcase(head, pattern) for head in heads for pattern in NEWER)


def agrees(key: str, ours: list[int], header: list[int]) -> bool:
    """Tell whether the header says what the binding says, or what it said before the structure grew."""
    return ours == header or (key in GREW and header == GREW[key][1])


def table_source(known: Probes) -> str:
    """Return the table to commit, a probe per line: what C said."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(known[key])}" for key in sorted(known))
    return f"{{\n{lines}\n}}\n"


# What is missing.


def header_text() -> str:
    """Return linux/kvm.h with all that it includes, comments dropped, #defines kept."""
    done = subprocess.run(
        [*CC, "-E", "-dD", "-"], input="#include <linux/kvm.h>\n", capture_output=True, text=True, check=True
    )
    kept, keep = [], False
    for line in done.stdout.splitlines():
        if line.startswith("# "):
            keep = "/kvm.h" in line
        elif keep:
            kept.append(line)
    return "\n".join(kept)


def header_names(text: str) -> set[str]:
    """Return the names of macros, structures and enumerators in `text`."""
    found = set(re.findall(r"^\s*#\s*define\s+(\w+)", text, re.M))
    found |= set(re.findall(r"\bstruct\s+(\w+)\s*\{", text))
    for body in re.findall(r"\benum\b[^{;]*\{([^}]*)\}", text):
        found |= set(re.findall(r"^\s*(\w+)\s*(?:=[^,]*)?,?\s*$", re.sub(r"#.*", "", body), re.M))
    internal = re.compile(r"^(_.*|kvm_ioeventfd_flag_nr_.*)$")
    return {name for name in found if not internal.match(name)}


def missing(text: str) -> list[str]:
    """Return what `text` has for x86 and the binding lacks without a reason."""
    have = set(names())
    return sorted(
        name for name in header_names(text) - have if not any(re.fullmatch(pattern, name) for pattern in LEFT_OUT)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--index", "--table", "--missing"):
        parser.add_argument(option, action="store_true")
    options = parser.parse_args()
    if options.index:
        INDEX.write_text(index_source(), encoding="utf-8")
    if options.table:
        known, _ = header_probes(probes())
        TABLE.write_text(table_source(known), encoding="utf-8")
    if options.missing:
        print("\n".join(missing(header_text())))


if __name__ == "__main__":
    main()
