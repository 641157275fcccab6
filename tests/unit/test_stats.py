"""The figures of --stats and --top: what is counted is said, and a guest cannot make us remember without end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.cli.stats import table
from pyvcpu.cli.top import picture
from pyvcpu.kvm.abi.exits import Exit
from pyvcpu.vcpu.observe import MOST_KEYS, OTHERS, Histogram, Kind, Stats, access_of, name_of

OUT_E9 = 0x1_00E9_0101  # struct kvm_run's io: direction 1, size 1, port 0xe9, count 1


@given(st.lists(st.integers(0, 1 << 50), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_not_below_what_it_stands_for(times: list[int], share: float) -> None:
    histogram = Histogram()
    for took in times:
        histogram.add(took)
    assert histogram.count == len(times)
    found = histogram.percentile(share)
    assert sum(took <= found for took in times) >= share * len(times) - 1e-6
    assert found <= 2 * max(times) + 128


def test_percentiles_are_fine_where_exits_are() -> None:
    histogram = Histogram()
    for took in [1000] * 98 + [50_000] * 2:
        histogram.add(took)
    assert 1000 <= histogram.percentile(0.5) <= 1128
    assert 50_000 <= histogram.percentile(0.99) <= 50_128


def test_nothing_takes_no_time() -> None:
    assert Histogram().percentile(0.5) == 0


def test_addresses_are_remembered_up_to_a_number() -> None:
    kind = Kind()
    for address in range(MOST_KEYS + 10):
        kind.add(address, 1)
    assert len(kind.keys) <= MOST_KEYS + 1
    assert kind.keys[OTHERS] == [10]


def test_the_table_has_the_busiest_first() -> None:
    stats = Stats()
    stats.attach([])
    stats.kinds = [{Exit.IO: Kind(), Exit.HLT: Kind()}]
    for _ in range(3):
        stats.kinds[0][Exit.IO].add(OUT_E9, 1000)
    stats.kinds[0][Exit.IO].add(OUT_E9 & ~0xFF, 1000)
    stats.kinds[0][Exit.HLT].add(0, 5000)
    head, first, second = (line.split() for line in table(stats))
    assert head[:4] == ["vCPU", "exit", "count", "share"]
    assert first[:4] == ["0", "IO", "4", "80.0%"]
    assert " ".join(first[8:]) == "out 0xe9: 3, in 0xe9: 1"
    assert second[:4] == ["0", "HLT", "1", "20.0%"]


def test_accesses_in_words() -> None:
    assert access_of(Exit.IO, 0x10_03F8_0200) == "in 0x3f8 (2 bytes) x16"
    assert access_of(Exit.MMIO, 0xD000_0000) == "0xd0000000"
    assert access_of(Exit.MMIO, OTHERS) == "others"
    assert name_of(12345) == "unknown reason 12345"


def test_the_picture_has_rates() -> None:
    before = {(0, 2): 100, (1, 2): 0}
    now = {(0, 2): 300, (1, 2): 50, (1, 5): 1}
    assert [line.split() for line in picture(before, now, 0.5)] == [
        ["exits/s", "IO", "HLT", "all"],
        ["all", "500", "2", "502"],
        ["vCPU", "0", "400", "0", "400"],
        ["vCPU", "1", "100", "2", "102"],
    ]
