"""Compressed images: unpacked and planned as what is inside, within bounds."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import struct
import time
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu import ImageError
from pyvcpu.boot import Target, detect, plan
from pyvcpu.boot.unpack import Unpacker, is_packed
from tests.images import CODE, MIB, Segment, bzimage, elf, multiboot_elf, ram
from tests.loaded import Loaded


def alone(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_ALONE)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": alone,
}
names = pytest.mark.parametrize("name", PACKERS)


@names
@pytest.mark.parametrize(
    ("image", "format"),
    [(bzimage(), "linux"), (multiboot_elf(), "multiboot"), (elf([Segment(MIB, CODE)]), "elf"), (CODE, "flat")],
)
def test_what_is_inside_is_planned(name: str, image: bytes, format: str) -> None:
    packed = PACKERS[name](image)
    assert is_packed(packed)
    assert not is_packed(image)
    made, plain = plan(packed, Target(ram(32 * MIB), 1)), plan(image, Target(ram(32 * MIB), 1))
    assert made.format == plain.format == format
    assert Loaded(made).segments == Loaded(plain).segments


@names
def test_the_format_of_what_is_inside_can_be_said(name: str) -> None:
    packed = PACKERS[name](multiboot_elf())
    assert plan(packed, Target(ram(8 * MIB), 1), "elf").format == "elf"
    assert plan(packed, Target(ram(8 * MIB), 1), "flat").segments[0] == (0x1000, packed)
    assert plan(packed, Target(ram(8 * MIB), 1, mode="long")).segments[0] == (0x1000, packed)


@names
def test_more_than_a_piece(name: str) -> None:
    """What is large comes out whole, whatever it looks like."""
    image = elf([Segment(MIB, b"".join(struct.pack("<Q", i * i * i) for i in range(200_000)))])
    assert Unpacker(PACKERS[name](image), 64 * MIB).all() == image


@names
def test_an_initrd_in_place_of_a_kernel(name: str) -> None:
    """Seen before all of it is unpacked."""
    packed = PACKERS[name](b"070701" + bytes(5 * MIB))
    with pytest.raises(ImageError, match=r"a cpio archive, .*; an initrd is given beside a kernel \(--initrd\)"):
        plan(packed, Target(ram(MIB), 1))


@names
def test_cut_short(name: str) -> None:
    """Whatever has come out by then."""
    packed = PACKERS[name](bzimage(code=b"".join(struct.pack("<Q", i * i * i) for i in range(40_000))))
    with pytest.raises(ImageError, match=f"compressed with {name}, is cut short"):
        plan(packed[:-9], Target(ram(32 * MIB), 1))


@names
def test_damaged(name: str) -> None:
    packed = bytearray(PACKERS[name](bzimage(code=b"".join(struct.pack("<Q", i * i * i) for i in range(40_000)))))
    packed[len(packed) // 2 : len(packed) // 2 + 64] = b"\x55" * 64
    with pytest.raises(ImageError, match=f"compressed with {name}, (and damaged|is cut short)"):
        plan(bytes(packed), Target(ram(32 * MIB), 1), "linux")


@names
def test_more_than_the_guest_has_room_for(name: str) -> None:
    packed = PACKERS[name](bytes(MIB + 1))
    with pytest.raises(ImageError, match=f"with {name}, unpacks to more than the guest's RAM; give the guest"):
        Unpacker(packed, MIB).all()
    assert len(Unpacker(packed, MIB + 1).all()) == MIB + 1


def bomb(name: str) -> bytes:
    """Return a small file that unpacks to 80 MiB."""
    made: bz2.BZ2Compressor | lzma.LZMACompressor
    if name == "bzip2":
        made = bz2.BZ2Compressor()
    else:
        made = lzma.LZMACompressor(lzma.FORMAT_XZ if name == "xz" else lzma.FORMAT_ALONE, preset=0)
    chunk = bytes(16 * MIB)
    return b"".join([made.compress(chunk) for _ in range(5)]) + made.flush()


@pytest.mark.parametrize("name", ["bzip2", "xz", "lzma"])
def test_bombs(name: str) -> None:
    """80 MiB of zeros in a few KiB: refused after 64 MiB, however large the guest is."""
    packed = bomb(name)
    assert len(packed) < 64 << 10
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(ImageError, match=f"compressed with {name}, unpacks to more than 64 times its size"):
            plan(packed, Target([(0, 3 << 30), (1 << 32, 1 << 40)], 1))
        assert tracemalloc.get_traced_memory()[1] < 160 * MIB
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 20


def test_a_dictionary_too_large() -> None:
    """The header of an lzma file may ask for 4 GiB."""
    packed = bytearray(alone(bzimage()))
    packed[1:5] = struct.pack("<I", 1 << 30)
    with pytest.raises(ImageError, match="compressed with lzma, and damaged"):
        plan(bytes(packed), Target(ram(32 * MIB), 1))


@pytest.mark.parametrize(
    "image",
    [
        b"\x5d\0\0\x40\0" + b"\xff" * 8,  # as long as a header, and nothing behind
        b"\x5d\0\0\x50\x01" + b"\xff" * 9,  # no dictionary has such a size
        b"\x5d\0\0\x40\0" + b"\xfe" * 9,  # nor a file
        b"\x5d\0\0",
        b"\x1f\x8b\x07" + bytes(20),
    ],
)
def test_code_that_looks_compressed_is_flat(image: bytes) -> None:
    assert not is_packed(image)
    assert plan(image, Target(ram(MIB), 1)).format == "flat"


def test_a_disk_in_a_compressed_file() -> None:
    """Its boot sector would look for the rest of the disk, and find a compressed file."""
    packed = gzip.compress(b"\xf4".ljust(510, b"\0") + b"\x55\xaa" + bytes(4096))
    with pytest.raises(ImageError, match=r"a disk image, compressed; unpack it"):
        plan(packed, Target(ram(MIB), 1))


def test_what_is_inside_is_not_unpacked_again() -> None:
    packed = gzip.compress(gzip.compress(bzimage()))
    assert plan(packed, Target(ram(32 * MIB), 1)).format == "flat"
    assert detect(packed) == "flat"


@given(st.sampled_from(sorted(PACKERS)), st.integers(0, 400), st.binary(max_size=8), st.integers(0, 400))
def test_mutated(name: str, at: int, change: bytes, cut: int) -> None:
    packed = bytearray(PACKERS[name](bzimage(code=CODE * 64)))
    packed[at : at + len(change)] = change
    for image in (bytes(packed), bytes(packed[: len(packed) - cut])):
        with contextlib.suppress(ImageError):
            plan(image or b"x", Target(ram(32 * MIB), 1))
