#!/usr/bin/env python3
"""Write docs/kvm-api.md: every request of the KVM API, its method, what it needs, where it was tested.

    tools/gen_kvm_api.py                  write the page
    tools/gen_kvm_api.py --record HOST    run the tests of the API here first, and record the answers under HOST
    tools/gen_kvm_api.py --merge HOST     read the answers that --record wrote as its last line

HOST is a kind of KVM: pvm, amd or intel. The record is tests/kvm/api/hosts.json. For amd, in the rig (docs/rig.md):

    make amd CMD='python3 tools/gen_kvm_api.py --record amd' | tools/gen_kvm_api.py --merge amd
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from pyvcpu.kvm.catalogue import Entry, entries  # noqa: E402  # after the path is set
from pyvcpu.kvm.errors import HINTS  # noqa: E402
from pyvcpu.kvm.hints import RARE_HINTS  # noqa: E402

PAGE = ROOT / "docs/kvm-api.md"
HOSTS = ROOT / "tests/kvm/api/hosts.json"
COLUMNS = ("pvm", "amd")
KINDS = {
    "Kvm": ("The system: `Kvm`", "An open `/dev/kvm`."),
    "VmFd": ("A virtual machine: `VmFd`", "From `Kvm.create_vm()`."),
    "VcpuFd": ("A virtual processor: `VcpuFd`", "From `VmFd.create_vcpu()`."),
    "DeviceFd": ("A device in the kernel: `DeviceFd`", "From `VmFd.create_device()`."),
}
HEAD = """# The KVM API, request by request

<!-- Written by tools/gen_kvm_api.py; a test compares. -->

`pyvcpu.kvm` binds every request that KVM has on x86, up to Linux 7.2. `pyvcpu.kvm.abi` holds the requests, structures
and constants under their kernel names, `abi.Cap` the capabilities and `abi.Exit` the exit reasons without their prefix.

```python
from pyvcpu.kvm import Kvm, MsiRoute, abi

with Kvm() as kvm, kvm.create_vm() as vm:
    vm.create_irqchip()
    with vm.create_vcpu(0) as vcpu:
        print(vcpu.get_msrs([0x10]), vm.check_extension(abi.Cap.MAX_VCPUS))
        vm.set_gsi_routing([MsiRoute(24, 0xFEE00000, 0x31)])
```

- Numbers are checked before the kernel sees them. A number that does not fit raises `ValueError`; what is no number,
  or another structure than the request takes, raises `TypeError`.
- What the kernel refuses raises `KvmError`, with `ioctl`, `errno`, `where` and `hint`. The hint names the capability
  that the request needs, when this KVM lacks it. `MsrError` names the MSR.
- `irqfd()`, `ioeventfd()`, `register_coalesced_mmio()` and their like return an object. Its `close()` takes back what
  was registered; it works with `with`.
- Each class has all its methods from the start, for `dir()`, `help()`, `inspect` and type checkers. The code of the
  rarer ones is imported when they are first looked up, because a start should not wait for it.
- An object that is dropped before `close()` closes its file descriptor and gives a `ResourceWarning`. After a fork,
  `close()` in the child closes the child's copies; the VM lives on in the parent.
- `Kvm(path, kernel)` asks another kernel than the one below: `pyvcpu.kvm.Kernel` says what it must offer.

*Since* is the kernel that brought the request to x86. *pvm* is kvm_pvm, a KVM without hardware support, under Linux
6.18; *amd* is kvm_amd under Debian's Linux 6.1. "Works": the tests saw the request succeed there. The name of an error:
the tests expect it there. A dash: not tried yet.
"""


def record(host: str) -> int:
    """Run the tests of the API and record the answers under `host`; return the run's status."""
    environment = {**os.environ, "PYVCPU_RECORD": host}
    command = [sys.executable, "-m", "pytest", "-q", "tests/kvm/api"]
    status = subprocess.run(command, cwd=ROOT, env=environment).returncode
    print(json.dumps(answers().get(host, {})), flush=True)
    return status


def merge(host: str, text: str) -> None:
    """Take the last line of `text` for the answers of `host`."""
    table = answers()
    table[host] = json.loads(text.splitlines()[-1])
    HOSTS.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def answers() -> dict[str, dict[str, str]]:
    """Return what was recorded: by host, by kind of fd and request."""
    table: dict[str, dict[str, str]] = json.loads(HOSTS.read_text(encoding="utf-8"))
    return table


def row(entry: Entry, recorded: dict[str, dict[str, str]]) -> str:
    """Return one line of a table."""
    tried = [recorded.get(host, {}).get(f"{entry.kind} {entry.request}", "-") for host in COLUMNS]
    capability = f"KVM_CAP_{entry.capability}" if entry.capability else "-"
    return " | ".join([f"| {entry.request}", f"`{entry.method}`", capability, entry.since, *tried]) + " |"


def page() -> str:
    """Return the whole page."""
    recorded, everything = answers(), entries()
    parts = [HEAD]
    for kind, (title, about) in KINDS.items():
        own = [entry for entry in everything if entry.kind == kind]
        parts.append(f"## {title}\n\n{about} {len(own)} requests.\n")
        head = ["request", "method", "capability", "since", *COLUMNS]
        parts.append("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        parts += [row(entry, recorded) for entry in own]
        parts.append("")
    parts.append("## What errors mean\n\n| request | error | meaning |\n|---|---|---|")
    for (request, code), hint in sorted({**HINTS, **RARE_HINTS}.items(), key=lambda item: (item[0][0], item[0][1])):
        parts.append(f"| {request or 'any'} | {errno.errorcode[code]} | {hint} |")
    return "\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--record", "--merge"):
        parser.add_argument(option, metavar="HOST", choices=("pvm", "amd", "intel"))
    options = parser.parse_args()
    if options.merge:
        merge(options.merge, sys.stdin.read())
    status = record(options.record) if options.record else 0
    PAGE.write_text(page(), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
