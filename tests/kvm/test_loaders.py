"""Guests of our own, of every format that has headers: they say what their loader handed them."""

from __future__ import annotations

from typing import Any

import pytest

from pyvcpu import Machine, Outcome
from pyvcpu.boot import Target, plan
from pyvcpu.devices import acpi
from tests.kvm.support import DEVICE, GUESTS

TIMEOUT = 30
MODULES = [("first.bin a=1 b", b"the first"), ("second", b""), ("third", b"3" * 5000)]
SAID = b"".join(b"%s=%s\n" % (name.encode(), data) for name, data in MODULES)


def run(guest: str, smp: int = 1, memory: str = "8M", **options: Any) -> tuple[Outcome, bytes]:
    """Boot a guest to its end; return how it ended, and what it said on the debug console."""
    said: list[bytes] = []
    with Machine(memory, smp, kvm=DEVICE, output=said.append) as machine:
        ranges = [(start, end) for start, end, _ in machine.memory.ranges]
        image = (GUESTS / f"{guest}.bin").read_bytes()
        machine.load_plan(plan(image, Target(ranges, smp, **options)))
        outcome = machine.run(timeout=TIMEOUT)
    return outcome, b"".join(said)


def ended(value: int) -> int:
    """Return the status of a guest that writes `value` to the debug-exit port."""
    return (value << 1) | 1


@pytest.mark.parametrize("name", ["elf32", "elf64"])
def test_elf(name: str) -> None:
    outcome, said = run(name, smp=4)
    assert (outcome.status, said) == (ended(0), name.encode() + b" 0/4\n")


def test_multiboot() -> None:
    """A memory map of 3 entries: conventional memory, the BIOS area, and all above 1 MiB."""
    outcome, said = run("multiboot", name="multiboot.bin", append="quiet x=y", initrd=MODULES)
    assert said == b"multiboot.bin quiet x=y\n" + SAID
    assert outcome.status == ended(3)


def test_multiboot_without_a_format() -> None:
    outcome, _ = run("multiboot_flat", smp=2)
    assert outcome.status == ended(0x2A)


def test_multiboot_above_4_gib() -> None:
    """One more entry of the memory map: RAM goes on at 4 GiB. Untouched memory costs the host nothing."""
    outcome, _ = run("multiboot", memory="4G")
    assert outcome.status == ended(4)


def test_pvh() -> None:
    outcome, said = run("pvh", append="quiet x=y", initrd=MODULES, acpi=lambda: (acpi.BASE, acpi.build([0])))
    assert said == b"quiet x=y\n" + SAID + b"RSD PTR"
    assert outcome.status == ended(3)


def test_pvh_without_extras() -> None:
    outcome, said = run("pvh")
    assert (outcome.status, said) == (ended(3), b"\n")


@pytest.mark.smp
@pytest.mark.parametrize("smp", [1, 4, 64])
def test_init_sipi_sipi(smp: int) -> None:
    outcome, _ = run("elf64_smp", smp=smp)
    assert outcome.status == ended(smp)


def test_reset_vector() -> None:
    """What is at F000:FFF0 asks for a reset, as a BIOS does."""
    outcome, _ = run("elf32_restart", smp=2)
    assert outcome.reason == "reset"
