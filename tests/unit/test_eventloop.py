"""The event loop, with real eventfds and pipes: what it serves, standing still, mistakes, forks, and the end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from time import monotonic, monotonic_ns

import pytest

from pyvcpu.errors import StateError
from pyvcpu.machine import eventloop
from pyvcpu.machine.eventloop import SECOND, EventLoop
from tests.threads import DEADLINE, Caller, Hold, until


class Loop(EventLoop):
    """A loop with an eventfd, and a record of what was served and what was raised."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        super().__init__(self.errors.append)
        self.served: list[str] = []
        self.fds: list[int] = []

    def eventfd(self, callback: Callable[[], object] | None = None, name: str = "x") -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.fds.append(fd)
        self.add_eventfd(fd, callback or (lambda: self.served.append(name)))
        return fd


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()
    for fd in loop.fds:
        os.close(fd)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "io"]


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


# What is served


def test_a_loop_without_anything_to_serve_has_no_thread() -> None:
    before = threads(), fds()
    loop = Loop()
    loop.timer(print).cancel()
    assert loop.hold()
    loop.release()
    assert loop.drain()
    assert (threads(), fds()) == before
    loop.close()


def test_an_eventfd_is_read_and_served_once(loop: Loop) -> None:
    fd = loop.eventfd()
    os.eventfd_write(fd, 3)
    assert loop.drain(DEADLINE)
    assert loop.served == ["x"]
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fd)
    assert threads() == ["io"]


def test_an_eventfd_that_somebody_else_has_read_is_nothing(loop: Loop) -> None:
    hold = Hold()
    first, second = loop.eventfd(hold), loop.eventfd()
    os.eventfd_write(first, 1)
    hold.wait()
    os.eventfd_write(second, 1)
    os.eventfd_read(second)
    hold.release()
    assert loop.drain(DEADLINE)
    assert loop.served == []


def test_a_pipe_is_served_as_long_as_there_is_something_in_it(loop: Loop) -> None:
    reader, writer = os.pipe()
    received = []
    loop.add_fd(reader, lambda: received.append(os.read(reader, 2)))
    os.write(writer, b"abcde")
    assert loop.drain(DEADLINE)
    assert received == [b"ab", b"cd", b"e"]
    loop.remove_fd(reader)
    os.write(writer, b"f")
    assert loop.drain(DEADLINE)
    assert received == [b"ab", b"cd", b"e"]
    loop.remove_fd(reader)
    os.close(reader)
    os.close(writer)


def test_an_fd_that_was_closed_too_early_can_be_removed(loop: Loop) -> None:
    reader, writer = os.pipe()
    loop.add_fd(reader, print)
    os.close(reader)
    loop.remove_fd(reader)
    os.close(writer)


def test_what_cannot_be_waited_for_is_an_os_error(loop: Loop) -> None:
    with open(__file__) as file, pytest.raises(PermissionError):
        loop.add_fd(file.fileno(), print)
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.add_fd(1 << 20, print)
    assert loop.drain(DEADLINE)


def test_remove_fd_waits_for_the_callback(loop: Loop) -> None:
    hold = Hold()
    fd = loop.eventfd(hold)
    os.eventfd_write(fd, 1)
    hold.wait()
    removing = Caller(lambda: loop.remove_fd(fd))
    until(lambda: loop._bells)
    assert removing.is_alive()
    hold.release()
    assert removing.done()


def test_a_callback_may_remove_its_own_fd_and_add_others(loop: Loop) -> None:
    def once() -> None:
        loop.remove_fd(fd)
        os.eventfd_write(loop.eventfd(), 1)
        os.eventfd_write(fd, 1)
        loop.served.append("once")

    fd = loop.eventfd(once)
    os.eventfd_write(fd, 1)
    assert loop.drain(DEADLINE)
    assert loop.served == ["once", "x"]


def test_a_callback_with_more_to_do_is_called_again_after_others(loop: Loop) -> None:
    """So that one disk with endless work leaves the others their turn."""
    hold = Hold()

    def greedy() -> bool:
        hold()
        loop.served.append("greedy")
        return len(loop.served) < 5

    first, second = loop.eventfd(greedy), loop.eventfd()
    os.eventfd_write(first, 1)
    hold.wait()
    os.eventfd_write(second, 1)
    hold.release()
    assert loop.drain(DEADLINE)
    assert loop.served[-1] == "greedy"
    assert loop.served.index("x") in (1, 2)
    assert len(loop.served) == 5


