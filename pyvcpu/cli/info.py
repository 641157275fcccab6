"""`pyvcpu info`: what this host's KVM can do."""

from __future__ import annotations

import os

from ..kvm.abi import basic as abi
from ..kvm.abi.caps import Cap
from ..kvm.errors import KvmError
from ..kvm.system import Kvm
from ..machine.checks import REQUIRED
from . import NO_KVM, USAGE, complain
from .options import KVM_OPTION, Option, default_kvm

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable
    from types import SimpleNamespace
    from typing import Any

HELP = "tell what this host's KVM can do"
DESCRIPTION = """\
Tell what the KVM of this host is and can do: its module, its limits, and each capability
by its kernel name (without KVM_CAP_), with its value where that is not 1."""
EPILOG = """\
with --json, one object. New keys may be added; those that are there keep their meaning:
  schema        1
  usable        whether machines can be run here; if false, only error and hint follow
  kvm           path, mode (as ls -l has it), owner, group, api_version
  modules       list of {name, nested}; nested: whether its guests may use KVM, or null
  host          cpu_model, cpu_vendor, cpus, kernel
  limits        vcpus_recommended, vcpus_max, vcpu_ids (each is below it), memory_slots,
                vcpu_mmap_size (bytes)
  tsc_khz       rate of a guest's time-stamp counter, or null
  sync_regs     register sets that KVM_CAP_SYNC_REGS keeps: of regs, sregs, events
  capabilities  name to value, 0 for those that are absent

exit status: 0; 2 bad usage; 4 KVM is missing or refused."""

OPTIONS = (Option("--json", "print JSON for programs"), KVM_OPTION)

SCHEMA = 1
SYNC_SETS = {
    "regs": abi.KVM_SYNC_X86_REGS,
    "sregs": abi.KVM_SYNC_X86_SREGS,
    "events": abi.KVM_SYNC_X86_EVENTS,
}
MODULES, CPUINFO = "/sys/module", "/proc/cpuinfo"
WIDTH = 80


def run(options: SimpleNamespace) -> int:
    """Print what there is to tell, and return the exit status."""
    path = options.kvm or default_kvm()
    try:
        facts = survey(path)
    except KvmError as error:
        if not options.json:
            raise
        what = error.strerror or error.hint
        text = as_json({"schema": SCHEMA, "usable": False, "error": f"{error.ioctl}: {what}", "hint": error.hint})
        return emit(text) or NO_KVM
    return emit(as_json(facts) if options.json else "\n".join(lines(facts)))


def emit(text: str) -> int:
    """Print `text` and return the exit status; whoever closed the pipe had enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, say
        return complain(f"standard output: {error.strerror}", USAGE)
    return 0


def as_json(value: object) -> str:
    """Return `value` as JSON for programs that people read over the shoulder."""
    import json

    return json.dumps(value, indent=2)


def survey(path: str) -> dict[str, Any]:
    """Return all that is told, in the form of the JSON; raise KvmError where KVM cannot run a machine."""
    with Kvm(path) as kvm:
        for name, (cap, since) in REQUIRED.items():
            if not kvm.check_extension(cap):
                raise KvmError("KVM_CHECK_EXTENSION", 0, path, f"this KVM lacks {name}, which came with {since}")
        capabilities = {cap.name: kvm.check_extension(cap) for cap in Cap}
        recommended = capabilities["NR_VCPUS"] or 4  # what api.rst 4.4 says to take where one is not told
        maximum = capabilities["MAX_VCPUS"] or recommended
        return {
            "schema": SCHEMA,
            "usable": True,
            "kvm": {**device(path), "api_version": kvm.get_api_version()},
            "modules": modules(),
            "host": host(),
            "limits": {
                "vcpus_recommended": recommended,
                "vcpus_max": maximum,
                "vcpu_ids": capabilities["MAX_VCPU_ID"] or maximum,
                "memory_slots": capabilities["NR_MEMSLOTS"],
                "vcpu_mmap_size": kvm.get_vcpu_mmap_size(),
            },
            "tsc_khz": tsc_khz(kvm),
            "sync_regs": [name for name, bit in SYNC_SETS.items() if capabilities["SYNC_REGS"] & bit],
            "capabilities": capabilities,
        }


def device(path: str) -> dict[str, Any]:
    """Return who may open the device file."""
    import grp
    import pwd
    import stat

    status = os.stat(path)
    try:
        owner = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:  # a container need not know the host's names
        owner = str(status.st_uid)
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    return {"path": path, "mode": stat.filemode(status.st_mode), "owner": owner, "group": group}


def modules() -> list[dict[str, Any]]:
    """Return the hardware's halves of KVM: kvm_intel, kvm_amd, ...; they are listed also where they are built in."""
    try:
        names = sorted(name for name in os.listdir(MODULES) if name.startswith("kvm_"))
    except OSError:
        return []
    return [{"name": name, "nested": nested(name)} for name in names]


