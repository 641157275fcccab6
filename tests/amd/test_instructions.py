"""Single instructions at CPL 0 that a KVM which interprets does not know."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyvcpu.exits import Halt, PortOut
from tests.kvm.support import machine, record

CONSOLE = 0xE9
OUT_HLT = "e6 e9 f4"  # out %al,$0xe9; hlt


@pytest.mark.parametrize(
    ("feature", "code", "result"),
    [
        (
            "popcnt",
            "b8 f1 f0 00 00"  # mov $0xf0f1,%eax
            "f3 0f b8 c0",  # popcnt %eax,%eax
            9,
        ),
        (
            "sse4_2",
            "31 c0"  # xor %eax,%eax
            "b1 01"  # mov $1,%cl
            "f2 0f 38 f0 c1",  # crc32b %cl,%eax: 0xf26b8303
            0x03,
        ),
        (
            "rdtscp",
            "b9 03 01 00 c0"  # mov $0xc0000103,%ecx: MSR_TSC_AUX
            "b8 2a 00 00 00"  # mov $42,%eax
            "31 d2"  # xor %edx,%edx
            "0f 30"  # wrmsr
            "0f 01 f9"  # rdtscp
            "88 c8",  # mov %cl,%al
            42,
        ),
        (
            "cx16",
            "bf 00 00 02 00"  # mov $0x20000,%edi: 16 bytes of zeros
            "31 c0 31 d2 31 c9"  # xor %eax,%eax; xor %edx,%edx; xor %ecx,%ecx
            "bb 2a 00 00 00"  # mov $42,%ebx
            "f0 48 0f c7 0f"  # lock cmpxchg16b (%rdi)
            "8a 07",  # mov (%rdi),%al
            42,
        ),
        (
            "vmmcall",
            "b8 ff ff 00 00"  # mov $0xffff,%eax: no such hypercall
            "0f 01 d9"  # vmmcall: -1000, -KVM_ENOSYS
            "f7 d8"  # neg %eax
            "c1 e8 02",  # shr $2,%eax
            250,
        ),
        (
            "vmmcall",
            "b8 01 00 00 00"  # mov $1,%eax: KVM_HC_VAPIC_POLL_IRQ
            "0f 01 d9",  # vmmcall
            0,
        ),
    ],
)
def test_instruction(processor: Callable[[str], None], feature: str, code: str, result: int) -> None:
    """Exits: OUT 0xE9 with the low byte of the result, HLT."""
    processor(feature)
    with machine(bytes.fromhex(code + OUT_HLT), mode="long") as made:
        events = record(made)
        outcome = made.run(timeout=30)
    assert outcome.reason == "halted", outcome
    assert events == [PortOut(CONSOLE, bytes([result])), Halt()]


def test_the_other_makers_hypercall_is_rewritten(processor: Callable[[str], None]) -> None:
    """KVM on AMD turns Intel's vmcall into vmmcall where it stands (KVM_X86_QUIRK_FIX_HYPERCALL_INSN).

    Exits: OUT 0xE9 with 0, HLT.
    """
    processor("vmmcall")
    code = bytes.fromhex(
        "b8 01 00 00 00"  # mov $1,%eax: KVM_HC_VAPIC_POLL_IRQ
        "0f 01 c1" + OUT_HLT  # vmcall
    )
    with machine(code, mode="long", load=0x1000) as made:
        events = record(made)
        assert made.run(timeout=30).reason == "halted"
        assert made.memory.read(0x1005, 3) == bytes.fromhex("0f 01 d9")
    assert events == [PortOut(CONSOLE, b"\0"), Halt()]
