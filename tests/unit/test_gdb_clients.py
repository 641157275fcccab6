"""The real gdb and lldb, in batch mode, against the stub with a machine that is a fake."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvcpu.gdb.server import Server
from pyvcpu.gdb.target import SIGNAL, SOFTWARE, WRITE, Stop
from tests.gdb_target import CODE, UD2, FakeTarget, real_registers
from tests.threads import DEADLINE, until

# gdb says it of every target without a program; it is no fault.
NO_PROGRAM = re.compile(
    r"warning: No executable has been specified and target does not support\n"
    r"determining executable automatically\.  Try using the \"file\" command\.\n"
)
FAULTS = re.compile(r".*(?:warning|error|ignoring|unknown|invalid|malformed|not supported by).*", re.IGNORECASE)
EXPECTED = ("error-message+",)  # a feature of the protocol


@pytest.fixture
def target() -> Iterator[FakeTarget]:
    target = FakeTarget(4)
    yield target
    target.close()


@pytest.fixture(autouse=True)
def _clients(tool: Callable[[str], str]) -> None:
    tool("gdb")


def gdb(target: FakeTarget, *commands: str, before: tuple[str, ...] = (), faults: tuple[str, ...] = ()) -> str:
    """Run gdb's commands, connected and with its log on; fail when it has other warnings or errors than `faults`."""
    notices: list[str] = []
    with Server(target, "localhost:0", notice=notices.append) as server:
        lines = ["set pagination off", "set confirm off", "set debug remote 1", *before]
        lines += [f"target remote {server.address}", *commands]
        arguments = [part for line in lines for part in ("-ex", line.replace("ADDRESS", str(server.address)))]
        done = subprocess.run(
            ["gdb", "-nx", "-nh", "-q", "-batch", *arguments],
            capture_output=True,
            text=True,
            errors="replace",  # the log has bytes of memory
            timeout=DEADLINE,
            check=False,
        )
    text = NO_PROGRAM.sub("", done.stdout + done.stderr)
    found = [line for line in FAULTS.findall(text) if not any(word in line for word in EXPECTED)]
    assert found == list(faults), text
    assert notices == []
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("[remote]"))


def assembled(folder: Path, text: str, *options: str) -> Path:
    """Assemble and link a program at CODE; return its file."""
    source, program = folder / "guest.S", folder / "guest.elf"
    source.write_text(text, encoding="utf-8")
    subprocess.run(["as", *options, source, "-o", folder / "guest.o"], check=True)
    subprocess.run(["ld", f"-Ttext={CODE:#x}", folder / "guest.o", "-o", program], check=True)
    return program


def test_threads_registers_and_memory(target: FakeTarget) -> None:
    target.cpus[2]["rbx"] = 0x1234
    said = gdb(
        target,
        "info threads",
        "thread 3",
        "p/x $rbx",
        "p $xmm3.uint128",
        "p $efer",
        "p $cr0",
        "p $rip",
        "set var $rcx = 77",
        "set var *(int *) 0x2000 = 0x11223344",
        "x/2xw 0x2000",
        "x/3i 0x1000",
        "info registers eflags",
    )
    assert re.findall(r'^[* ] +(\d)    Thread \d "(CPU \d/KVM)" 0x0{12}1000', said, re.MULTILINE) == [
        (str(n + 1), f"CPU {n}/KVM") for n in range(4)
    ]
    assert re.findall(r"^\$\d = (.*)$", said, re.MULTILINE) == [
        "0x1234",
        "3",
        "[ LME LMA ]",
        "[ PE ET PG ]",
        "(void (*)()) 0x1000",
    ]
    assert "0x2000:\t0x11223344\t0x00000000" in said
    assert "0x1002:\tinc    %rax" in said
    assert re.search(r"^eflags +0x2 +\[ \]$", said, re.MULTILINE)
    assert target.cpus[2]["rcx"] == 77
    assert target.memory[0x2000:0x2004] == b"\x44\x33\x22\x11"


def test_break_step_and_continue(target: FakeTarget) -> None:
    said = gdb(
        target,
        "set scheduler-locking on",
        "hbreak *0x1002",
        "continue",
        "stepi",
        "p/x $rip",
        "continue",
        "p/x $rip",
        "p $rax",
        "delete",
        "stepi 100",
        "p/x $rip",
        "break *0x1001",
        "continue",
        "p $rax",
    )
    assert re.findall(r"^\$\d = (.*)$", said, re.MULTILINE) == ["0x1005", "0x1002", "1", "0x1002", "27"]
    assert 'Thread 1 "CPU 0/KVM" hit Breakpoint 2, 0x0000000000001001' in said
    assert "pyvcpu: software breakpoint at 0x1001: single steps, which is slow" in said
    assert target.calls.count("resume {0: 'step'}") == 1 + 100


