"""Cond: who is woken, and when."""

from __future__ import annotations

import threading

import pytest

from pyvcpu.errors import StateError
from pyvcpu.vcpu.cond import Cond
from tests.threads import DEADLINE, Caller, until


class Waiter:
    """A thread that waits for `ready`; `asked` has the threads that called its predicate, in turn."""

    def __init__(self, cond: Cond) -> None:
        self.ready = False
        self.asked: list[int] = []
        self.thread = 0
        self.caller = Caller(lambda: self._wait(cond))

    def _wait(self, cond: Cond) -> None:
        self.thread = threading.get_ident()
        assert cond.wait_for(self._predicate, DEADLINE)

    def _predicate(self) -> bool:
        self.asked.append(threading.get_ident())
        return self.ready


def test_a_waiter_sleeps_until_its_predicate_holds() -> None:
    lock = threading.Lock()
    cond = Cond(lock)
    first, second = Waiter(cond), Waiter(cond)
    until(lambda: first.asked and second.asked)
    for _ in range(3):  # of no interest to either
        with lock:
            cond.notify_all()
    with lock:
        first.ready = True
        cond.notify_all()
    assert first.caller.done()
    with lock:
        second.ready = True
        cond.notify_all()
    assert second.caller.done()
    ours = threading.get_ident()
    assert first.asked == [first.thread, ours, ours, ours, ours]
    assert second.asked == [second.thread, ours, ours, ours, ours, ours]


def test_who_has_given_up_is_not_asked_any_more() -> None:
    lock = threading.Lock()
    cond = Cond(lock)
    calls = []
    assert not cond.wait_for(lambda: calls.append(1), 0)
    assert len(calls) == 2  # at first, and for the answer
    with lock:
        cond.notify_all()
    assert len(calls) == 2


def test_what_comes_at_the_last_moment_counts() -> None:
    lock = threading.Lock()
    answers = iter([False, True])
    assert Cond(lock).wait_for(lambda: next(answers), 0)


def test_an_exception_of_a_signal_handler_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bell:
        """A lock whose owner is interrupted when it waits for it."""

        taken = False

        def acquire(self, timeout: float = -1) -> bool:
            if self.taken:
                raise KeyboardInterrupt
            self.taken = True
            return True

    lock = threading.Lock()
    cond = Cond(lock)
    calls = []
    with monkeypatch.context() as patched:
        patched.setattr(threading, "Lock", Bell)
        with pytest.raises(KeyboardInterrupt):
            cond.wait_for(lambda: calls.append(1))
    seen = len(calls)
    with lock:
        cond.notify_all()
    assert len(calls) == seen


def test_what_is_triggered_is_waited_for_and_what_holds_is_not_triggered() -> None:
    lock = threading.Lock()
    cond = Cond(lock)
    done: list[bool] = []

    def trigger() -> None:
        assert lock.locked()
        done.append(True)
        cond.notify_all()  # before this thread sleeps

    assert cond.wait_for(lambda: done, 0, trigger)
    assert cond.wait_for(lambda: done, 0, trigger)
    assert done == [True]


def test_a_trigger_that_fails_leaves_nothing_behind() -> None:
    lock = threading.Lock()
    cond = Cond(lock)
    calls: list[None] = []

    def trigger() -> None:
        raise StateError("it has no thread")

    with pytest.raises(StateError):
        cond.wait_for(lambda: calls.append(None), trigger=trigger)
    seen = len(calls)
    with lock:
        cond.notify_all()
    assert len(calls) == seen
