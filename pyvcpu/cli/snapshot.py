"""`pyvcpu snapshot`: what is in the file of a snapshot."""

from __future__ import annotations

import os

from .options import Option
from .saving import load

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from types import SimpleNamespace
    from typing import Any

    from ..snapshot import Snapshot

HELP = "say what is in a snapshot"
DESCRIPTION = "Say what is in the snapshot FILE: the machine, its devices, how much memory it has touched."
EPILOG = """\
exit status: 0; 2 where the file is no snapshot, a damaged one, or cannot be read.

example: python -m pyvcpu snapshot guest.snapshot --json"""
OPTIONS = (
    Option("file", "the snapshot", "FILE"),
    Option("--verify", "read all of the memory, too, and compare its checksums"),
    Option("--json", "write JSON"),
)


def run(options: SimpleNamespace) -> int:
    """Print it."""
    with load(options.file, options.verify) as snapshot:
        facts = describe(snapshot)
    if options.json:
        import json

        print(json.dumps(facts, indent=2))
    else:
        print("\n".join(lines(facts)))
    return 0


def describe(snapshot: Snapshot) -> dict[str, Any]:
    """Return what is to be told of a snapshot, as JSON can have it."""
    from time import gmtime, strftime

    from ..snapshot.fits import needed_capabilities

    data, image = snapshot.data, snapshot.image
    cpus, sockets, cores, threads, maxcpus = data["smp"]
    assert snapshot.path is not None
    return {
        "id": snapshot.id.hex(),
        "base": None if snapshot.base is None else snapshot.base.id.hex(),
        "created": strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(min(snapshot.created // 1_000_000_000, 1 << 40))),
        "memory": snapshot.memory_size,
        "pages": image.stored if image.base is not None else None,
        "bytes_on_disk": os.stat(snapshot.path).st_blocks * 512,
        "smp": {"cpus": cpus, "sockets": sockets, "cores": cores, "threads": threads, "maxcpus": maxcpus},
        "vcpus": [index for index, vcpu in enumerate(data["vcpus"]) if vcpu is not None],
        "cpu": data["cpu"],
        "irqchip": data["irqchip"],
        "format": data["format"],
        "clock_ns": data["clock"]["ns"],
        "devices": list(data["devices"]),
        "disks": data["disks"],
        "vcpu_state": _sizes(data["vcpus"]),
        "needs": needed_capabilities(snapshot),
    }


def _sizes(vcpus: list[Any]) -> dict[str, int]:
    """Return the pieces of a vCPU's state, and their bytes."""
    state: dict[str, bytes] = next((vcpu["state"] for vcpu in vcpus if vcpu is not None), {})
    return {name: len(piece) for name, piece in state.items()}


def lines(facts: dict[str, Any]) -> list[str]:
    """Return it as lines for people."""
    from ..memory import format_size

    base = f", a layer of {facts['pages']} pages over {facts['base'][:8]}" if facts["base"] else ""
    smp, there = facts["smp"], facts["vcpus"]
    disks = [f"  {name}: {disk['size']} bytes" for name, disk in facts["disks"].items()]
    return [
        f"snapshot {facts['id'][:8]} of {facts['created']}{base}",
        f"memory: {format_size(facts['memory'])}, {facts['bytes_on_disk'] >> 10} KiB in the file",
        f"vCPUs: {len(there)} of {smp['maxcpus']} ({smp['sockets']} sockets, {smp['cores']} cores, {smp['threads']}"
        f" threads), {printable(facts['cpu'])}",
        f"irqchip: {facts['irqchip']}",
        f"image: {printable(facts['format'])}",
        f"clock: {facts['clock_ns'] / 1e9:.3f} s",
        f"devices: {', '.join(map(printable, facts['devices']))}",
        *(["disks", *map(printable, disks)] if disks else []),
        f"state of a vCPU: {', '.join(f'{printable(name)} {size}' for name, size in facts['vcpu_state'].items())}",
        f"needs: {', '.join(facts['needs'])}",
    ]


def printable(text: str) -> str:
    """Return a text of the file's without what could do something to a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
