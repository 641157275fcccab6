"""Guests that only a KVM like hardware runs. What each does, and the exits it causes, is at the head of its source."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable

import pytest

from pyvcpu.exits import ExitEvent, Halt, PortIn, PortOut
from pyvcpu.vcpu import Vcpu
from tests.kvm.support import GUESTS, accesses, machine, record

CONSOLE = 0xE9
LONG = 30.0


def exits(guest: str, mode: str) -> list[ExitEvent]:
    """Run a guest with one vCPU and 4 MiB of RAM; return its exits."""
    with machine(GUESTS / guest, memory="4M", mode=mode) as made:
        events = record(made)
        outcome = made.run(timeout=LONG)
    assert outcome.reason == "halted", outcome
    return events


def written(data: Iterable[int]) -> list[ExitEvent]:
    """Return the exits of a guest that writes `data` to the debug console, a byte each, and halts."""
    return [*(PortOut(CONSOLE, bytes([byte])) for byte in data), Halt()]


@pytest.mark.parametrize(("guest", "mode"), [("hw_interrupts32.bin", "protected"), ("hw_interrupts64.bin", "long")])
def test_interrupts(guest: str, mode: str) -> None:
    assert exits(guest, mode) == written(b"3ncud.")


def test_two_level_paging() -> None:
    assert exits("hw_paging32.bin", "protected") == written(b"p\x5a\xa5\x02\x23\x01\xc0f")


def test_pae_paging() -> None:
    assert exits("hw_paging_pae.bin", "protected") == written(b"p\x5a\xa5\x11\x00\x00\x00f")


def test_x87_and_sse() -> None:
    results = struct.pack("<2d4f", math.pi + 1, math.sqrt(2), 3, 5, 7, 9)
    assert exits("hw_fpu.bin", "long") == written(results)


def test_syscall() -> None:
    assert exits("hw_syscall.bin", "long") == written(b"\x23\x1b\x08ri")


def test_string_io() -> None:
    """Elements arrive complete and in order, however many come in one exit."""
    given = bytes(i % 251 for i in range(1500))
    answers, got = iter(given), bytearray()

    def take(vcpu: Vcpu, data: bytes) -> None:
        got.extend(data)

    with machine(GUESTS / "hw_string_io.bin", mode="long") as made:
        events = record(made)
        made.on_port(0x500, write=take)
        made.on_port(0x501, read=lambda vcpu, size: next(answers))
        made.on_port(0x502, write=take)
        assert made.run(timeout=LONG).reason == "halted"
    assert bytes(got[:1024]) == bytes(range(256)) * 4
    assert bytes(got[1024:]) == given.ljust(6000, b"\0")
    assert accesses(events) == [
        *(PortOut(0x500, bytes([i % 256])) for i in range(1024)),
        *[PortIn(0x501)] * 1500,
        *(PortOut(0x502, bytes(got[1024 + i : 1028 + i]), 4) for i in range(0, 6000, 4)),
        Halt(),
    ]
    assert max(event.count for event in events if isinstance(event, PortIn)) > 1, "rep ins is one exit for many"
