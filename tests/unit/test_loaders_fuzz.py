"""Mutated images: a loader answers with a sound plan or with ImageError, in time and memory that fit the file.

PYVCPU_FUZZ is the number of images for each loader: 500 when not given, 20000 in the long run.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import lzma
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvcpu import ImageError
from pyvcpu.boot import FORMATS, Plan, Target, detect, plan
from pyvcpu.boot.sizes import wanted_memory
from tests.images import (
    CODE,
    GIB,
    MIB,
    PT_NOTE,
    Segment,
    bzimage,
    elf,
    multiboot2_elf,
    multiboot2_flat,
    multiboot_elf,
    multiboot_flat,
    multiboot_header,
    note,
    pvh,
    ram,
    tag2,
    zimage,
)

SHARED = 4  # so many times the file's bytes may be loaded: ELF segments share them
EXAMPLES = int(os.environ.get("PYVCPU_FUZZ", "500"))
SECONDS = 2.0  # of this process's own time, for images of a few KiB
BESIDE = 64 << 10  # what a loader may add to the file's bytes: tables, stacks' descriptors, boot information

ELF_SEGMENTS = [
    Segment(MIB, CODE, size=0x3000),
    Segment(2 * MIB, b"data" * 20, virtual=0xC020_0000),
    Segment(0, note(b"GNU\0", 1, b"x" * 9) + note(b"Xen\0", 6, b"linux\0"), kind=PT_NOTE),
    Segment(3 * MIB, b"", size=0x1000),
]
WITH_ADDRESSES = elf(
    [Segment(MIB, multiboot_header(3, (MIB + 84, MIB, 0, 0, MIB + 120)) + CODE.ljust(200, b"\x90"))], bits=32
)
RELOCATABLE = tag2(10, struct.pack("<4I", MIB, 0x7FFF_FFFF, 0x1000, 2))
SEEDS = {
    "elf": [elf(ELF_SEGMENTS), elf(ELF_SEGMENTS, bits=32), pvh()],
    "pvh": [pvh(), pvh(bits=32)],
    "multiboot": [multiboot_elf(), multiboot_elf(bits=64), multiboot_flat(), multiboot_flat(0), WITH_ADDRESSES],
    "multiboot2": [
        multiboot2_elf(tag2(1, struct.pack("<3I", 4, 6, 9)), tag2(4, b"\2\0\0\0"), tag2(6)),
        multiboot2_elf(RELOCATABLE, bits=64),
        multiboot2_flat(0, RELOCATABLE),
        multiboot2_flat(),
    ],
    "linux": [
        bzimage(),
        bzimage(setup_sects=0),
        bzimage(relocatable=0, initrd_max=0x37F_FFFF),
        bzimage(xloadflags=2),
        bzimage(version=0x209),
        bzimage(version=0x203),
        bzimage(version=0x202),
    ],
    "linux16": [zimage(), bzimage(version=0x201), bzimage(code32_start=0), bzimage(loadflags=0)],
    "bootsector": [b"\xf4".ljust(510, b"\0") + b"\x55\xaa" + b"more"],
    "flat": [b"\xf4" * 100],
}
# Where the fields are: most changes go there, the others anywhere.
FIELDS = {
    "elf": range(0x150),
    "pvh": range(0x150),
    "multiboot": range(0x100),
    "multiboot2": range(0x160),
    "linux": range(0x1F0, 0x290),
    "linux16": range(0x1F0, 0x290),
    "bootsector": range(500, 516),
    "flat": range(100),
}
EDGES = [0, 1, 3, 4, 7, 8, 0x7F, 0xFF, 0xFFFF, 0xFFF, 0x1000, MIB - 1, MIB, MIB + 1, 2 * MIB, 64 * MIB, 3 * GIB]
EDGES += [(1 << bits) + more for bits in (31, 32, 48, 63, 64) for more in (-1, 0, 1)]

numbers = st.one_of(st.sampled_from(EDGES), st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 22))


@dataclass(frozen=True)
class Change:
    """Write a number over a place, or cut, or put something in between."""

    at: int
    kind: str
    value: int

    def apply(self, image: bytearray) -> None:
        at = self.at % (len(image) + 1)
        if self.kind == "cut":
            del image[at:]
        elif self.kind == "remove":
            del image[at : at + self.value % 64]
        elif self.kind == "insert":
            image[at:at] = struct.pack("<Q", self.value & (1 << 64) - 1) * (self.value % 5)
        elif self.kind == "copy":
            image[at : at + 56] = image[: self.value % 57]
        else:
            size = int(self.kind)
            image[at : at + size] = (self.value & (1 << 8 * size) - 1).to_bytes(size, "little")


def changes(fields: range) -> st.SearchStrategy[list[Change]]:
    places = st.one_of(st.sampled_from(fields), st.sampled_from(fields), st.integers(0, 1 << 13))
    kinds = st.sampled_from(["1", "2", "4", "8", "4", "8", "1", "cut", "remove", "insert", "copy"])
    return st.lists(st.builds(Change, places, kinds, numbers), max_size=4)


def checksummed(image: bytearray) -> None:
    """Make the first number of a Multiboot header a whole header again, or most changes would be seen nowhere else."""
    for magic, words in ((b"\x02\xb0\xad\x1b", 3), (b"\xd6\x50\x52\xe8", 4)):
        at = image.find(magic)
        if 0 <= at <= len(image) - 4 * words:
            *before, _ = struct.unpack_from(f"<{words}I", image, at)
            struct.pack_into("<I", image, at + 4 * (words - 1), -sum(before) & 0xFFFF_FFFF)


DTB = b"\xd0\x0d\xfe\xed\0\0\0\x30".ljust(0x30, b"\0")
targets = st.builds(
    lambda size, vcpus, start, extras, acpi, dtb: Target(
        ram(size),
        vcpus,
        start=start,
        name="image",
        initrd=[(f"file {i}", data) for i, data in enumerate(extras[0])],
        append=extras[1],
        acpi=(lambda: (0xE0000, b"RSD PTR ".ljust(2000))) if acpi else None,
        dtb=dtb,
    ),
    st.sampled_from([4096, 0x8000, 0x9F000, MIB, *[4 * MIB, 64 * MIB, 3 * GIB, 5 * GIB] * 3]),
    st.sampled_from([1, 1, 4]),
    st.sampled_from([None, None, None, "bsp", "all"]),
    st.one_of(
        st.just(((), "")),
        st.just(((), "")),
        st.tuples(
            st.sampled_from([(), (b"",), (bytes(5000),), (b"a", b"b" * 4096)]),
            st.sampled_from(["", "console=ttyS0", "console=ttyS0", "x" * 3000, "\0", "\ud800"]),
        ),
    ),
    st.booleans(),
    st.sampled_from([b"", b"", b"", b"", DTB, DTB[:-1]]),
)


def check_plan(made: Plan, image: bytes, target: Target) -> None:
    """What every plan must be: in RAM, side by side, of the file's size, and started in RAM."""
    spans = sorted((address, address + len(data)) for address, data in made.segments if len(data))
    for start, end in spans:
        assert target.holds(start, end - start), f"{start:#x}-{end:#x} is not RAM"
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert end <= start, f"two segments at {start:#x}"
    given = SHARED * len(image) + sum(len(name) + len(data) for name, data in target.initrd) + 2 * len(target.append)
    assert sum(end - start for start, end in spans) <= given + len(target.dtb) + BESIDE
    assert len(made.starts) == target.vcpus
    for state in made.starts:
        if state is None:
            continue
        assert target.holds(state.entry, 1), f"entry {state.entry:#x}"
        assert state.mode == "long" or state.entry < 1 << 32
        assert all(0 <= value < 1 << 64 for value in state.registers.values())
        assert not state.page_table or target.holds(state.page_table, 4096)


