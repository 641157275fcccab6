"""Single step in code that runs on the processor (KVM_SET_GUEST_DEBUG, api.rst 4.87)."""

from __future__ import annotations

import pytest

from pyvcpu.exits import ExitEvent, Halt, PortOut
from pyvcpu.kvm.abi import debug as abi
from pyvcpu.kvm.abi.exits import Exit
from pyvcpu.vcpu import Vcpu
from tests.kvm.support import machine

START = 0x1000
# One instruction a line, the same in all modes.
CODE = bytes.fromhex(
    "b0 03"  # mov $3,%al
    "fe c8"  # 1: dec %al
    "75 fc"  # jnz 1b
    "90"  # nop
    "e6 e9"  # out %al,$0xe9
    "f4"  # hlt
)
# Where each instruction of it ends; the steps after `out` may come before or after its exit is served.
STEPS = [0x1002, *[0x1004, 0x1002] * 2, 0x1004, 0x1006, 0x1007, 0x1009]


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
def test_single_step(mode: str) -> None:
    """Exits: DEBUG after each instruction, with RIP at the next; OUT 0xE9, HLT."""
    steps: list[int] = []
    others: list[ExitEvent] = []

    def on_step(vcpu: Vcpu, event: ExitEvent) -> bool:
        steps.append(vcpu.fd.get_regs().rip)
        return True

    def switch_on(vcpu: Vcpu) -> None:
        request = abi.kvm_guest_debug(control=abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_SINGLESTEP)
        vcpu.fd.ioctl(abi.KVM_SET_GUEST_DEBUG, request)

    with machine(CODE, mode=mode, load=START) as made:
        made.on_exit(Exit.DEBUG, on_step)
        made.on_exit(Exit.IO, lambda vcpu, event: others.append(event))
        made.on_exit(Exit.HLT, lambda vcpu, event: others.append(event))
        made.start()
        made.vcpus[0].run_on_cpu(switch_on)
        assert made.run(timeout=30).reason == "halted"
    assert steps == STEPS
    assert others == [PortOut(0xE9, b"\0"), Halt()]
