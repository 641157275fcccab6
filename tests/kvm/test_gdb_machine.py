"""The real gdb against real machines: what it sees, stops and changes. Its log has no warning and no error."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pyvcpu import Machine
from pyvcpu.debug.target import MachineTarget
from pyvcpu.gdb.endpoint import Endpoint
from pyvcpu.gdb.packets import frame
from pyvcpu.gdb.server import Server
from tests.gdb_client import Client, connect
from tests.gdb_machine import COUNTER, MODES, STRAIGHT, assembled, listing, run_gdb
from tests.kvm.support import DEVICE, SPIN, boot, command, environment
from tests.threads import Caller, until


@pytest.fixture(autouse=True)
def _tools(tool: Callable[[str], str]) -> None:
    for name in ("gdb", "as", "ld", "objcopy", "objdump"):
        tool(name)


@contextmanager
def debugged(
    image: Path | bytes, smp: int = 1, *, wait: bool = True, **options: Any
) -> Iterator[tuple[Machine, Server]]:
    """Run a machine in a thread, and a server for debuggers in front of it; with `wait` it stands at its start."""
    notices: list[str] = []
    with Machine("4M", smp, kvm=DEVICE, output=lambda data: None) as machine:
        machine.load(image, **options)
        target = MachineTarget(machine, wait=wait)
        with Server(target, "localhost:0", notice=notices.append) as server:
            runner = Caller(machine.run)
            yield machine, server
            machine.stop()
            assert runner.done()
            target.close()
            assert runner.error is None
    assert notices == []


def printed(text: str) -> list[str]:
    return re.findall(r"^\$\d+ = (.*)$", text, re.MULTILINE)


def test_threads_registers_and_memory(tmp_path: Path) -> None:
    program = assembled(tmp_path, COUNTER)
    with debugged(program.with_suffix(".bin"), 4, mode="long", load=0x100000) as (machine, server):
        said = run_gdb(
            server.address,
            "info threads",
            "thread 3",
            "set var $rbx = 0x123456789",
            "p/x $rbx",
            "set var $xmm3.uint128 = 77",
            "p $xmm3.uint128",
            "p $efer",
            "p/x $cs_base",
            "p $dr7",
            "set var *(long *) 0x3000 = 0x1122334455667788",
            "x/2xw 0x3000",
            "x/2i $pc",
            before=(f"symbol-file {program}",),
        )
        found = re.findall(r'^[* ] +(\d)    Thread \d "(CPU \d/KVM)"', said, re.MULTILINE)
        assert found == [(str(n + 1), f"CPU {n}/KVM") for n in range(4)]
        assert printed(said) == ["0x123456789", "77", "[ LME LMA ]", "0x0", "1024"]
        assert "0x3000:\t0x55667788\t0x11223344" in said
        assert "=> 0x100000 <_start>:\tmov    %rdi,%rbx" in said
        assert machine.memory.read_int(0x3000, 8) == 0x1122334455667788


def test_a_breakpoint_at_a_symbol_and_steps_of_one_thread(tmp_path: Path) -> None:
    program = assembled(tmp_path, COUNTER)
    with debugged(program) as (_, server):
        said = run_gdb(
            server.address,
            "break work",
            "continue",
            "p $ecx",
            "continue",
            "p $ecx",
            "p *(int *) &counter",
            "delete",
            "stepi 3",
            "p $pc",
            "p/x $esi == $edx",
            before=(f"symbol-file {program}",),
        )
    assert printed(said) == ["1", "2", "2", "(void (*)()) 0x100012 <loop+13>", "0x1"]
    assert len(re.findall(r"^Breakpoint 1, 0x\w+ in work \(\)", said, re.MULTILINE)) == 2


def test_a_hundred_steps_are_those_of_the_listing(tmp_path: Path) -> None:
    program = assembled(tmp_path, STRAIGHT)
    with debugged(program) as (_, server):
        said = run_gdb(server.address, *["p/x $pc", "stepi"] * 100, "p/x $pc")
    lines = listing(program)
    assert len(lines) == 65
    assert [int(value, 16) for value in printed(said)] == [lines[n % 65] for n in range(101)]


def test_a_breakpoint_in_each_mode_of_one_boot(tmp_path: Path) -> None:
    program = assembled(tmp_path, MODES, 0x1000)
    with debugged(program.with_suffix(".bin")) as (_, server):
        said = run_gdb(
            server.address,
            "break real_code",
            "break protected_code",
            "break long_code",
            *["continue", "p/x $bx", "stepi", "p/x $bx"] * 3,
            before=(f"symbol-file {program}",),
        )
    assert re.findall(r"hit Breakpoint (\d)", said) + re.findall(r"^Breakpoint (\d),", said, re.MULTILINE) == [
        "1",
        "2",
        "3",
    ]
    assert printed(said)[1:] == ["0x16", "0x16", "0x32", "0x64", "0x65"]


def test_a_watched_variable(tmp_path: Path) -> None:
    program = assembled(tmp_path, COUNTER)
    with debugged(program) as (_, server):
        said = run_gdb(
            server.address,
            "watch *(int *) &counter",
            "continue",
            "continue",
            "p *(int *) &counter",
            before=(f"symbol-file {program}",),
        )
    assert printed(said) == ["2"]
    assert re.findall(r"New value = (\d)", said) == ["1", "2"]


def test_interrupt_detach_and_attach_again() -> None:
    with debugged(SPIN, 2, wait=False) as (machine, server):
        with Client(server.address) as client:
            assert client.ask(b"?").startswith(b"T02thread:1;")
            client.send(b"vCont;c")
            client.interrupt()
            assert client.receive().startswith(b"T02thread:1;")
            client.send(b"vCont;c")
        until(lambda: not machine.holders, "the machine does not run on when the debugger has left")
        said = run_gdb(server.address, "p/x $rip", "info threads", "detach")
        assert printed(said) == ["0x1000"]
        until(lambda: not machine.holders)
        with Client(server.address) as client:
            assert client.ask(b"D") == b"OK"
            until(lambda: not machine.holders)
            assert client.ask(b"vAttach;1").startswith(b"T02")


def test_one_thread_steps_while_the_others_stand_still(tmp_path: Path) -> None:
    program = assembled(tmp_path, COUNTER)
    with debugged(program.with_suffix(".bin"), 4, mode="long", load=0x100000) as (_, server):
        said = run_gdb(server.address, "set scheduler-locking on", "thread 3", "stepi", "stepi", "info threads")
        where = re.findall(r'"CPU \d/KVM" \(paused\) (0x\w+)', said)
        assert [int(at, 16) - 0x100000 for at in where] == [0, 0, 5, 0]


def test_when_one_stops_all_stop(tmp_path: Path) -> None:
    program = assembled(tmp_path, COUNTER)
    with debugged(program.with_suffix(".bin"), 4, mode="long", load=0x100000) as (_, server):
        said = run_gdb(
            server.address,
            "break work if $rbx == 2",
            "continue",
            "thread",
            "info threads",
            before=(f"symbol-file {program}",),
        )
        assert 'Thread 3 "CPU 2/KVM" hit Breakpoint 1' in said
        assert len(re.findall(r'"CPU \d/KVM" \(paused\)', said)) >= 4


def test_a_debugger_stops_an_endless_loop_with_ctrl_c(tmp_path: Path) -> None:
    program = assembled(tmp_path, COUNTER)
    later = "gdb.post_event(lambda: gdb.execute('interrupt'))"
    with debugged(program, wait=False) as (_, server):
        said = run_gdb(
            server.address,
            f"python import threading; threading.Timer(0.5, lambda: {later}).start()",
            "continue",
            "p $ecx > 2",
            "p $cs",
        )
    assert "Program received signal SIGINT" in said
    assert printed(said) == ["1", "24"]


def test_the_end_of_the_guest_is_that_of_a_program() -> None:
    with debugged(bytes.fromhex("b005 e6f4 f4")) as (_, server):
        assert "[Inferior 1 (Remote target) exited with code 013]" in run_gdb(server.address, "continue")


def test_a_crash_can_be_looked_at_before_it_ends_the_run() -> None:
    code = bytes.fromhex("0f011d09100000 0f0b 0000 00000000")  # lidt 0x1009; ud2: no gate fits
    with debugged(code, mode="protected") as (_, server):
        said = run_gdb(server.address, "continue", "p/x $rip", "continue")
    assert "pyvcpu: vCPU 0 crashed: triple fault (KVM_EXIT_SHUTDOWN)" in said
    assert "Program received signal SIGSEGV" in said
    assert printed(said) == ["0x1007"]
    assert "exited with code 06" in said


def test_kill_ends_with_a_status(tmp_path: Path) -> None:
    path = tmp_path / "gdb"
    image = tmp_path / "spin.bin"
    image.write_bytes(SPIN)
    process = subprocess.Popen(
        command("boot", image, "--gdb", f"unix:{path}", "-S"), stderr=subprocess.PIPE, env=environment()
    )
    until(path.exists)
    said = run_gdb(Endpoint(path=str(path)), "stepi", "kill")
    assert "killed" in said
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors.decode() == f"pyvcpu: a debugger can connect to unix:{path}; the guest waits for it\n"
    assert not path.exists()


def test_a_debugger_is_told_of_a_timeout(tmp_path: Path) -> None:
    path, image = tmp_path / "gdb", tmp_path / "spin.bin"
    image.write_bytes(SPIN)
    caller = Caller(lambda: boot(image, "--gdb", f"unix:{path}", "-S", "--timeout", "10"))
    until(path.exists)
    assert "exited with code 0174" in run_gdb(Endpoint(path=str(path)), "continue")
    assert caller.done()


def test_a_thousand_connections_leave_nothing_behind() -> None:
    with debugged(bytes.fromhex("ff060080 ebfa"), wait=False) as (machine, server):  # incw 0x8000; jmp
        with Client(server.address) as client:
            client.ask(b"?")
        threads, fds = threading.active_count(), len(os.listdir("/proc/self/fd"))
        for n in range(1000):
            with connect(server.address) as raw:
                raw.sendall(b"$qSupported#37$g#67$m0,40#2a"[: n % 28])
        with Client(server.address) as client:
            client.ask(b"?")
        until(lambda: not machine.holders)
        before = machine.memory.read(0x8000, 2)
        until(lambda: machine.memory.read(0x8000, 2) != before, "the guest does not run any more")
        assert threading.active_count() == threads
        until(lambda: len(os.listdir("/proc/self/fd")) <= fds)


def test_a_handler_that_stops_tells_the_debugger(tmp_path: Path) -> None:
    program = assembled(tmp_path, COUNTER)
    with debugged(program) as (machine, server):
        machine.break_at("work", lambda vcpu: vcpu.registers.rcx != 5)
        said = run_gdb(server.address, "continue", "p $ecx", "p/x $pc", "stepi", "p/x $pc")
    assert "pyvcpu: a handler of the program's stops the machine at 0x100014 (work)" in said
    assert printed(said) == ["5", "0x100014", "0x100017"]


# Real mode, at 0x1000 on both vCPUs: incl 0x8000; then nothing for a while.
TICKS = bytes.fromhex("66ff060080 90 90 ebf7")


def test_twenty_thousand_fuzzed_packets() -> None:
    """Whatever comes, nobody hears of an exception, and the guest goes on when it is left alone."""
    random = Random(16)
    letters = b"?cCDgGHmMpPqsSTvxXzZ!RiIbBtkA0123456789abcdef:;,.+-#$*}\x03 QvCont"
    known = (b"g", b"?", b"m1000,40", b"M3000,2:9090", b"qSupported", b"vCont;s:1", b"Z1,1005,1", b"z1,1005,1", b"p5")
    with debugged(TICKS, 2) as (machine, server):
        for _ in range(40):
            with connect(server.address) as raw:
                part = bytearray(b"+")
                for _ in range(500):
                    body = bytearray(random.choice(known))
                    for _ in range(random.randrange(3)):
                        body[random.randrange(len(body))] = random.choice(letters)
                    if body[:1] not in b"kRGPX" and not body.startswith((b"M100", b"M101")):
                        part += frame(bytes(body)) if random.random() < 0.9 else bytes(body)
                        part += b"\x03" * random.randrange(2)
                raw.sendall(part)
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(1 << 16):
                    pass
        with Client(server.address) as client:
            client.ask(b"?")
            client.ask(b"D")
        until(lambda: not machine.holders)
        before = machine.memory.read(0x8000, 4)
        until(lambda: machine.memory.read(0x8000, 4) != before, "the guest does not run any more")


def test_a_reboot_is_no_end_and_keeps_breakpoints(tmp_path: Path) -> None:
    path, image = tmp_path / "gdb", tmp_path / "resets.bin"
    image.write_bytes(bytes.fromhex("b0fe e664 f4"))  # mov $0xfe,%al; 1002: out %al,$0x64
    caller = Caller(lambda: boot(image, "--gdb", f"unix:{path}", "-S", "--reboot"))
    until(path.exists)
    said = run_gdb(Endpoint(path=str(path)), "hbreak *0x1002", *["continue", "p/x $pc"] * 3, "kill")
    assert printed(said) == ["0x1002"] * 3
    assert caller.done()


def test_monitor_commands(tmp_path: Path) -> None:
    program = assembled(tmp_path, COUNTER)
    with debugged(program) as (_, server), Client(server.address) as client:
        client.ask(b"?")
        assert client.monitor("symbol work") == "0x100014\n"
        assert client.monitor("symbol 0x100015") == "work+0x1\n"
        assert client.monitor("symbol nothing") == "there is no symbol 'nothing'\n"
        assert client.monitor("symbol 0x99") == "0x99 is in no symbol\n"
        assert "debug-exit" in client.monitor("devices")
        assert "steps" in client.monitor("methods")
        assert client.monitor("walk 0x100000").startswith("0x100000: 4-level\n  PML4 [  0] at ")
        assert client.ask(b"vCont;s:1").startswith(b"T05")
        assert client.monitor("reset").startswith("the machine is reset")
        assert client.ask(b"vCont;s:1").startswith(b"T05")
        assert "cs:ip 0x0018:0x100003" in client.monitor("registers")
