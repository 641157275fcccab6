"""The bus: who gets an access, what happens where nobody does, and which claims are refused."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.bus import MMIO_SIZE, PORTS_SIZE, Bus, Region
from pyvcpu.errors import ConfigError, PyvcpuError


@pytest.fixture
def ports() -> Bus:
    return Bus("port", PORTS_SIZE)


class Recorder:
    """A device that records its accesses."""

    def __init__(self, name: str = "recorder") -> None:
        self.name = name
        self.accesses: list[tuple[Any, ...]] = []

    def read(self, offset: int, size: int) -> bytes:
        self.accesses.append(("read", offset, size))
        return bytes(range(offset, offset + size))

    def write(self, offset: int, data: bytes) -> None:
        self.accesses.append(("write", offset, data))


def test_handlers_get_initiator_offset_and_bytes(ports: Bus) -> None:
    seen: list[tuple[Any, ...]] = []

    def read(initiator: object, offset: int, size: int) -> bytes:
        seen.append((initiator, offset, size))
        return b"ab"[:size]

    region = ports.claim(
        0x500,
        4,
        read=read,
        write=lambda initiator, offset, data: seen.append((initiator, offset, data)),
        name="x",
    )
    assert ports.read("vcpu", 0x502, 2) == b"ab"
    ports.write(None, 0x503, b"\x01\x02")
    assert seen == [("vcpu", 2, 2), (None, 3, b"\x01\x02")]
    assert (region.start, region.length, region.name) == (0x500, 4, "x")
    assert repr(region) == "0x500-0x503 (x)"


def test_attached_device_is_called_without_the_initiator(ports: Bus) -> None:
    device = Recorder("COM9")
    assert ports.attach(0x2E8, 8, device).name == "COM9"
    assert ports.read("vcpu", 0x2EA, 2) == b"\x02\x03"
    ports.write("vcpu", 0x2E8, b"x")
    assert device.accesses == [("read", 2, 2), ("write", 0, b"x")]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_where_nothing_answers_reads_give_ones_and_writes_are_dropped(ports: Bus, size: int) -> None:
    ports.claim(0x10, 1, name="deaf and dumb")
    for address in (0x80, 0x10, PORTS_SIZE - 1, PORTS_SIZE, 1 << 60):
        assert ports.read(None, address, size) == b"\xff" * size
        ports.write(None, address, bytes(size))


def test_an_access_goes_to_the_region_of_its_first_byte(ports: Bus) -> None:
    first, second = Recorder("first"), Recorder("second")
    ports.attach(0x100, 2, first)
    ports.attach(0x102, 2, second)
    assert ports.read(None, 0x101, 4) == b"\x01\x02\x03\x04"
    ports.write(None, 0xFF, b"1234")
    assert (first.accesses, second.accesses) == ([("read", 1, 4)], [])


@pytest.mark.parametrize(
    ("value", "size", "expected"),
    [
        (0x1234, 2, b"\x34\x12"),
        (0x12, 4, b"\x12\x00\x00\x00"),
        (0x1234, 1, b"\x34"),
        (~0, 4, b"\xff\xff\xff\xff"),
        (-2, 1, b"\xfe"),
        (1 << 100 | 5, 8, b"\x05" + bytes(7)),
        (True, 1, b"\x01"),
        (b"ab", 2, b"ab"),
    ],
)
def test_what_a_read_handler_may_return(ports: Bus, value: bytes | int, size: int, expected: bytes) -> None:
    ports.claim(0x500, 8, read=lambda initiator, offset, size: value, name="x")
    assert ports.read(None, 0x500, size) == expected


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (b"abc", ValueError, r"0x500-0x507 \(x\) must return 2 bytes or an int, not 3 bytes"),
        (b"", ValueError, "not 0 bytes"),
        ("ab", TypeError, "must return 2 bytes or an int, not str"),
        (None, TypeError, "not NoneType; did it forget to return"),
        (1.0, TypeError, "not float"),
        (bytearray(2), TypeError, "not bytearray"),
    ],
)
def test_a_read_handler_that_returns_something_else_is_told(
    ports: Bus, value: Any, error: type[Exception], words: str
) -> None:
    ports.claim(0x500, 8, read=lambda initiator, offset, size: value, name="x")
    with pytest.raises(error, match=words) as raised:
        ports.read(None, 0x500, 2)
    assert not isinstance(raised.value, PyvcpuError)


def test_an_exception_of_a_handler_reaches_the_caller(ports: Bus) -> None:
    def fail(initiator: object, offset: int, data: bytes) -> None:
        raise RuntimeError("handler")

    ports.claim(0x500, 1, write=fail, name="x")
    with pytest.raises(RuntimeError, match="handler"):
        ports.write(None, 0x500, b"x")


@pytest.mark.parametrize("small", [8, 0x800])
def test_overlapping_claims_are_refused_and_change_nothing(ports: Bus, small: int) -> None:
    start, stop = 0x1000, 0x1000 + small
    owner = ports.claim(start, small, name="owner")
    overlaps = [
        (start, small),
        (start - 1, 2),
        (stop - 1, 2),
        (start + 1, 1),
        (start - 1, small + 2),
        (0, PORTS_SIZE),
    ]
    for overlapping, length in overlaps:
        with pytest.raises(ConfigError) as raised:
            ports.claim(overlapping, length, name="late")
        last = overlapping + length - 1
        assert f"port range {overlapping:#x}-{last:#x} (late) overlaps {owner!r}" in str(raised.value)
    assert {ports.lookup(address) for address in range(start, stop)} == {owner}
    assert ports.lookup(start - 1) is ports.lookup(stop) is None
    ports.claim(start - 1, 1, name="below")
    ports.claim(stop, 1, name="above")


@pytest.mark.parametrize(
    ("start", "length", "words"),
    [
        (0x10, 0, "must hold at least 1 address"),
        (0x10, -1, "must hold at least 1 address"),
        (-1, 2, "must lie within 0x0-0xffff"),
        (PORTS_SIZE, 1, "must lie within 0x0-0xffff"),
        (PORTS_SIZE - 1, 2, r"0xffff-0x10000 \(x\) must lie within 0x0-0xffff"),
    ],
)
def test_empty_and_outlying_claims_are_refused(ports: Bus, start: int, length: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ports.claim(start, length, name="x")
    assert ports.claim(0, PORTS_SIZE, name="all").length == PORTS_SIZE


def test_a_released_range_is_free_again(ports: Bus) -> None:
    region = ports.claim(0x60, 1, name="keyboard")
    ports.release(region)
    assert ports.lookup(0x60) is None
    ports.claim(0x60, 1, name="another")
    with pytest.raises(ConfigError, match=r"0x60-0x60 \(keyboard\) is not claimed; was it released before"):
        ports.release(region)


def test_mmio_reaches_to_the_last_physical_address() -> None:
    mmio = Bus("MMIO", MMIO_SIZE)
    high = mmio.claim(MMIO_SIZE - 0x1000, 0x1000, read=lambda initiator, offset, size: offset, name="high")
    low = mmio.claim(0xFEC0_0000, 0x1000, name="low")
    assert mmio.lookup(MMIO_SIZE - 1) is high
    assert mmio.read(None, MMIO_SIZE - 8, 8) == (0xFF8).to_bytes(8, "little")
    assert mmio.lookup(0xFEC0_0FFF) is low
    assert mmio.lookup(0xFEC0_1000) is mmio.lookup(0xFEBF_FFFF) is None


ranges = st.tuples(st.integers(0, 300), st.integers(1, 200))
claims = st.lists(st.tuples(st.booleans(), ranges), max_size=20)


@given(claims)
def test_lookup_agrees_with_a_search_through_all_claims(steps: list[tuple[bool, tuple[int, int]]]) -> None:
    """A model without tables: a list of the regions that were accepted."""
    bus = Bus("test", 400)
    accepted: list[Region] = []
    for release, (start, length) in steps:
        if release and accepted:
            bus.release(accepted.pop(start % len(accepted)))
            continue
        fits = start + length <= 400 and not any(
            start < region.stop and region.start < start + length for region in accepted
        )
        try:
            accepted.append(bus.claim(start, length, name=f"{start}"))
            assert fits
        except ConfigError:
            assert not fits
    for address in range(-1, 402):
        holders = [region for region in accepted if region.start <= address < region.stop]
        assert bus.lookup(address) is (holders[0] if holders else None)


@pytest.fixture
def restless() -> Iterator[None]:
    """Let the interpreter change threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.smp