def test_all_vcpus_stop_at_a_breakpoint_of_one(target: FakeTarget) -> None:
    target.cpus[3]["rip"] = 0x3000
    target.memory[0x3000:0x3004] = b"\x90\x90\xeb\xfc"
    said = gdb(target, "break *0x3001", "continue", "info threads", "next 0")
    assert 'Thread 4 "CPU 3/KVM" hit Breakpoint 1' in said
    assert not target.breakpoints


def test_a_condition_of_gdb(target: FakeTarget) -> None:
    said = gdb(target, "set scheduler-locking on", "break *0x1002 if $rax == 5", "continue", "p $rax")
    assert "$1 = 5" in said
    assert "Breakpoint 1, 0x0000000000001002" in said


def test_a_step_of_one_thread_leaves_the_others_where_they_are(target: FakeTarget) -> None:
    said = gdb(target, "set scheduler-locking on", "thread 3", "stepi", "stepi", "info threads")
    assert re.findall(r"CPU \d/KVM\" (0x\w+)", said.partition("Id   Target")[2]) == [
        f"0x{address:016x}" for address in (0x1000, 0x1000, 0x1002, 0x1000)
    ]


def test_lines_of_a_source_are_stepped_through(target: FakeTarget, tmp_path: Path, tool: Callable[[str], str]) -> None:
    tool("ld")
    program = assembled(tmp_path, ".globl _start\n_start: nop\nnop\ninc %rax\njmp _start\n", "-g")
    said = gdb(target, "info line", "next", "next", "p $pc", before=(f"symbol-file {program}",))
    assert "3\tinc %rax" not in said.splitlines()[0]
    assert "4\tinc %rax" in said or "3\tinc %rax" in said
    assert "$1 = (void (*)()) 0x1002 <_start+2>" in said


def test_watch_a_variable(target: FakeTarget) -> None:
    target.memory[CODE : CODE + 6] = b"\x90\x88\x07\x90\xeb\xfa"
    for cpu in target.cpus:
        cpu |= {"rdi": 0x3000, "rax": 9}
    said = gdb(target, "set scheduler-locking on", "watch *(char *) 0x3000", "continue")
    assert "Old value = 0 '\\000'\nNew value = 9 '\\t'" in said


def test_a_watchpoint_that_is_refused_says_why(target: FakeTarget) -> None:
    target.refuses = {WRITE: "no debug register is free"}
    said = gdb(target, "watch *(char *) 0x3000", "stepi", "continue", "monitor breakpoints", faults=("Warning:",) * 2)
    assert "Could not insert hardware watchpoint 1" in said
    assert "refused: write at 0x3000, 1 bytes: no debug register is free" in said


def test_a_breakpoint_that_is_refused_says_why(target: FakeTarget) -> None:
    target.refuses = {SOFTWARE: "int3 does not come out here", "hardware": "no debug register is free"}
    said = gdb(target, "hbreak *0x1002", "continue", faults=("Warning:",))
    assert "Remote failure reply: no debug register is free" in said


def test_ctrl_c_detach_and_attach_again(target: FakeTarget) -> None:
    target.start()
    said = gdb(
        target,
        "python import threading, os, signal",
        "python threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()",
        "continue",
        "detach",
        "target remote ADDRESS",
        "p/x $cs",
        "detach",
    )
    assert "received signal SIGINT, Interrupt." in said
    assert said.count("[Inferior 1 (Remote target) detached]") == 2
    assert "$1 = 0x18" in said
    assert target.calls.count("attach") == 2
    until(lambda: target.running)


def test_one_connection_may_detach_and_attach(target: FakeTarget) -> None:
    target.start()
    said = gdb(
        target,
        "detach",
        "disconnect",
        "target extended-remote ADDRESS",
        "detach",
        "attach 1",
        "p/x $cs",
        "monitor vcpus",
        "kill",
    )
    assert "$1 = 0x18" in said
    assert target.calls == ["attach", "detach True", "attach", "detach True", "attach", "kill", "detach True"]


def test_quitting_detaches(target: FakeTarget) -> None:
    target.start()
    gdb(target, "stepi", "quit")
    assert target.calls[-1] == "detach True"
    assert "kill" not in target.calls


def test_kill(target: FakeTarget) -> None:
    said = gdb(target, "kill")
    assert "[Inferior 1 (Remote target) killed]" in said
    assert "kill" in target.calls