def test_signals_are_other_threads_business(loop: Loop) -> None:
    import signal

    masks = []
    os.eventfd_write(loop.eventfd(lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))), 1)
    assert loop.drain(DEADLINE)
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGURG} <= masks[0]


# Timers


def wait_timers(loop: Loop, count: int) -> None:
    until(lambda: len(loop.served) >= count)


def test_timers_run_out_in_order_each_once(loop: Loop) -> None:
    now = loop.clock()
    assert loop.hold()
    for name, after in (("c", 3), ("a", 1), ("b", 2), ("past", -5)):
        loop.timer(lambda name=name: loop.served.append(name)).at(now + after * 1_000_000)  # type: ignore[misc]
    loop.release()
    wait_timers(loop, 4)
    assert loop.served == ["past", "a", "b", "c"]


def test_a_timer_is_set_anew_and_cancelled(loop: Loop) -> None:
    far, near = loop.clock() + 1000 * SECOND, loop.clock()
    timer, last = loop.timer(lambda: loop.served.append("x")), loop.timer(lambda: loop.served.append("last"))
    timer.at(far)
    timer.at(near)
    wait_timers(loop, 1)
    assert loop.hold()
    timer.at(near)
    timer.cancel()
    last.at(near)
    loop.release()
    wait_timers(loop, 2)
    assert loop.served == ["x", "last"]


def test_a_timer_that_sets_itself_again_leaves_the_others_their_turn(loop: Loop) -> None:
    def again() -> None:
        loop.served.append("again")
        if len(loop.served) < 100:
            timer.at(0)

    timer = loop.timer(again)
    fd = loop.eventfd(lambda: loop.served.append("fd"))
    assert loop.hold()
    timer.at(0)
    os.eventfd_write(fd, 1)
    loop.release()
    until(lambda: "fd" in loop.served)
    assert loop.served.index("fd") < 3
    wait_timers(loop, 100)


def test_timers_set_over_and_over_take_no_more_room(loop: Loop) -> None:
    timer = loop.timer(print)
    for _ in range(10_000):
        timer.at(loop.clock() + 1000 * SECOND)
    assert len(loop._timers) < 100


