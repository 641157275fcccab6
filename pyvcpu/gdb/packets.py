"""Packets of the GDB remote serial protocol: framing, checksums, escapes and run-length encoding. Pure.

GDB manual, appendix E.1 (Overview) and E.12 (Packet Acknowledgment).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    Event = tuple[str, bytes]

PACKET_SIZE = 0x10000  # data characters of a packet, either way: what qSupported's PacketSize says

START, END, ESCAPE, REPEAT, INTERRUPT = b"$", b"#", b"}", b"*", 3
FLIP = 0x20  # what an escaped byte is XORed with
REPEAT_BIAS, SHORTEST_RUN, LONGEST_RUN = 29, 3, 97  # a count is a printable character, at most '~'
HEX_DIGITS = b"0123456789abcdefABCDEF"

# Kinds of what a client sends.
PACKET = "packet"  # a good one; its payload without escapes
DAMAGED = "damaged"  # the checksum is another, or is none
MALFORMED = "malformed"  # an escape with nothing behind it
TOO_LONG = "too long"
BREAK = "break"  # Ctrl-C: a byte of 3 outside of packets
ACK, NACK = "ack", "nack"
SIGNS = {ord("+"): ACK, ord("-"): NACK, INTERRUPT: BREAK}


def checksum(body: bytes) -> int:
    """Return the sum of `body` modulo 256, as a frame carries it."""
    return sum(body) & 0xFF


def escape(payload: bytes) -> bytes:
    """Put an escape before each byte that has a meaning of its own in a frame, and flip its bit 5."""
    for special in (ESCAPE, START, END, REPEAT):  # the escape itself first
        if special in payload:
            payload = payload.replace(special, ESCAPE + bytes([special[0] ^ FLIP]))
    return payload


def unescape(body: bytes) -> bytes | None:
    """Undo escape(); None when nothing follows the last escape."""
    parts, start = [], 0
    while (at := body.find(ESCAPE, start)) >= 0:
        if at + 1 == len(body):
            return None
        parts += [body[start:at], bytes([body[at + 1] ^ FLIP])]
        start = at + 2
    return b"".join([*parts, body[start:]])


def frame(body: bytes) -> bytes:
    """Return the packet whose escaped and perhaps shortened content is `body`."""
    return b"$%b#%02x" % (body, checksum(body))


class Encoder:
    """Makes packets of replies, with their runs shortened."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        import re  # slow to import, and a debugger is the exception

        # An escape and its byte stay together, and a run begins behind them: clients differ in what they undo first.
        self._runs = re.compile(rb"\}.|(.)\1{%d,%d}" % (SHORTEST_RUN, LONGEST_RUN), re.DOTALL)

    def encode(self, payload: bytes) -> bytes:
        """Return the packet for `payload`."""

        def shorten(match: object) -> bytes:
            found: bytes = match[0]  # type: ignore[index]  # re.Match is not imported
            return found if found[:1] == ESCAPE else _run(found)

        return frame(self._runs.sub(shorten, escape(payload)))


def _run(run: bytes) -> bytes:
    repeats = len(run) - 1
    if repeats + REPEAT_BIAS in b"#$":  # counts that would end the packet, or start one
        return run[:1] + REPEAT + b'"' + run[: repeats - 5]
    return run[:1] + REPEAT + bytes([repeats + REPEAT_BIAS])


def expand(body: bytes) -> bytes | None:
    """Undo the run-length encoding of a reply; None when it has none to repeat, or a count that cannot be.

    Requests have no runs: in them '*' is a byte like others.
    """
    parts, start = bytearray(), 0
    while (at := body.find(REPEAT, start)) >= 0:
        parts += body[start:at]
        count = body[at + 1] - REPEAT_BIAS if at + 1 < len(body) else 0
        if not parts or not SHORTEST_RUN <= count <= LONGEST_RUN:
            return None
        parts += parts[-1:] * count
        start = at + 2
    return bytes(parts + body[start:])


class Parser:
    """Finds packets in a stream of bytes that come in any pieces, and survives whatever they are.

    Never holds more than PACKET_SIZE bytes. What is between packets and is no sign is skipped.
    """

    __slots__ = ("_body", "_inside", "_tail", "_too_long", "junk")

    def __init__(self) -> None:
        self._inside = self._too_long = False
        self._body = bytearray()
        self._tail: bytes | None = None  # the characters behind '#' that have come
        self.junk = 0  # bytes that were skipped

    def feed(self, data: bytes) -> list[Event]:
        """Take what came; return (kind, payload) of what is complete by it."""
        events: list[Event] = []
        at = 0
        while at < len(data):
            if self._tail is not None:
                at = self._checksum(data, at, events)
            elif self._inside:
                at = self._content(data, at)
            else:
                at = self._between(data, at, events)
        return events

    def _between(self, data: bytes, at: int, events: list[Event]) -> int:
        sign = data[at]
        if sign == START[0]:
            self._begin()
        elif sign in SIGNS:
            events.append((SIGNS[sign], b""))
        else:
            self.junk += 1
        return at + 1

    def _begin(self) -> None:
        self._inside, self._too_long = True, False
        self._body.clear()

    def _content(self, data: bytes, at: int) -> int:
        end = data.find(END, at)
        stop = end if end >= 0 else len(data)
        again = data.rfind(START, at, stop)
        if again >= 0:  # no content has a bare '$': the packet before it was cut off
            self._begin()
            at = again + 1
        if len(self._body) + stop - at > PACKET_SIZE:
            self._too_long = True
            self._body.clear()
        if not self._too_long:
            self._body += data[at:stop]
        if end < 0:
            return stop
        self._tail = b""
        return end + 1

    def _checksum(self, data: bytes, at: int, events: list[Event]) -> int:
        assert self._tail is not None
        if data[at] == START[0]:  # cut off just here
            events.append((DAMAGED, b""))
            self._tail = None
            self._begin()
            return at + 1
        self._tail += data[at : at + 1]
        if len(self._tail) == 2:
            events.append(self._finished(self._tail))
            self._inside, self._tail = False, None
            self._body.clear()
        return at + 1

    def _finished(self, tail: bytes) -> Event:
        if self._too_long:
            return TOO_LONG, b""
        body = bytes(self._body)
        if any(digit not in HEX_DIGITS for digit in tail) or int(tail, 16) != checksum(body):
            return DAMAGED, b""
        payload = unescape(body)
        return (MALFORMED, b"") if payload is None else (PACKET, payload)
