"""Write the generated parts of docs/states.md from the table in pyvcpu/vcpu/states.py.

A part lies between the lines `<!-- generated: NAME -->` and `<!-- end -->`; all else is written by hand.

    python tools/gen_docs.py            # bring the file up to date
    python tools/gen_docs.py --check    # write nothing; fail when it is not
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, whatever is installed

from pyvcpu.vcpu import states
from pyvcpu.vcpu.states import COMMANDS, STATES, TRANSITIONS, State

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "states.md"
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
NAMES = {state: name for name, state in STATES.items()}


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


PARTS: dict[str, Callable[[], list[str]]] = {
    "diagram": diagram,
    "table": table,
    "states": meanings,
}


def filled(text: str) -> str:
    """Return `text` with its generated parts as they should be; raise KeyError for one that nobody makes."""
    return PART.sub(lambda found: found[1] + "\n".join(["", *PARTS[found[2]](), "", ""]) + found[3], text)


def main(arguments: list[str] | None = None) -> int:
    """Write or check the document; return 1 when the check finds a difference."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a part is not up to date")
    check = parser.parse_args(arguments).check
    text = DOCUMENT.read_text(encoding="utf-8")
    wanted = filled(text)
    if wanted == text:
        return 0
    if check:
        print(f"{DOCUMENT.name} does not say what states.py does; run tools/gen_docs.py", file=sys.stderr)
        return 1
    DOCUMENT.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
