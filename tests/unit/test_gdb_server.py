"""The server: who may come, how connections end, and that neither breaks the machine or leaves something behind."""

from __future__ import annotations

import os
import random
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pyvcpu.errors import ConfigError
from pyvcpu.gdb import server as server_module
from pyvcpu.gdb.commands import COMMANDS
from pyvcpu.gdb.endpoint import Endpoint, listen, parse
from pyvcpu.gdb.packets import escape, frame
from pyvcpu.gdb.server import Server
from tests.gdb_client import Client, connect
from tests.gdb_target import FakeTarget, long_registers
from tests.threads import DEADLINE, until

CONNECTIONS, FUZZED_PACKETS = 1000, 20_000


@pytest.fixture
def target() -> Iterator[FakeTarget]:
    target = FakeTarget()
    yield target
    target.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# Endpoints.


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("localhost:1234", "localhost:1234"),
        (":1234", "localhost:1234"),
        ("tcp::1234", "localhost:1234"),
        ("tcp:127.0.0.1:0", "127.0.0.1:0"),
        ("[::1]:1234", "[::1]:1234"),
        ("tcp::1234,server=on,wait=off", "localhost:1234"),
        ("unix:/tmp/x", "unix:/tmp/x"),
        ("unix:x,server", "unix:x"),
    ],
)
def test_addresses(text: str, shown: str) -> None:
    assert str(parse(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "1234", "localhost", "localhost:", ":x", ":65536", ":-1", ":\uff11", "unix:", "unix:a\0b"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="--gdb takes HOST:PORT or unix:PATH"):
        parse(text)


def test_only_this_host_may_come() -> None:
    with pytest.raises(
        ConfigError, match=r"only this host may debug a machine: listen at localhost:1234, not 0\.0\.0\.0:"
    ):
        listen(parse("0.0.0.0:1234"))
    listener = listen(Endpoint("0.0.0.0", 0), anyone=True)
    assert listener.getsockname()[0] == "0.0.0.0"
    listener.close()


def test_what_cannot_be_listened_at(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="Address already in use"):
        listen(Endpoint("127.0.0.1", taken.getsockname()[1]))
    with pytest.raises(ConfigError, match=r"cannot listen for a debugger at nobody\.invalid:1"):
        listen(Endpoint("nobody.invalid", 1))
    with pytest.raises(ConfigError, match="path too long"):
        listen(Endpoint(path="x" * 200))
    with pytest.raises(ConfigError, match="No such file"):
        listen(Endpoint(path=str(tmp_path / "none" / "socket")))
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="Address already in use"):
        listen(Endpoint(path=str(file)))
    assert file.read_text(encoding="utf-8") == "mine"


def test_a_path_is_its_owners_alone_and_is_removed(tmp_path: Path, target: FakeTarget) -> None:
    path = tmp_path / "gdb"
    with Server(target, f"unix:{path}") as server:
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        with Client(server.address) as client:
            assert client.ask(b"qC") == b"QC1"
        with pytest.raises(ConfigError, match="Address already in use"):
            listen(server.address)
    assert not path.exists()


