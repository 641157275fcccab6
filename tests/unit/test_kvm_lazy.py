"""The methods of the fd classes: all there from the start, loaded when first looked up, known to type checkers.

`typed()` is for mypy, which reads it as part of the whole project.
"""

from __future__ import annotations

import ast
import inspect
import pydoc
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, assert_type

import pytest

import pyvcpu.kvm
from pyvcpu.kvm import CpuidTable, DeviceFd, DirtyRing, Kvm, Registration, StatsFd, VcpuFd, VmFd, abi
from pyvcpu.kvm.fd import LazyMethod, LazyModule

ROOT = Path(__file__).resolve().parents[2]
KVM = ROOT / "pyvcpu/kvm"
CLASSES: dict[str, type] = {"Kvm": Kvm, "VmFd": VmFd, "VcpuFd": VcpuFd, "DeviceFd": DeviceFd}
DOCUMENTED = (ROOT / "docs/kvm-api.md").read_text(encoding="utf-8")
# (class, method) of each row of the tables.
METHODS = [
    (kind, method)
    for kind, table in re.findall(r"^## [^\n]*: `(\w+)`\n(.*?)(?=^## )", DOCUMENTED, re.MULTILINE | re.DOTALL)
    for method in re.findall(r"^\| KVM_\w+ \| `(\w+)` ", table, re.MULTILINE)
]
# (module, function) behind each lazy method, by the source of the classes.
LAZY = [
    (value.value.id, value.attr, kind.name, target.id)
    for name in ("system", "vm", "vcpu")
    for kind in ast.parse((KVM / f"{name}.py").read_text(encoding="utf-8")).body
    if isinstance(kind, ast.ClassDef)
    for statement in kind.body
    if isinstance(statement, ast.Assign)
    for target, value in [(statement.targets[0], statement.value)]
    if isinstance(target, ast.Name) and isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name)
]


def python(code: str) -> str:
    """Run `code` in an interpreter that has imported nothing; return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def typed(kvm: Kvm, vm: VmFd, vcpu: VcpuFd, device: DeviceFd) -> None:
    """Say what type each of these has; never called."""
    assert_type(kvm.get_msr_index_list(), list[int])
    assert_type(kvm.get_emulated_cpuid(), CpuidTable)
    assert_type(kvm.create_vm(), VmFd)
    assert_type(vm.create_vcpu(0), VcpuFd)
    assert_type(vm.create_pit2(), None)
    assert_type(vm.create_pit2(flags=1), None)
    assert_type(vm.get_pit2(), abi.kvm_pit_state2)
    assert_type(vm.irqfd(3, 4), Registration)
    assert_type(vm.create_device(4), DeviceFd | None)
    assert_type(VmFd.get_dirty_log(vm, 0), bytes)
    assert_type(vcpu.get_msrs([0x10]), list[tuple[int, int]])
    assert_type(vcpu.get_xcrs(), dict[int, int])
    assert_type(vcpu.get_stats_fd(), StatsFd)
    assert_type(vcpu.map_dirty_ring(), DirtyRing)
    assert_type(device.get_device_attr(0, 0), bytes)
    vm.create_pit2("no flags")  # type: ignore[arg-type]  # mypy must see it
    vm.create_pit3()  # type: ignore[attr-defined]  # likewise


def test_every_documented_request_was_found() -> None:
    assert len(METHODS) == 13 + 49 + 55 + 3
    assert len(LAZY) > 80


def test_importing_the_package_loads_none_of_the_rare_modules() -> None:
    rare = {f"pyvcpu.kvm.{module}" for module, *_ in LAZY} | {"pyvcpu.kvm.catalogue", "pyvcpu.kvm.hints"}
    loaded = python("import sys, pyvcpu.kvm as k; k.Kvm, k.VmFd; print(*sys.modules)").split()
    assert "pyvcpu.kvm.vm" in loaded
    assert rare.intersection(loaded) == set()


def test_all_methods_can_be_inspected_before_any_was_used() -> None:
    """In one fresh interpreter: dir() first, then signature and docstring of each."""
    code = f"""
import inspect, pyvcpu.kvm as k
for kind, name in {METHODS!r}:
    assert name in dir(getattr(k, kind)), (kind, name)
for kind, name in {METHODS!r}:
    method = getattr(getattr(k, kind), name)
    assert inspect.isfunction(method), (kind, name)
    print(kind, name, len(inspect.signature(method).parameters), bool(method.__doc__))
