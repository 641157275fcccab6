"""The table of a vCPU's state: what is saved can be loaded, reset leaves nothing, and there is one truth."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from pyvcpu import Machine, Vcpu
from pyvcpu.devices.virtio_rng import VirtioRng
from pyvcpu.kvm import abi
from pyvcpu.kvm.abi import events
from pyvcpu.kvm.abi import state as state_abi
from pyvcpu.kvm.abi.irq import kvm_pit_state2
from pyvcpu.kvm.msrs import MsrError
from pyvcpu.vcpu import state
from pyvcpu.vcpu.core import Cpu
from pyvcpu.vcpu.pieces import VcpuStateError
from pyvcpu.vcpu.state import PIECES
from tests.kvm.support import HLT, LONG, SPIN, command, environment, machine
from tests.threads import DEADLINE

pytestmark = pytest.mark.kvm

IRQCHIPS = ["none", "kernel", "split"]
IA32_TSC = 0x10
# What goes on by itself: the time-stamp counter, and Hyper-V's clocks.
WITH_TIME = ("irqchip", "rtc", "acpi-pm")  # devices whose state goes on by itself
CLOCKS = {IA32_TSC, 0x4000_0010, 0x4000_0020}


def on_cpu(made: Machine, function: Any, index: int = 0) -> Any:
    """Run `function(cpu)` on the thread of a vCPU."""
    cpu = made._threads[index]
    return made.vcpus[index].run_on_cpu(lambda vcpu: function(cpu))


def comparable(saved: dict[str, bytes]) -> dict[str, object]:
    """Return the state without its clocks."""
    pairs = [saved["msrs"][at : at + 16] for at in range(0, len(saved["msrs"]), 16)]
    return {**saved, "msrs": [pair for pair in pairs if int.from_bytes(pair[:8], "little") not in CLOCKS]}


def soil(cpu: Cpu) -> None:
    """Change something in every piece that a guest can change."""
    fd = cpu.fd
    regs, sregs, fpu = fd.get_regs(), fd.get_sregs(), fd.get_fpu()
    regs.rax, regs.r15, regs.rip = 0x1234, 0x77, 0x2000
    sregs.cr2, sregs.es.base, sregs.es.selector = 0x5000, 0x120, 0x12
    fpu.fcw, fpu.mxcsr, fpu.xmm[3][0] = 0x27F, 0x1FA0, 0x55
    fd.set_regs(regs)
    fd.set_sregs(sregs)
    fd.set_fpu(fpu)
    fd.set_debugregs(abi.kvm_debugregs(dr6=0xFFFF_0FF1, dr7=0x402))
    pending = events.kvm_vcpu_events(flags=events.KVM_VCPUEVENT_VALID_NMI_PENDING)
    pending.nmi.masked = 1
    fd.set_vcpu_events(pending)
    for index, value in ((0x174, 8), (0xC000_0082, 0x1000), (0xC000_0102, 0x2000), (0x277, 0x0007_0406_0007_0406)):
        try:
            fd.set_msrs([(index, value)])
        except MsrError:
            continue
    if cpu.has_apic:
        page = bytearray(fd.get_lapic())
        page[0x80], page[0x320] = 0x20, 0x33
        fd.set_lapic(bytes(page))


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_what_is_saved_can_be_loaded_into_another_vcpu(irqchip: str) -> None:
    with machine(HLT, irqchip=irqchip) as made, machine(SPIN, irqchip=irqchip) as other:
        made.start()
        other.start()
        on_cpu(made, soil)
        saved = on_cpu(made, state.save)
        assert list(saved) == [piece.name for piece in PIECES if piece.name in saved], "in the table's order"
        assert {"regs", "sregs", "xsave", "msrs", "vcpu_events", "debugregs", "halted"} <= set(saved)
        assert ("lapic" in saved, "mp_state" in saved) == (irqchip != "none",) * 2
        on_cpu(other, lambda cpu: state.load(cpu, saved))
        assert comparable(on_cpu(other, state.save)) == comparable(saved)


@pytest.mark.parametrize("irqchip", IRQCHIPS)
def test_a_reset_is_as_a_fresh_one(irqchip: str) -> None:
    with machine(HLT, 2, irqchip=irqchip, start="bsp") as made:
        made.start()
        for index in (0, 1):
            fresh = comparable(on_cpu(made, state.save, index))
            on_cpu(made, soil, index)
            assert comparable(on_cpu(made, state.save, index)) != fresh
            made.reset()
            assert comparable(on_cpu(made, state.save, index)) == fresh


@pytest.mark.parametrize("piece", [piece.name for piece in PIECES])
def test_each_piece_can_be_set_alone(piece: str) -> None:
    with machine(HLT, irqchip="kernel") as made:
        made.start()
        on_cpu(made, soil)
        try:
            value = on_cpu(made, lambda cpu: state.get(cpu, piece))
        except VcpuStateError as error:
            pytest.skip(str(error))
        on_cpu(made, lambda cpu: state.put(cpu, piece, value))
        if piece != "msrs":
            assert on_cpu(made, lambda cpu: state.get(cpu, piece)) == value
        with pytest.raises(VcpuStateError, match=f"the piece {piece} .* must be bytes, not str"):
            on_cpu(made, lambda cpu: state.put(cpu, piece, cast(bytes, "x")))
        if state.BY_NAME[piece].size:
            with pytest.raises(VcpuStateError, match=f"the piece {piece} .* must be .* bytes, not"):
                on_cpu(made, lambda cpu: state.put(cpu, piece, value + b"x"))


def test_a_state_of_other_pieces_is_refused_whole() -> None:
    with machine(HLT) as made:
        made.start()
        saved = on_cpu(made, state.save)
        before = comparable(saved)
        for wrong in ({**saved, "more": b""}, {name: saved[name] for name in saved if name != "regs"}):
            with pytest.raises(VcpuStateError, match=r"more|regs"):
                on_cpu(made, lambda cpu, wrong=wrong: state.load(cpu, wrong))
        with pytest.raises(VcpuStateError, match=r"regs .* must be 144 bytes"):
            on_cpu(made, lambda cpu: state.load(cpu, {**saved, "regs": b""}))
        with pytest.raises(VcpuStateError, match="no piece 'nothing'"):
            on_cpu(made, lambda cpu: state.get(cpu, "nothing"))
        assert comparable(on_cpu(made, state.save)) == before


def test_an_msr_that_kvm_refuses_is_named() -> None:
    with machine(HLT) as made:
        made.start()
        unknown = (0x1234_5678).to_bytes(8, "little") + bytes(8)
        with pytest.raises(VcpuStateError, match="vCPU 0: KVM refuses 0x0 for MSR 0x12345678"):
            on_cpu(made, lambda cpu: state.put(cpu, "msrs", unknown))


def test_whether_it_is_halted_is_state() -> None:
    with machine(HLT) as made, machine(SPIN) as other:
        assert made.run(DEADLINE).reason == "halted"
        other.start()
        saved = on_cpu(made, state.save)
        assert saved["halted"] == b"\1"
        on_cpu(other, lambda cpu: state.load(cpu, saved))
        assert other.vcpus[0].state == "paused while halted"


# One truth.


def test_the_shared_page_and_kvm_never_differ() -> None:
    found: list[object] = []

    def handler(vcpu: Vcpu, data: bytes) -> None:
        vcpu.registers.rbx = 0x1234
        vcpu.sregs.cr2 = 0x42
        shared = vcpu.fd.shared
        assert shared is not None
        found.append(shared.vcpu_dirty)
        found.append((vcpu.fd.get_regs().rbx, vcpu.fd.get_sregs().cr2))
        found.append(shared.vcpu_dirty)
        regs, sregs = vcpu.fd.get_regs(), vcpu.fd.get_sregs()
        regs.rbx, regs.rcx, sregs.cr2 = 0x55, 0x77, 0x43
        vcpu.fd.set_regs(regs)
        vcpu.fd.set_sregs(sregs)
        found.append((vcpu.registers.rbx, vcpu.registers.rcx, vcpu.sregs.cr2))
        vcpu.registers.rdx = 0x88
        vcpu.fd.ioctl(state_abi.KVM_SET_FPU, vcpu.fd.get_fpu())
        found.append((vcpu.registers.rdx, vcpu.fd.get_regs().rdx))

    with machine(bytes.fromhex("e650 f4")) as made:  # out %al,$0x50; hlt
        made.on_port(0x50, write=handler)
        made.run(DEADLINE)
        registers = made.vcpus[0].registers.copy()
    assert found == [True, (0x1234, 0x42), False, (0x55, 0x77, 0x43), (0x88, 0x88)]
    assert (registers.rbx, registers.rcx, registers.rdx) == (0x55, 0x77, 0x88)


# Reset in place.


def test_devices_and_controllers_are_reset_with_the_machine() -> None:
    with machine(HLT, irqchip="kernel") as made:
        made.board.add_virtio(VirtioRng())
        made.start()
        fresh = {
            name: device.state() for name, device in made.devices.items() if name not in ("irqchip", "rtc", "acpi-pm")
        }
        chips = without_time(made)
        made.ports.write(None, 0x3FB, b"\x03")
        made.ports.write(None, 0x3FF, b"\x55")
        made.ports.write(None, 0x64, b"\x60")
        made.mmio.write(None, 0xD000_0070, b"\x03\0\0\0")
        made.set_line(5, True)
        assert {name: made.devices[name].state() for name in fresh} != fresh
        made.reset()
        assert {name: made.devices[name].state() for name in fresh} == fresh
        assert without_time(made) == chips


def without_time(made: Machine) -> dict[str, object]:
    """Return the state of the interrupt controllers; of the PIT what does not say when it was loaded."""
    chips = made.irqchip.state()
    pit = kvm_pit_state2.from_buffer_copy(chips.pop("pit"))
    del chips["clock"]
    return {**chips, "pit": [(channel.count, channel.mode, channel.gate) for channel in pit.channels]}


def test_a_guest_that_reads_one_byte_and_resets_many_times(tmp_path: Path) -> None:
    """Descriptors, threads and memory stay as they are, all input is served, the status is the timeout's."""
    rounds = int(os.environ.get("PYVCPU_REBOOTS") or (20 if os.environ.get("PYVCPU_HOST") else 200))
    image = tmp_path / "one.bin"
    # 1: in 0x3fd; test $1; jz 1b; in 0x3f8; out %al,$0xe9; out $0xfe,0x64; 2: hlt; jmp 2b
    image.write_bytes(bytes.fromhex("bafd03 ec a801 74f8 baf803 ec e6e9 b0fe e664 f4 ebfd"))
    text = bytes(range(33, 127)) * (rounds // 94 + 1)
    line = command("boot", image, "--reboot", "--timeout", max(8, rounds / 50))
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(text[: rounds // 2])
        process.stdin.flush()
        assert process.stdout.read(rounds // 2) == text[: rounds // 2]
        before = usage(process.pid)
        process.stdin.write(text[rounds // 2 : rounds])
        process.stdin.flush()
        assert process.stdout.read(rounds - rounds // 2) == text[rounds // 2 : rounds]
        after = usage(process.pid)
        assert after[0] == before[0]
        assert after[1] <= before[1] + 1, "the thread for output may come late"
        assert after[2] < before[2] + 512, "KiB resident"
        assert process.wait(LONG) == 124


def usage(pid: int) -> tuple[int, int, int]:
    """Return how many descriptors and threads a process has, and how many KiB are resident."""
    folder = Path(f"/proc/{pid}")
    status = (folder / "status").read_text().split()
    return (
        len(list((folder / "fd").iterdir())),
        len(list((folder / "task").iterdir())),
        int(status[status.index("VmRSS:") + 1]),
    )


def test_a_reboot_needs_no_second_machine() -> None:
    with machine(bytes.fromhex("b0fe e664 f4")) as made:
        made.start()
        files = len(os.listdir("/proc/self/fd"))
        for _ in range(50):
            assert made.run(DEADLINE).reason == "reset"
            made.reset(reload=True)
        assert len(os.listdir("/proc/self/fd")) == files