def check(image: bytes, target: Target, format: str | None) -> Plan | None:
    """Plan it; ImageError is an answer, too, if it says something."""
    started = time.process_time()
    made, refused = None, ""
    try:
        made = plan(image, target, format)
    except ImageError as error:
        refused = str(error)
    assert time.process_time() - started < SECONDS
    assert (wanted_memory(image, target.initrd, format) >> 26) << 26 >= 64 * MIB
    assert time.process_time() - started < 2 * SECONDS
    if made is None:
        assert 10 < len(refused) < 1000
    else:
        check_plan(made, image, target)
    return made


long_enough = pytest.mark.timeout(60 + EXAMPLES // 20)


@long_enough
@pytest.mark.parametrize("name", FORMATS)
def test_mutated_images(name: str) -> None:
    """Change a valid image in a few places, mostly where its header has fields."""
    planned = {True: 0, False: 0}

    @settings(max_examples=EXAMPLES)
    @given(image=st.sampled_from(SEEDS[name]), changed=changes(FIELDS[name]), target=targets, mend=st.booleans())
    def mutate(image: bytes, changed: list[Change], target: Target, mend: bool) -> None:
        mutated = bytearray(image)
        for change in changed:
            change.apply(mutated)
        if mend:
            checksummed(mutated)
        planned[check(bytes(mutated), target, name) is not None] += 1
        check(bytes(mutated), target, None)

    mutate()
    assert min(planned.values()) > EXAMPLES // 50, f"one-sided: {planned}"


@long_enough
@settings(max_examples=EXAMPLES)
@given(image=st.binary(max_size=700), target=targets, name=st.sampled_from(FORMATS))
def test_noise(image: bytes, target: Target, name: str) -> None:
    """Bytes that nobody made for a loader."""
    check(image, target, name)
    check(image, target, None)


@long_enough
@pytest.mark.parametrize("name", ["linux", "multiboot2", "elf"])
@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_mutated_in_a_compressed_file(name: str, pack: Callable[[bytes], bytes]) -> None:
    """The same behind a decompressor, whose own bytes are changed too."""

    @settings(max_examples=max(50, EXAMPLES // 10))
    @given(
        image=st.sampled_from(SEEDS[name]), changed=changes(FIELDS[name]), outside=changes(range(64)), target=targets
    )
    def mutate(image: bytes, changed: list[Change], outside: list[Change], target: Target) -> None:
        mutated = bytearray(image)
        for change in changed:
            change.apply(mutated)
        packed = bytearray(pack(bytes(mutated)))
        check_packed(bytes(packed), target)
        for change in outside[:1]:
            change.apply(packed)
        check_packed(bytes(packed), target)

    mutate()


def check_packed(image: bytes, target: Target) -> None:
    """Plan it: a plan or an ImageError, in bounded time."""
    started = time.process_time()
    with contextlib.suppress(ImageError):
        plan(image, target)
    assert time.process_time() - started < SECONDS


FOREIGN_HEADS = [b"MZ", b"#!/", b"\x07\x01\x64\0", b"\x55\xaa\x04\xe9", b"QFI\xfb"]
FOREIGN_HEADS += [b"\x5d\0\0\x40\0", b"\x1f\x8b\x08", b""]


@long_enough
@settings(max_examples=EXAMPLES)
@given(head=st.sampled_from(FOREIGN_HEADS), body=st.binary(max_size=600), changed=changes(range(0x100)), target=targets)
def test_files_of_other_kinds(head: bytes, body: bytes, changed: list[Change], target: Target) -> None:
    """What the recognition of other formats sees is as hostile."""
    mutated = bytearray(head + body)
    for change in changed:
        change.apply(mutated)
    check(bytes(mutated), target, None)


@pytest.mark.parametrize("name", FORMATS)
def test_every_truncation(name: str) -> None:
    """Cut a valid image at every length up to the end of its header, and at some behind it."""
    target = Target(ram(64 * MIB), 2)
    for seed in SEEDS[name]:
        assert check_all(seed, target, name)
        for length in [*range(1, min(len(seed), 0x400)), *range(0x400, len(seed), 97)]:
            check(seed[:length], target, name)
            check(seed[:length], target, None)


def check_all(image: bytes, target: Target, name: str) -> bool:
    """Tell whether the image is planned, as itself and as its format."""
    return check(image, target, name) is not None and check(image, target, detect(image)) is not None


def headers_over(size: int, kind: int) -> bytes:
    """Return an ELF image of about `size` bytes whose program headers all cover the whole file."""
    count = min(0xFFFF, (size - 64) // 56)
    image = bytearray(elf([Segment(0, CODE)])[:64])
    image += b"".join(struct.pack("<2I6Q", kind, 7, 0, i << 24, i << 24, size, size, 4) for i in range(count))
    struct.pack_into("<H", image, 56, count)
    return bytes(image.ljust(size, b"\0"))


def sections_over(size: int) -> bytes:
    """Return a Multiboot 2 image of about `size` bytes with as many section headers, each of half of the file."""
    count = min(0xFFFF, (size - 0x1000) // 40)
    image = bytearray(multiboot2_elf())
    struct.pack_into("<I", image, 32, 0x1000)
    struct.pack_into("<3H", image, 46, 40, count, 0)
    image = image.ljust(0x1000, b"\0") + struct.pack("<10I", 0, 3, 0, 0, 0, size // 2, 0, 0, 1, 0) * count
    return bytes(image.ljust(size, b"\0"))


HUGE = 4 * MIB
COSTLY: dict[str, Callable[[], bytes]] = {
    "program headers": lambda: headers_over(HUGE, 1),
    "note headers": lambda: headers_over(HUGE, PT_NOTE),
    "one long note segment": lambda: elf([Segment(MIB, CODE), Segment(0, bytes(HUGE), kind=PT_NOTE)]),
    "multiboot magics": lambda: b"\x02\xb0\xad\x1b" * (HUGE // 4),
    "multiboot 2 magics": lambda: b"\xd6\x50\x52\xe8" * (HUGE // 4),
    "magics of both in an ELF image": lambda: elf([Segment(MIB, b"\x02\xb0\xad\x1b\xd6\x50\x52\xe8" * (HUGE // 8))]),
    "section headers": lambda: sections_over(HUGE),
    "a compressed file of zeros": lambda: gzip.compress(bytes(HUGE)),
    "zeros": lambda: bytes(HUGE),
}


@pytest.mark.parametrize("case", COSTLY)
def test_images_made_to_be_costly(case: str) -> None:
    """4 MiB, made to be much work: no more than a few seconds, in any format."""
    image = COSTLY[case]()
    target = Target([(0, 1 << 31), (1 << 32, 1 << 41)], 1)
    for name in (None, *FORMATS):
        started = time.process_time()
        try:
            made = plan(image, target, name)
        except ImageError:
            continue
        finally:
            assert time.process_time() - started < 5
        assert sum(len(data) for _, data in made.segments) < 3 * len(image) + 4 * MIB
