"""The crash report: what it tells of a crash without a debugger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from pyvcpu import Machine
from pyvcpu.exits import Shutdown
from pyvcpu.kvm.abi import basic as abi
from pyvcpu.vcpu import report, state
from pyvcpu.vcpu.recent import KEPT, describe
from tests.gdb_machine import assembled
from tests.kvm.support import DEVICE, machine
from tests.threads import DEADLINE

# 64-bit: writes to two ports, calls `inner` twice deep, and takes an exception that no gate takes.
CRASHES = """
        .code64
        .globl _start, outer, inner
        .type outer, @function
        .type inner, @function
_start: mov $0x41, %al
        mov $20, %ecx
1:      out %al, $0x50
        loop 1b
        in $0x60, %al
        call outer
outer:  push $0x1234
        call inner
        .size outer, . - outer
inner:  lidt none(%rip)
        mov 0xffffffffc0000000, %rax
        .size inner, . - inner
none:   .word 0
        .quad 0
"""


def test_all_that_is_known(tmp_path: Path, tool: Callable[[str], str]) -> None:
    tool("ld")
    with Machine("4M", 2, kvm=DEVICE, output=lambda data: None) as vm:
        vm.load(assembled(tmp_path, CRASHES))
        vm.keep_exits()
        outcome = vm.run(DEADLINE)
        fault, outer = vm.symbols["inner"] + 7, vm.symbols["outer"]
        code = vm.memory.read(fault, 16)
    lines = outcome.report.splitlines()
    assert outcome.reason == "crashed"
    assert lines[0] == f"vCPU 0: triple fault (KVM_EXIT_SHUTDOWN) at 0x0018:{fault:#x} (inner+0x7)"
    assert f"code {code.hex(' ')}" in lines
    (stack,) = [line for line in lines if line.startswith("stack at ")]
    assert stack.split(": ")[1] == (
        f"{outer + 10:016x} (inner) {0x1234:016x} {outer:016x} (outer) {0:016x}"
    ) or stack.split(": ")[1].startswith(f"{outer + 10:016x} (inner) {0x1234:016x} {outer:016x} (outer)")
    walks = {line.split(": ")[0]: lines[n + 1 :] for n, line in enumerate(lines) if line.startswith("page walk of ")}
    assert walks["page walk of rip"][0].startswith("  PML4 [  0] at ")
    assert walks["page walk of rip"][3] == f"  physical {fault:#x}, page of 0x200000, rwx supervisor"
    assert walks["page walk of cr2"][0].startswith("  PML4 [511] at ")
    assert walks["page walk of cr2"][1] == "  not present in the PML4"
    exits = lines.index("the last 16 exits, the latest at the end:")
    assert lines[exits + 1 : exits + 15] == ["  out port 0x50, 1 bytes: 41"] * 14
    assert lines[exits + 15 : exits + 17] == ["  in port 0x60, 1 bytes", "  SHUTDOWN"]
    assert lines[-1] in ("vCPU 1: running", "vCPU 1: paused")  # it may not have come so far


def test_a_plain_boot_keeps_no_exits() -> None:
    with machine(b"\x0f\x0b", mode="protected") as vm:
        vm.run(DEADLINE)
        assert vm.last_exits() == []


def test_init_registers_are_said_to_be_none_of_the_guests() -> None:
    """What kvm_amd leaves of a triple fault."""
    with machine(b"\xf4") as vm:
        vm.start()

        def put(vcpu: Any) -> str:
            cpu = vm._threads[0]
            regs = abi.kvm_regs.from_buffer_copy(state.get(cpu, "regs"))
            sregs = abi.kvm_sregs.from_buffer_copy(state.get(cpu, "sregs"))
            regs.rip, sregs.cs.base, sregs.cs.selector = 0xFFF0, 0xFFFF0000, 0xF000
            state.put(cpu, "sregs", bytes(sregs))
            state.put(cpu, "regs", bytes(regs))
            return report.crash_report(cpu, Shutdown())

        text = vm.vcpus[0].run_on_cpu(put)
    assert "after the triple fault KVM has put the vCPU into INIT state" in text
    assert not any(line.startswith(("code", "stack", "page walk")) for line in text.splitlines())


def test_exits_in_words() -> None:
    assert KEPT == 16
    assert describe(2, 1 | 2 << 8 | 0x3F8 << 16 | 3 << 32, b"\x41") == "out port 0x3f8, 2 bytes: 41, 3 times"
    assert describe(6, 0xFEE00000, b"\0") == "MMIO at physical 0xfee00000"
    assert describe(5, 0, b"\0") == "HLT"
    assert describe(999, 0, b"\0") == "reason 999"


def test_symbols_that_cannot_be_read_cost_nothing_else() -> None:
    def broken() -> None:
        raise OSError("gone")

    cpu = cast("Any", SimpleNamespace(context=SimpleNamespace(symbols=broken)))
    assert report._symbol(cpu, 0x1000) == ""
