"""The software KVM's vCPUs: registers and other state, time, and the host's debugger."""

from __future__ import annotations

import struct

import pytest

from pyvcpu.kvm import abi
from pyvcpu.kvm.abi import Exit
from tests.tcg_kvm import CODE, rig

SYNC = 304  # kvm_run.s


# Registers and state.


def test_registers_in_the_page() -> None:
    """inc %ax; out %al,$0x50; hlt"""
    with rig() as made:
        made.start(b"\x40\xe6\x50\xf4", rax=1)
        struct.pack_into("<Q", made.page, 288, 7)
        run = made.run()
        assert (run.s.regs.regs.rax, run.s.regs.regs.rip, run.s.regs.sregs.cs.base) == (2, CODE + 1, 0)
        struct.pack_into("<Q", made.page, SYNC, 0x55)
        struct.pack_into("<Q", made.page, 296, 1)
        run = made.run()
        assert (run.exit_reason, run.s.regs.regs.rax, run.kvm_dirty_regs) == (Exit.HLT, 0x55, 0)


def test_all_state_comes_back() -> None:
    with rig(1, "kernel") as made:
        vcpu = made.vcpu
        regs = abi.kvm_regs(**{name: at + 1 for at, (name, *_) in enumerate(abi.kvm_regs._fields_[:17])}, rflags=0x246)
        vcpu.set_regs(regs)
        assert bytes(vcpu.get_regs()) == bytes(regs)
        sregs = vcpu.get_sregs()
        sregs.fs.base, sregs.fs.selector, sregs.gdt.base, sregs.gdt.limit, sregs.cr2 = 0x1230, 0x123, 0x5000, 0x3F, 0x99
        sregs.cr8 = 3
        vcpu.set_sregs(sregs)
        assert bytes(vcpu.get_sregs()) == bytes(sregs)
        assert vcpu.get_lapic()[0x80] == 0x30
        state = vcpu.get_xsave()
        vcpu.set_xsave(state)
        assert vcpu.get_xsave() == state
        events = vcpu.get_vcpu_events()
        events.interrupt.shadow = abi.KVM_X86_SHADOW_INT_MOV_SS
        events.flags = abi.KVM_VCPUEVENT_VALID_SHADOW
        vcpu.set_vcpu_events(events)
        assert vcpu.get_vcpu_events().interrupt.shadow == abi.KVM_X86_SHADOW_INT_MOV_SS


def test_an_exception_that_is_pending_is_kept_and_delivered() -> None:
    with rig() as made:
        made.handler(6)
        made.start(b"\xf4")
        events = abi.kvm_vcpu_events()
        events.exception.injected, events.exception.nr = 1, 6
        made.vcpu.set_vcpu_events(events)
        assert made.vcpu.get_vcpu_events().exception.nr == 6
        assert made.out(1) == b"I"


def test_the_time_stamp_counter() -> None:
    with rig() as made:
        vcpu = made.vcpu
        assert vcpu.get_tsc_khz() == 1_000_000
        first = vcpu.get_msrs([0x10])[0][1]
        assert first < vcpu.get_msrs([0x10])[0][1] < first + 60_000_000_000
        vcpu.set_msrs([(0x10, 1 << 60)])
        assert vcpu.get_msrs([0x10])[0][1] >> 60 == 1
        vcpu.set_tsc_khz(2_000_000)
        assert vcpu.get_tsc_khz() == 2_000_000
        assert vcpu.get_msrs([0x10])[0][1] >> 60 == 1
        made.start(b"\x0f\x31\x66\xe7\x50\xf4")  # rdtsc; out %eax,$0x50
        assert int.from_bytes(made.out(4), "little")


def test_kvmclock() -> None:
    """The page has an even version, a time that fits KVM_GET_CLOCK, and says when the guest was stopped."""
    with rig() as made:
        made.vcpu.set_msrs([(0x4B564D01, 0x3001), (0x4B564D00, 0x3100)])
        layout = struct.Struct("<IIQQIbBxx")
        version, _, _tsc, time, multiplier, shift, flags = layout.unpack_from(made.memory, 0x3000)
        assert (version % 2, flags) == (0, 1)
        assert 0 < time <= made.vm.get_clock().clock
        assert (shift, multiplier) == (1, 1 << 31)  # a tick is a nanosecond
        made.vcpu.kvmclock_ctrl()
        made.vm.set_clock(5_000_000_000)
        made.start(b"\xf4")
        assert made.run().exit_reason == Exit.HLT
        assert layout.unpack_from(made.memory, 0x3000)[6] == 3
        assert 0 <= layout.unpack_from(made.memory, 0x3000)[3] - 5_000_000_000 < 60_000_000_000
        version, seconds, _ = struct.unpack_from("<III", made.memory, 0x3100)
        assert version % 2 == 0
        assert seconds > 1_700_000_000


@pytest.mark.parametrize(
    ("khz", "ticks"), [(1_000_000, 1_000_000_000), (2_500_000, 2_500_000_000), (333_333, 333_333_000)]
)
def test_the_scale_of_kvmclock(khz: int, ticks: int) -> None:
    from pyvcpu.tcg.base import scale

    shift, multiplier = scale(khz)
    shifted = ticks << shift if shift >= 0 else ticks >> -shift
    assert abs((shifted * multiplier >> 32) - 1_000_000_000) < 10


# Debugging.


def test_breakpoints_and_watchpoints() -> None:
    """nop; mov %al,0x3000; nop; int3; hlt"""
    with rig() as made:
        made.start(b"\x90\xa2\x00\x30\x90\xcc\xf4")
        control = abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_USE_HW_BP | abi.KVM_GUESTDBG_USE_SW_BP
        made.vcpu.set_guest_debug(control, [CODE + 1, 0x3000, 0, 0, 0, 0, 0, 0x1 | 0x4 | 1 << 20])
        run = made.run()
        assert (run.exit_reason, run.debug.arch.pc, run.debug.arch.dr6 & 15) == (Exit.DEBUG, CODE + 1, 1)
        regs = made.vcpu.get_regs()
        regs.rflags |= 1 << 16  # RF, to get past it
        made.vcpu.set_regs(regs)
        run = made.run()
        assert (run.exit_reason, run.debug.arch.pc, run.debug.arch.dr6 & 15) == (Exit.DEBUG, CODE + 4, 2)
        run = made.run()
        assert (run.exit_reason, run.debug.arch.pc, run.debug.arch.exception) == (Exit.DEBUG, CODE + 5, 3)


def test_single_steps_over_an_access() -> None:
    """out %al,$0x50; nop; hlt: the exit for the port, then the step's"""
    with rig() as made:
        made.start(b"\xe6\x50\x90\xf4")
        made.vcpu.set_guest_debug(abi.KVM_GUESTDBG_ENABLE | abi.KVM_GUESTDBG_SINGLESTEP)
        reasons = []
        for _ in range(3):
            run = made.run()
            reasons.append((run.exit_reason, made.vcpu.get_regs().rip))
        assert reasons == [(Exit.IO, CODE), (Exit.DEBUG, CODE + 2), (Exit.DEBUG, CODE + 3)]
