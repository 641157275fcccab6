"""Write the generated parts of the documents from the tables in the code.

docs/states.md shows pyvcpu/vcpu/states.py, docs/lifecycle.md shows pyvcpu/vcpu/state.py. A part lies between the lines
`<!-- generated: NAME -->` and `<!-- end -->`; all else is written by hand.

    python tools/gen_docs.py            # bring the files up to date
    python tools/gen_docs.py --check    # write nothing; fail when one is not
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, whatever is installed

from pyvcpu.kvm.abi import capabilities
from pyvcpu.vcpu import pieces, states
from pyvcpu.vcpu.state import PIECES, Piece
from pyvcpu.vcpu.states import COMMANDS, STATES, TRANSITIONS, State

DOCS = Path(__file__).resolve().parent.parent / "docs"
DOCUMENTS = (DOCS / "states.md", DOCS / "lifecycle.md")
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
NAMES = {state: name for name, state in STATES.items()}
CAPABILITIES = {value: name for name, value in vars(capabilities).items() if name.startswith("KVM_CAP_")}
# What each piece of a vCPU's state is, and the requests that get and set it.
MEANINGS = {
    "guest_debug": ("single step and breakpoints of the host's", "KVM_SET_GUEST_DEBUG"),
    "tsc_khz": ("rate of the time-stamp counter, in kHz", "KVM_GET_TSC_KHZ, KVM_SET_TSC_KHZ"),
    "cpuid": ("what CPUID shows, 40 bytes for each entry", "KVM_SET_CPUID2"),
    "sregs": ("segments, tables, control registers, EFER, APIC base", "KVM_GET_SREGS, KVM_SET_SREGS"),
    "sregs2": ("the same, with the PDPTEs of PAE paging", "KVM_GET_SREGS2, KVM_SET_SREGS2"),
    "nested_state": ("the guest that the guest runs", "KVM_GET_NESTED_STATE, KVM_SET_NESTED_STATE"),
    "regs": ("general registers, RIP, RFLAGS", "KVM_GET_REGS, KVM_SET_REGS"),
    "fpu": ("x87 and SSE", "KVM_GET_FPU, KVM_SET_FPU"),
    "xsave": ("all that XSAVE keeps", "KVM_GET_XSAVE or KVM_GET_XSAVE2, KVM_SET_XSAVE"),
    "xcrs": ("extended control registers, 16 bytes each", "KVM_GET_XCRS, KVM_SET_XCRS"),
    "debugregs": ("the guest's debug registers", "KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS"),
    "lapic": ("registers of the local APIC", "KVM_GET_LAPIC, KVM_SET_LAPIC"),
    "msrs": ("MSRs that the host can read and write, 16 bytes each", "KVM_GET_MSRS, KVM_SET_MSRS"),
    "vcpu_events": (
        "exceptions, interrupts, NMI and SMI that are pending or under way",
        "KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS",
    ),
    "mp_state": ("runnable, halted, or waiting for INIT or SIPI", "KVM_GET_MP_STATE, KVM_SET_MP_STATE"),
    "halted": ("behind a HLT that KVM does not know of", "none: pyvcpu keeps it"),
}


def diagram() -> list[str]:
    """Return the diagram: every transition that leads to another state."""
    names = [f'    state "{state}" as {name}' for name, state in STATES.items()]
    steps: dict[tuple[State, State], list[str]] = {}
    for (old, command), new in TRANSITIONS.items():
        if old is not new:
            steps.setdefault((old, new), []).append(str(command))
    arrows = [f"    {NAMES[old]} --> {NAMES[new]}: {', '.join(commands)}" for (old, new), commands in steps.items()]
    return ["```mermaid", "stateDiagram-v2", *names, f"    [*] --> {NAMES[State.REALIZED]}", *arrows, "```"]


def table() -> list[str]:
    """Return the whole table, a row for each state and a column for each command."""
    rows = [["", *COMMANDS.values()], ["---"] * (1 + len(COMMANDS))]
    for state in STATES.values():
        rows.append([f"**{state}**", *(str(TRANSITIONS.get((state, command), "")) for command in COMMANDS.values())])
    return [f"| {' | '.join(row)} |" for row in rows]


def meanings() -> list[str]:
    """Return the states with the comments that stand beside them in the source."""
    source = Path(states.__file__).read_text(encoding="utf-8")
    comments = dict(re.findall(r"^State\.(\w+) = .*  # (.*)$", source, re.MULTILINE))
    return ["| | |", "|---|---|", *(f"| **{state}** | {comments.get(name, '')} |" for name, state in STATES.items())]


def piece_table() -> list[str]:
    """Return the pieces of a vCPU's state, in the table's order; raise KeyError for one without a meaning."""
    rows = [["piece", "what it is", "requests", "only with", "bytes", "reset"], ["---"] * 6]
    for piece in PIECES:
        what, requests = MEANINGS[piece.name]
        reset = "leaves it" if piece.reset is pieces.unchanged else "sets it"
        rows.append([f"`{piece.name}`", what, requests, _needs(piece), str(piece.size or "varies"), reset])
    return [f"| {' | '.join(row)} |" for row in rows]


def _needs(piece: Piece) -> str:
    needs = [CAPABILITIES[piece.cap]] if piece.cap else []
    return ", ".join(needs + ["local APICs in KVM"] * piece.needs_apic)


PARTS: dict[str, Callable[[], list[str]]] = {
    "diagram": diagram,
    "table": table,
    "states": meanings,
    "pieces": piece_table,
}


def filled(text: str) -> str:
    """Return `text` with its generated parts as they should be; raise KeyError for one that nobody makes."""
    return PART.sub(lambda found: found[1] + "\n".join(["", *PARTS[found[2]](), "", ""]) + found[3], text)


def main(arguments: list[str] | None = None) -> int:
    """Write or check the documents; return 1 when the check finds a difference."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a part is not up to date")
    check = parser.parse_args(arguments).check
    status = 0
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        wanted = filled(text)
        if wanted == text:
            continue
        if check:
            print(f"{document.name} does not say what the code does; run tools/gen_docs.py", file=sys.stderr)
            status = 1
        else:
            document.write_text(wanted, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
