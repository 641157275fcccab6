"""Guests of our own, of every format that has headers: they say what their loader handed them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pyvcpu import Machine, Outcome
from pyvcpu.boot import Target, plan
from pyvcpu.devices import acpi
from tests.images import bzimage, zimage
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


def test_multiboot2() -> None:
    """It lies as high as it can, and is told so."""
    outcome, said = run(
        "multiboot2",
        name="multiboot2.bin",
        append="quiet x=y",
        initrd=MODULES,
        acpi=lambda: (acpi.BASE, acpi.build([0])),
    )
    assert said == b"multiboot2.bin quiet x=y\npyvcpu\n" + SAID + b"RSD PTR\nbase\n"
    assert outcome.status == ended(3 + 16), "three entries of the memory map, one section of strings"


def test_pvh() -> None:
    outcome, said = run("pvh", append="quiet x=y", initrd=MODULES, acpi=lambda: (acpi.BASE, acpi.build([0])))
    assert said == b"quiet x=y\n" + SAID + b"RSD PTR"
    assert outcome.status == ended(3)


def test_pvh_without_extras() -> None:
    outcome, said = run("pvh")
    assert (outcome.status, said) == (ended(3), b"\n")


SAY_AX = b"\xe6\xe9\x88\xe0\xe6\xe9"  # out %al,$0xe9; mov %ah,%al; out %al,$0xe9
EXIT = b"\xb0\x2a\xe6\xf4\xf4"  # mov $0x2a,%al; out %al,$0xf4; hlt
MOV_CS, MOV_DS, MOV_SP, MOV_SI = b"\x8c\xc8", b"\x8c\xd8", b"\x89\xe0", b"\x89\xf0"  # ..., %eax or %ax


def run_image(image: bytes) -> tuple[Outcome, bytes]:
    """Boot an image to its end; return how it ended, and what it said on the debug console."""
    said: list[bytes] = []
    with Machine("32M", kvm=DEVICE, output=said.append) as machine:
        machine.load(image)
        outcome = machine.run(timeout=TIMEOUT)
    return outcome, b"".join(said)


@pytest.mark.parametrize("image", [bzimage, partial(bzimage, version=0x209), partial(bzimage, version=0x203)])
def test_linux_32_bit(image: Callable[..., bytes]) -> None:
    """CS, DS and the lower half of ESI."""
    code = MOV_CS + SAY_AX + MOV_DS + SAY_AX + MOV_SI + SAY_AX + EXIT
    outcome, said = run_image(image(xloadflags=2, code=code.ljust(0x1000, b"\x90")))
    assert said == b"\x10\0\x18\0\0\x20"
    assert outcome.status == ended(0x2A)


def test_linux_real_mode() -> None:
    """CS 9020, DS 9000, SP E000; the setup code begins at its second sector."""
    image = bytearray(zimage())
    code = MOV_CS + SAY_AX + MOV_DS + SAY_AX + MOV_SP + SAY_AX + EXIT
    image[512 : 512 + len(code)] = code
    outcome, said = run_image(bytes(image))
    assert said == b"\x20\x90\0\x90\0\xe0"
    assert outcome.status == ended(0x2A)


def test_an_image_in_gzip() -> None:
    outcome, said = run_image(gzip.compress((GUESTS / "elf32.bin").read_bytes()))
    assert (outcome.status, said) == (ended(0), b"elf32 0/1\n")


@pytest.mark.smp
@pytest.mark.parametrize("smp", [1, 4, 64])
def test_init_sipi_sipi(smp: int) -> None:
    outcome, _ = run("elf64_smp", smp=smp)
    assert outcome.status == ended(smp)


def test_reset_vector() -> None:
    """What is at F000:FFF0 asks for a reset, as a BIOS does."""
    outcome, _ = run("elf32_restart", smp=2)
    assert outcome.reason == "reset"
