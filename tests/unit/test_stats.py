"""The figures of --stats and --top: what is counted is said, and a guest cannot make us remember without end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.cli.stats import table
from pyvcpu.cli.top import fitted, picture
from pyvcpu.kvm.abi.exits import Exit
from pyvcpu.observe.stats import FINE, MOST_KEYS, OTHERS, SHIFT, Histogram, Kind, Stats, access_of, name_of

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
    stats.attach(0)
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
        ["exits/s", "all", "IO", "HLT"],
        ["all", "502", "500", "2"],
        ["vCPU", "0", "400", "400", "0"],
        ["vCPU", "1", "102", "100", "2"],
    ]


@given(st.integers(0, 100), st.integers(0, 40), st.integers(1, 100))
def test_the_picture_fits(count: int, height: int, width: int) -> None:
    lines = [f"{index:03}" for index in range(count)]
    shown = fitted(lines, height, width)
    assert len(shown) == min(count, height)
    assert all(len(line) < width for line in shown)
    if count > height > 1 and width > 30:
        assert shown[-1] == f"and {count - height + 1} vCPUs more"
        assert shown[:-1] == lines[: height - 1]


def test_shares_add_up_and_counts_are_those_of_the_guest() -> None:
    stats = Stats()
    stats.kinds = [{reason: Kind() for reason in (Exit.IO, Exit.MMIO, Exit.HLT)}]
    for reason, count in ((Exit.IO, 700), (Exit.MMIO, 299), (Exit.HLT, 1)):
        for _ in range(count):
            stats.kinds[0][reason].add(0, 500)
    rows = [line.split() for line in table(stats)][1:]
    assert [row[1:4] for row in rows] == [["IO", "700", "70.0%"], ["MMIO", "299", "29.9%"], ["HLT", "1", "0.1%"]]


def test_no_exits_are_said() -> None:
    stats = Stats()
    stats.kinds = [{Exit.IO: Kind()}]
    assert list(table(stats)) == ["no exits"]


@given(st.lists(st.integers(0, (FINE << SHIFT) - 1), min_size=1), st.sampled_from([0.5, 0.99]))
def test_percentiles_are_those_of_brute_force(times: list[int], share: float) -> None:
    """The smallest time that `share` of them did not exceed, in 128 ns."""
    histogram = Histogram()
    for took in times:
        histogram.add(took)
    rank = -(-len(times) * round(share * 100) // 100)
    exact = sorted(times)[rank - 1]
    assert exact < histogram.percentile(share) <= exact + (1 << SHIFT)


def test_a_coarse_time_is_said_to_be_an_upper_end() -> None:
    stats = Stats()
    stats.kinds = [{Exit.IO: Kind()}]
    stats.kinds[0][Exit.IO].add(0, FINE << SHIFT)
    (line,) = list(table(stats))[1:]
    assert "<262.1 us" in line