@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("length", [4, 0x400])
def test_lookups_while_others_claim_and_release(ports: Bus, length: int) -> None:
    """Two threads claim and release around a region that a third looks up all the time."""
    steady = ports.claim(0x8000, length, read=lambda initiator, offset, size: 0x5A, name="steady")
    wrong: list[object] = []
    done = threading.Event()

    def churn(base: int) -> None:
        for _ in range(200):
            held = [ports.claim(base + n * length, length, name="churn") for n in range(4)]
            for region in held:
                ports.release(region)

    def look() -> None:
        while not done.is_set():
            if ports.read(None, 0x8001, 1) != b"\x5a":
                wrong.append(ports.lookup(0x8001))
            neighbour = ports.lookup(0x8000 + length)
            if neighbour is not None and neighbour.name != "churn":
                wrong.append(neighbour)

    churners = [threading.Thread(target=churn, args=(base,)) for base in (0x8000 + length, 0x8000 - 4 * length)]
    looker = threading.Thread(target=look)
    for thread in (looker, *churners):
        thread.start()
    for thread in churners:
        thread.join()
    done.set()
    looker.join()
    assert wrong == []
    assert ports.lookup(0x8000) is steady
    assert ports.lookup(0x8000 + length) is ports.lookup(0x8000 - 1) is None
