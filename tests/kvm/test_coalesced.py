"""Collected writes: in their order, before any exit that came later, never late and never lost.

Real-mode guests. KVM leaves the guest for a collected write only when its ring is full.
"""

from __future__ import annotations

import threading

import pytest

from pyvcpu import Machine
from pyvcpu.errors import ConfigError
from pyvcpu.kvm.abi.basic import KVM_CAP_COALESCED_PIO
from pyvcpu.vcpu import Vcpu
from tests.kvm.support import DEVICE, HLT, SPIN, machine
from tests.threads import DEADLINE, until

pytestmark = pytest.mark.kvm

OUT_A = bytes.fromhex("b041 e650")  # mov $'A',%al; out %al,$0x50
OUT_B = bytes.fromhex("b042 e650")  # mov $'B',%al; out %al,$0x50
OUT_51 = bytes.fromhex("e651")  # out %al,$0x51
IN_52 = bytes.fromhex("e452")  # in $0x52,%al
CRASH = bytes.fromhex("0f011d00200000 0f0b")  # 32-bit: lidt 0x2000, where there are zeros, so no gate; ud2
EXIT_3 = bytes.fromhex("b003 e6f4")  # mov $3,%al; out %al,$0xf4
# mov $1000,%cx; 1: mov %cl,%al; out %al,$0x50; dec %cx; jnz 1b
THOUSAND = bytes.fromhex("b9e803 88c8 e650 49 75f9")


