"""Topology: what --smp says, how it is filled in, what is refused, and the APIC ids that come of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.errors import ConfigError
from pyvcpu.x86.topology import Topology, parse


def parts(topology: Topology) -> tuple[int, ...]:
    return topology.cpus, topology.sockets, topology.cores, topology.threads, topology.maxcpus


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (4, (4, 1, 4, 1, 4)),
        ("1", (1, 1, 1, 1, 1)),
        ("4", (4, 1, 4, 1, 4)),
        ("cpus=4", (4, 1, 4, 1, 4)),
        ("8,sockets=2,cores=2,threads=2", (8, 2, 2, 2, 8)),
        ("8,sockets=2", (8, 2, 4, 1, 8)),
        ("8,cores=2", (8, 4, 2, 1, 8)),
        ("8,threads=2", (8, 1, 4, 2, 8)),
        ("8,sockets=2,cores=2", (8, 2, 2, 2, 8)),
        ("8,sockets=2,threads=2", (8, 2, 2, 2, 8)),
        ("8,cores=2,threads=2", (8, 2, 2, 2, 8)),
        ("sockets=2,cores=3", (6, 2, 3, 1, 6)),
        ("maxcpus=8", (8, 1, 8, 1, 8)),
        ("4,maxcpus=8", (4, 1, 8, 1, 8)),
        ("2,sockets=2,cores=2,maxcpus=4", (2, 2, 2, 1, 4)),
        ("8,sockets=2,cores=2,threads=2,maxcpus=16", (8, 4, 2, 2, 16)),  # what is plugged lies in further packages
    ],
)
def test_what_is_left_out_is_filled_in(text: str | int, expected: tuple[int, ...]) -> None:
    assert parts(parse(text)) == expected


BAD = [
    ("", "whole number, not ''"),
    ("x", "whole number, not 'x'"),
    ("1.5", "whole number"),
    ("0x4", "whole number"),
    ("0", "at least 1 vCPU, not 0"),
    ("-1", "at least 1 vCPU, not -1"),
    ("99999999999999", "whole number"),
    ("4,4", "one bare number, and that first"),
    ("4,", "one bare number"),
    ("cores=2,4", "one bare number, and that first"),
    ("4,cores=0", "cores must be at least 1, not 0"),
    ("4,threads=-2", "threads must be at least 1, not -2"),
    ("4,cores=two", "whole number for cores, not 'two'"),
    ("4,cores=", "whole number for cores"),
    ("4,cores=2,cores=2", "says cores twice"),
    ("4,cpus=4", "says cpus twice"),
    ("4,socket=2", "did you mean sockets?"),
    ("4,dies=2", "--smp knows cpus, sockets, cores, threads, maxcpus, not 'dies'"),
    ("4,maxcpus=2", "maxcpus must be at least the number of vCPUs at the start, 4, not 2"),
    ("4,sockets=8", "sockets=8, which is more already"),
    ("3,sockets=2", r"must be 3, the number of vCPUs, not 2 \* 1 \* 1 = 2"),
    ("8,sockets=2,cores=2,threads=4", r"must be 8, the number of vCPUs, not 2 \* 2 \* 4 = 16"),
    ("4,cores=3,maxcpus=8", "must be 8, the maxcpus"),
]


@pytest.mark.parametrize(("text", "words"), BAD)
def test_contradictions_are_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_apic_ids_are_places_in_bits() -> None:
    topology = parse("12,sockets=2,cores=3,threads=2")
    assert (topology.core_shift, topology.package_shift) == (1, 3)
    assert [topology.apic_id(i) for i in range(12)] == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]
    assert topology.place(9) == (1, 1, 1)


@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 9))
def test_ids_are_different_and_can_be_taken_apart(sockets: int, cores: int, threads: int) -> None:
    topology = parse(f"sockets={sockets},cores={cores},threads={threads}")
    ids = [topology.apic_id(index) for index in range(topology.maxcpus)]
    assert sorted(set(ids)) == ids
    for index, apic_id in enumerate(ids):
        package, core, thread = topology.place(index)
        assert apic_id >> topology.package_shift == package
        assert apic_id >> topology.core_shift & ((1 << (topology.package_shift - topology.core_shift)) - 1) == core
        assert apic_id & ((1 << topology.core_shift) - 1) == thread
