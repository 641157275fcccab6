"""What loaders plan: all of it lies in RAM, nothing on top of anything else; the starting states are as promised."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st

from pyvcpu import ConfigError, ImageError, StartState
from pyvcpu.boot import Plan, Target, detect, plan
from pyvcpu.boot.plan import Free
from pyvcpu.x86 import paging
from pyvcpu.x86.start import gdt

PAGE = 4096
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FOUR_GIB = 4 * GIB
MODES = ("real", "protected", "long")
STACK = {"real": 256, "protected": 16 * KIB, "long": 16 * KIB}  # at least
BOOT_SECTOR = b"\xf4".ljust(510, b"\0") + b"\x55\xaa"

Span = tuple[int, int]


def ram(size: int) -> list[Span]:
    """Return the ranges of a guest with `size` bytes of memory."""
    low = min(size, 3 * GIB)
    return [(0, low)] + ([(FOUR_GIB, FOUR_GIB + size - low)] if size > low else [])


def started(made: Plan) -> list[StartState]:
    return [start for start in made.starts if start is not None]


def segments(made: Plan) -> list[Span]:
    return [(address, address + len(data)) for address, data in made.segments]


def stacks(made: Plan, size: int) -> list[Span]:
    return [(start.stack - size, start.stack) for start in started(made)]


def check_disjoint(spans: Sequence[Span]) -> None:
    for (_, end), (start, _) in itertools.pairwise(sorted(spans)):
        assert end <= start, [f"{a:#x}-{b:#x}" for a, b in sorted(spans)]


def check_in_ram(spans: Sequence[Span], ranges: Sequence[Span]) -> None:
    for start, end in spans:
        assert any(first <= start and end <= last for first, last in ranges), f"{start:#x}-{end:#x}"


memory_sizes = st.one_of(st.integers(1, 64), st.integers(256, 16384), st.sampled_from([786432, 1048576])).map(
    lambda pages: pages * PAGE
)


@settings(suppress_health_check=[HealthCheck.filter_too_much])  # many do not fit
@given(
    mode=st.sampled_from(MODES),
    size=memory_sizes,
    length=st.one_of(st.integers(1, 2 * PAGE), st.integers(1, MIB)),
    load=st.none() | st.integers(0, 0xC0000) | st.integers(0, 5 * GIB),
    entry_at=st.none() | st.integers(0, MIB),
    vcpus=st.one_of(st.integers(1, 8), st.integers(1, 1024)),
)
def test_flat(mode: str, size: int, length: int, load: int | None, entry_at: int | None, vcpus: int) -> None:
    image = b"\xa5" * length
    entry = None if entry_at is None else (load or 0) + entry_at
    ranges = ram(size)
    try:
        made = plan(image, Target(ranges, vcpus, mode=mode, load=load, entry=entry))
    except ImageError:
        reject()
    at = 0x1000 if load is None else load
    assert (made.format, made.irqchip) == ("flat", "none")
    assert (at, image) in [(address, bytes(data)) for address, data in made.segments]
    taken = [*segments(made), *stacks(made, STACK[mode])]
    check_disjoint(taken)
    check_in_ram(taken, ranges)
    assert all(start >= PAGE for start, _ in stacks(made, STACK[mode])), "page 0 holds the real-mode vectors"
    for index, start in enumerate(made.starts):
        assert start is not None
        assert (start.mode, start.entry) == (mode, at if entry is None else entry)
        assert (start.registers["rdi"], start.registers["rsi"]) == (index, vcpus)
        if mode == "real":
            assert 0 < start.stack - start.stack_base <= 0x10000
            assert start.stack_base % 16 == 0
            assert start.stack_base >> 4 <= 0xFFFF
            assert start.entry < MIB
        else:
            assert start.stack % 16 == 0


@pytest.mark.parametrize("vcpus", [1, 255, 1024])
@pytest.mark.parametrize("mode", MODES)
def test_flat_in_the_default_memory_has_room_for_all(mode: str, vcpus: int) -> None:
    made = plan(bytes(PAGE), Target(ram(64 * MIB), vcpus, mode=mode))
    assert len(started(made)) == vcpus


@pytest.mark.parametrize("mode", MODES)
def test_flat_in_little_memory(mode: str) -> None:
    """One page of image and one vCPU: page 0, the image, and what the mode needs."""
    made = plan(bytes(PAGE), Target(ram(128 * KIB), 1, mode=mode))
    assert len(started(made)) == 1


@given(st.integers(0x1000, 0xA0000 - PAGE), st.integers(1, 64))
def test_real_mode_stacks_go_around_the_image(load: int, vcpus: int) -> None:
    made = plan(bytes(PAGE), Target(ram(MIB), vcpus, load=load))
    check_disjoint([*segments(made), *stacks(made, STACK["real"])])
    assert all(end <= 0xA0000 for _, end in stacks(made, STACK["real"])), "above it, a PC has no memory"


def test_real_mode_with_an_image_that_leaves_no_room() -> None:
    with pytest.raises(ImageError, match=r"no room for 1 real-mode stacks.*more memory"):
        plan(bytes(3 * PAGE), Target(ram(4 * PAGE), 1))


@pytest.mark.parametrize(
    ("size", "gibibytes"), [(64 * MIB, 4), (3 * GIB, 4), (3 * GIB + PAGE, 5), (4 * GIB, 5), (9 * GIB, 10)]
)
def test_long_mode_maps_ram_and_the_first_4_gib_to_themselves(size: int, gibibytes: int) -> None:
    made = plan(b"\xf4", Target(ram(size), 2, mode="long"))
    cr3 = {start.page_table for start in started(made)}
    assert len(cr3) == 1
    root = cr3.pop()
    tables = bytes(dict(made.segments)[root])
    for address in [0, 0x1000, *range(PAGE, gibibytes * GIB, 2 * MIB - 1), gibibytes * GIB - 1]:
        assert translate(tables, root, address) == address
    assert translate(tables, root, gibibytes * GIB) is None
    assert translate(tables, root, 1 << 47) is None


def translate(tables: bytes, root: int, address: int) -> int | None:
    """Walk 4-level page tables that lie at `root` (SDM vol. 3A section 4.5)."""
    table = root
    for shift in (39, 30, 21, 12):
        (entry,) = struct.unpack_from("<Q", tables, table - root + 8 * (address >> shift & 511))
        if not entry & 1:
            return None
        assert entry & 2, "writable"
        assert not entry >> 63, "executable"
        base = entry & 0x000F_FFFF_FFFF_F000
        if shift == 12 or entry & 1 << 7:
            assert not base & (1 << shift) - 1, "a large page lies at a multiple of its size"
            return int(base | address & (1 << shift) - 1)
        table = base
    raise AssertionError("unreachable")


@pytest.mark.parametrize("wrong", [0, -1, 513])
def test_page_tables_of_what_one_table_cannot_map(wrong: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 512 GiB"):
        paging.identity_map(0x1000, wrong)


@pytest.mark.parametrize("count", [1, 4, 512])
def test_page_tables_take_the_pages_that_they_say(count: int) -> None:
    assert len(paging.identity_map(0x1000, count)) == paging.table_pages(count) * PAGE


@pytest.mark.parametrize("mode", ["protected", "long"])
def test_descriptor_table_is_in_guest_memory(mode: str) -> None:
    made = plan(b"\xf4", Target(ram(MIB), 2, mode=mode))
    table = dict(made.segments)[started(made)[0].gdt]
    assert {start.gdt for start in started(made)} == {started(made)[0].gdt}
    assert table == gdt()
    null, *descriptors = struct.unpack(f"<{len(table) // 8}Q", table)
    assert null == 0
    for descriptor in descriptors:  # SDM vol. 3A figure 3-8
        base = descriptor >> 16 & 0xFFFFFF | descriptor >> 56 << 24
        limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
        assert (base, limit) == (0, 0xFFFFF)
        assert descriptor >> 55 & 1, "counted in pages"
        assert descriptor >> 47 & 1, "present"
        assert descriptor >> 44 & 1, "code or data"
        assert descriptor >> 45 & 3 == 0, "for CPL 0"
        assert not (descriptor >> 53 & 1 and descriptor >> 54 & 1), "L and D exclude each other"


@pytest.mark.parametrize("mode", MODES)
def test_start_bsp_lets_the_others_wait(mode: str) -> None:
    made = plan(b"\xf4", Target(ram(MIB), 3, mode=mode, start="bsp"))
    assert made.starts[0] is not None
    assert made.starts[0].registers == {"rdi": 0, "rsi": 3}
    assert made.starts[1:] == [None, None]


@pytest.mark.parametrize(
    ("options", "size", "length", "words"),
    [
        ({"load": MIB}, MIB, 1, r"load address 0x100000 is not in RAM, which ends at 0x100000"),
        ({"load": -1}, MIB, 1, r"load address"),
        ({"load": 3 * GIB}, 4 * GIB, 1, r"load address 0xc0000000 is not in RAM"),
        ({}, MIB, MIB, r"\(1048576 bytes at 0x1000\) does not fit beside a stack below 0xa0000"),
        ({"mode": "protected"}, MIB, MIB, r"image \(1048576 bytes\) does not fit.*more memory"),
        ({"load": 0x90000}, MIB, MIB, r"image \(1048576 bytes\) does not fit.*more memory"),
        ({"load": 3 * GIB - 1, "mode": "protected"}, 4 * GIB, 2, r"does not fit .*; load it elsewhere$"),
        ({"load": 3 * GIB - 1}, 4 * GIB, 2, r"does not fit"),
        ({"entry": MIB}, MIB, 1, r"entry 0x100000 is not in RAM"),
        ({"entry": -1}, MIB, 1, r"entry"),
        ({"entry": MIB}, 2 * MIB, 1, r"real mode reaches the first 1 MiB"),
        ({"entry": FOUR_GIB, "mode": "protected"}, 4 * GIB, 1, r"protected mode reaches the first 4 GiB"),
        ({"mode": "protected"}, 5 * PAGE, 1, r"no room for"),
        ({"mode": "long"}, 7 * PAGE, 1, r"no room for page tables"),
        ({"mode": "long"}, 512 * GIB, 1, r"at most 512 GiB"),
    ],
)
def test_flat_images_that_cannot_be_booted(options: dict[str, int], size: int, length: int, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        plan(bytes(length), Target(ram(size), 1, **options))  # type: ignore[arg-type]  # a table of many kinds


def test_modes_and_formats_that_are_none() -> None:
    with pytest.raises(ConfigError, match="must be real, protected or long, not 'virtual'"):
        plan(b"\xf4", Target(ram(MIB), 1, mode="virtual"))
    with pytest.raises(ConfigError, match=r"format must be one of .*flat.*not 'tar'"):
        plan(b"\xf4", Target(ram(MIB), 1), "tar")


@pytest.mark.parametrize("format", [None, "flat", "bootsector"])
def test_empty_images(format: str | None) -> None:
    with pytest.raises(ImageError, match="empty"):
        plan(b"", Target(ram(MIB), 1), format)


@given(st.binary(max_size=600))
def test_what_looks_like_nothing_else_is_flat(image: bytes) -> None:
    assume(image[510:512] != b"\x55\xaa" and not image.startswith(b"\x7fELF"))
    assert detect(image) == "flat"


def test_boot_sector() -> None:
    image = BOOT_SECTOR + bytes(100)
    assert detect(image) == "bootsector"
    made = plan(image, Target(ram(MIB), 3))
    assert (made.format, made.irqchip) == ("bootsector", "kernel")
    assert made.segments == [(0x7C00, BOOT_SECTOR)]
    first, *others = made.starts
    assert first is not None
    assert (first.mode, first.entry, first.registers) == ("real", 0x7C00, {"rdx": 0x80})
    assert first.stack == 0x7C00
    assert others == [None, None]


@pytest.mark.parametrize("vcpus", [1, 2, 27])
def test_boot_sector_on_every_vcpu(vcpus: int) -> None:
    made = plan(BOOT_SECTOR, Target(ram(MIB), vcpus, start="all"))
    assert len(started(made)) == vcpus
    check_disjoint([*segments(made), *stacks(made, 256)])
    assert all(start >= 0x1000 for start, _ in stacks(made, 256))


def test_boot_sectors_that_cannot_be_booted() -> None:
    for image, size in ((BOOT_SECTOR, 7 * PAGE), (b"\xf4", MIB), (BOOT_SECTOR[:511], MIB)):
        with pytest.raises(ImageError):
            plan(image, Target(ram(size), 1), "bootsector")
    with pytest.raises(ImageError, match="at most 27 vCPUs"):
        plan(BOOT_SECTOR, Target(ram(MIB), 28, start="all"))


@pytest.mark.parametrize("options", [{"mode": "real"}, {"load": 0x1000}, {"entry": 0x1000}])
def test_an_accidental_signature_does_not_override_what_was_said(options: dict[str, str]) -> None:
    made = plan(BOOT_SECTOR, Target(ram(MIB), 1, **options))  # type: ignore[arg-type]  # a table of many kinds
    assert made.format == "flat"


def test_the_format_that_was_said_wins() -> None:
    made = plan(BOOT_SECTOR, Target(ram(MIB), 2), "flat")
    assert made.format == "flat"
    assert made.segments[0] == (0x1000, BOOT_SECTOR)
    assert len(started(made)) == 2


@given(
    ends=st.lists(st.integers(64, 4096), max_size=8, unique=True).map(sorted),
    wanted=st.lists(st.tuples(st.integers(1, 0x8000), st.sampled_from([1, 16, 4096])), max_size=6),
)
def test_free_never_gives_what_is_used(ends: list[int], wanted: list[tuple[int, int]]) -> None:
    top = 0x40000
    used = [(first * 64, last * 64) for first, last in zip(ends[::2], ends[1::2], strict=False)]
    free = Free(top, used)
    taken = list(used)
    for size, align in wanted:
        try:
            address = free.take(size, align, "room")
        except ImageError:
            continue
        assert address % align == 0
        assert 0x1000 <= address <= top - size
        taken.append((address, address + size))
    check_disjoint(taken)


@given(st.integers(0x1000, 0x7000), st.integers(1, 0x1000))
def test_free_finds_the_only_gap(gap: int, size: int) -> None:
    free = Free(0x8000, [(0, gap), (gap + size, 0x8000)])
    assert free.take(size, 1, "room") == gap
    with pytest.raises(ImageError, match="no room for more"):
        free.take(1, 1, "more")
