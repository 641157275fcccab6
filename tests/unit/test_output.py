"""Standard output: what the guest says arrives whole and in order, and nobody can hold up the end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from pyvcpu.cli.output import CHUNK, MOST, Output, OutputError
from tests.pipes import Pipe, fill, read_all

DEADLINE = 30.0  # for what should take no time


@pytest.fixture
def output(pipe: Pipe) -> Output:
    return Output(pipe.writer)


def test_it_arrives_whole_and_in_order(output: Output, pipe: Pipe, in_thread: Callable[..., threading.Thread]) -> None:
    sent = [b"x", b"", b"line\n", bytes(range(256)) * 1000, b"end"]
    got: list[bytes] = []
    thread = in_thread(lambda: got.append(read_all(pipe.reader)))
    for data in sent:
        output.write(data)
    while output.push():
        output.wait_room(DEADLINE)
    pipe.close_writer()
    thread.join(DEADLINE)
    assert got == [b"".join(sent)]


def test_a_little_waits_for_more_and_much_does_not(output: Output, pipe: Pipe) -> None:
    os.set_blocking(pipe.reader, False)
    output.write(b"A")
    with pytest.raises(BlockingIOError):
        os.read(pipe.reader, 10)
    output.write(bytes(CHUNK))
    assert os.read(pipe.reader, 2 * CHUNK) == b"A" + bytes(CHUNK - 1)
    assert not output.push()
    assert os.read(pipe.reader, 2 * CHUNK) == bytes(1)


def test_a_little_goes_out_by_itself_once_started(output: Output, pipe: Pipe) -> None:
    output.write(b"A")
    output.start()
    assert os.read(pipe.reader, 10) == b"A"
    output.write(b"B")
    assert os.read(pipe.reader, 10) == b"B"
    output.close()


@pytest.mark.parametrize("started", [False, True])
def test_close_loses_nothing_that_the_reader_takes(output: Output, pipe: Pipe, started: bool) -> None:
    if started:
        output.start()
    output.write(b"the last words")
    output.cancel()  # as at a timeout
    output.write(b", and more")
    output.close()
    assert os.read(pipe.reader, 100) == b"the last words, and more"


def test_one_write_stays_in_one_piece(output: Output, pipe: Pipe, in_thread: Callable[..., threading.Thread]) -> None:
    """Writers on several vCPU threads, pieces larger than a chunk."""
    size, writes = 3 * CHUNK, 8

    def write(letter: bytes) -> None:
        for _ in range(writes):
            output.write(letter * size)

    letters = [b"a", b"b", b"c"]
    for letter in letters:
        in_thread(lambda letter=letter: write(letter))
    got = b""
    while len(got) < len(letters) * writes * size:
        got += os.read(pipe.reader, 1 << 16)
    pieces = [got[i : i + size] for i in range(0, len(got), size)]
    assert all(len(set(piece)) == 1 for piece in pieces)


def test_a_reader_that_has_gone_is_told_once(output: Output, pipe: Pipe) -> None:
    told: list[int] = []
    output.on_broken = lambda: told.append(1)
    pipe.close_reader()
    output.write(b"a" * 10000)
    output.write(b"b")
    output.close()
    assert told == [1]


def test_a_full_disk_is_an_error_in_words() -> None:
    told: list[int] = []
    with open("/dev/full", "wb", buffering=0) as full:
        output = Output(full.fileno())
        output.on_broken = lambda: told.append(1)
        output.write(b"a" * CHUNK)
        assert told == [1]
        output.write(b"b")  # one is enough
        with pytest.raises(OutputError, match=r"^standard output: No space left on device$"):
            output.close()
        assert told == [1]


@pytest.mark.parametrize("blocking", [True, False])
def test_a_slow_reader_stops_the_writer_until_there_is_room(
    output: Output, pipe: Pipe, in_thread: Callable[..., threading.Thread], blocking: bool
) -> None:
    filled = fill(pipe.writer)
    os.set_blocking(pipe.writer, blocking)
    more = b"more" * CHUNK
    thread = in_thread(lambda: output.write(more))
    thread.join(0.05)
    assert thread.is_alive()
    got = b""
    while len(got) < filled + len(more):
        got += os.read(pipe.reader, 1 << 16)
    assert got == bytes(filled) + more


def test_cancel_frees_a_blocked_writer_and_keeps_only_so_much(
    output: Output, pipe: Pipe, in_thread: Callable[..., threading.Thread]
) -> None:
    filled = fill(pipe.writer)
    threads = [in_thread(lambda: output.write(b"more" * 5000)) for _ in range(3)]
    output.cancel()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    output.write(b"x" * 10 * MOST)
    assert not output.push()
    output.close()
    output.cancel()
    pipe.close_writer()
    assert read_all(pipe.reader) == bytes(filled)


def test_waiting_for_room_has_an_end(output: Output, pipe: Pipe) -> None:
    fill(pipe.writer)
    assert not output.wait_room(0)
    output.cancel()
    assert output.wait_room(DEADLINE)
