"""A debugger's side of the protocol, for tests: packets sent as given, replies taken apart."""

from __future__ import annotations

import socket

from pyvcpu.gdb.endpoint import Endpoint
from pyvcpu.gdb.packets import escape, expand, frame, unescape
from tests.threads import DEADLINE


def connect(address: Endpoint) -> socket.socket:
    """Connect to a server."""
    if address.path:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(DEADLINE)
        client.connect(address.path)
        return client
    return socket.create_connection((address.host, address.port), DEADLINE)


def take(buffer: bytearray) -> bytes | None:
    """Take the first packet out of what came, with the signs before it; None when there is no whole one."""
    start = buffer.find(b"$")
    end = buffer.find(b"#", start)
    if start < 0 or end < 0 or len(buffer) < end + 3:
        return None
    body = bytes(buffer[start + 1 : end])
    assert frame(body) == bytes(buffer[start : end + 3])
    del buffer[: end + 3]
    expanded = expand(body)
    assert expanded is not None, body
    payload = unescape(expanded)
    assert payload is not None, body
    return payload


class Client:
    """A connection without acknowledgments."""

    def __init__(self, address: Endpoint, features: bytes = b"swbreak+;hwbreak+") -> None:
        self.socket = connect(address)
        self.buffer = bytearray()
        assert self.ask(b"QStartNoAckMode") == b"OK"
        self.supported = self.ask(b"qSupported:" + features)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, payload: bytes) -> None:
        """Send a packet."""
        self.socket.sendall(frame(escape(payload)))

    def receive(self) -> bytes:
        """Return the next reply; fail when the connection ends."""
        while (payload := take(self.buffer)) is None:
            data = self.socket.recv(1 << 16)
            assert data, "the server closed the connection"
            self.buffer += data
        return payload

    def ask(self, payload: bytes) -> bytes:
        """Send a packet and return its reply."""
        self.send(payload)
        return self.receive()

    def monitor(self, line: str) -> str:
        """Do a monitor command and return its output."""
        self.send(b"qRcmd," + line.encode().hex().encode())
        text = ""
        while (reply := self.receive()) != b"OK":
            assert reply[:1] == b"O", reply
            text += bytes.fromhex(reply[1:].decode()).decode()
        return text

    def interrupt(self) -> None:
        """Send Ctrl-C."""
        self.socket.sendall(b"\x03")

    def ended(self) -> bool:
        """Wait for the server to close the connection; what comes before is dropped."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        return True
