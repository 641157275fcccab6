"""Packets of the remote protocol: what is framed is found again, and no bytes break the parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.gdb import packets as p

# Bytes that mean something come often.
PAYLOADS = st.lists(st.one_of(st.sampled_from(b"000000000}*#$\x03ab"), st.integers(0, 255)), max_size=300).map(bytes)


def feed_in_pieces(data: bytes, cuts: list[int]) -> list[tuple[str, bytes]]:
    parser, events, at = p.Parser(), list[tuple[str, bytes]](), 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        events += parser.feed(data[at:cut])
        at = cut
    return events


@given(PAYLOADS)
def test_escapes_are_undone(payload: bytes) -> None:
    body = p.escape(payload)
    assert p.unescape(body) == payload
    assert not set(body) & set(b"#$*")


@given(PAYLOADS)
def test_a_reply_is_what_a_client_reads(payload: bytes) -> None:
    packet = p.Encoder().encode(payload)
    assert packet[:1] == b"$"
    assert packet[-3:] == b"#%02x" % p.checksum(packet[1:-3])
    body = packet[1:-3]
    assert b"#" not in body
    assert b"$" not in body
    expanded = p.expand(body)
    assert expanded is not None
    assert p.unescape(expanded) == payload


@pytest.mark.parametrize(
    ("payload", "body"),
    [
        (b"000", b"000"),
        (b"0000", b"0* "),
        (b"0" * 6, b'0*"'),
        (b"0" * 7, b'0*"0'),  # a count of 6 would be '#'
        (b"0" * 8, b'0*"00'),  # and of 7 '$'
        (b"0" * 9, b"0*%"),
        (b"0" * 98, b"0*~"),
        (b"0" * 99, b"0*~0"),
        (b"}", b"}]"),
        (b"}]]]]", b"}]]* "),  # the escape and its byte stay out of the run
    ],
)
def test_runs(payload: bytes, body: bytes) -> None:
    assert p.Encoder().encode(payload) == p.frame(body)


@pytest.mark.parametrize("body", [b"*", b"*~", b"0*", b"0*\x1f", b"0*\x7f", b"}"])
def test_what_cannot_be_undone(body: bytes) -> None:
    assert p.expand(body) is None or p.unescape(body) is None


@given(st.lists(PAYLOADS, max_size=8), st.lists(st.integers(0, 5000), max_size=8))
def test_packets_are_found_however_they_come(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(p.frame(p.escape(payload)) for payload in payloads)
    assert feed_in_pieces(stream, cuts) == [(p.PACKET, payload) for payload in payloads]


@given(st.binary(max_size=500), st.lists(st.integers(0, 500), max_size=8), PAYLOADS)
def test_noise_is_survived(noise: bytes, cuts: list[int], payload: bytes) -> None:
    whole = noise + p.frame(p.escape(payload)) + p.frame(p.escape(payload))
    events = feed_in_pieces(whole, cuts)
    assert events == p.Parser().feed(whole)
    assert events[-1] == (p.PACKET, payload)  # the noise may have eaten the first


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"+-\x03", [(p.ACK, b""), (p.NACK, b""), (p.BREAK, b"")]),
        (b"noise$g#67", [(p.PACKET, b"g")]),
        (b"$g#68", [(p.DAMAGED, b"")]),
        (b"$g#zz", [(p.DAMAGED, b"")]),
        (b"$g#6$g#67", [(p.DAMAGED, b""), (p.PACKET, b"g")]),
        (b"$cut$g#67", [(p.PACKET, b"g")]),
        (b"$\x03#03", [(p.PACKET, b"\x03")]),
        (b"$g}#e4", [(p.MALFORMED, b"")]),
        (b"$#00", [(p.PACKET, b"")]),
        (b"$X*#82", [(p.PACKET, b"X*")]),  # no runs in requests
    ],
)
def test_what_is_found(stream: bytes, events: list[tuple[str, bytes]]) -> None:
    assert p.Parser().feed(stream) == events


def test_the_longest_packet_and_longer_ones() -> None:
    longest = b"m" * p.PACKET_SIZE
    parser = p.Parser()
    assert parser.feed(p.frame(longest)) == [(p.PACKET, longest)]
    assert parser.feed(p.frame(longest + b"m")) == [(p.TOO_LONG, b"")]
    assert parser.feed(p.frame(b"g")) == [(p.PACKET, b"g")]


def test_a_packet_without_end_takes_no_memory() -> None:
    parser = p.Parser()
    parser.feed(b"$")
    for _ in range(100):
        assert parser.feed(b"m" * 0x8000) == []
        assert len(parser._body) <= p.PACKET_SIZE
    assert parser.feed(b"#00$g#67") == [(p.TOO_LONG, b""), (p.PACKET, b"g")]


def test_junk_is_counted() -> None:
    parser = p.Parser()
    parser.feed(b"abc+$g#67de")
    assert parser.junk == 5