def test_the_clock_stands_still_in_a_hold_and_timers_with_it(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    host = monotonic_ns()
    monkeypatch.setattr(eventloop, "monotonic_ns", lambda: host)
    assert loop.clock() == host
    timer = loop.timer(lambda: loop.served.append("x"))
    assert loop.hold()
    timer.at(host + 5)
    host += 10
    assert loop.hold()
    assert loop.clock() == host - 10
    loop.release()
    host += 10
    assert loop.clock() == host - 20
    loop.release()
    assert loop.clock() == host - 20
    host += 4
    assert loop.clock() == host - 20
    fd = loop.eventfd(name="fd")
    os.eventfd_write(fd, 1)
    assert loop.drain(DEADLINE)
    assert loop.served == ["fd"]
    host += 1
    os.eventfd_write(fd, 1)  # has the thread look at its clock
    wait_timers(loop, 3)
    assert sorted(loop.served) == ["fd", "fd", "x"]


# Standing still


def test_nothing_is_served_in_a_hold_and_nothing_is_lost(loop: Loop) -> None:
    fd = loop.eventfd()
    timer = loop.timer(lambda: loop.served.append("timer"))
    for count in range(1, 50):
        assert loop.hold()
        assert loop.hold()
        os.eventfd_write(fd, 1)
        timer.at(0)
        loop.release()
        assert not loop.drain(DEADLINE)
        assert len(loop.served) == 2 * (count - 1)
        loop.release()
        until(lambda count=count: len(loop.served) == 2 * count)  # type: ignore[misc]


def test_a_hold_waits_for_the_callback_which_can_know(loop: Loop) -> None:
    inside, go_on = threading.Event(), threading.Event()
    seen = []

    def callback() -> None:
        seen.append(loop.wanted_still())
        inside.set()
        assert go_on.wait(DEADLINE)
        seen.append(loop.wanted_still())

    os.eventfd_write(loop.eventfd(callback), 1)
    assert inside.wait(DEADLINE)
    holding = Caller(loop.hold)
    until(loop.wanted_still)
    assert holding.is_alive()
    go_on.set()
    assert holding.done()
    assert (holding.result, seen) == (True, [False, True])
    loop.release()
    assert not loop.wanted_still()


def test_a_hold_that_comes_too_late_holds_nothing(loop: Loop) -> None:
    hold = Hold()
    os.eventfd_write(loop.eventfd(hold), 1)
    hold.wait()
    begun = monotonic()
    assert not loop.hold(0.05)
    assert 0.05 <= monotonic() - begun < DEADLINE / 2
    assert not loop.wanted_still()
    hold.release()
    os.eventfd_write(loop.eventfd(), 1)
    assert loop.drain(DEADLINE)
    assert loop.served == ["x"]


@pytest.mark.parametrize("who", [None, "me"])
@pytest.mark.parametrize("where", ["new_bell", "wait_for_bell", "monotonic_ns"])
def test_a_ctrl_c_anywhere_in_a_hold_leaves_none(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, where: str, who: object
) -> None:
    hold = Hold()
    os.eventfd_write(loop.eventfd(hold), 1)
    hold.wait()

    def interrupt(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(eventloop, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.hold(who=who)
    assert not loop.wanted_still()
    hold.release()
    assert loop.hold(DEADLINE)
    loop.release()
    os.eventfd_write(loop.eventfd(), 1)
    assert loop.drain(DEADLINE)
    assert loop.served == ["x"]


def test_who_holds_by_name_holds_once(loop: Loop) -> None:
    me, other = object(), object()
    for who in (me, me, other, None):
        assert loop.hold(who=who)
    loop.release(me)
    loop.release(me)
    assert loop.wanted_still()
    loop.release(other)
    assert loop.wanted_still()
    loop.release()
    assert not loop.wanted_still()
    loop.release()
    loop.release(object())


def test_a_callback_may_hold_the_loop_itself(loop: Loop) -> None:
    def callback() -> None:
        loop.served.append("x")
        assert loop.hold()

    fd = loop.eventfd(callback)
    os.eventfd_write(fd, 1)
    until(loop.wanted_still)
    os.eventfd_write(fd, 1)
    assert not loop.drain(DEADLINE)
    assert loop.served == ["x"]
    loop.release()
    until(lambda: len(loop.served) == 2)


@pytest.mark.smp
def test_many_hold_and_release_and_nothing_is_lost(loop: Loop) -> None:
    inside = 0
    wrong: list[int] = []

    def callback() -> None:
        nonlocal inside
        inside += 1
        os.sched_yield()
        inside -= 1
        loop.served.append("x")

    fd = loop.eventfd(callback)

    def holder() -> None:
        for _ in range(200):
            assert loop.hold(DEADLINE)
            wrong.append(inside)
            before = len(loop.served)
            os.sched_yield()
            wrong.append(len(loop.served) - before)
            loop.release()

    def notifier() -> None:
        for _ in range(200):
            before = len(loop.served)
            os.eventfd_write(fd, 1)
            until(lambda before=before: len(loop.served) > before)  # type: ignore[misc]

    callers = [Caller(holder), Caller(holder), Caller(notifier)]
    assert all(caller.done() for caller in callers)
    assert [caller.error for caller in callers] == [None] * 3
    assert not any(wrong)


def test_drain_has_its_deadline(loop: Loop) -> None:
    fd = loop.eventfd(lambda: True)  # a guest that never has enough
    os.eventfd_write(fd, 1)
    assert not loop.drain(0.05)
    loop.remove_fd(fd)
    assert loop.drain(DEADLINE)


# Mistakes


def test_what_a_callback_raises_is_reported_and_the_loop_lives_on(loop: Loop) -> None:
    raised: list[BaseException] = [ValueError("once"), KeyboardInterrupt(), SystemExit(3)]

    def callback() -> None:
        loop.served.append("x")
        if len(loop.served) <= len(raised):
            raise raised[len(loop.served) - 1]

    fd = loop.eventfd(callback)
    for _ in range(5):
        os.eventfd_write(fd, 1)
        assert loop.drain(DEADLINE)
    assert loop.errors == raised
    assert len(loop.served) == 5
    timer = loop.timer(lambda: 1 // 0)
    timer.at(0)
    until(lambda: len(loop.errors) == 4)
    assert isinstance(loop.errors[3], ZeroDivisionError)
    assert loop.hold(DEADLINE)


def test_a_report_that_fails_is_not_lost_either(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: BaseException) -> None:
        raise RuntimeError("no")

    seen: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    loop = EventLoop(fail)
    fd = os.eventfd(1, os.EFD_NONBLOCK)
    loop.add_eventfd(fd, lambda: 1 // 0)
    assert loop.drain(DEADLINE)
    loop.close()
    os.close(fd)
    assert repr(seen[0].exc_value) == "RuntimeError('no')"
    assert isinstance(seen[0].exc_value, RuntimeError)
    assert isinstance(seen[0].exc_value.__context__, ZeroDivisionError)


def test_no_thread_left_is_one_error_and_close_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = fds()
    loop = Loop()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(2):
        with pytest.raises(StateError, match="ulimit -u"):
            loop.add_fd(0, print)
        with pytest.raises(StateError, match="ulimit -u"):
            loop.timer(print).at(0)
    assert fds() == before
    assert loop.hold()
    loop.release()
    monkeypatch.undo()
    fd = loop.eventfd()  # there is one again
    os.eventfd_write(fd, 1)
    assert loop.drain(DEADLINE)
    loop.close()
    loop.close()
    os.close(fd)
    assert fds() == before


def test_no_descriptor_left_leaves_none(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    before = fds()
    reader, writer = os.pipe()
    monkeypatch.setattr(os, "eventfd", refuse)
    with pytest.raises(OSError, match="Too many"):
        loop.add_fd(reader, print)
    monkeypatch.undo()
    os.close(reader)
    os.close(writer)
    assert fds() == before


# The end


def test_close_ends_the_thread_and_gives_the_descriptors_back() -> None:
    before = threads(), fds()
    loop = Loop()
    fd = loop.eventfd()
    loop.close()
    loop.close()
    os.close(fd)
    assert (threads(), fds()) == before
    with pytest.raises(StateError, match="closed"):
        loop.add_fd(0, print)
    with pytest.raises(StateError, match="closed"):
        loop.timer(print).at(0)
    loop.remove_fd(fd)
    assert loop.hold()
    loop.release()
    assert not loop.drain()


def test_a_held_loop_can_be_closed() -> None:
    loop = Loop()
    fd = loop.eventfd()
    assert loop.hold()
    os.eventfd_write(fd, 1)
    closing = Caller(loop.close)
    assert closing.done()
    assert loop.served == []
    os.close(fd)


def test_two_threads_close_it_and_both_return_when_it_is_closed() -> None:
    loop, hold = Loop(), Hold()
    fd = loop.eventfd(hold)
    os.eventfd_write(fd, 1)
    hold.wait()
    closers = [Caller(loop.close) for _ in range(2)]
    until(loop.wanted_still)
    assert all(closer.is_alive() for closer in closers)
    hold.release()
    assert all(closer.done() for closer in closers)
    assert [closer.error for closer in closers] == [None, None]
    assert threads() == []
    os.close(fd)


def test_a_callback_may_close_the_loop() -> None:
    before = fds()
    loop = Loop()
    fd = loop.eventfd(loop.close)
    os.eventfd_write(fd, 1)
    until(lambda: threads() == [])
    loop.close()
    os.close(fd)
    assert (loop.errors, fds()) == ([], before)


def test_those_who_wait_are_woken_by_the_end() -> None:
    loop, hold = Loop(), Hold()
    fd = loop.eventfd(hold)
    os.eventfd_write(fd, 1)
    hold.wait()
    waiters = [Caller(loop.hold), Caller(lambda: loop.remove_fd(fd)), Caller(loop.drain)]
    until(lambda: len(loop._bells) == 2)
    closing = Caller(loop.close)
    hold.release()
    assert closing.done()
    assert all(waiter.done() for waiter in waiters)
    os.close(fd)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_closes_its_descriptors_and_nothing_else(loop: Loop) -> None:
    fd = loop.eventfd()
    with loop._lock:  # as a thread of the parent may have it at that moment
        child = os.fork()
        if not child:
            try:
                before = fds()
                loop.remove_fd(fd)
                loop.close()
                loop.close()
                os._exit(0 if fds() == before - 2 else 1)
            finally:
                os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    os.eventfd_write(fd, 1)
    assert loop.drain(DEADLINE)
    assert loop.served == ["x"]
