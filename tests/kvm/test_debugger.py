"""Breakpoints, watchpoints and single steps from Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvcpu import Machine, StateError, Vcpu
from pyvcpu.debug.methods import methods
from pyvcpu.debug.points import DebugError
from pyvcpu.exits import Debug
from pyvcpu.symbols import SymbolError
from pyvcpu.vcpu import state
from pyvcpu.vcpu.virtual import UnmappedError
from tests.gdb_machine import COUNTER, MODES, assembled
from tests.kvm.support import DEVICE, GUESTS, SPIN, machine
from tests.threads import Caller, Hold, until

# Where KVM reports no debug registers, breakpoints are stepped to, and a line says so.
pytestmark = pytest.mark.filterwarnings("ignore:the (break|watch)point at 0x[0-9a-f]+ works by single steps")

# Real mode, at 0x1000. b8 0000: mov $0,%ax; 1003: inc %ax; 1004: out %al,$0x50; 1006: cmp $5,%ax; 1009: jne 1003;
# 100b: out %al,$0xf4
COUNT = bytes.fromhex("b80000 40 e650 3d0500 75f8 e6f4 f4")
TOP, OUT, CMP, JNE, END = 0x1003, 0x1004, 0x1006, 0x1009, 0x100B
LOOP = [TOP, OUT, CMP, JNE]


def test_a_handler_is_called_each_time_before_the_instruction() -> None:
    seen: list[tuple[int, int]] = []
    with machine(COUNT) as vm:
        point = vm.break_at(OUT, lambda vcpu: seen.append((vcpu.registers.rip, vcpu.registers.rax)))
        outcome = vm.run(5)
        assert (outcome.reason, outcome.status) == ("exit", 11)
        assert seen == [(OUT, n) for n in range(1, 6)]
        assert point.hits == 5


def test_a_handler_that_says_false_stops_the_machine_and_it_can_go_on() -> None:
    with machine(COUNT) as vm:
        point = vm.break_at(CMP, lambda vcpu: vcpu.registers.rax != 3)
        outcome = vm.run(5)
        assert (outcome.reason, outcome.status, outcome.vcpu) == ("debug", 0, vm.vcpus[0])
        assert isinstance(outcome.exit, Debug)
        assert outcome.exit.pc == CMP
        assert (vm.vcpus[0].registers.rip, vm.vcpus[0].registers.rax) == (CMP, 3)
        assert vm.run(5).status == 11
        assert point.hits == 5


def test_without_a_handler_it_stops_each_time() -> None:
    with machine(COUNT) as vm:
        vm.break_at(JNE)
        assert [(vm.run(5).reason, vm.vcpus[0].registers.rax) for _ in range(5)] == [("debug", n) for n in range(1, 6)]
        assert vm.run(5).reason == "exit"


def test_a_breakpoint_at_the_first_instruction_is_hit() -> None:
    with machine(COUNT) as vm:
        vm.break_at(0x1000)
        assert vm.run(5).reason == "debug"
        assert vm.run(5).reason == "exit"


def test_a_handler_changes_registers_and_memory() -> None:
    def change(vcpu: Vcpu) -> None:
        vcpu.registers.rax = 7
        vcpu.registers.rip = END
        vcpu.memory.write(0x2000, b"seen")

    with machine(COUNT) as vm:
        vm.break_at(OUT, change)
        assert vm.run(5).status == 15
        assert vm.memory.read(0x2000, 4) == b"seen"


def test_a_handler_can_lead_to_another_breakpoint() -> None:
    def go(vcpu: Vcpu) -> None:
        vcpu.registers.rip = END

    with machine(COUNT) as vm:
        vm.break_at(TOP, go)
        vm.break_at(END)
        assert vm.run(5).reason == "debug"
        assert vm.vcpus[0].registers.rip == END


def test_a_jump_to_itself_hits_each_time() -> None:
    hits: list[int] = []

    def count(vcpu: Vcpu) -> bool:
        hits.append(1)
        return len(hits) < 10

    with machine(SPIN) as vm:
        vm.break_at(0x1000, count)
        assert vm.run(5).reason == "debug"
        assert len(hits) == 10


def test_a_handler_is_replaced_and_removed_while_the_guest_runs() -> None:
    with machine(bytes.fromhex("40 ebfd")) as vm:
        point = vm.break_at(0x1000, lambda vcpu: True)
        vm.start()
        vm.resume()
        until(lambda: point.hits > 10)
        other: list[int] = []
        point.handler = lambda vcpu: other.append(vcpu.index)
        until(lambda: len(other) > 10)
        point.remove()
        point.remove()
        hits, before = point.hits, vm.vcpus[0].registers.rax
        until(lambda: vm.vcpus[0].registers.rax != before, "the guest does not run on")
        assert point.hits == hits
        late = vm.break_at(0x1001, lambda vcpu: False)  # set while it runs
        outcome = vm.wait(5)
        assert outcome is not None
        assert outcome.reason == "debug"
        assert late.hits == 1


def test_a_handler_sets_and_removes_breakpoints() -> None:
    with machine(COUNT) as vm:

        def once(vcpu: Vcpu) -> None:
            first.remove()
            vm.break_at(JNE, lambda vcpu: False)

        first = vm.break_at(OUT, once)
        assert vm.run(5).reason == "debug"
        assert first.hits == 1
        assert vm.vcpus[0].registers.rip == JNE


def test_what_a_handler_raises_ends_the_run() -> None:
    def bad(vcpu: Vcpu) -> None:
        raise ZeroDivisionError("a mistake")

    with machine(COUNT) as vm:
        point = vm.break_at(OUT, bad)
        with pytest.raises(ZeroDivisionError):
            vm.run(5)
        point.handler = lambda vcpu: True
        assert vm.run(5).status == 11
        assert point.hits == 5


def test_every_vcpu_stops_at_it(tmp_path: Path) -> None:
    who: set[int] = set()
    with machine(SPIN, 4) as vm:

        def note(vcpu: Vcpu) -> bool:
            who.add(vcpu.index)
            return len(who) < 4

        vm.break_at(0x1000, note)
        assert vm.run(10).reason == "debug"
        assert who == {0, 1, 2, 3}


def test_more_breakpoints_than_debug_registers_are_stepped_to() -> None:
    told: list[str] = []
    with Machine("1M", kvm=DEVICE, warn=told.append) as vm:
        vm.load(COUNT)
        if not methods(vm.kvm).execute:
            pytest.skip("this KVM reports no breakpoints by debug register")
        points = [vm.break_at(address, lambda vcpu: True) for address in (0x1000, *LOOP, END)]
        assert vm.run(10).status == 11
        assert [point.hits for point in points] == [1, 5, 5, 5, 5, 1]
        assert [point.method for point in points[:4]] == ["debug register"] * 4
        assert told == [
            f"the breakpoint at {address:#x} works by single steps, which is slow" for address in (JNE, END)
        ]
        for point in points[:4]:
            point.remove()
        assert vm.break_at(TOP).method == "debug register"  # which are free again


def test_a_breakpoint_that_is_stepped_to_is_hit_where_the_vcpu_stands() -> None:
    with machine(COUNT) as vm:
        for address in range(0x3000, 0x3004):
            vm.break_at(address)  # the debug registers are in use
        first = vm.break_at(0x1000, lambda vcpu: True)
        assert first.method != "debug register"
        vm.break_at(TOP)
        assert vm.run(5).reason == "debug"
        assert first.hits == 1

        def back(vcpu: Vcpu) -> None:
            once.remove()
            vcpu.registers.rip = 0x1000

        once = vm.break_at(OUT, back)
        vm.run(5)
        assert first.hits == 2


def test_a_breakpoint_behind_a_halt_is_not_reached_by_it() -> None:
    with machine(bytes.fromhex("90 f4 90")) as vm:
        for address in range(0x3000, 0x3004):
            vm.break_at(address)  # the debug registers are in use
        behind = vm.break_at(0x1002)
        assert vm.run(5).reason == "halted"
        assert behind.hits == 0


def test_a_watched_variable() -> None:
    # mov $0x2000,%bx; 1003: incw (%bx); 1005: cmpw $3,(%bx); 1008: jne 1003; hlt
    seen: list[tuple[int, int]] = []
    with Machine("1M", kvm=DEVICE, warn=lambda line: None) as vm:
        vm.load(bytes.fromhex("bb0020 ff07 833f03 75f9 f4"))

        def note(vcpu: Vcpu) -> None:
            seen.append((vcpu.registers.rip, vcpu.memory.read_int(0x2000, 2)))

        vm.watch(0x2000, 2, "w", note)
        assert vm.run(10).reason == "halted"
        assert seen == [(0x1005, 1), (0x1005, 2), (0x1005, 3)]


def test_reads_are_watched_only_where_the_host_tells() -> None:
    with machine(SPIN) as vm:
        if methods(vm.kvm).watch:
            vm.watch(0x2000, 4, "rw")
        else:
            with pytest.raises(DebugError, match="reads cannot be seen"):
                vm.watch(0x2000, 4, "rw")
        with pytest.raises(ValueError, match='"r", "w" or "rw"'):
            vm.watch(0x2000, 4, "x")
        with pytest.raises(ValueError, match="at least 1 byte"):
            vm.watch(0x2000, 0)


# Single steps.


def test_steps_follow_the_code_through_ports() -> None:
    said: list[bytes] = []
    with machine(COUNT) as vm:
        vm.on_port(0x50, write=lambda vcpu, data: said.append(data))
        vm.start()
        vcpu = vm.vcpus[0]
        assert [vcpu.step() for _ in range(9)] == [*LOOP, *LOOP, TOP]
        assert said == [b"\1", b"\2"]
        assert vcpu.registers.rip == TOP


def test_a_trace_is_every_instruction_and_ends_with_the_machine() -> None:
    with machine(COUNT) as vm:
        vm.break_at(CMP)  # breakpoints stop no trace
        trace = vm.trace_instructions(1000)
        assert trace == [0x1000, *LOOP * 5, END, END + 2]  # the last one ended the machine
        assert vm.run(5).status == 11


def test_a_trace_ends_at_a_halt() -> None:
    with machine(bytes.fromhex("40 f4 40 f4")) as vm:
        assert vm.trace_instructions(1000) == [0x1000, 0x1001, 0x1002]
        assert vm.run(5).reason == "halted"
        assert vm.vcpus[0].registers.rax == 1


def test_a_trace_reads_ports(tmp_path: Path) -> None:
    with machine(bytes.fromhex("e450 e451 90 ebfe")) as vm:  # in; in; nop
        vm.on_port(0x50, read=lambda vcpu, size: 0x12)
        vm.on_port(0x51, read=lambda vcpu, size: 0x34)
        assert vm.trace_instructions(4) == [0x1000, 0x1002, 0x1004, 0x1005, 0x1005]
        assert vm.vcpus[0].registers.rax & 0xFF == 0x34


def test_a_trace_goes_through_all_modes(tmp_path: Path, tool: Callable[[str], str]) -> None:
    tool("ld")
    program = assembled(tmp_path, MODES, 0x1000)
    with machine(program.with_suffix(".bin")) as vm:
        vm.add_symbols(program.read_bytes())
        trace = vm.trace_instructions(60)
        names = [vm.symbols.nearest(address) for address in trace]
        assert [
            name[0] for n, name in enumerate(names) if name and (not n or name[0] != (names[n - 1] or ("",))[0])
        ] == [
            "_start",
            "real_code",
            "protected",
            "protected_code",
            "long",
            "long_code",
        ]
        assert vm.vcpus[0].registers.rbx == 0x65


def test_a_handler_steps_its_own_vcpu() -> None:
    steps: list[int] = []

    def two(vcpu: Vcpu) -> None:
        steps.extend((vcpu.step(), vcpu.step()))

    with machine(COUNT) as vm:
        point = vm.break_at(OUT, two)
        vm.break_at(JNE, lambda vcpu: vcpu.registers.rax != 2)
        assert vm.run(5).reason == "debug"
        assert steps == [CMP, JNE] * 2
        assert point.hits == 2


def test_only_a_vcpu_that_stands_still_is_stepped() -> None:
    hold = Hold()
    with machine(SPIN) as vm:
        with pytest.raises(StateError):
            vm.vcpus[0].step()
        vm.resume()
        vm.start()
        vm.resume()
        with pytest.raises(StateError, match="running"):
            vm.vcpus[0].step()
    with machine(COUNT) as vm:
        vm.on_port(0x50, write=lambda vcpu, data: vcpu.step())
        with pytest.raises(StateError):
            vm.run(5)
    hold.release()


def test_a_trace_can_be_ended_by_close() -> None:
    vm = machine(SPIN)
    caller = Caller(lambda: vm.trace_instructions(10**9))
    until(lambda: vm.vcpus[0].created)
    vm.close()
    assert caller.done()


def test_code_that_cannot_be_stepped_is_refused() -> None:
    with machine(SPIN, mode="long") as vm:
        if methods(vm.kvm).user_step:
            pytest.skip("this KVM can")
        vm.start()
        vcpu = vm.vcpus[0]
        for name, selector in (("cs", 0x33), ("ss", 0x2B)):
            segment = getattr(vcpu.sregs, name)
            segment.selector, segment.dpl = selector, 3
            setattr(vcpu.sregs, name, segment)
        with pytest.raises(DebugError, match="no single steps of code at CPL 3"):
            vcpu.step()


# Names, memory, and what else is a vCPU's.


def test_symbols_of_the_image(tmp_path: Path, tool: Callable[[str], str]) -> None:
    tool("ld")
    program = assembled(tmp_path, COUNTER)
    with Machine("4M", kvm=DEVICE) as vm:
        vm.load(program)
        assert vm.symbols["work"] == vm.symbols["_start"] + 0x14
        vm.break_at("work", lambda vcpu: vcpu.registers.rcx < 3)
        assert vm.run(5).reason == "debug"
        assert vm.symbols.describe(vm.vcpus[0].registers.rip) == "work"
        assert vm.vcpus[0].memory.read_int(vm.symbols["counter"], 4) == 3
        with pytest.raises(SymbolError, match="did you mean 'work'"):
            vm.break_at("wrok")
        vm.add_symbols(b"0000000000001234 T elsewhere\n")
        assert vm.symbols["elsewhere"] == 0x1234


def test_memory_through_page_tables() -> None:
    with machine(SPIN, mode="long") as vm:
        vm.start()
        memory, vcpu = vm.vcpus[0].memory, vm.vcpus[0]
        top = vcpu.sregs.cr3
        pointers, directory = 0x40000, 0x41000
        vm.memory.write_int(top + 8 * 511, pointers | 3, 8)
        vm.memory.write_int(pointers + 8 * 511, directory | 3, 8)
        vm.memory.write_int(directory, 0x83, 8)  # 2 MiB at physical 0
        high = 0xFFFF_FFFF_C000_0000
        assert vm.translate(high + 0x1000) == 0x1000
        assert vm.translate(high + 0x20_0000) is None
        assert memory.read(high + 0x1000, 2) == SPIN
        memory.write(high + 0x3000, b"through")
        assert vm.memory.read(0x3000, 7) == b"through"
        assert memory.read_some(high + 0xF_FFFC, 100) == bytes(4)  # RAM ends at 1 MiB
        with pytest.raises(UnmappedError, match="is not mapped: not present in the PD"):
            memory.read(high + 0x20_0000, 1)
        before = vm.memory.read(0xF_FFF0, 16)
        with pytest.raises(UnmappedError, match="which is not RAM"):
            memory.write(high + 0xF_FFF0, b"x" * 32)
        assert vm.memory.read(0xF_FFF0, 16) == before


def test_a_reset_keeps_breakpoints_and_a_saved_state_has_none() -> None:
    with machine(COUNT) as vm:
        point = vm.break_at(OUT, lambda vcpu: vcpu.registers.rax != 2)
        assert vm.run(5).reason == "debug"
        saved = vm.vcpus[0].run_on_cpu(lambda vcpu: state.get(vm._threads[0], "guest_debug"))
        assert saved == bytes(72)
        vm.reset(reload=True)
        assert vm.run(5).reason == "debug"
        whole = vm.vcpus[0].run_on_cpu(lambda vcpu: state.save(vm._threads[0]))
        vm.vcpus[0].run_on_cpu(lambda vcpu: state.load(vm._threads[0], whole))
        hits = point.hits
        assert vm.run(5).status == 11
        assert point.hits > hits


def test_registers_are_those_of_the_guest_after_a_reset() -> None:
    """Who looked at them before sees them in the shared page, where KVM must go on leaving them."""
    seen: list[int] = []
    with machine(COUNT) as vm:
        vm.on_port(0x50, write=lambda vcpu, data: seen.append(vcpu.registers.rax))
        vm.run(5)
        vm.reset(reload=True)
        vm.run(5)
        assert seen == [1, 2, 3, 4, 5] * 2


def test_a_vcpu_that_is_plugged_has_the_breakpoints() -> None:
    with machine(SPIN, "1,maxcpus=2") as vm:
        vm.start()
        vm.resume()
        vm.break_at(0x1000, lambda vcpu: vcpu.index != 1)
        vm.plug(1)
        outcome = vm.wait(10)
        assert outcome is not None
        assert (outcome.reason, outcome.vcpu) == ("debug", vm.vcpus[1])


@pytest.mark.parametrize("others", [0, 4], ids=["by debug register", "stepped to"])
def test_a_processor_started_by_another_stops(others: int) -> None:
    with Machine("4M", 3, kvm=DEVICE, output=lambda data: None) as vm:
        vm.load(GUESTS / "irq_sipi.bin")
        for n in range(others):
            vm.break_at(0x3000 + n)
        who: list[int] = []
        vm.break_at(0x8000, lambda vcpu: who.append(vcpu.index))
        assert vm.run(10).status == 2 << 1 | 1
        assert sorted(who) == [1, 2]


def test_a_boot_that_does_not_debug_loads_nothing_of_it() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pyvcpu import Machine\n"
        f"with Machine('1M', kvm={DEVICE!r}) as m:\n"
        "    m.load(b'\\xf4'); m.run()\n"
        "debugging = ('pyvcpu.debug', 'pyvcpu.gdb', 'pyvcpu.symbols', 'pyvcpu.x86.walk', 'pyvcpu.vcpu.virtual')\n"
        "print([name for name in sys.modules if name.startswith(debugging)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_nobody_is_warned_of_a_debug_register() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with machine(COUNT) as vm:
            if not methods(vm.kvm).execute:
                pytest.skip("this KVM reports no breakpoints by debug register")
            vm.break_at(OUT)
            assert vm.run(5).reason == "debug"
