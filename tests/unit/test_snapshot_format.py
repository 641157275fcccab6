"""Snapshots in files: what is written comes back, and what nobody wrote is refused in words.

PYVCPU_FUZZ=N runs N mutations of each kind instead of 300.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from binascii import crc32
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvcpu.memory import GuestMemory
from pyvcpu.snapshot import Snapshot, SnapshotError
from pyvcpu.snapshot.codec import CodecError, decode, encode
from pyvcpu.snapshot.format import HEADER_SIZE, Header, layout
from pyvcpu.snapshot.image import PAGE, Image, capture, capture_layer, runs
from pyvcpu.snapshot.plain import check

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = int(os.environ.get("PYVCPU_FUZZ", "300"))
KILLS = int(os.environ.get("PYVCPU_KILLS", "10"))
SIZE = 64 * PAGE

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 200), 1 << 200) | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)


def data_of(size: int = SIZE) -> dict[str, Any]:
    """Return what the data of a machine with one vCPU look like."""
    start = {
        "mode": "real",
        "entry": 0x1000,
        "stack": 0x8000,
        "stack_base": 0,
        "code_base": None,
        "gdt": 0,
        "page_table": 0,
        "selectors": [8, 16],
        "registers": {"rsi": 1},
    }
    return {
        "software": "pyvcpu",
        "created": 1_800_000_000_000_000_000,
        "memory": size,
        "smp": [1, 1, 1, 1, 1],
        "cpu": "host",
        "irqchip": "none",
        "format": "flat",
        "starts": [start],
        "vcpus": [{"state": {"regs": bytes(144), "msrs": bytes(32)}, "interrupts": [3]}],
        "clock": {"ns": 5, "realtime": 6, "line": bytes(16)},
        "devices": {"com1": {"ier": 0, "fifo": b"", "deep": [[None, True], {"x": -1}]}},
        "disks": {"virtio0": {"size": 512, "device": 1, "inode": 2, "modified": 3}},
    }


def filled(memory: GuestMemory, **pages: int) -> None:
    for name, letter in pages.items():
        memory.write(int(name[1:]) * PAGE, bytes((letter,)) * PAGE)


@pytest.fixture
def memory() -> Any:
    made = GuestMemory(SIZE)
    yield made
    made.close()


@pytest.fixture
def saved(memory: GuestMemory, tmp_path: Path) -> Path:
    """Give the file of a small snapshot."""
    filled(memory, p1=65, p2=66, p40=67)
    path = tmp_path / "snapshot"
    with Snapshot(data_of(), capture(memory)) as snapshot:
        snapshot.save(path)
    return path


def sealed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the metadata, and make the checksums fit: what a hostile writer would do."""
    content = path.read_bytes()
    header = Header.unpack(content[:HEADER_SIZE], len(content))
    metadata = decode(content[HEADER_SIZE : HEADER_SIZE + header.metadata])
    change(metadata)
    encoded = encode(metadata)
    place = layout(len(encoded), header.layout.end - header.layout.memory)
    memory = content[header.layout.memory :]
    head = Header(place, len(encoded), crc32(encoded)).pack()
    path.write_bytes((head + encoded).ljust(place.memory, b"\0") + memory)


# The codec.


@given(PLAIN)
def test_what_is_encoded_comes_back(value: Any) -> None:
    data = encode(value)
    assert decode(data) == value
    assert encode(decode(data)) == data


@given(st.binary(max_size=60))
@settings(max_examples=EXAMPLES)
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    with contextlib.suppress(CodecError):
        decode(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it ends in the middle"),
        (b"NN", "1 bytes follow behind the end"),
        (b"l\xff\xff\xff\x7f", "2147483647 values cannot follow"),
        (b"d\x01\0\0\0\x05\0\0\0", "it ends in the middle"),
        (b"s\x01\0\0\0\xff", "no UTF-8"),
        (b"i\x00", "1 to 32 bytes, not 0"),
        (b"i\x21" + bytes(33), "1 to 32 bytes, not 33"),
        (b"l\x01\0\0\0" * 17 + b"N", "more than 16"),
        (b"?", "no value begins with b'\\?'"),
        (b"d\x02\0\0\0" + b"\x01\0\0\0aN" * 2, "'a' comes twice"),
    ],
)
def test_bytes_that_encode_never_made(data: bytes, words: str) -> None:
    with pytest.raises(CodecError, match=words):
        decode(data)