def test_the_machine_ends_or_crashes(target: FakeTarget) -> None:
    target.memory[CODE + 2 : CODE + 4] = UD2
    assert "[Inferior 1 (Remote target) exited with code 03]" in gdb(target, "continue")


def test_a_crash_is_a_signal_with_words(target: FakeTarget) -> None:
    target.crash = Stop(SIGNAL, 2, signal=11, text="triple fault at 0x1000")
    said = gdb(target, "continue")
    assert "pyvcpu: triple fault at 0x1000" in said
    assert 'Thread 3 "CPU 2/KVM" received signal SIGSEGV, Segmentation fault.' in said


def test_jump_and_call_the_registers_back(target: FakeTarget) -> None:
    said = gdb(target, "set scheduler-locking on", "tbreak *0x1005", "jump *0x1002", "p/x $rip", "p $rax")
    assert re.findall(r"^\$\d = (.*)$", said, re.MULTILINE) == ["0x1005", "1"]


def test_monitor_commands(target: FakeTarget) -> None:
    said = gdb(target, "monitor help", "monitor vcpus", "monitor reset", "maintenance flush register-cache", "p $rax")
    assert "walk ADDRESS [VCPU]: follow the page tables" in said
    assert "  3  CPU 3/KVM  64-bit mode at 0x1000" in said
    assert "reset" in target.calls


def test_one_session_through_the_modes(tmp_path: Path, tool: Callable[[str], str]) -> None:
    """Real mode at a symbol, and 64-bit code after it: the description is read anew where it changes."""
    tool("ld")
    program = assembled(tmp_path, ".globl _start\n_start: nop\nnop\ninner: inc %rax\njmp _start\n")
    target = FakeTarget(1, real_registers)
    said = gdb(
        target,
        "break inner",
        "continue",
        "p $pc",
        "monitor architecture auto",
        "unset tdesc filename",
        "show architecture",
        "x/i $pc",
        "p/x $eip",
        "stepi",
        "p $pc",
        "set var $eax = 7",
        "monitor architecture 64",
        "unset tdesc filename",
        "p $rax",
        "p $pc",
        before=(f"symbol-file {program}",),
    )
    target.close()
    assert "Breakpoint 1, 0x0000000000001002 in inner ()" in said
    assert 'The target architecture is set to "auto" (currently "i8086").' in said
    assert "=> 0x1002 <inner>:\tdec    %ax" in said
    assert re.findall(r"^\$\d = (.*)$", said, re.MULTILINE) == [
        "(void (*)()) 0x1002 <inner>",
        "0x1002",
        "(void (*)()) 0x1005 <inner+3>",
        "7",
        "(void (*)()) 0x1005 <inner+3>",
    ]


def test_memory_of_any_size(target: FakeTarget, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    target.memory[0x10000:0x10100] = bytes(range(256))
    gdb(target, f"dump binary memory {dump} 0x0 0x80000", f"restore {dump} binary 0x0 0x10000 0x20000")
    assert dump.read_bytes() == bytes(target.memory[:0x80000])


def test_lldb(target: FakeTarget, tmp_path: Path, tool: Callable[[str], str]) -> None:
    lldb = tool("lldb")
    script = tmp_path / "script"
    with Server(target, "localhost:0") as server:
        lines = [
            f"gdb-remote {server.address}",
            "thread list",
            "register read rip cr0",
            "memory read -c 7 0x1000",
            "breakpoint set -H -a 0x1002",
            "continue",
            "thread step-inst",
            "register write rbx 0x55",
            "memory write 0x2000 0x4d",
            "memory region 0x1000",
            "process plugin packet monitor vcpus",
            "breakpoint delete -f",
            "detach",
            "quit",
        ]
        script.write_text("\n".join([*lines, ""]), encoding="utf-8")
        began = time.monotonic()
        done = subprocess.run(
            [lldb, "-x", "-b", "-s", str(script)], capture_output=True, text=True, timeout=2 * DEADLINE, check=False
        )
        said = done.stdout
        assert time.monotonic() - began < 2 * DEADLINE
    assert "thread #4: tid = 0x0004, 0x0000000000001000, name = 'CPU 3/KVM'" in said
    assert "cr0 = 0x0000000080000011" in said
    assert "0x00001000: 90 90 48 ff c0 eb f9" in said
    assert "stop reason = breakpoint 1.1" in said
    assert "stop reason = instruction step into" in said
    assert "[0x0000000000000000-0x0000000000200000) rwx" in said
    assert "1  CPU 1/KVM  64-bit mode at" in said
    assert target.cpus[0]["rbx"] == 0x55
    assert target.memory[0x2000] == 0x4D
    assert "error:" not in said + done.stderr
    assert target.running
