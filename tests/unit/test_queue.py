"""Split virtqueues: chains as drivers may build them, and as they may not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyvcpu.devices.queue import MAX_BYTES, MAX_SIZE, Queue, QueueError
from pyvcpu.devices.virtio import RequestDevice
from tests.virtio_driver import AVAIL, DATA, DESC, RAM, TABLE, USED, Driver, Ram, readable, writable

NEXT, WRITE, INDIRECT = 1, 2, 4


class Unused(RequestDevice):
    """A device that is there for its transport only."""

    name = "unused"


class Rings(Driver):
    """The driver's side of a queue that has no device."""

    def __init__(self, size: int = 8, ram: Ram | None = None) -> None:
        super().__init__(Unused(), size)
        self.ram = ram or self.ram
        self.queue = Queue(self.ram)
        self.queue.size = size
        self.queue.desc, self.queue.driver, self.queue.device = DESC, AVAIL, USED
        self.queue.enable()

    def chains(self) -> list[tuple[int, list[bytes], list[int]]]:
        """Return head, readable data and writable lengths of each chain that is available."""
        return [
            (chain.head, [bytes(view) for view in chain.readable], [len(view) for view in chain.writable])
            for chain in iter(self.queue.pop, None)
        ]


@pytest.fixture
def rings() -> Rings:
    rings = Rings()
    rings.ram.write(DATA, b"0123456789")
    return rings


def test_nothing_available(rings: Rings) -> None:
    assert rings.chains() == []


def test_a_chain_in_order(rings: Rings) -> None:
    rings.chain(readable(DATA, 2), readable(DATA + 4, 3), writable(DATA, 7), writable(DATA + 9, 0))
    rings.offer()
    assert rings.chains() == [(0, [b"01", b"456"], [7, 0])]
    assert rings.chains() == []


def test_descriptors_in_any_order(rings: Rings) -> None:
    rings.describe(5, DATA, 1, NEXT, 2)
    rings.describe(2, DATA + 1, 1, NEXT, 7)
    rings.describe(7, DATA, 3, WRITE, 5)  # without NEXT, what follows does not count
    rings.offer(5)
    rings.offer(7)
    assert rings.chains() == [(5, [b"0", b"1"], [3]), (7, [], [3])]


def test_an_indirect_table(rings: Rings) -> None:
    rings.indirect(readable(DATA, 1), writable(DATA, 2), writable(DATA, 3))
    rings.offer()
    assert rings.chains() == [(0, [b"0"], [2, 3])]


def test_an_indirect_table_behind_direct_descriptors(rings: Rings) -> None:
    rings.chain(readable(DATA + 1, 1), writable(DATA + 2, 2), at=TABLE)
    rings.describe(3, DATA, 1, NEXT, 4)
    rings.describe(4, TABLE, 32, INDIRECT)
    rings.offer(3)
    assert rings.chains() == [(3, [b"0", b"1"], [2])]


def test_an_indirect_table_may_be_longer_than_the_queue(rings: Rings) -> None:
    rings.indirect(*[readable(DATA, 1)] * MAX_SIZE)
    rings.offer()
    assert rings.chains() == [(0, [b"0"] * MAX_SIZE, [])]