@pytest.mark.parametrize("value", [1.5, (1,), bytearray(1), {1: 2}, object()])
def test_what_is_no_plain_data(value: object) -> None:
    with pytest.raises(TypeError):
        encode(value)
    with pytest.raises(ValueError, match="32 bytes"):
        encode(1 << 256)


# Files.


def test_a_file_has_it_all(memory: GuestMemory, saved: Path) -> None:
    with Snapshot.load(saved, verify=True) as again:
        assert again.data == data_of()
        assert again.path == str(saved)
        assert [bytes(again.image.page(number)[:1]) for number in (0, 1, 2, 40, 63)] == [b"\0", b"A", b"B", b"C", b"\0"]
        memory.clear()
        again.image.put_into(memory)
        assert memory[PAGE : 3 * PAGE] == b"A" * PAGE + b"B" * PAGE
        memory[0] = 1
        assert again.image.page(0)[0] == 0
        again.image.put_into(memory)
        assert memory[0] == 0
        memory.clear()
        assert memory[0:SIZE] == bytes(SIZE)
    assert os.listdir(saved.parent) == ["snapshot"]
    assert saved.stat().st_mode & 0o777 == 0o600


def test_pages_of_zeros_cost_nothing(tmp_path: Path) -> None:
    memory = GuestMemory("1G")
    try:
        memory.write(900 << 20, b"x")
        memory.read(800 << 20, 100 << 20)  # to look is not to touch
        with Snapshot(data_of(1 << 30), capture(memory)) as snapshot:
            snapshot.save(tmp_path / "large")
    finally:
        memory.close()
    status = (tmp_path / "large").stat()
    assert status.st_size > 1 << 30
    assert status.st_blocks * 512 < 1 << 20
    begin = time.perf_counter()
    Snapshot.load(tmp_path / "large").close()
    assert time.perf_counter() - begin < 1


def test_a_layer_has_what_differs(memory: GuestMemory, tmp_path: Path) -> None:
    filled(memory, p1=65, p2=66)
    base = Snapshot(data_of(), capture(memory))
    base.image.put_into(memory)
    filled(memory, p2=90, p7=91, p8=92)
    memory.read(0, SIZE)
    filled(memory, p1=65)  # the same as before
    child = Snapshot(data_of(), capture_layer(memory, base.image), base)
    assert sorted(child.image.places) == [2, 7, 8]
    assert child.image.differing(base.image) == {2, 7, 8}
    base.save(tmp_path / "base")
    child.save(tmp_path / "child")
    with Snapshot.load(tmp_path / "child", verify=True) as again:
        assert again.base is not None
        assert again.base.id == base.id
        assert [again.image.page(number)[0] for number in (0, 1, 2, 7, 8)] == [0, 65, 90, 91, 92]
        again.base.close()
    # Where the base is no more, or another, all of it is written.
    (tmp_path / "base").unlink()
    with pytest.raises(SnapshotError, match=r"its base base cannot be read: No such file"):
        Snapshot.load(tmp_path / "child")
    child.save(tmp_path / "child")
    with Snapshot.load(tmp_path / "child", verify=True) as again:
        assert (again.base, again.image.page(7)[0]) == (None, 91)
    base.close()
    child.close()


def test_another_base_is_refused(memory: GuestMemory, tmp_path: Path) -> None:
    base = Snapshot(data_of(), capture(memory))
    base.image.put_into(memory)
    filled(memory, p3=1)
    child = Snapshot(data_of(), capture_layer(memory, base.image), base)
    base.save(tmp_path / "base")
    child.save(tmp_path / "child")
    Snapshot(data_of(), base.image).save(tmp_path / "base")
    with pytest.raises(SnapshotError, match="base is another snapshot than its base"):
        Snapshot.load(tmp_path / "child")
    sealed(tmp_path / "child", lambda m: m["base"].update(name="child", id=child.id))
    with pytest.raises(SnapshotError, match="more than 64 layers"):
        Snapshot.load(tmp_path / "child")
    for name in ("../base", "/etc/passwd", "", ".", "a\0b", "x" * 300):
        sealed(tmp_path / "child", partial(rename, name=name))
        with pytest.raises(SnapshotError, match="a file of the same folder"):
            Snapshot.load(tmp_path / "child")
    base.close()
    child.close()