def test_a_path_that_nobody_listens_at_is_taken_over(tmp_path: Path, target: FakeTarget) -> None:
    path = tmp_path / "gdb"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Server(target, f"unix:{path}"):
        path.unlink()
        path.write_text("another's", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "another's"


# Connections.


def test_one_client_at_a_time(target: FakeTarget) -> None:
    notices: list[str] = []
    with Server(target, "localhost:0", notice=notices.append) as server, Client(server.address) as client:
        with connect(server.address) as second:
            assert second.recv(1) == b""
        assert client.ask(b"qC") == b"QC1"
        client.socket.close()
        with Client(server.address) as third:  # the place is free at once
            assert third.ask(b"qC") == b"QC1"
    assert notices == ["gdb: a second debugger was turned away; one is connected"]


def test_a_browser_is_turned_away_unheard(target: FakeTarget) -> None:
    with Server(target, "localhost:0") as server, connect(server.address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n$k#6b")
        with suppress(ConnectionResetError):  # part of what was sent lies unread
            assert client.recv(1) == b""
    assert target.calls == []


def test_who_only_connects_does_not_stop_the_machine(target: FakeTarget) -> None:
    target.start()
    with Server(target, "localhost:0") as server:
        with connect(server.address) as client:
            client.sendall(b"+")
        with Client(server.address):
            pass
    assert target.calls == ["attach", "detach True"]
    assert target.running


def test_a_broken_connection_lets_a_machine_run_on(target: FakeTarget) -> None:
    target.start()
    with Server(target, "localhost:0") as server, Client(server.address) as client:
        client.ask(b"Z1,1002,1")
        assert not target.running
        client.socket.sendall(b"$m10")
        client.socket.close()
        until(lambda: target.calls[-1] == "detach True" and target.running)
        assert target.breakpoints == {}


def test_a_machine_that_waits_for_a_debugger_goes_on_waiting(target: FakeTarget) -> None:
    with Server(target, "localhost:0") as server:
        with Client(server.address) as client:
            client.ask(b"m1000,1")
        until(lambda: target.calls[-1] == "detach False")
        assert not target.running
        with Client(server.address) as client:
            assert client.ask(b"s").startswith(b"T05")
        until(lambda: target.calls[-1] == "detach True")


def test_close_ends_a_connection_and_lets_go_of_the_machine(target: FakeTarget) -> None:
    target.start()
    server = Server(target, "localhost:0")
    with Client(server.address) as client:
        client.send(b"c")
        server.close()
        assert client.ended()
    assert target.calls[-1] == "detach True"
    server.close()


def test_a_machine_that_does_not_stand_still(target: FakeTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "STOP_SECONDS", 0.05)
    target.start()
    target.stands_still_late = True
    notices: list[str] = []
    with Server(target, "localhost:0", notice=notices.append) as server, connect(server.address) as client:
        client.sendall(frame(b"?"))
        assert client.recv(100) == b""
        target.stands_still_late = False
        with Client(server.address) as again:
            assert again.ask(b"?").startswith(b"T02")
    assert notices == ["gdb: the machine did not stand still within 0 s; the debugger is turned away"]


def test_a_client_that_does_not_read_takes_no_memory_and_holds_up_nobody(target: FakeTarget) -> None:
    with Server(target, "localhost:0") as server:
        with connect(server.address) as client:
            client.setblocking(False)
            requests = (frame(b"qXfer:features:read:target.xml:0,ffff") + frame(b"g")) * 1000
            end = time.monotonic() + DEADLINE
            quiet = 0
            while quiet < 20 and time.monotonic() < end:  # until both ways are full
                try:
                    client.send(requests)
                    quiet = 0
                except BlockingIOError:
                    quiet += 1
                    time.sleep(0.01)
            assert quiet == 20
            session = server._session
            assert session is not None
            assert 0 < len(session.out) < 0x80000
        until(lambda: server._client is None)
        with Client(server.address) as after:
            assert after.ask(b"qC") == b"QC1"


def test_a_thousand_connections_leave_nothing_behind(target: FakeTarget) -> None:
    """In the middle of a packet, of a step, of a run; with and without a word; the guest goes on."""
    chance = random.Random(1)
    parts = [b"", b"+", b"$", b"$m1000,4", b"$m1000,4#", b"$m1000,4#8", frame(b"?"), frame(b"c"), frame(b"Z1,1002,1")]
    parts += [
        frame(b"?") + frame(b"vCont;c") + b"\x03",
        frame(b"D"),
        frame(b"g") * 3,
        b"\x03",
        b"GET / HTTP/1.0\r\n\r\n",
    ]
    target.start()
    with Server(target, "localhost:0") as server:
        files, threads = open_files(), threading.active_count()
        for number in range(CONNECTIONS):
            with connect(server.address) as client, suppress(OSError):  # some are turned away
                client.sendall(b"".join(chance.choices(parts, k=chance.randrange(3))))
                if number % 2:  # this one waits for its turn
                    client.shutdown(socket.SHUT_WR)
                    drain(client)
        until(lambda: server._client is None and target.running and target.breakpoints == {})
        with Client(server.address) as client:
            assert client.ask(b"qC").startswith(b"QC")
        until(lambda: server._client is None and target.running)
        assert (open_files(), threading.active_count()) == (files, threads)
        counted = target.cpus[0]["rax"]
        until(lambda: target.cpus[0]["rax"] > counted, "the guest stands still")
    assert not [thread for thread in threading.enumerate() if thread.name == "gdb"]


# Fuzzing.

HARMLESS = [name for name in COMMANDS if name not in (b"k", b"vKill", b"D", b"R", b"X", b"M", b"G", b"P", b"qRcmd")]
WORDS = [
    b"0",
    b"1",
    b"ffffffffffffffff",
    b"1000",
    b",",
    b":",
    b";",
    b"=",
    b"-1",
    b"p1.1",
    b"target.xml",
    b"read",
    b"\0",
]


def fuzzed(chance: random.Random) -> bytes:
    """Return one packet, or what was one: names that are known and those that are not, arguments that may fit."""
    kind = chance.random()
    if kind < 0.1:
        payload = chance.randbytes(chance.randrange(40)).lstrip(b"kDRXMGP")
    else:
        parts = chance.choices(WORDS, k=chance.randrange(6))
        payload = chance.choice(HARMLESS) + chance.choice([b"", b":", b",", b";"]) + b"".join(parts)
    packet = bytearray(frame(escape(payload)))
    if chance.random() < 0.15:
        packet[chance.randrange(len(packet))] = chance.randrange(256)
    if chance.random() < 0.05:
        del packet[chance.randrange(len(packet)) :]
    return bytes(packet)


def never_writes(payload: bytes) -> bool:
    return payload[:1] not in b"kDRXMGPcCsS" and not payload.startswith((b"vKill", b"qRcmd", b"vCont;"))


@pytest.mark.parametrize("seed", range(4))
def test_fuzzed_packets_break_nothing(target: FakeTarget, seed: int) -> None:
    chance = random.Random(seed)
    notices: list[str] = []
    memory = bytes(target.memory)
    with Server(target, "localhost:0", notice=notices.append) as server:
        for _ in range(20):
            with connect(server.address) as client:
                client.sendall(b"+")
                reader = threading.Thread(target=drain, args=(client,))
                reader.start()
                for _ in range(FUZZED_PACKETS // 80):
                    client.sendall(fuzzed(chance))
                client.shutdown(socket.SHUT_WR)
                reader.join(DEADLINE)
                assert not reader.is_alive()
        until(lambda: server._client is None)
        with Client(server.address) as client:
            assert client.ask(b"qC").startswith(b"QC")
            assert client.ask(b"Hg1") == b"OK"
            assert client.ask(b"P10=0010000000000000") == b"OK"
            counted = target.cpus[0]["rax"]
            assert client.ask(b"D") == b"OK"
            until(lambda: target.cpus[0]["rax"] > counted, "the guest stands still")
    assert notices == []
    assert bytes(target.memory) == memory
    assert target.breakpoints == {}


def drain(client: socket.socket) -> None:
    with suppress(OSError):
        while client.recv(1 << 16):
            pass


def test_fuzzed_requests_that_only_ask_change_nothing(target: FakeTarget) -> None:
    chance = random.Random(5)
    memory = bytes(target.memory)
    with Server(target, "localhost:0") as server, Client(server.address) as client:
        for name in [name for name in HARMLESS if never_writes(name)]:
            for _ in range(100):
                payload = name + b"".join(chance.choices(WORDS, k=chance.randrange(6)))
                if never_writes(payload) and payload[:1] not in b"zZ":
                    client.ask(payload)
        assert target.cpus == [long_registers()] * 2
        assert bytes(target.memory) == memory
        assert target.calls == ["attach"]