class Log:
    """What the handlers were called with, in their order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int | None, bytes]] = []

    def on(self, name: str) -> object:
        def handler(vcpu: Vcpu | None, data: bytes) -> None:
            self.calls.append((name, None if vcpu is None else vcpu.index, data))

        return handler

    def text(self, name: str) -> bytes:
        return b"".join(data for who, _, data in self.calls if who == name)


def collecting(code: bytes, log: Log, smp: int = 1, mode: str = "real") -> Machine:
    made = machine(code, smp, mode=mode)
    made.on_port(0x50, write=log.on("collected"), coalesce=True)  # type: ignore[arg-type]  # None for the vCPU
    made.on_port(0x51, write=log.on("plain"))  # type: ignore[arg-type]
    return made


def test_writes_are_served_in_one_piece_before_the_next_exit() -> None:
    log = Log()
    with collecting(OUT_A + OUT_B + OUT_51 + OUT_A + HLT, log) as made:
        assert made.run(timeout=20).reason == "halted"
    assert log.calls == [("collected", None, b"AB"), ("plain", 0, b"B"), ("collected", None, b"A")]


@pytest.mark.parametrize("first", [0x50, 0x53])
def test_writes_to_two_ports_keep_their_order(first: int) -> None:
    second = 0x50 + 0x53 - first
    # mov $'A',%al; out %al,$first; out %al,$second; out %al,$first; out %al,$first; hlt
    code = bytes([0xB0, 0x41, 0xE6, first, 0xE6, second, 0xE6, first, 0xE6, first, 0xF4])
    log = Log()
    with collecting(code, log) as made:
        made.on_port(0x53, write=log.on("other"), coalesce=True)  # type: ignore[arg-type]
        assert made.run(timeout=20).reason == "halted"
    one, other = ("collected", "other") if first == 0x50 else ("other", "collected")
    assert log.calls == [(one, None, b"A"), (other, None, b"A"), (one, None, b"AA")]


def test_a_read_comes_after_the_writes_before_it() -> None:
    log = Log()
    with collecting(OUT_A + IN_52 + HLT, log) as made:
        made.on_port(0x52, read=lambda vcpu, size: len(log.calls))
        made.run(timeout=20)
        assert made.vcpus[0].registers.rax & 0xFF == 1


def test_more_than_the_ring_holds_arrives_whole() -> None:
    log = Log()
    with collecting(THOUSAND + HLT, log) as made:
        made.run(timeout=20)
    assert log.text("collected") == bytes(i & 0xFF for i in range(1000, 0, -1))
    assert len(log.calls) < 100


def test_a_quiet_guest_is_heard() -> None:
    """It writes once and never exits again: somebody has to look."""
    log = Log()
    with collecting(OUT_A + SPIN, log) as made:
        made.start()
        made.resume()
        until(lambda: bool(log.calls))
        assert log.calls == [("collected", None, b"A")]


@pytest.mark.parametrize(("last", "reason"), [(SPIN, "timeout"), (EXIT_3, "exit"), (HLT, "halted"), (CRASH, "crashed")])
def test_nothing_is_lost_at_the_end(last: bytes, reason: str) -> None:
    log = Log()
    with collecting(OUT_A + OUT_B + last, log, mode="protected") as made:
        outcome = made.run(timeout=0.2 if reason == "timeout" else 20)
        assert outcome.reason == reason
        assert log.text("collected") == b"AB"


def test_what_a_handler_raises_comes_out_of_run() -> None:
    with machine(OUT_A + SPIN) as made:
        made.on_port(0x50, write=lambda vcpu, data: 1 // 0, coalesce=True)
        with pytest.raises(ZeroDivisionError):
            made.run(timeout=20)


def test_mmio_writes_stay_single() -> None:
    # mov $0xffff,%ax; mov %ax,%ds; mov %al,0x10; mov %ax,0x12; hlt
    code = bytes.fromhex("b8ffff 8ed8 a21000 a31200 f4")
    calls: list[tuple[object, int, bytes]] = []
    with machine(code) as made:
        made.on_mmio(0x100000, 0x1000, write=lambda *call: calls.append(call), coalesce=True)
        made.run(timeout=20)
    assert calls == [(None, 0, b"\xff"), (None, 2, b"\xff\xff")]


@pytest.mark.smp
def test_of_several_vcpus_each_ones_writes_keep_their_order() -> None:
    # mov $250,%cl; 1: mov %di,%ax; out %al,$0x50; dec %cl; jnz 1b; out %al,$0x51; hlt
    code = bytes.fromhex("b1fa 89f8 e650 fec9 75f8 e651 f4")
    log, smp = Log(), 4
    with collecting(code, log, smp) as made:
        assert made.run(timeout=20).reason == "halted"
    for index in range(smp):
        before = b""
        for name, _, data in log.calls:
            if (name, data) == ("plain", bytes([index])):
                break
            before += data if name == "collected" else b""
        assert before.count(index) == 250


def test_a_talkative_guest_is_collected_by_default() -> None:
    """The debug console, from its 256th byte on."""
    # mov $2000,%cx; mov $'x',%al; 1: out %al,$0xe9; dec %cx; jnz 1b; hlt
    got: list[bytes] = []
    with machine(bytes.fromhex("b9d007 b078 e6e9 49 75fb f4"), output=got.append) as made:
        made.run(timeout=20)
        assert b"".join(got) == b"x" * 2000
        if made.kvm.check_extension(KVM_CAP_COALESCED_PIO):
            assert 256 < len(got) < 400
    assert not [thread for thread in threading.enumerate() if thread.name == "coalesced writes"]


def test_a_kvm_that_cannot_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with machine(HLT, kvm=DEVICE) as made:
        monkeypatch.setattr(type(made.kvm), "check_extension", lambda self, cap: 0)
        with pytest.raises(ConfigError, match=r"cannot collect writes to ports: leave out coalesce"):
            made.on_port(0x50, write=lambda vcpu, data: None, coalesce=True)
        monkeypatch.undo()
        made.on_port(0x50, write=lambda vcpu, data: None)  # the port is free


def test_a_handler_asks_for_it_during_a_reset() -> None:
    """reset() waits for the vCPU whose handler it is, with the lock held that others wait for."""
    resetting = threading.Event()
    begun = threading.Event()

    def ask(vcpu: Vcpu, data: bytes) -> None:
        if begun.is_set():
            return  # the guest has begun again
        begun.set()
        assert resetting.wait(DEADLINE)
        until(lambda: not free(made))
        made.on_port(0x51, write=lambda vcpu, data: None, coalesce=True)

    def free(made: Machine) -> bool:
        if made.control.start_lock.acquire(blocking=False):
            made.control.start_lock.release()
            return True
        return False

    with machine(OUT_A + SPIN) as made:
        made.on_port(0x50, write=ask)
        made.start()
        made.resume()
        assert begun.wait(DEADLINE)
        thread = threading.Thread(target=made.reset, daemon=True)
        thread.start()
        resetting.set()
        thread.join(DEADLINE)
        assert not thread.is_alive()
