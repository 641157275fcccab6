"""Interrupts of every source and way, on guests of our own: tests/guests/irq_*.S, each of which states its exits.

The library runs them in pieces, paused and resumed in between; the command runs them in one go.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from typing import Any

import pytest

from pyvcpu import ConfigError, Machine, Outcome
from pyvcpu.exits import ExitEvent, Other, PortIn, PortOut
from pyvcpu.kvm.abi.exits import Exit
from tests.kvm.support import DEVICE, GUESTS, boot, record

DEADLINE = 30.0
# Seconds between two pauses: a few ticks of the guests' timers; in an emulated host that is hardly a start.
SLICE = 0.03 if os.environ.get("PYVCPU_HOST") else 0.004
KINDS = ["kernel", "split"]
EDGE, LEVEL = 0, 1
COM1, IER, IIR = 0x3F8, 0x3F9, 0x3FA
CTRL_D = b"\x04"


def ended(value: int) -> int:
    """Return the status of a guest that writes `value` to the debug-exit port."""
    return (value << 1) | 1


def load(guest: str, irqchip: str, output: Any, smp: int = 1, **options: Any) -> Machine:
    """Return a machine with tests/guests/irq_`guest`.bin."""
    made = Machine("2M", smp, irqchip=irqchip, output=output, kvm=DEVICE, **options)
    try:
        made.load(GUESTS / f"irq_{guest}.bin")
    except BaseException:
        made.close()
        raise
    return made


def run_in_pieces(made: Machine) -> tuple[Outcome, int]:
    """Run a machine, pausing it every few milliseconds; return how it ended, and how often it was paused before."""
    deadline = time.monotonic() + DEADLINE
    for pauses in range(1 << 30):
        outcome = made.run(timeout=SLICE)
        if outcome.reason != "timeout" or time.monotonic() > deadline:
            return outcome, pauses
    raise AssertionError


def run(guest: str, irqchip: str, smp: int = 1) -> tuple[Outcome, bytes]:
    """Run a guest in pieces; return how it ended, and what it said."""
    said: list[bytes] = []
    with load(guest, irqchip, said.append, smp) as made:
        outcome, _ = run_in_pieces(made)
    return outcome, b"".join(said)


# Timers.


@pytest.mark.parametrize("guest", ["pic", "pit", "multiboot_pit"])
def test_the_interval_timer(guest: str) -> None:
    """Ten ticks: in real mode through the PICs, in long mode and for a Multiboot guest through the IOAPIC."""
    outcome, said = run(guest, "kernel")
    assert (outcome.reason, outcome.status, said) == ("exit", ended(10), b"t" * 10)


@pytest.mark.parametrize("irqchip", KINDS)
def test_the_local_timer(irqchip: str) -> None:
    """A hundred ticks of 1 ms in long mode: there are pauses in between, in which the guest must lose none for good."""
    with load("timer", irqchip, bytes) as made:
        outcome, pauses = run_in_pieces(made)
    assert (outcome.reason, outcome.status) == ("exit", ended(100))
    assert pauses


@pytest.mark.parametrize("irqchip", KINDS)
def test_the_local_timer_of_a_multiboot_guest(irqchip: str) -> None:
    """Ten ticks in 32-bit protected mode without paging."""
    outcome, said = run("multiboot_timer", irqchip)
    assert (outcome.reason, outcome.status, said) == ("exit", ended(10), b"t" * 10)


# COM1.


@pytest.mark.parametrize("irqchip", KINDS)
@pytest.mark.parametrize("trigger", [EDGE, LEVEL])
def test_an_interrupt_for_each_character_sent(irqchip: str, trigger: int) -> None:
    """irq_transmit.S: the line rises again while an interrupt is served; that is one more, after the EOI."""
    with load("transmit", irqchip, bytes) as made:
        made.on_port(0x50, read=lambda vcpu, size: trigger)
        events = record(made)
        outcome = made.run(timeout=DEADLINE)
    text = b"interrupts"
    expected: list[ExitEvent] = []
    for character in text:
        expected += [PortIn(IIR), PortOut(COM1, bytes([character]))]
    expected += [PortIn(IIR), PortOut(IER, b"\x00"), PortOut(0xF4, bytes([len(text) + 1]))]
    seen = [event for event in events if isinstance(event, (PortIn, PortOut))]
    assert seen[-len(expected) :] == expected
    assert outcome.status == ended(len(text) + 1)
    told = events.count(Other(Exit.IOAPIC_EOI))  # some KVMs tell of the last one, too, which the guest leaves open
    assert len(text) <= told <= len(text) + 1 if (irqchip, trigger) == ("split", LEVEL) else told == 0


@pytest.mark.parametrize("irqchip", KINDS)
@pytest.mark.parametrize("trigger", [EDGE, LEVEL])
def test_an_echo_by_interrupt(irqchip: str, trigger: int) -> None:
    """irq_serial.S: what does not fit into the FIFO waits; each character comes back once, in order."""
    text = bytes(range(32, 127)) * 40
    said: list[bytes] = []
    listens = threading.Event()
    with load("serial", irqchip, said.append, on_listen=listens.set) as made:
        made.on_port(0x50, read=lambda vcpu, size: trigger)

        def feed() -> None:
            data = text + CTRL_D
            assert listens.wait(DEADLINE)
            while data and made.com1.wait_room(DEADLINE):
                data = data[made.com1.receive(data) :]

        feeder = threading.Thread(target=feed)
        feeder.start()
        outcome, pauses = run_in_pieces(made)
        feeder.join()
    assert (outcome.reason, b"".join(said)) == ("exit", text)
    assert pauses > 0


@pytest.mark.parametrize("irqchip", KINDS)
def test_characters_in_the_fifo_wait_for_the_guest(irqchip: str) -> None:
    """All are there before the receive interrupt is enabled: one interrupt serves them."""
    said: list[bytes] = []
    made: Machine

    def fill() -> None:
        assert made.com1.receive(b"all at once" + CTRL_D) == 12

    with load("serial", irqchip, said.append, on_listen=fill) as made:
        outcome = made.run(timeout=DEADLINE)
    assert (outcome.status, b"".join(said)) == (ended(1), b"all at once")


# Application processors.


@pytest.mark.smp
@pytest.mark.parametrize("irqchip", KINDS)
@pytest.mark.parametrize("others", [4, 64])
def test_every_application_processor_starts_once(irqchip: str, others: int) -> None:
    """irq_sipi.S: each says its APIC id once, although it gets a second SIPI, and the machine pauses meanwhile."""
    outcome, said = run("sipi", irqchip, others + 1)
    assert Counter(said) == Counter(range(1, others + 1))
    assert (outcome.reason, outcome.status) == ("exit", ended(others))


# The command.


@pytest.mark.parametrize(
    ("guest", "irqchip", "expected", "value"),
    [
        ("pic", "kernel", b"t" * 10, 10),
        ("pit", "kernel", b"t" * 10, 10),
        ("timer", "kernel", b"", 100),
        ("timer", "split", b"", 100),
        ("multiboot_pit", "kernel", b"t" * 10, 10),
        ("multiboot_timer", "kernel", b"t" * 10, 10),
        ("multiboot_timer", "split", b"t" * 10, 10),
        ("transmit", "kernel", b"interrupts", 11),
        ("transmit", "split", b"interrupts", 11),
    ],
)
def test_command(guest: str, irqchip: str, expected: bytes, value: int) -> None:
    done = boot(GUESTS / f"irq_{guest}.bin", "--irqchip", irqchip)
    assert (done.stdout, done.stderr, done.returncode) == (expected, b"", ended(value))


@pytest.mark.smp
@pytest.mark.parametrize("irqchip", KINDS)
@pytest.mark.parametrize("others", [4, 64])
def test_command_with_application_processors(irqchip: str, others: int) -> None:
    done = boot(GUESTS / "irq_sipi.bin", "--irqchip", irqchip, "--smp", others + 1)
    assert Counter(done.stdout) == Counter(range(1, others + 1))
    assert (done.stderr, done.returncode) == (b"", ended(others))


@pytest.mark.parametrize("irqchip", KINDS)
@pytest.mark.parametrize("guest", ["serial", "multiboot_serial"])
def test_command_with_input(guest: str, irqchip: str) -> None:
    text = bytes(range(32, 127)) * 40
    done = boot(GUESTS / f"irq_{guest}.bin", "--irqchip", irqchip, input=text + CTRL_D)
    assert (done.stdout, done.stderr) == (text, b"")


@pytest.mark.parametrize("gsi", [-1, 24])
@pytest.mark.parametrize("irqchip", ["none", *KINDS])
def test_a_line_that_there_is_not_is_refused(irqchip: str, gsi: int) -> None:
    with Machine("2M", irqchip=irqchip, kvm=DEVICE) as made:
        made.load(b"\xf4")
        made.start()
        with pytest.raises(ConfigError, match=f"an interrupt line must be from 0 to 23, not {gsi}"):
            made.set_line(gsi, True)
        made.set_line(23, True)
        made.set_line(23, False)
