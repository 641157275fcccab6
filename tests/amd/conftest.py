"""What the tests of hardware-like KVM share: they need one, and may need a feature of the host's processor."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

HARDWARE = ("kvm_amd", "kvm_intel")
HERE = Path(__file__).parent


def hardware_like() -> bool:
    """Tell whether the KVM of this machine runs guests on the processor, and does not interpret them."""
    return os.environ.get("PYVCPU_HOST") == "amd" or any(Path("/sys/module", name).exists() for name in HARDWARE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies here: it needs KVM, and is skipped where KVM is of another kind."""
    skip = pytest.mark.skipif(
        not hardware_like(), reason="this KVM is not kvm_amd or kvm_intel: `make test-amd` has one"
    )
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.kvm)
            item.add_marker(skip)


@pytest.fixture(scope="session")
def processor() -> Callable[[str], None]:
    """Give a function that skips the test unless the host's processor has a feature, named as in /proc/cpuinfo."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next(line for line in lines if line.startswith("flags")).split()

    def need(feature: str) -> None:
        if feature not in flags:
            pytest.skip(f"the processor has no {feature}")

    return need
