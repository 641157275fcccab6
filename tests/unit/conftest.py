"""What the tests of the command's input and output share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from tests.pipes import Pipe
from tests.threads import DEADLINE


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close_reader()
    pipe.close_writer()


@pytest.fixture
def in_thread() -> Iterator[Callable[[Callable[[], object]], threading.Thread]]:
    """Give a function that runs another in a thread, which must have ended when the test ends."""
    threads: list[threading.Thread] = []

    def run(function: Callable[[], object]) -> threading.Thread:
        threads.append(threading.Thread(target=function, daemon=True))
        threads[-1].start()
        return threads[-1]

    yield run
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