def nested(module: str) -> bool | None:
    """Tell whether `module` lets guests use KVM; None where it does not say."""
    try:
        with open(f"{MODULES}/{module}/parameters/nested") as file:
            return file.read().strip() in ("1", "Y")
    except OSError:
        return None


def host() -> dict[str, Any]:
    """Return what the host is; None for what its kernel does not tell."""
    told: dict[str, str] = {}
    try:
        with open(CPUINFO) as file:
            for line in file:
                name, _, value = line.partition(":")
                told.setdefault(name.strip(), value.strip())
    except OSError:
        pass  # no /proc
    return {
        "cpu_model": told.get("model name"),
        "cpu_vendor": told.get("vendor_id"),
        "cpus": os.cpu_count(),
        "kernel": os.uname().release,
    }


def tsc_khz(kvm: Kvm) -> int | None:
    """Ask a vCPU made for it."""
    with kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        try:
            return vcpu.get_tsc_khz() or None
        except KvmError:  # the host's counter is not stable, or KVM is too old to tell
            return None


def lines(facts: dict[str, Any]) -> list[str]:
    """Return `facts` for people."""
    kvm, on, limits, capabilities = facts["kvm"], facts["host"], facts["limits"], facts["capabilities"]
    khz = facts["tsc_khz"]
    present = [name if value == 1 else f"{name}={shown(value)}" for name, value in capabilities.items() if value]
    absent = [name for name, value in capabilities.items() if not value]
    table = {
        "KVM": f"{kvm['path']} ({kvm['mode']} {kvm['owner']} {kvm['group']}), API version {kvm['api_version']}",
        "module": ", ".join(map(described, facts["modules"])) or f"none to be seen in {MODULES}",
        "processor": f"{on['cpu_model'] or 'unknown'} ({on['cpu_vendor'] or 'unknown vendor'}), {on['cpus']} CPUs",
        "kernel": f"Linux {on['kernel']}",
        "vCPUs": f"{limits['vcpus_recommended']} recommended, {limits['vcpus_max']} at most, "
        f"ids below {limits['vcpu_ids']}",
        "mapped": f"{limits['vcpu_mmap_size']} bytes of each vCPU",
        "memory": f"{limits['memory_slots']} slots",
        "TSC": f"{khz} kHz" if khz else "rate not told",
        "SYNC_REGS": " ".join(facts["sync_regs"]) or "none",
    }
    return [
        *(f"{label:<10} {value}" for label, value in table.items()),
        *filled(f"{len(present)} capabilities:", present),
        *filled(f"{len(absent)} absent:", absent),
    ]


def shown(value: int) -> str:
    """Return a capability's value: those above 9 are mostly masks."""
    return str(value) if value < 10 else hex(value)


def described(module: dict[str, Any]) -> str:
    """Return a module's name and what it says of nested guests."""
    return str(module["name"]) + {True: " (nested)", False: " (not nested)", None: ""}[module["nested"]]


def filled(label: str, words: Iterable[str]) -> list[str]:
    """Return `words` filled into lines below `label`."""
    lines, line = ["", label], " "
    for word in words:
        if len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = " "
        line += f" {word}"
    return [*lines, line]
