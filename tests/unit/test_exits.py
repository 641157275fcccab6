"""Decoding: pages laid out by hand as linux/kvm.h says, against the values that come of them."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu import exits
from pyvcpu.exits import (
    Debug,
    ExitEvent,
    FailEntry,
    Halt,
    InternalFailure,
    IrqWindowOpen,
    MmioRead,
    MmioWrite,
    Msr,
    Other,
    PortIn,
    PortOut,
    Shutdown,
    System,
    decode,
    describe,
)

PAGE = 4096
DATA = PAGE  # where this kernel puts the data of port I/O
REASON, UNION = 8, 32  # offsets in struct kvm_run
KNOWN = frozenset({0, 2, 4, 5, 6, 7, 8, 9, 17, 24, 29, 30})  # the reasons that decode to a kind of their own

u8, u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
sizes = st.sampled_from([1, 2, 4])


def page(reason: int, union: bytes = b"", data: bytes = b"", filler: int = 0xEE) -> bytes:
    """Return a vCPU's mapping, full of rubbish wherever this exit says nothing."""
    raw = bytearray([filler]) * (3 * PAGE)
    struct.pack_into("<I", raw, REASON, reason)
    raw[UNION : UNION + len(union)] = union
    raw[DATA : DATA + len(data)] = data
    return bytes(raw)


def io(out: int, size: int, port: int, count: int) -> bytes:
    return struct.pack("<BBHIQ", out, size, port, count, DATA)


def mmio(address: int, data: bytes, length: int, write: int) -> bytes:
    return struct.pack("<Q8sIB", address, data, length, write)


@given(u16, sizes, st.integers(1, 1024))
def test_port_in(port: int, size: int, count: int) -> None:
    assert decode(page(2, io(0, size, port, count))) == PortIn(port, size, count)


