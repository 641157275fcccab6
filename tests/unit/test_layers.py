"""The package's house rules, read from its source: imports go downward, start-up is cheap, only cli talks.

A module's layer is that of its longest prefix in LAYERS. It may import from its own layer and those below it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LAYERS = {
    "pyvcpu.errors": 0,
    "pyvcpu.posix": 0,
    "pyvcpu.symbols": 0,
    "pyvcpu.kvm.abi": 0,
    "pyvcpu.x86": 0,
    "pyvcpu.kvm": 1,
    "pyvcpu.vcpu": 2,
    "pyvcpu.exits": 2,
    "pyvcpu.memory": 2,
    "pyvcpu.bus": 2,
    "pyvcpu.addresses": 2,
    "pyvcpu.boot": 3,
    "pyvcpu.devices": 3,
    "pyvcpu.tcg": 3,
    "pyvcpu.bios": 3,
    "pyvcpu.machine": 4,
    "pyvcpu.observe": 4,
    "pyvcpu.snapshot": 4,
    "pyvcpu.gdb": 4,
    "pyvcpu.debug": 4,
    "pyvcpu.cli": 5,
    "pyvcpu.__main__": 5,
}
PUBLIC_NAMES_LAYER = 4  # pyvcpu/__init__.py itself

# Beyond the layers: who must not know whom.
STRANGERS = {
    "pyvcpu.boot": ("pyvcpu.kvm", "pyvcpu.vcpu", "pyvcpu.devices"),
    "pyvcpu.devices": ("pyvcpu.kvm", "pyvcpu.vcpu", "pyvcpu.memory"),
    "pyvcpu.bios": ("pyvcpu.kvm", "pyvcpu.vcpu"),
    "pyvcpu.gdb": ("pyvcpu.kvm",),
}
SLOW = {"contextlib", "dataclasses", "inspect", "logging", "pathlib", "re", "subprocess", "typing"}
# What a boot of a flat image does without, though modules that it does not load may use it.
ABSENT_FROM_A_BOOT = {*SLOW, "argparse", "enum", "signal"}
FRONT = ("pyvcpu.cli", "pyvcpu.__main__")  # the only ones that print, parse arguments or exit


@dataclass(frozen=True)
class Module:
    """One module of the package and its source."""

    name: str
    source: str
    is_package: bool = False

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)


@dataclass(frozen=True)
class Import:
    """One imported module, and when: never (type checking), at start-up (module level) or later."""

    target: str
    line: int
    at_run_time: bool
    at_start_up: bool


def within(name: str, *prefixes: str) -> bool:
    """Tell whether `name` is one of `prefixes` or lies in it."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def package_modules() -> list[Module]:
    """Read every module of the package."""
    modules = []
    for path in sorted((ROOT / "pyvcpu").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        modules.append(Module(name, path.read_text(encoding="utf-8"), is_package))
    return modules


def layer(name: str) -> int | None:
    """Return the layer of a module, None when nobody has placed it."""
    if name == "pyvcpu":
        return PUBLIC_NAMES_LAYER
    placed = [prefix for prefix in LAYERS if within(name, prefix)]
    return LAYERS[max(placed, key=len)] if placed else None


class ImportWalk(ast.NodeVisitor):
    """Collect one module's imports. `known`, the names of all modules, tells a submodule from a value."""

    def __init__(self, module: Module, known: frozenset[str]) -> None:
        self.module = module
        self.known = known
        self.found: list[Import] = []
        self.at_run_time = True
        self.at_start_up = True

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in (getattr(node.test, "id", None), getattr(node.test, "attr", None)):
            self.generic_visit(node)
            return
        before, self.at_run_time = self.at_run_time, False
        for statement in node.body:
            self.visit(statement)
        self.at_run_time = before
        for statement in node.orelse:
            self.visit(statement)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before, self.at_start_up = self.at_start_up, False
        self.generic_visit(node)
        self.at_start_up = before

    def visit_Call(self, node: ast.Call) -> None:
        """Take LazyModule("pyvcpu.x") for the import that it becomes later."""
        if getattr(node.func, "id", None) == "LazyModule" and isinstance(node.args[0], ast.Constant):
            self.found.append(Import(str(node.args[0].value), node.lineno, self.at_run_time, at_start_up=False))
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parts = self.module.name.split(".")
            parts = parts[: len(parts) - node.level + self.module.is_package]
            base = ".".join([*parts, base]).rstrip(".")
        for alias in node.names:
            name = f"{base}.{alias.name}"
            is_module = name in self.known or layer(name) not in (None, layer(base))
            self.add(name if is_module else base, node.lineno)

    def add(self, target: str, line: int) -> None:
        at_start_up = self.at_run_time and self.at_start_up
        self.found.append(Import(target, line, self.at_run_time, at_start_up))


def imports(module: Module, known: frozenset[str] = frozenset()) -> list[Import]:
    """Return every import of a module, those in functions and those for the type checker included."""
    walk = ImportWalk(module, known)
    walk.visit(module.tree)
    return walk.found


def layer_faults(module: Module, known: frozenset[str] = frozenset()) -> list[str]:
    """List where a module has no layer, imports upward, or imports from whom it must not know."""
    own = layer(module.name)
    if own is None:
        return [f"{module.name} has no layer: place it in LAYERS"]
    faults = []
    for found in imports(module, known):
        if not within(found.target, "pyvcpu"):
            continue
        other = layer(found.target)
        where = f"{module.name}:{found.line} imports {found.target}"
        if other is None:
            faults.append(f"{where}, which has no layer")
        elif other > own:
            faults.append(f"{where}: from layer {own} up to layer {other}")
        for who, strangers in STRANGERS.items():
            if within(module.name, who) and within(found.target, *strangers):
                faults.append(f"{where}: {who} must not know it")
    return faults


def cost_faults(module: Module) -> list[str]:
    """List what a module imports from outside the standard library, or at start-up from its slow part."""
    faults = []
    for found in imports(module):
        top = found.target.partition(".")[0]
        where = f"{module.name}:{found.line} imports {found.target}"
        if found.at_run_time and top != "pyvcpu" and top not in sys.stdlib_module_names:
            faults.append(f"{where}: not in the standard library")
        if found.at_start_up and top in SLOW:
            faults.append(f"{where} at start-up: too slow")
    return faults


def manners_faults(module: Module) -> list[str]:
    """List where a module other than the command's prints, parses arguments or exits."""
    if within(module.name, *FRONT):
        return []
    faults = [f"{module.name}:{i.line} imports argparse" for i in imports(module) if i.target == "argparse"]
    forbidden = {"print", "SystemExit", "sys.exit", "os._exit"}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in forbidden:
            faults.append(f"{module.name}:{node.lineno} uses {ast.unparse(node)}")
        if isinstance(node, ast.ImportFrom) and node.module in ("sys", "os"):
            taken = {f"{node.module}.{alias.name}" for alias in node.names} & forbidden
            faults += [f"{module.name}:{node.lineno} imports {name}" for name in taken]
    return faults


def import_graph(modules: list[Module], root: str, *, also_late: bool, for_types: bool = False) -> dict[str, set[str]]:
    """Return who imports whom among the modules in `root`, except the root itself.

    `also_late`: also in functions, and lazily; `for_types`: also what only annotations need.
    """
    known = frozenset(module.name for module in modules)
    return {
        module.name: {
            found.target
            for found in imports(module, known)
            if found.target in known
            and within(found.target, root)
            and found.target not in (module.name, root)
            and (for_types or found.at_run_time)
            and (also_late or found.at_start_up)
        }
        for module in modules
        if within(module.name, root)
    }


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return a way round for each import that closes a circle; none when the graph has no circle."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for target in sorted(graph.get(name, ())):
                walk(target, [*path, name])
            done.add(name)

    for name in sorted(graph):
        walk(name, [])
    return found


MODULES = package_modules()
KNOWN = frozenset(module.name for module in MODULES)


def test_there_is_a_package_to_walk() -> None:
    assert {"pyvcpu", "pyvcpu.kvm", "pyvcpu.machine", "pyvcpu.__main__"} <= KNOWN


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_imports_go_downward(module: Module) -> None:
    assert layer_faults(module, KNOWN) == []


@pytest.mark.parametrize("when", ["at start-up", "also late", "also for types"])
def test_nothing_imports_in_a_circle(when: str) -> None:
    """Not inside of functions either, and not for the sake of annotations."""
    graph = import_graph(MODULES, "pyvcpu", also_late=when != "at start-up", for_types=when == "also for types")
    del graph["pyvcpu"]  # the public names: it stands above all
    spared: tuple[str, ...] = ()
    if when == "also late":  # the parts of a processor ask each other
        spared = ("pyvcpu.tcg",)
    elif when == "also for types":  # and a rare method of pyvcpu.kvm is a function that names the class it belongs to
        spared = ("pyvcpu.tcg", "pyvcpu.kvm")
    graph = {name: targets for name, targets in graph.items() if not within(name, *spared)}
    assert sum(map(len, graph.values())) > 100, "there are imports to walk"
    assert circles(graph) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_imports_are_cheap(module: Module) -> None:
    assert cost_faults(module) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_only_the_command_prints_and_exits(module: Module) -> None:
    assert manners_faults(module) == []


def test_nothing_slow_comes_in_by_the_back_door() -> None:
    """A cheap import may bring a slow one along: ask an interpreter that has imported nothing else."""
    loads = "import pyvcpu.boot.flat, pyvcpu.cli.boot, pyvcpu.machine, pyvcpu.machine.coalesced"
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); {loads}; print(*({ABSENT_FROM_A_BOOT!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# The rules themselves, on sources that break them.


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("pyvcpu.kvm.vm", "import pyvcpu.vcpu", "from layer 1 up to layer 2"),
        ("pyvcpu.kvm.vm", "from pyvcpu import vcpu", "from layer 1 up to layer 2"),
        ("pyvcpu.kvm.vm", "from pyvcpu import Machine", "from layer 1 up to layer 4"),
        ("pyvcpu.kvm.abi.caps", "from ..vm import Vm", "from layer 0 up to layer 1"),
        ("pyvcpu.kvm.abi.caps", "def late():\n    from pyvcpu.kvm import Vm", "from layer 0 up to layer 1"),
        (
            "pyvcpu.memory",
            "if TYPE_CHECKING:\n    from .machine import Machine",
            "from layer 2 up to layer 4",
        ),
        (
            "pyvcpu.machine",
            "try:\n    pass\nexcept OSError:\n    import pyvcpu.cli",
            "from layer 4 up to layer 5",
        ),
        ("pyvcpu.boot.flat", "from pyvcpu.kvm.abi import kvm_regs", "must not know it"),
        ("pyvcpu.boot.flat", "from ..devices import bus", "must not know it"),
        ("pyvcpu.devices.serial", "from pyvcpu.memory import Memory", "must not know it"),
        ("pyvcpu.gdb", "import pyvcpu.kvm", "must not know it"),
        ("pyvcpu.helpers", "", "has no layer"),
        ("pyvcpu.machine", "import pyvcpu.helpers", "which has no layer"),
    ],
)
def test_layer_faults_are_found(name: str, source: str, fault: str) -> None:
    (found,) = layer_faults(Module(name, source))
    assert fault in found


@pytest.mark.parametrize(
    ("source", "at_start_up", "also_late"),
    [
        ("from . import b", True, True),
        ("from .b import thing", True, True),
        ("import pyvcpu.b", True, True),
        ("def late():\n    from .b import thing", False, True),
        ("if TYPE_CHECKING:\n    from . import b\nelse:\n    b = LazyModule('pyvcpu.b')", False, True),
        ("if TYPE_CHECKING:\n    from . import b", False, False),
        ("import os", False, False),
    ],
)
def test_circles_are_found(source: str, at_start_up: bool, also_late: bool) -> None:
    modules = [Module("pyvcpu.a", source), Module("pyvcpu.b", "from . import c"), Module("pyvcpu.c", "import pyvcpu.a")]
    way = [["pyvcpu.a", "pyvcpu.b", "pyvcpu.c", "pyvcpu.a"]]
    assert circles(import_graph(modules, "pyvcpu", also_late=False)) == (way if at_start_up else [])
    assert circles(import_graph(modules, "pyvcpu", also_late=True)) == (way if also_late else [])


def test_two_ways_to_a_module_are_no_circle() -> None:
    assert circles({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []
    assert circles({"a": {"b"}, "b": {"b"}}) == [["b", "b"]]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("pyvcpu.kvm.vm", "from .abi import kvm_regs\nfrom pyvcpu.errors import KvmError\nimport os"),
        ("pyvcpu.machine", "from . import memory, trace\nfrom .boot import flat"),
        ("pyvcpu.cli.boot", "import pyvcpu\nfrom pyvcpu import Machine, __version__"),
        ("pyvcpu.devices.serial", "from .bus import Device\nfrom pyvcpu.x86 import flags"),
    ],
)
def test_downward_imports_are_accepted(name: str, source: str) -> None:
    assert layer_faults(Module(name, source)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import numpy",
        "def late():\n    import numpy",
        "import typing",
        "from collections import abc\nfrom re import compile",
        "try:\n    import inspect\nfinally:\n    pass",
        "class Box:\n    import pathlib",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import logging",
    ],
)
def test_cost_faults_are_found(source: str) -> None:
    assert len(cost_faults(Module("pyvcpu.memory", source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import os, sys, mmap\nfrom .kvm import Vm",
        "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    from typing import Any",
        "def late():\n    import subprocess",
    ],
)
def test_cheap_imports_are_accepted(source: str) -> None:
    assert cost_faults(Module("pyvcpu.memory", source)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import argparse",
        "print('here')",
        "raise SystemExit",
        "import os\nos._exit(1)",
        "import sys\nsys.exit(1)",
        "from sys import exit",
        "report = print",
    ],
)
def test_manners_faults_are_found(source: str) -> None:
    assert len(manners_faults(Module("pyvcpu.machine", source))) == 1
    assert manners_faults(Module("pyvcpu.cli.boot", source)) == []
