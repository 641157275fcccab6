"""The examples in the docstrings of the package do what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import pyvcpu

# __main__ runs the command when it is imported.
MODULES = [name for _, name, _ in pkgutil.walk_packages(pyvcpu.__path__, "pyvcpu.") if not name.endswith("__main__")]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert not failed


def test_there_are_examples() -> None:
    """Those that need KVM most: the tests above pass also for modules without any."""
    with_examples = {
        test.name
        for name in MODULES
        for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
        if test.examples
    }
    assert {
        "pyvcpu.machine.machine.Machine",
        "pyvcpu.memory.GuestMemory",
        "pyvcpu.vcpu.registers.RegisterFile",
        "pyvcpu.kvm.system.Kvm",
    } <= with_examples