@given(u16, sizes, st.data())
def test_port_out(port: int, size: int, data: st.DataObject) -> None:
    sent = data.draw(st.lists(st.binary(min_size=size, max_size=size), min_size=1, max_size=64).map(b"".join))
    assert decode(page(2, io(1, size, port, len(sent) // size), sent)) == PortOut(port, sent, size)


@given(u64, st.integers(1, 8))
def test_mmio_read(address: int, length: int) -> None:
    assert decode(page(6, mmio(address, bytes(8), length, 0))) == MmioRead(address, length)


@given(u64, st.binary(min_size=1, max_size=8))
def test_mmio_write(address: int, data: bytes) -> None:
    assert decode(page(6, mmio(address, data, len(data), 1))) == MmioWrite(address, data)


@given(u64, u32)
def test_fail_entry(hardware_reason: int, cpu: int) -> None:
    assert decode(page(9, struct.pack("<QI", hardware_reason, cpu))) == FailEntry(hardware_reason, cpu)


@given(u32, st.lists(u64, max_size=16))
def test_internal_failure(suberror: int, data: list[int]) -> None:
    if suberror == 1 and len(data) >= 3:
        data[0] &= ~1  # flags: no instruction bytes
    union = struct.pack(f"<II{len(data)}Q", suberror, len(data), *data)
    assert decode(page(17, union)) == InternalFailure(suberror, tuple(data))


@given(st.binary(min_size=1, max_size=15))
def test_emulation_failure_with_its_instruction(instruction: bytes) -> None:
    told = struct.pack("<QB15s", 1, len(instruction), instruction)
    data = struct.unpack("<3Q", told)
    assert decode(page(17, struct.pack("<II", 1, 3) + told)) == InternalFailure(1, data, instruction)


@given(st.integers(16, (1 << 32) - 1), st.lists(u64, min_size=16, max_size=16))
def test_more_data_than_the_structure_holds(ndata: int, data: list[int]) -> None:
    union = struct.pack("<II16Q", 4, ndata, *data)
    assert decode(page(17, union)) == InternalFailure(4, tuple(data))
    union = struct.pack("<II16Q", 3, ndata, *data)
    assert decode(page(24, union)) == System(3, tuple(data))


@given(u32, u64, u64, u64)
def test_debug(exception: int, pc: int, dr6: int, dr7: int) -> None:
    assert decode(page(4, struct.pack("<IIQQQ", exception, 0, pc, dr6, dr7))) == Debug(exception, pc, dr6, dr7)


@given(u32, st.lists(u64, max_size=16))
def test_system_event(event: int, data: list[int]) -> None:
    union = struct.pack(f"<II{len(data)}Q", event, len(data), *data)
    assert decode(page(24, union)) == System(event, tuple(data))


@given(st.booleans(), u32, u32, u64)
def test_msr(write: bool, why: int, index: int, data: int) -> None:
    union = struct.pack("<B7xIIQ", 0, why, index, data)
    assert decode(page(30 if write else 29, union)) == Msr(index, write, data, why)


@given(u64)
def test_unknown_to_kvm_itself(hardware_reason: int) -> None:
    assert decode(page(0, struct.pack("<Q", hardware_reason))) == Other(0, hardware_reason)


@pytest.mark.parametrize(("reason", "event"), [(5, Halt()), (7, IrqWindowOpen()), (8, Shutdown())])
@pytest.mark.parametrize("filler", [0, 0xFF])
def test_exits_without_details(reason: int, event: ExitEvent, filler: int) -> None:
    assert decode(page(reason, filler=filler)) == event


@given(u32.filter(lambda reason: reason not in KNOWN), st.binary(max_size=256))
def test_any_other_reason(reason: int, union: bytes) -> None:
    assert decode(page(reason, union)) == Other(reason)


@given(u32, st.binary(max_size=256))
def test_no_page_makes_it_raise(reason: int, union: bytes) -> None:
    if reason == 2:  # only here the kernel must be trusted: with the place of the data
        union = io(1, 1, 0, 1)
    event = decode(page(reason, union))
    assert describe(event)
    assert repr(event).startswith(type(event).__name__)


def test_decoding_reads_a_mapping_and_leaves_it_alone() -> None:
    mapping = mmap.mmap(-1, 3 * PAGE)
    mapping[:] = before = page(2, io(1, 1, 0xE9, 2), b"hi")
    assert decode(mapping) == PortOut(0xE9, b"hi")
    assert mapping[:] == before
    mapping.close()  # raises while something points into it


# One value of each kind, how it is shown, and what must be in its line for people.
SAMPLES: list[tuple[Callable[[], ExitEvent], str, list[str]]] = [
    (lambda: PortIn(0x60), "PortIn(port=0x60, size=1, count=1)", ["0x60"]),
    (lambda: PortOut(0xE9, b"A"), "PortOut(port=0xe9, data=b'A', size=1)", ["0xe9", "b'A'"]),
    (lambda: MmioRead(0xD0000000, 8), "MmioRead(address=0xd0000000, size=8)", ["0xd0000000"]),
    (lambda: MmioWrite(0xD0000000, b"x"), "MmioWrite(address=0xd0000000, data=b'x')", ["0xd0000000"]),
    (Halt, "Halt()", ["Halt"]),
    (Shutdown, "Shutdown()", ["triple fault", "KVM_EXIT_SHUTDOWN"]),
    (IrqWindowOpen, "IrqWindowOpen()", ["IrqWindowOpen"]),
    (
        lambda: FailEntry(0x80000021, 1),
        "FailEntry(hardware_reason=0x80000021, cpu=1)",
        ["0x80000021", "CPU 1", "KVM_EXIT_FAIL_ENTRY"],
    ),
    (
        lambda: InternalFailure(1, (1, 2, 3), b"\x0f\x0b"),
        "InternalFailure(suberror=1, data=(1, 2, 3), instruction=b'\\x0f\\x0b')",
        ["emulate", "suberror 1", "EMULATION", "0f 0b", "KVM_EXIT_INTERNAL_ERROR"],
    ),
    (
        lambda: InternalFailure(3, (0x80000B0E, 0x10)),
        "InternalFailure(suberror=3, data=(2147486478, 16), instruction=b'')",
        ["suberror 3", "DELIVERY_EV", "0x80000b0e 0x10"],
    ),
    (lambda: InternalFailure(99), "InternalFailure(suberror=0x63, data=(), instruction=b'')", ["suberror 99"]),
    (
        lambda: Debug(1, 0x1000, 0xFFFF4FF0, 0x400),
        "Debug(exception=1, pc=0x1000, dr6=0xffff4ff0, dr7=0x400)",
        ["0x1000"],
    ),
    (lambda: System(3), "System(event=3, data=())", ["system event 3", "CRASH", "KVM_EXIT_SYSTEM_EVENT"]),
    (lambda: Msr(0x10, True, 5, 2), "Msr(index=0x10, write=True, data=5, why=2)", ["0x10"]),
    (lambda: Other(34), "Other(code=0x22, hardware_reason=0)", ["exit reason 34", "XEN"]),
    (lambda: Other(0, 0x1234), "Other(code=0, hardware_reason=0x1234)", ["exit reason 0", "0x1234"]),
    (lambda: Other(4711), "Other(code=0x1267, hardware_reason=0)", ["exit reason 4711", "unknown"]),
]
IDS = [shown for _, shown, _ in SAMPLES]


@pytest.mark.parametrize(("make", "shown", "parts"), SAMPLES, ids=IDS)
def test_how_it_is_shown(make: Callable[[], ExitEvent], shown: str, parts: list[str]) -> None:
    assert repr(make()) == shown
    line = describe(make())
    assert "\n" not in line
    assert [part for part in parts if part not in line] == []


@pytest.mark.parametrize("i", range(len(SAMPLES)), ids=IDS)
def test_equal_to_itself_and_to_no_other(i: int) -> None:
    made = [make() for make, _, _ in SAMPLES]
    again = SAMPLES[i][0]()
    assert [event == again for event in made] == [j == i for j in range(len(made))]
    assert hash(made[i]) == hash(again)
    assert again != repr(again)
    with pytest.raises(AttributeError):
        again.adress = 5  # type: ignore[attr-defined]  # a misspelt name must not pass


def test_every_kind_has_a_sample() -> None:
    kinds = {value for value in vars(exits).values() if isinstance(value, type) and issubclass(value, ExitEvent)}
    assert {type(make()) for make, _, _ in SAMPLES} == kinds - {ExitEvent}


@pytest.mark.parametrize(
    ("event", "found"),
    [
        (PortOut(0xE9, b"A"), (0xE9, b"A", 1)),
        (MmioRead(0x1000, 4), (0x1000, 4)),
        (Msr(0x10, False, 0, 2), (0x10, False, 0, 2)),
    ],
)
def test_fields_match_by_position(event: ExitEvent, found: tuple[Any, ...]) -> None:
    match event:
        case PortOut(port, data, size):
            assert (port, data, size) == found
        case MmioRead(address, size):
            assert (address, size) == found
        case Msr(index, write, number, why):
            assert (index, write, number, why) == found
        case _:
            pytest.fail("no case matches")