def test_indices_wrap(rings: Rings) -> None:
    rings.chain(readable(DATA, 1))
    for index in range(65536 // 8 + 3):
        for _ in range(8):
            rings.offer()
        got = rings.chains()
        assert len(got) == 8
        for head, _, _ in got:
            assert rings.queue.add_used(head, index)
        assert rings.take() == [(0, index)] * 8


def test_what_is_not_popped_stays(rings: Rings) -> None:
    rings.chain(readable(DATA, 1))
    assert rings.queue.is_empty()
    assert rings.queue.peek() is None
    rings.offer()
    rings.offer()
    for _ in range(2):
        chain = rings.queue.peek()
        assert chain is not None
        assert (chain.head, bytes(chain.readable[0])) == (0, b"0")
    assert not rings.queue.is_empty()
    assert len(rings.chains()) == 2
    assert rings.queue.is_empty()


def test_chains_are_used_later_and_in_any_order(rings: Rings) -> None:
    for head in range(4):
        rings.describe(head, DATA + head, 1)
        rings.offer(head)
    heads = [head for head, _, _ in rings.chains()]
    for head in (2, 0, 3, 1):
        assert rings.queue.add_used(heads[head], 10 + head)
    assert rings.take() == [(2, 12), (0, 10), (3, 13), (1, 11)]


@pytest.mark.parametrize("end", ["close", "disable"])
def test_what_comes_late_is_dropped(rings: Rings, end: str) -> None:
    rings.chain(writable(DATA, 4))
    rings.offer()
    rings.offer()
    chain = rings.queue.pop()
    assert chain is not None
    before = rings.ram.bytes.copy()
    getattr(rings.queue, end)()
    assert not rings.queue.add_used(chain.head, 4)
    assert rings.queue.pop() is None
    assert rings.queue.peek() is None
    assert rings.queue.is_empty()
    assert not rings.queue.wants_interrupt()
    assert rings.queue.fill(chain, b"late") == (0 if end == "close" else 4)
    if end == "close":
        assert rings.ram.bytes == before


def test_fill_writes_as_much_as_fits(rings: Rings) -> None:
    rings.chain(writable(DATA, 2), writable(DATA + 4, 3))
    rings.offer()
    chain = rings.queue.pop()
    assert chain is not None
    assert rings.queue.fill(chain, b"abc") == 3
    assert rings.ram.read(DATA, 7) == b"ab23c56"
    assert rings.queue.fill(chain, b"ABCDEFG") == 5
    assert rings.ram.read(DATA, 8) == b"AB23CDE7"


def test_a_chain_under_way_is_found_again_by_its_head(rings: Rings) -> None:
    rings.chain(readable(DATA, 1), writable(DATA, 2))
    rings.offer()
    popped = rings.queue.pop()
    assert popped is not None
    again = rings.queue.chain(popped.head)
    assert [bytes(view) for view in again.readable] == [b"0"]


def test_the_state_goes_on_where_it_was(rings: Rings) -> None:
    rings.chain(readable(DATA, 1))
    for _ in range(3):
        rings.offer()
    assert rings.queue.pop() is not None
    assert rings.queue.pop() is not None
    assert rings.queue.add_used(0, 0)
    state = rings.queue.state()
    assert state == {
        "size": 8,
        "desc": DESC,
        "driver": AVAIL,
        "device": USED,
        "ready": True,
        "next_avail": 2,
        "next_used": 1,
    }
    rings.queue = Queue(rings.ram)
    rings.queue.restore(state)
    assert rings.queue.state() == state
    assert len(rings.chains()) == 1
    for _ in range(2):
        assert rings.queue.add_used(0, 0)
    assert len(rings.take()) == 3


def test_more_chains_than_the_queue_has_are_refused(rings: Rings) -> None:
    """A driver that offers chains again before they are used could have the device keep any number."""
    rings.chain(readable(DATA, 1))
    for _ in range(8):
        rings.offer()
    assert len(rings.chains()) == 8
    rings.offer()
    with pytest.raises(QueueError, match="more than the queue's size past the used one"):
        rings.queue.pop()
    assert rings.queue.add_used(0, 0)
    assert len(rings.chains()) == 1


def test_views_are_the_guests_memory(rings: Rings) -> None:
    rings.chain(writable(DATA, 4))
    rings.offer()
    chain = rings.queue.pop()
    assert chain is not None
    chain.writable[0][1:3] = b"XY"
    assert rings.ram.read(DATA, 4) == b"0XY3"


def test_wants_interrupt(rings: Rings) -> None:
    assert rings.queue.wants_interrupt()
    rings.ram.write(AVAIL, b"\x01\0")
    assert not rings.queue.wants_interrupt()


def loop(rings: Rings) -> None:
    rings.describe(0, DATA, 1, NEXT, 1)
    rings.describe(1, DATA, 1, NEXT, 0)


def loop_of_nothing(rings: Rings) -> None:
    rings.describe(0, DATA, 0, NEXT, 0)


def loop_in_indirect_table(rings: Rings) -> None:
    rings.describe(0, DATA, 1, NEXT, 0, at=TABLE)
    rings.describe(0, TABLE, 16, INDIRECT)


def next_outside_indirect_table(rings: Rings) -> None:
    rings.describe(0, DATA, 1, NEXT, 1, at=TABLE)
    rings.describe(0, TABLE, 16, INDIRECT)


def indirect_in_indirect(rings: Rings) -> None:
    rings.describe(0, TABLE, 16, INDIRECT, at=TABLE)
    rings.describe(0, TABLE, 16, INDIRECT)


FORGED: dict[str, Callable[[Rings], None]] = {
    "a loop": loop,
    "a loop of empty buffers": loop_of_nothing,
    "a loop in an indirect table": loop_in_indirect_table,
    "an indirect table in an indirect table": indirect_in_indirect,
    "next outside the table": lambda rings: rings.describe(0, DATA, 1, NEXT, 8),
    "next outside the indirect table": next_outside_indirect_table,
    "indirect with next": lambda rings: rings.describe(0, TABLE, 16, INDIRECT | NEXT, 1),
    "an empty indirect table": lambda rings: rings.describe(0, TABLE, 0, INDIRECT),
    "half a descriptor": lambda rings: rings.describe(0, TABLE, 24, INDIRECT),
    "a huge indirect table": lambda rings: rings.describe(0, TABLE, 0xFFFF_FFF0, INDIRECT),
    "an indirect table outside RAM": lambda rings: rings.describe(0, RAM - 16, 32, INDIRECT),
    "an indirect table nowhere": lambda rings: rings.describe(0, (1 << 64) - 16, 32, INDIRECT),
    "a buffer past the end of RAM": lambda rings: rings.describe(0, RAM - 1, 2),
    "a buffer nowhere": lambda rings: rings.describe(0, (1 << 64) - 1, 2, WRITE),
    "an absurd length": lambda rings: rings.describe(0, 0, 0xFFFF_FFFF),
    "readable behind writable": lambda rings: rings.chain(writable(DATA, 1), readable(DATA, 1)),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_what_is_forged_is_refused(rings: Rings, forge: Callable[[Rings], None]) -> None:
    forge(rings)
    rings.offer()
    with pytest.raises(QueueError):
        rings.chains()


def test_a_head_outside_the_table_is_refused(rings: Rings) -> None:
    rings.offer(8)
    with pytest.raises(QueueError, match="descriptor 8 does not exist: the table has 8"):
        rings.chains()


@pytest.mark.parametrize("index", [9, 100, 65535])
def test_an_index_further_than_the_queue_is_refused(rings: Rings, index: int) -> None:
    rings.ram.write(AVAIL + 2, index.to_bytes(2, "little"))
    with pytest.raises(QueueError, match="more than the queue's size"):
        rings.chains()


def test_a_full_queue_is_not_forged(rings: Rings) -> None:
    rings.chain(readable(DATA, 1))
    for _ in range(8):
        rings.offer()
    assert len(rings.chains()) == 8


def test_a_chain_holds_so_much_and_no_more() -> None:
    """Many buffers over the same memory: each is small enough, their sum is what a request costs."""
    size = MAX_BYTES // 4
    rings = Rings(ram=Ram(size + DATA))
    rings.chain(*[writable(DATA, size)] * 4)
    rings.offer()
    assert rings.chains() == [(0, [], [size] * 4)]
    rings.chain(*[writable(DATA, size)] * 4, writable(DATA, 1))
    rings.offer()
    with pytest.raises(QueueError, match=f"at most {MAX_BYTES} bytes"):
        rings.chains()
