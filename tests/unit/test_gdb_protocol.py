"""Each packet of the protocol, against a machine that is a fake."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pyvcpu.gdb.server import Server
from pyvcpu.gdb.target import ACCESS, EXITED, HARDWARE, SIGNAL, SOFTWARE, WRITE, Stop, TargetError
from tests.gdb_client import Client, connect, take
from tests.gdb_target import CODE, RAM_SIZE, UD2, FakeTarget, long_registers, real_registers
from tests.threads import until


class Stub:
    """A server with its machine, what it said to people, and a client."""

    def __init__(self, target: FakeTarget) -> None:
        self.target = target
        self.notices: list[str] = []
        self.server = Server(target, "localhost:0", notice=self.notices.append)
        self.client = Client(self.server.address)

    def close(self) -> None:
        self.client.socket.close()
        self.server.close()
        self.target.close()


@pytest.fixture
def stub() -> Iterator[Stub]:
    stub = Stub(FakeTarget())
    yield stub
    stub.close()
    assert stub.notices == []


@pytest.fixture
def ask(stub: Stub) -> object:
    return stub.client.ask


def test_what_is_supported(stub: Stub) -> None:
    assert dict.fromkeys(stub.client.supported.split(b";")) == dict.fromkeys(
        [
            b"PacketSize=10000",
            b"QStartNoAckMode+",
            b"vContSupported+",
            b"swbreak+",
            b"hwbreak+",
            b"qXfer:features:read+",
            b"qXfer:memory-map:read+",
            b"qXfer:threads:read+",
            b"binary-upload+",
            b"error-message+",
        ]
    )


@pytest.mark.parametrize(
    ("packet", "reply"),
    [
        (b"", b""),
        (b"vMustReplyEmpty", b""),
        (b"qNobodyKnowsThis", b""),
        (b"qTStatus", b""),
        (b"vRun;", b""),
        (b"b", b""),
        (b"!", b"OK"),
        (b"?", b"T02thread:1;10:0010000000000000;07:0000070000000000;06:0000000000000000;"),
        (b"qAttached", b"1"),
        (b"qC", b"QC1"),
        (b"qSymbol::", b"OK"),
        (b"qOffsets", b"Text=0;Data=0;Bss=0"),
        (b"QNonStop:0", b"OK"),
        (b"qfThreadInfo", b"m1,2"),
        (b"qsThreadInfo", b"l"),
        (b"qThreadExtraInfo,2", b"CPU 1/KVM".hex().encode()),
        (b"T1", b"OK"),
        (b"T2", b"OK"),
        (b"Hg2", b"OK"),
        (b"Hg0", b"OK"),
        (b"Hg-1", b"OK"),
        (b"Hc-1", b"OK"),
        (b"Hc1", b"OK"),
        (b"Hgp1.1", b"OK"),
        (b"vCont?", b"vCont;c;C;s;S;t;r"),
        (b"p10", b"0010000000000000"),
        (b"m1000,7", b"909048ffc0ebf9"),
        (b"m0,0", b""),
        (b"x1000,3", b"b\x90\x90\x48"),
        (b"M2000,0:", b"OK"),
        (b"X2000,0:", b"OK"),
        (b"vCtrlC", b"OK"),
        (b"qXfer:features:read:target.xml:0,5", b"m<?xml"),
        (b"qXfer:features:read:target.xml:ffffff,5", b"l"),
        (b"qXfer:features:read:other.xml:0,5", b"E00"),
        (b"qXfer:auxv:read::0,5", b""),
        (b"qXfer:memory-map:read::0,5", b"m<?xml"),
        (b"vAttach;1", b"T02thread:1;10:0010000000000000;07:0000070000000000;06:0000000000000000;"),
    ],
)
def test_replies(stub: Stub, packet: bytes, reply: bytes) -> None:
    assert stub.client.ask(packet) == reply


MALFORMED = [
    b"m", b"m1000", b"m1000,", b"m,1", b"m1000,1,", b"mxyz,1", b"m 1000,1", b"m-1,1", b"m1_0,1",
    b"m10000000000000000,1", b"x", b"M1000,1", b"M1000,1:", b"M1000,1:9", b"M1000,1:9z", b"M1000,1:9090",
    b"X1000,2:a", b"X1000,1", b"p", b"pzz", b"P", b"P0", b"P0=", b"P0=11", b"P=1122334455667788", b"pffff", b"gg",
    b"Gz", b"G1", b"Z", b"Z0", b"Z0,", b"Z0,1000", b"Z5,1000,1", b"Z0,1000,1;X1,0", b"Z2,1000,0", b"z9,1,1", b"H",
    b"Hx1", b"Hg", b"Hgzz", b"T", b"vCont", b"vCont;", b"vCont;x", b"vCont;c:", b"vCont;c:zz", b"vCont;r",
    b"vCont;r1000", b"vCont;c5", b"vCont;Czz", b"C", b"Szz", b"czz", b"QNonStop:2",
    b"qXfer:features:read:target.xml:0", b"qXfer:features:read:target.xml:z,1", b"qRcmd,6", b"qRcmd,zz",
    b"qThreadExtraInfo,", b"qMemoryRegionInfo:", b"qRegisterInfozz", b"qThreadStopInfo",
]  # fmt: skip


@pytest.mark.parametrize("packet", MALFORMED, ids=repr)
def test_what_is_malformed_gets_an_error_and_changes_nothing(stub: Stub, packet: bytes) -> None:
    before = [dict(cpu) for cpu in stub.target.cpus], bytes(stub.target.memory)
    stub.client.ask(b"?")
    calls = list(stub.target.calls)
    assert stub.client.ask(packet) in (b"E16", b"E05")
    assert ([dict(cpu) for cpu in stub.target.cpus], bytes(stub.target.memory)) == before
    assert stub.target.calls == calls
    assert stub.target.breakpoints == {}


@pytest.mark.parametrize("packet", [b"T3", b"Hg3", b"Hcff", b"qThreadExtraInfo,3", b"vCont;c:3"])
def test_a_vcpu_that_is_not_there(stub: Stub, packet: bytes) -> None:
    assert stub.client.ask(packet) == b"E03"


@pytest.mark.parametrize("packet", [b"m40000000,1", b"Mffffffff00000000,1:00", b"x8000000000000000,10"])
def test_memory_that_is_not_there(stub: Stub, packet: bytes) -> None:
    assert stub.client.ask(packet) == b"E0e"


# Registers.


def test_registers_are_read_and_written(stub: Stub) -> None:
    ask = stub.client.ask
    every = ask(b"g")
    assert bytes.fromhex(every.decode())[16 * 8 :][:8] == (CODE).to_bytes(8, "little")
    assert ask(b"P1=8877665544332211") == b"OK"
    assert stub.target.cpus[0]["rbx"] == 0x1122334455667788
    assert ask(b"p1") == b"8877665544332211"
    assert ask(b"G" + every) == b"OK"
    assert stub.target.cpus[0] == long_registers()
    assert ask(b"Hg2") == b"OK"
    assert ask(b"P0=0100000000000000") == b"OK"
    assert (stub.target.cpus[0]["rax"], stub.target.cpus[1]["rax"]) == (0, 1)


def test_registers_that_the_machine_refuses(stub: Stub) -> None:
    (number,) = [n for n in range(200) if b"name:cr8;" in stub.client.ask(b"qRegisterInfo%x" % n)]
    assert stub.client.ask(b"P%x=0100000000000000" % number) == b"E05"
    stub.client.ask(b"QEnableErrorStrings")
    assert stub.client.ask(b"P%x=0100000000000000" % number) == b"E05;" + b"cr8 cannot be set".hex().encode()
    assert stub.client.ask(b"p%x" % number) == b"0000000000000000"


def test_real_mode_shows_the_linear_address() -> None:
    stub = Stub(FakeTarget(1, real_registers))
    try:
        assert stub.client.ask(b"p10") == b"0010000000000000"
        assert stub.client.ask(b"P10=0210000000000000") == b"OK"
        assert stub.target.cpus[0]["rip"] == 0x12
        assert stub.client.ask(b"Z1,1005,1") == b"OK"
        assert stub.client.ask(b"vCont;c").startswith(b"T05thread:1;hwbreak:;10:0510000000000000;")
        assert stub.target.cpus[0]["rip"] == 0x15
    finally:
        stub.close()


def test_the_description_changes_when_the_client_reads_it_again(stub: Stub) -> None:
    read = b"qXfer:features:read:target.xml:0,ffff"
    assert b"<architecture>i386:x86-64<" in stub.client.ask(read)
    words = "the description is for i8086; `unset tdesc filename` makes gdb read it\n"
    assert stub.client.monitor("architecture 16") == words
    assert len(stub.client.ask(b"p0")) == 16  # still as the client knows it
    assert b"<architecture>i8086<" in stub.client.ask(read)
    assert len(stub.client.ask(b"p0")) == 8
    assert stub.client.monitor("architecture") == "the description is for i8086\n"
    assert stub.client.monitor("arch auto").startswith("the description is for i386:x86-64;")
    assert b"<architecture>i386:x86-64<" in stub.client.ask(read)
    assert stub.client.monitor("architecture 48").startswith("usage: architecture")


# Memory.


def test_memory_is_read_and_written(stub: Stub) -> None:
    ask = stub.client.ask
    assert ask(b"M2000,4:01020304") == b"OK"
    assert ask(b"X2004,4:#$}*") == b"OK"
    assert ask(b"m2000,8") == b"0102030423247d2a"
    assert ask(b"x2000,8") == b"b\x01\x02\x03\x04#$}*"
    assert ask(b"x0,0") == b"OK"  # lldb: no letter before the bytes
    assert ask(b"x2000,8") == b"\x01\x02\x03\x04#$}*"


def test_large_reads_are_cut_to_a_packet(stub: Stub) -> None:
    assert len(stub.client.ask(b"m0,ffffffffffffffff")) == 0x10000
    assert len(stub.client.ask(b"x0,ffffffffffffffff")) == 0x8000
    assert len(stub.client.ask(b"m%x,100" % (RAM_SIZE - 16))) == 32  # up to the end of RAM


def test_a_packet_of_the_largest_size_and_one_more(stub: Stub) -> None:
    data = b"\xaa" * ((0x10000 - len("M2000,7ff9:")) // 2)
    packet = b"M2000,%x:%b" % (len(data), data.hex().encode())
    assert len(packet) == 0x10000 - 1
    assert stub.client.ask(packet) == b"OK"
    assert stub.target.memory[0x2000 : 0x2000 + len(data)] == data
    assert stub.client.ask(packet + b"aa") == b"E5a"  # EMSGSIZE
    assert stub.client.ask(b"m2000,1") == b"aa"


# Breakpoints and running.


def test_a_breakpoint_stops_and_asked_for_twice_is_one(stub: Stub) -> None:
    ask = stub.client.ask
    assert ask(b"Z1,1002,1") == b"OK"
    assert ask(b"Z1,1002,1") == b"OK"
    assert stub.target.breakpoints == {(HARDWARE, 0x1002, 1): "debug register"}
    assert ask(b"vCont;c") == b"T05thread:1;hwbreak:;10:0210000000000000;07:0000070000000000;06:0000000000000000;"
    assert ask(b"z1,1002,1") == b"OK"
    assert ask(b"z1,1002,1") == b"OK"
    assert stub.target.breakpoints == {}


def test_a_client_that_knows_no_hwbreak_is_not_told(stub: Stub) -> None:
    stub.client.ask(b"qSupported:swbreak-")
    stub.client.ask(b"Z1,1002,1")
    assert stub.client.ask(b"c").startswith(b"T05thread:1;10:")


def test_a_method_that_is_out_of_the_ordinary_is_told_once(stub: Stub) -> None:
    client = stub.client
    for turn in range(2):
        assert client.ask(b"Z0,1002,1") == b"OK"
        assert client.monitor("breakpoints") == "software at 0x1002, 1 bytes: single steps, which is slow\n"
        client.send(b"vCont;c:1")
        if turn == 0:
            told = client.receive()
            assert bytes.fromhex(told[1:].decode()) == (
                b"pyvcpu: software breakpoint at 0x1002: single steps, which is slow\n"
            )
        assert client.receive().startswith(b"T05thread:1;swbreak:;")
        client.ask(b"z0,1002,1")


def test_watchpoints(stub: Stub) -> None:
    ask, target = stub.client.ask, stub.target
    target.memory[CODE : CODE + 5] = b"\x88\x07\x8a\x06\x90"  # mov %al,(%rdi); mov (%rsi),%al; nop
    target.cpus[0] |= {"rdi": 0x3001, "rsi": 0x4000, "rax": 7}
    for packet in (b"Z2,3000,4", b"Z4,4000,1", b"Z3,5000,8"):
        assert ask(packet) == b"OK"
    assert set(target.breakpoints) == {(WRITE, 0x3000, 4), (ACCESS, 0x4000, 1), ("read", 0x5000, 8)}
    assert ask(b"vCont;c:1").startswith(b"T05thread:1;watch:3001;10:0210")
    assert ask(b"vCont;c:1").startswith(b"T05thread:1;awatch:4000;10:0410")


def test_refusals_are_in_words(stub: Stub) -> None:
    stub.target.refuses = {
        SOFTWARE: "int3 is not reported here",
        HARDWARE: "none is free",
        WRITE: "no debug register is free",
    }
    assert stub.client.ask(b"Z0,1000,1") == b"E5f"  # gdb shows no words here
    assert stub.client.ask(b"Z1,1000,1") == b"E.refused.none is free"
    assert stub.client.ask(b"Z2,1000,4") == b"E5f"
    assert stub.client.monitor("breakpoints") == (
        "refused: software at 0x1000, 1 bytes: int3 is not reported here\n"
        "refused: hardware at 0x1000, 1 bytes: none is free\n"
        "refused: write at 0x1000, 4 bytes: no debug register is free\n"
    )
    stub.client.ask(b"qSupported:error-message+")
    assert stub.client.ask(b"Z2,1000,4") == b"E.no debug register is free"
    assert stub.client.ask(b"m40000000,1") == b"E.0x40000000 is not mapped"


def test_breakpoints_are_bounded(stub: Stub) -> None:
    for address in range(4096):
        assert stub.client.ask(b"Z1,%x,1" % (0x10000 + address)) == b"OK"
    assert stub.client.ask(b"Z1,1000,1").startswith(b"E5f")


@pytest.mark.parametrize(
    "packet", [b"s", b"vCont;s:1", b"vCont;s:1;t", b"vCont;S05:1", b"S05", b"vCont;t:2;s", b"s1000"]
)
def test_steps_of_one_vcpu(stub: Stub, packet: bytes) -> None:
    assert stub.client.ask(packet).startswith(b"T05thread:1;10:0110000000000000;")
    assert stub.target.calls[-1] == "resume {0: 'step'}"


def test_the_first_action_of_a_thread_counts(stub: Stub) -> None:
    assert stub.client.ask(b"vCont;s:2;c:1;c").startswith(b"T05thread:2;10:0110")
    assert stub.target.calls[-1] in ("resume {1: 'step', 0: 'continue'}", "resume {0: 'continue', 1: 'step'}")


def test_nothing_to_run_is_a_stop_at_once(stub: Stub) -> None:
    stub.client.ask(b"s")
    assert stub.client.ask(b"vCont;t").startswith(b"T05thread:1;10:0110")
    assert stub.target.calls[-1] == "resume {0: 'step'}"


def test_old_packets_heed_the_thread_for_them(stub: Stub) -> None:
    stub.client.ask(b"Hc2")
    assert stub.client.ask(b"s").startswith(b"T05thread:2;")
    assert stub.client.ask(b"s1004").startswith(b"T05thread:2;10:0510")
    stub.client.ask(b"Hc-1")
    stub.client.ask(b"Z1,1005,1")
    assert stub.client.ask(b"c").startswith(b"T05thread:2;") or stub.target.calls[-1].count("continue") == 2


def test_a_range_is_stepped_through_without_a_word(stub: Stub) -> None:
    assert stub.client.ask(b"vCont;r1000,1005:1").startswith(b"T05thread:1;10:0510")
    assert stub.target.calls.count("resume {0: 'step'}") == 3


def test_ctrl_c_ends_a_range_that_does_not_end(stub: Stub) -> None:
    stub.client.send(b"vCont;r1000,1007:1")
    stub.client.interrupt()
    assert stub.client.receive().startswith(b"T02thread:1;")


def test_ctrl_c(stub: Stub) -> None:
    stub.client.interrupt()  # does nothing to a machine that stands still
    stub.client.send(b"vCont;c")
    stub.client.interrupt()
    assert stub.client.receive().startswith(b"T02thread:1;10:")
    assert not stub.target.running
    stub.client.send(b"c")
    assert stub.client.ask(b"vCtrlC") == b"OK"
    assert stub.client.receive().startswith(b"T02")


@pytest.mark.parametrize("packet", [b"g", b"m1000,1", b"Z1,1000,1", b"s", b"vCont;c", b"P0=0000000000000000", b"R"])
def test_a_machine_that_runs_is_busy(stub: Stub, packet: bytes) -> None:
    stub.client.send(b"c")
    assert stub.client.ask(packet) == b"E10"
    stub.client.interrupt()
    assert stub.client.receive().startswith(b"T02")


# Ends.


def test_the_guest_ends_the_machine(stub: Stub) -> None:
    stub.target.memory[CODE : CODE + 2] = UD2
    assert stub.client.ask(b"c") == b"W03"
    assert stub.client.ask(b"?") == b"W03"
    assert stub.client.ask(b"g") == b"E05"
    assert stub.client.ask(b"c") == b"W03"


def test_the_machine_ends_while_it_stands_still(stub: Stub) -> None:
    stub.client.ask(b"?")
    stub.target.end(4)
    assert stub.client.ask(b"qC") == b"QC1"
    assert stub.client.ask(b"?") == b"W04"
    assert stub.client.ask(b"vCont;c") == b"W04"


def test_a_crash_is_a_signal_with_words(stub: Stub) -> None:
    stub.target.crash = Stop(SIGNAL, 1, signal=11, text="triple fault at 0x1000")
    stub.client.send(b"c")
    assert bytes.fromhex(stub.client.receive()[1:].decode()) == b"pyvcpu: triple fault at 0x1000\n"
    assert stub.client.receive().startswith(b"T0bthread:2;10:")
    assert stub.client.ask(b"qC") == b"QC2"


def test_detach_and_attach_again(stub: Stub) -> None:
    stub.client.ask(b"Z1,1002,1")
    assert stub.client.ask(b"D") == b"OK"
    assert stub.target.calls[-1] == "detach True"
    until(lambda: stub.target.running)
    assert stub.target.breakpoints == {}
    assert stub.client.ask(b"g") == b"E05"
    assert stub.client.ask(b"vAttach;1").startswith(b"T02thread:1;")
    assert not stub.target.running
    stub.client.socket.close()
    stub.client = Client(stub.server.address)
    assert stub.client.ask(b"?").startswith(b"T02")
    assert not stub.target.running


def test_kill(stub: Stub) -> None:
    assert stub.client.ask(b"k") == b"X09"
    assert stub.client.ended()
    assert "kill" in stub.target.calls


def test_kill_of_a_process(stub: Stub) -> None:
    assert stub.client.ask(b"vKill;1") == b"OK"
    assert "kill" in stub.target.calls


def test_reset_has_no_reply(stub: Stub) -> None:
    stub.client.ask(b"P0=0100000000000000")
    stub.client.send(b"R00")
    assert stub.client.ask(b"p0") == b"0000000000000000"
    assert "reset" in stub.target.calls


def test_there_is_no_non_stop_mode(stub: Stub) -> None:
    assert stub.client.ask(b"QNonStop:1") == b"E5f"


def test_a_vcpu_that_is_unplugged_is_gone(stub: Stub) -> None:
    assert stub.client.ask(b"qfThreadInfo") == b"m1,2"
    stub.target.names.pop()
    assert stub.client.ask(b"qfThreadInfo") == b"m1"
    assert stub.client.ask(b"T2") == b"E03"


def test_threads_have_names(stub: Stub) -> None:
    stub.target.names[1] = "CPU <1> & more"
    document = stub.client.ask(b"qXfer:threads:read::0,ffff").decode()
    assert '<thread id="1" core="0" name="CPU 0/KVM"></thread>' in document
    assert 'name="CPU &lt;1&gt; &amp; more"' in document


# Monitor commands.

MONITOR = [
    ("", "monitor commands; numbers"),
    ("help", "monitor commands; numbers"),
    ("registers", "vCPU 0: 64-bit mode, cs:ip 0x0018:0x1000\n"),
    ("registers 1", "vCPU 1: 64-bit mode"),
    ("registers 2", "usage: there is no vCPU 2"),
    ("registers x", "usage: a number is decimal"),
    ("vcpus", "  0  CPU 0/KVM  64-bit mode at 0x1000\n  1  CPU 1/KVM"),
    ("walk 0x1234", "0x1234: 4-level\n  PML4 [  0] at"),
    ("translate 0x40000000", "0x40000000: 4-level\n  PML4"),
    ("walk", "usage: walk ADDRESS [VCPU]"),
    ("walk 0x1" + "0" * 40, "usage: a number is at most 64 bits"),
    ("walk -1", "usage: a number is at most 64 bits"),
    ("physical 0x1000 8", "0x000000001000  90 90 48 ff c0 eb f9 00                          ..H....."),
    ("physical 0x40000000", "error: there is no memory at 0x40000000"),
    ("physical", "usage: physical ADDRESS [LENGTH]"),
    ("memory", "0x000000000000-0x0000000fffff  ram\n0x0000ffff0000-0x0000ffffffff  rom\n"),
    ("breakpoints", "none is set"),
    ("reset", "the machine is reset; gdb does not know it yet"),
    ("system_reset", "the machine is reset; gdb does not know it yet"),
    ("exits", "vCPU 0: no exits\n"),
    ("nonsense \x00 \U0001f600", "there is no command 'nonsense'; `monitor help` lists them\n"),
]


@pytest.mark.parametrize(("line", "start"), MONITOR)
def test_monitor_commands(stub: Stub, line: str, start: str) -> None:
    text = stub.client.monitor(line)
    assert text.startswith(start)
    assert text.endswith("\n")


def test_help_lists_all_commands_with_the_machines_own(stub: Stub) -> None:
    from pyvcpu.gdb.monitor import COMMANDS

    lines = stub.client.monitor("help").splitlines()
    assert [line.split()[0].rstrip(":") for line in lines[1:]] == [*COMMANDS, "exits"]


def test_a_mistake_of_ours_costs_an_answer_and_no_more(stub: Stub) -> None:
    stub.client.send(b"qRcmd," + b"bug".hex().encode())
    assert stub.client.receive() == b"E05"
    assert stub.notices == ["gdb: b'qRcmd,627567': ZeroDivisionError: a mistake"]
    stub.notices.clear()
    assert stub.client.ask(b"qC") == b"QC1"


@pytest.mark.parametrize("method", ["read_registers", "interrupt", "detach"])
def test_a_mistake_of_the_machine_ends_nothing(stub: Stub, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.client.ask(b"?")

    def mistake(*arguments: object) -> object:
        stub.target._stop.set()
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(stub.target, method, mistake)
    stub.client.send(b"c")
    stub.client.interrupt()
    if method == "read_registers":
        stub.target.interrupt()
        assert stub.client.receive() == b"T02"
        monkeypatch.undo()
    else:
        assert stub.client.receive().startswith(b"T02thread:1;")
    assert stub.client.ask(b"D") == b"OK"
    assert stub.client.ask(b"qC") == b"QC1"
    assert stub.notices == ["gdb: ZeroDivisionError: a mistake"]
    stub.notices.clear()


# lldb's own.


def test_lldb_names_the_thread_in_requests(stub: Stub) -> None:
    ask = stub.client.ask
    stub.target.cpus[1]["rax"] = 5
    assert ask(b"QThreadSuffixSupported") == b"OK"
    assert ask(b"p0;thread:0002;") == b"0500000000000000"
    assert ask(b"p0;thread:0001;") == b"0000000000000000"
    assert ask(b"P0=0600000000000000;thread:2;") == b"OK"
    assert stub.target.cpus[1]["rax"] == 6
    assert ask(b"g;thread:2;").startswith(b"0600000000000000")
    assert ask(b"p0;thread:9;") == b"E03"


def test_lldb_gets_threads_and_reasons_in_stops(stub: Stub) -> None:
    ask = stub.client.ask
    ask(b"QThreadSuffixSupported")
    assert ask(b"QListThreadsInStopReply") == b"OK"
    ask(b"Z0,1002,1")
    ask(b"Z1,1002,1")
    assert ask(b"vCont;s:1").startswith(b"O")
    assert stub.client.receive().startswith(b"T05thread:1;threads:1,2;reason:trace;10:")
    assert ask(b"qThreadStopInfo1").startswith(b"T05thread:1;threads:1,2;reason:trace;")
    assert ask(b"qThreadStopInfo2").startswith(b"T00thread:2;threads:1,2;10:")
    assert json.loads(ask(b"jThreadsInfo")) == [
        {"tid": 1, "name": "CPU 0/KVM", "reason": "trace", "signal": 5},
        {"tid": 2, "name": "CPU 1/KVM"},
    ]


def test_lldb_asks_who_we_are(stub: Stub) -> None:
    triple = b"x86_64-unknown-unknown".hex().encode()
    assert stub.client.ask(b"qHostInfo").startswith(b"triple:" + triple + b";endian:little;ptrsize:8;")
    assert stub.client.ask(b"qProcessInfo") == b"pid:1;endian:little;triple:" + triple + b";ptrsize:8;"
    assert stub.client.ask(b"qGDBServerVersion") == b"name:pyvcpu;"
    assert stub.client.ask(b"qWatchpointSupportInfo:") == b"num:4;"
    assert stub.client.ask(b"_M1000,rwx") == b"E5f"


def test_lldb_reads_registers_one_by_one(stub: Stub) -> None:
    assert stub.client.ask(b"qRegisterInfo10") == (
        b"name:rip;bitsize:64;offset:128;encoding:uint;format:hex;set:General Purpose Registers;ehframe:16;dwarf:16;"
        b"generic:pc;"
    )
    assert b"encoding:vector;format:vector-uint8;set:Floating" in stub.client.ask(b"qRegisterInfo28")
    assert stub.client.ask(b"qRegisterInfofff") == b"E05"


def test_lldb_asks_for_regions(stub: Stub) -> None:
    assert stub.client.ask(b"qMemoryRegionInfo:201234") == b"start:200000;size:200000;permissions:rwx;"
    assert stub.client.ask(b"qMemoryRegionInfo:40000000") == b"start:40000000;size:40000000;"


# Acknowledgments.


def test_acknowledgments_and_what_is_sent_again() -> None:
    target = FakeTarget()
    with Server(target, "localhost:0") as server, connect(server.address) as client:
        client.sendall(b"+$qC#00$qC#b4--$T1#85")
        buffer = bytearray()
        expected = b"-+" + b"$QC1#c5" * 3 + b"+$OK#9a"
        while len(buffer) < len(expected):
            buffer += client.recv(100)
        assert buffer == expected
        client.sendall(b"-" * 100 + b"+--$QStartNoAckMode#b0")
        raw = b""
        while not raw.endswith(b"+$OK#9a"):
            raw += client.recv(1000)
        assert raw.count(b"$OK#9a") == 8 + 1  # sent again at most 8 times
        client.sendall(b"+$qC#00")
        raw = b""
        while not raw.endswith(b"#ac"):
            raw += client.recv(1000)
        assert take(bytearray(raw)) == b"E16"  # no acknowledgments, so a bad checksum is an error
    target.close()


def test_a_machine_that_has_ended_is_told_as_one() -> None:
    target, notices = FakeTarget(), list[str]()
    target.end(3)
    with Server(target, "localhost:0", notice=notices.append) as server, Client(server.address) as client:
        assert client.ask(b"?") == b"W00"
        assert client.ask(b"g") == b"E05"
    assert notices == ["gdb: the machine has ended"]


def test_a_stop_is_made_of_its_reason() -> None:
    assert Stop(EXITED, status=3).status == 3
    assert (Stop("paused").signal, Stop("stepped").signal) == (2, 5)
    assert issubclass(TargetError, RuntimeError)
