"""The time-stamp counter, which the processor itself gives to the guest."""

from __future__ import annotations

from pyvcpu.exits import Halt, PortOut
from pyvcpu.kvm import Kvm
from tests.kvm.support import DEVICE, machine, record


def test_its_rate_is_told() -> None:
    with Kvm(DEVICE) as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        assert vcpu.get_tsc_khz() > 100_000


def test_what_the_guest_writes_counts_on() -> None:
    """The guest sets the counter to 2^40 and reads it back: it has gone on from there, by less than 2^40.

    Exits: OUT 0xE9 with bits 40 to 47, HLT.
    """
    code = bytes.fromhex(
        "b9 10 00 00 00"  # mov $0x10,%ecx: the counter
        "31 c0"  # xor %eax,%eax
        "ba 00 01 00 00"  # mov $0x100,%edx
        "0f 30"  # wrmsr
        "0f 31"  # rdtsc
        "89 d0"  # mov %edx,%eax
        "c1 e8 08"  # shr $8,%eax
        "e6 e9"  # out %al,$0xe9
        "f4"  # hlt
    )
    with machine(code, mode="long") as made:
        events = record(made)
        assert made.run(timeout=30).reason == "halted"
    assert events == [PortOut(0xE9, b"\1"), Halt()]
