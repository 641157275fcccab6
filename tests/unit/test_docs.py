"""docs/states.md says what the table in the code does; docs/threads.md has every lock and every thread."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyvcpu.vcpu.states import STATES, TRANSITIONS, Command
from tools import gen_docs

ROOT = Path(__file__).parents[2]
SOURCES = [
    path.read_text(encoding="utf-8") for path in sorted((ROOT / "pyvcpu").rglob("*.py")) if path.parent.name != "tcg"
]
THREADS = (ROOT / "docs" / "threads.md").read_text(encoding="utf-8")


def test_the_document_is_up_to_date() -> None:
    assert gen_docs.main(["--check"]) == 0


def test_each_part_is_in_the_document() -> None:
    texts = [document.read_text(encoding="utf-8") for document in gen_docs.DOCUMENTS]
    found = [name for text in texts for _, name, _ in gen_docs.PART.findall(text)]
    assert sorted(found) == sorted(gen_docs.PARTS)


def test_the_diagram_has_every_step_to_another_state() -> None:
    drawn = set()
    for line in gen_docs.diagram():
        if " --> " in line and "[*]" not in line:
            states, _, commands = line.partition(": ")
            old, new = (STATES[name.strip()] for name in states.split(" --> "))
            drawn |= {(old, Command(command), new) for command in commands.split(", ")}
    assert drawn == {(old, command, new) for (old, command), new in TRANSITIONS.items() if old is not new}


def test_the_table_has_every_transition() -> None:
    heads, _, *rows = ([field.strip() for field in line.split("|")[1:-1]] for line in gen_docs.table())
    found = {
        (row[0].strip("*"), command, new)
        for row in rows
        for command, new in zip(heads[1:], row[1:], strict=True)
        if new
    }
    assert found == {(str(old), str(command), str(new)) for (old, command), new in TRANSITIONS.items()}


@pytest.mark.parametrize(
    ("document", "part"),
    list(zip(gen_docs.DOCUMENTS, ["RUNNING --> PAUSED: pause\n", "| general registers, RIP, RFLAGS "], strict=True)),
)
def test_a_change_is_noticed_and_put_right(
    document: Path, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = document.read_text(encoding="utf-8")
    copy = tmp_path / document.name
    assert good.count(part) == 1
    copy.write_text(good.replace(part, ""), encoding="utf-8")
    monkeypatch.setattr(gen_docs, "DOCUMENTS", (copy,))
    assert gen_docs.main(["--check"]) == 1
    assert capsys.readouterr().err.startswith(f"{document.name} does not say what the code does")
    assert gen_docs.main([]) == 0
    assert copy.read_text(encoding="utf-8") == good


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(KeyError, match="nonsense"):
        gen_docs.filled("<!-- generated: nonsense -->\n<!-- end -->\n")


def test_every_lock_is_in_the_document() -> None:
    names = {name for source in SOURCES for name in re.findall(r"self\.(\w+) = threading\.R?Lock\(\)", source)}
    assert names >= {"lock", "start_lock", "_lock", "_bell"}
    assert {name for name in names if not re.search(rf"\b{name}\b", THREADS)} == set()


def test_every_thread_is_in_the_document() -> None:
    made = [name for source in SOURCES for name in re.findall(r'Thread\([^\n]*name=f?"([^"]+)"', source)]
    assert {"io", "coalesced writes", "CPU {self.index}/KVM"} <= set(made)
    names = {name.replace("{self.index}", "<n>") for name in made}
    assert {name for name in names if f"`{name}`" not in THREADS} == set()
