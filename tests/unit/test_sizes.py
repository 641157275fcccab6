"""How much memory an image wants."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu.boot import Target, plan
from pyvcpu.boot.sizes import wanted_memory
from tests.images import (
    CODE,
    FOUR_GIB,
    GIB,
    MIB,
    Segment,
    bzimage,
    elf,
    multiboot2_elf,
    multiboot_elf,
    multiboot_flat,
    pvh,
    ram,
    zimage,
)

CPIO = b"070701" + bytes(MIB - 30) + b"TRAILER!!!" + bytes(14)
ZSTD = b"\x28\xb5\x2f\xfd"
LARGE = bzimage(pref_address=16 * MIB, init_size=60 * MIB)  # as Debian's are: it ends at 76 MiB


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (b"\xf4", 64),
        (b"", 64),
        (b"\xf4".ljust(510, b"\0") + b"\x55\xaa", 64),
        (bytes(200 * MIB), 64),  # a flat image says nothing; its loader does
        (bzimage(init_size=0), 64),  # 16 MiB, where it prefers to lie, and 48
        (bzimage(init_size=1), 128),
        (bzimage(pref_address=MIB, relocatable=0, init_size=15 * MIB), 64),
        (bzimage(pref_address=MIB, relocatable=0, init_size=15 * MIB + 1), 128),
        (LARGE, 128),
        (bzimage(init_size=100 * MIB), 192),
        (bzimage(xloadflags=2, init_size=100 * MIB), 192),
        (bzimage(version=0x209, code=bytes(4 * MIB)), 128),  # 1 MiB, five times its size, 1 MiB, and 48
        (bzimage(version=0x202, code=bytes(15 * MIB)), 64),
        (zimage(), 64),
        (elf([Segment(MIB, CODE, size=15 * MIB)]), 64),
        (elf([Segment(MIB, CODE, size=16 * MIB)]), 128),
        (elf([Segment(MIB, CODE), Segment(GIB, CODE)]), 1024 + 64),
        (elf([Segment(MIB, CODE), Segment(FOUR_GIB, CODE)]), 64),
        (elf([Segment(3 * GIB, CODE)]), 64),
        (pvh(segments=[Segment(MIB, CODE, size=100 * MIB)]), 192),
        (multiboot_elf(), 64),
        (multiboot_flat(), 64),
        (multiboot2_elf(size=200 * MIB), 256),
        (gzip.compress(LARGE), 128),
        (gzip.compress(CPIO), 64),
        (gzip.compress(LARGE)[:-9], 64),
        (LARGE[:1000], 64),
    ],
)
def test_images(image: bytes, expected: int) -> None:
    assert wanted_memory(image) == expected * MIB


@pytest.mark.parametrize(
    ("initrd", "expected"),
    [
        (b"", 128),  # 76 MiB and 48
        (bytes(MIB), 128),  # 1 MiB, and 1 for its content
        (bytes(3 * MIB), 192),
        (ZSTD + bytes(35 * MIB - 4), 320),  # 35 MiB, and 140
        (CPIO + ZSTD + bytes(35 * MIB - 4), 320),  # 2 MiB more
        (CPIO + bytes(35 * MIB), 192 + 64),
        (CPIO, 128),
        (b"070701" + bytes(20 * MIB), 192),
    ],
)
def test_initrds(initrd: bytes, expected: int) -> None:
    assert wanted_memory(LARGE, [("i", initrd)]) == expected * MIB


def test_modules_are_added_up() -> None:
    assert wanted_memory(multiboot_elf(), [("a", bytes(20 * MIB)), ("b", bytes(12 * MIB))]) == 128 * MIB


def test_what_is_said_wins() -> None:
    image = multiboot_elf()
    assert wanted_memory(LARGE, format="flat") == 64 * MIB
    assert wanted_memory(LARGE, format="linux16") == 64 * MIB
    assert wanted_memory(image, format="pvh") == 64 * MIB
    assert wanted_memory(image, format="linux") == 64 * MIB


@given(
    st.integers(0, 200 * MIB),
    st.integers(0, 60),
    st.sampled_from([0x203, 0x209, 0x20F]),
    st.sampled_from([2, 3]),
)
def test_an_image_boots_in_what_it_wants(init_size: int, initrd: int, version: int, xloadflags: int) -> None:
    image = bzimage(init_size=init_size, version=version, xloadflags=xloadflags)
    files = [("i", bytes(initrd * MIB))]
    wanted = wanted_memory(image, files)
    assert wanted % (64 * MIB) == 0
    assert plan(image, Target(ram(wanted), 1, initrd=files)).format == "linux"