"""
    lines = python(code).splitlines()
    assert [tuple(line.split()[:2]) for line in lines] == METHODS
    assert all(int(line.split()[2]) >= 1 and line.endswith("True") for line in lines)


def test_help_shows_them() -> None:
    text = python("import pydoc; from pyvcpu.kvm import VmFd; print(pydoc.plain(pydoc.render_doc(VmFd)))")
    assert "create_pit2(vm: 'VmFd', flags: 'int' = 0)" in text
    assert "not loaded yet" not in text


def test_one_look_up_loads_one_module() -> None:
    code = (
        "import sys; from pyvcpu.kvm import VmFd; before = set(sys.modules); VmFd.create_pit2; "
        "print(*sorted(n for n in set(sys.modules) - before if n.startswith('pyvcpu.')))"
    )
    loaded = python(code).split()
    assert loaded == ["pyvcpu.kvm.abi.irq", "pyvcpu.kvm.registration", "pyvcpu.kvm.vm_irq"]


@pytest.mark.parametrize(("module", "function", "kind", "name"), LAZY)
def test_the_class_names_the_function_that_it_gets(module: str, function: str, kind: str, name: str) -> None:
    assert function == name
    method = getattr(CLASSES[kind], name)
    assert method.__module__ == f"pyvcpu.kvm.{module}"
    assert vars(CLASSES[kind])[name] is method, "the function has taken its place"
    first = next(iter(inspect.signature(method).parameters.values()))
    assert kind in first.annotation.split(" | ")


def test_nothing_public_of_the_rare_modules_was_forgotten() -> None:
    named = {(module, function) for module, function, *_ in LAZY}
    for module in sorted({module for module, _ in named}):
        tree = ast.parse((KVM / f"{module}.py").read_text(encoding="utf-8"))
        takes_fd = {
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef)
            and not node.name.startswith("_")
            and node.args.args
            and node.args.args[0].annotation is not None
            and set(CLASSES).intersection(ast.unparse(node.args.args[0].annotation).split(" | "))
        }
        assert {(module, name) for name in takes_fd} <= named


# The look-up itself, on classes that are made for it.


def classes() -> tuple[Any, Any]:
    """Return a class with one lazy method, and a class below it."""
    colorsys: Any = LazyModule("colorsys")

    class Base:
        rgb_to_hsv = colorsys.rgb_to_hsv

    class Below(Base):
        pass

    return Base, Below


def test_a_look_up_below_changes_the_class_that_has_it() -> None:
    base, below = classes()
    assert isinstance(vars(base)["rgb_to_hsv"], LazyMethod)
    assert "colorsys.rgb_to_hsv, not loaded yet" in repr(vars(base)["rgb_to_hsv"])
    found = below.rgb_to_hsv
    assert inspect.isfunction(found)
    assert "rgb_to_hsv" not in vars(below)
    assert vars(base)["rgb_to_hsv"] is found


def test_on_an_object_it_is_bound() -> None:
    base, _ = classes()
    thing = base()
    assert thing.rgb_to_hsv.__self__ is thing
    assert thing.rgb_to_hsv.__func__ is base.rgb_to_hsv


def test_a_class_below_may_have_its_own() -> None:
    base, _ = classes()

    own: Any = type("Own", (base,), {"rgb_to_hsv": lambda self: super(own, self).rgb_to_hsv})
    thing = own()
    assert thing.rgb_to_hsv().__func__ is base.rgb_to_hsv
    assert vars(own)["rgb_to_hsv"] is not base.rgb_to_hsv


def test_threads_that_look_it_up_at_once_get_the_same() -> None:
    for _ in range(50):
        base, _ = classes()
        barrier = threading.Barrier(4)
        found: list[object] = []

        def look(base: Any = base, barrier: threading.Barrier = barrier, found: list[object] = found) -> None:
            barrier.wait()
            found.append(base.rgb_to_hsv)

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [base.rgb_to_hsv] * 4


def test_a_function_that_does_not_exist() -> None:
    colorsys: Any = LazyModule("colorsys")

    class Wrong:
        nothing = colorsys.nothing

    with pytest.raises(AttributeError, match="module 'colorsys' has no attribute 'nothing'"):
        _ = Wrong.nothing


def test_no_bases_are_set_and_no_double_classes_are_left() -> None:
    for path in KVM.glob("*.py"):
        assert "__bases__" not in path.read_text(encoding="utf-8"), path
    assert [kind.__name__ for kind in Kvm.__mro__] == ["Kvm", "Fd", "object"]
    assert [kind.__name__ for kind in VcpuFd.__mro__] == ["VcpuFd", "Fd", "object"]
    assert pydoc.locate("pyvcpu.kvm.VmFd") is pyvcpu.kvm.VmFd