def rename(metadata: dict[str, Any], **values: object) -> None:
    metadata["base"].update(values)


@given(st.sets(st.integers(0, 300)))
def test_runs(numbers: set[int]) -> None:
    found = list(runs(sorted(numbers)))
    assert [number for first, last in found for number in range(first, last)] == sorted(numbers)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))


def put(offset: int, data: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content[:offset] + data + content[offset + len(data) :]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: b"", "it is empty"),
        (lambda content: b"#!/bin/sh", "it is no snapshot"),
        (lambda content: content[:100], "cut short: not even the header"),
        (lambda content: content[:-PAGE], "cut short: it must have"),
        (lambda content: content + b"x", "something behind its end"),
        (put(16, b"\2"), "version 2, and this program knows 1; a newer version"),
        (put(16, b"\0"), "version 0, and this program knows 1$"),
        (put(24, b"\xff"), "the header does not have its checksum"),
        (put(4000, b"\xff"), "the header does not have its checksum"),
        (put(HEADER_SIZE + 40, b"\xff\xff"), "the metadata do not have their checksum"),
        (put(-PAGE * 24, b"x"), "the memory at byte"),
    ],
)
def test_a_damaged_file_is_refused(saved: Path, change: Callable[[bytes], bytes], words: str) -> None:
    saved.write_bytes(change(saved.read_bytes()))
    with pytest.raises(SnapshotError, match=words) as caught:
        Snapshot.load(saved, verify=True)
    assert str(caught.value).startswith(f"{saved}: it")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.clear(), "not those of a snapshot"),
        (lambda m: m.update(id=b""), "its id must be 16 bytes"),
        (lambda m: m.update(checksums=b""), "a checksum for each MiB"),
        (lambda m: m.update(base={}), "what it is a layer of"),
        (lambda m: m["data"].pop("smp"), "must have a key 'smp'"),
        (lambda m: m["data"].update(extra=1), "must have no key 'extra'"),
        (lambda m: m["data"].update(smp=[1, 1, 1, 1, 4096]), "processors are not 1 sockets"),
        (lambda m: m["data"].update(smp=[2, 1, 2, 1, 2]), "must have 2 vCPUs"),
        (lambda m: m["data"].update(cpu="z80"), "not 'z80'"),
        (lambda m: m["data"].update(memory=1 << 50), "bytes of memory in place of"),
        (lambda m: m["data"].update(memory=SIZE + 1), "must be whole pages"),
        (lambda m: m["data"].update(created=-1), "created must be from 0"),
        (lambda m: m["data"].update(irqchip="8259"), "one of none, kernel, split"),
        (lambda m: m["data"]["starts"][0]["registers"].update(foo=1), "no register 'foo'"),
        (lambda m: m["data"]["vcpus"][0]["state"].update(regs="x"), "regs must be bytes"),
        (lambda m: m["data"]["vcpus"][0].update(interrupts=[256]), "from 0 to 255"),
        (lambda m: m["data"].update(devices=[]), "devices must be a dict"),
    ],
)
def test_forged_metadata_are_refused(saved: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    sealed(saved, change)
    with pytest.raises(SnapshotError, match=words):
        Snapshot.load(saved)


def test_forged_page_numbers_are_refused(memory: GuestMemory, tmp_path: Path) -> None:
    base = Snapshot(data_of(), capture(memory))
    base.image.put_into(memory)
    filled(memory, p3=1, p4=1, p9=1)
    child = Snapshot(data_of(), capture_layer(memory, base.image), base)
    base.save(tmp_path / "base")
    for numbers in (
        [3, 5],
        [3, 5, 9],
        [3, 5, 9, 12],
        [3, 2, 9, 11],
        [9, 10, 3, 5],
        [62, 65],
        ["a", 1],
        [0, 1 << 60],
        None,
    ):
        child.save(tmp_path / "child")
        sealed(tmp_path / "child", partial(rename, runs=numbers))
        with pytest.raises(SnapshotError):
            Snapshot.load(tmp_path / "child")
    base.close()
    child.close()


def refusal(function: Callable[[], object]) -> str:
    """Return the one error that is documented, or "" for none."""
    try:
        function()
    except SnapshotError as error:
        return str(error)
    return ""


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Return the content with something wrong in its first part, where all is that is believed."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(len(data), HEADER_SIZE + 1200) or 1)
        kind = chance.randrange(4)
        if kind == 0:
            data[at : at + 1] = bytes((chance.randrange(256),))
        elif kind == 1:
            del data[at : at + chance.randint(1, 8)]
        elif kind == 2:
            data[at:at] = chance.randbytes(chance.randint(1, 8))
        else:
            data[at : at + 4] = chance.choice([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f"])
    return bytes(data)


@pytest.mark.parametrize("resealed", [False, True])
def test_mutated_files_give_nothing_but_the_error(saved: Path, resealed: bool) -> None:
    content = saved.read_bytes()
    head = Header.unpack(content[:HEADER_SIZE], len(content))
    metadata = content[HEADER_SIZE : HEADER_SIZE + head.metadata]
    chance = random.Random(1)
    target = saved.parent / "mutated"
    for number in range(EXAMPLES):
        if resealed:  # behind right checksums
            forged = mutate(metadata, chance)
            place = layout(len(forged), SIZE)
            page = Header(place, len(forged), crc32(forged)).pack()
            target.write_bytes((page + forged).ljust(place.memory, b"\0"))
            os.truncate(target, place.end)
        else:
            target.write_bytes(mutate(content, chance))
        begin = time.perf_counter()
        assert "\n" not in refusal(lambda: Snapshot.load(target).close()), number
        assert time.perf_counter() - begin < 2, number


@given(st.dictionaries(st.sampled_from(sorted(data_of())), PLAIN, min_size=1))
@settings(max_examples=EXAMPLES)
def test_any_data_are_checked(changes: dict[str, Any]) -> None:
    assert "\n" not in refusal(lambda: check(data_of() | changes))


# Saves that do not come to their end.


def test_a_failed_save_leaves_the_old_file(saved: Path, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with Snapshot(data_of(), capture(memory)) as snapshot, pytest.raises(OSError, match="No space"):
        snapshot.save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["snapshot"]


SAVER = """
import sys
from pyvcpu.memory import GuestMemory
from pyvcpu.snapshot import Snapshot
from pyvcpu.snapshot.image import capture
from tests.unit.test_snapshot_format import data_of
memory = GuestMemory(4 << 20)
for number in range(0, 4 << 20, 4096):
    memory.write(number, b"x" * 4096)
snapshot = Snapshot(data_of(4 << 20), capture(memory))
print("ready", flush=True)
while True:
    snapshot.save(sys.argv[1])
"""


def test_kill_9_during_a_save_leaves_a_whole_file(saved: Path) -> None:
    ids = {Snapshot.load(saved).id}
    for _ in range(KILLS):
        line = [sys.executable, "-c", SAVER, str(saved)]
        with subprocess.Popen(line, stdout=subprocess.PIPE, cwd=ROOT) as saver:
            assert saver.stdout is not None
            assert saver.stdout.readline() == b"ready\n"
            time.sleep(random.uniform(0, 0.05))  # any moment will do
            saver.send_signal(signal.SIGKILL)
        with Snapshot.load(saved, verify=True) as found:
            ids.add(found.id)
    assert len(ids) > 1


def test_progress_is_told(saved: Path) -> None:
    told: list[tuple[int, int]] = []
    with Snapshot.load(saved, verify=True, progress=lambda done, total: told.append((done, total))) as snapshot:
        assert told == [(SIZE, SIZE)]
        snapshot.save(saved, progress=lambda done, total: told.append((done, total)))
    assert told == [(SIZE, SIZE)] * 2


def test_an_image_of_nothing(memory: GuestMemory) -> None:
    base = capture(memory)
    base.put_into(memory)
    layer = capture_layer(memory, base)
    assert (layer.stored, bytes(layer.bytes), layer.page(3)[0]) == (0, b"", 0)
    assert layer.root is base
    other = capture(memory)
    assert other.differing(layer) is None
    for image in (layer, base, other):
        assert isinstance(image, Image)
        image.close()
        image.close()
