"""EventLoop: the thread that serves file descriptors and timers beside the vCPUs (QEMU: main loop, iothread)."""

from __future__ import annotations

import os
import select
import threading
from heapq import heappop, heappush
from time import monotonic_ns

from ..errors import StateError
from ..posix import signal
from ..vcpu.cond import new_bell, wait_for_bell

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Iterable

    Callback = Callable[[], object]

SECOND = 10**9


class EventLoop:
    """One thread, named `io`, that calls back when a file descriptor is readable or a timer has run out.

    The thread starts with the first registration. Callbacks run on it, one at a time. What one raises goes to
    `on_error(exception)`, on the same thread, and the loop goes on.

    hold() makes the loop stand still: once it returns, no callback runs until release(). Holds nest. A callback that
    takes long looks at wanted_still() and returns early; what is left is to be found again later: a descriptor is still
    readable, and for an eventfd the callback returns True. clock() stands still as well, and timers with it.

    Threads: any may call any method. `_lock` guards all state. It is held for a few instructions at a time, and never
    while a callback or `on_error` runs. Nobody waits inside `with self._lock`, so a KeyboardInterrupt at any moment
    leaves it free. After a fork the child may only close() the loop, which closes the child's descriptors.
    """

    def __init__(self, on_error: Callable[[BaseException], object]) -> None:
        self._on_error = on_error
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._epoll: select.epoll | None = None
        self._wake = -1  # an eventfd: look at _holders, _timers, _drains and _closed
        self._callbacks: dict[int, Callback] = {}  # by file descriptor
        self._timers: list[tuple[int, int, Timer]] = []  # a heap: due, a number that makes it unique, timer
        self._number = 0
        self._busy: object = None  # the callback that runs
        self._bells: list[threading.Lock] = []  # one for each thread that waits for the end of that callback
        self._drains: list[threading.Lock] = []
        self._holders: list[object] = []  # while there is one, no callback begins
        self._stopped: int | None = None  # when clock() was stopped, on the monotonic clock
        self._lost = 0  # nanoseconds for which it stood still

    # What is served

    def add_fd(self, fd: int, callback: Callback) -> None:
        """Call `callback()` whenever `fd` is readable, until remove_fd().

        Raise StateError when the loop is closed or the host gives no thread, OSError when `fd` cannot be waited for.
        """
        with self._lock:
            epoll = self._started()
            epoll.register(fd, select.EPOLLIN)
            self._callbacks[fd] = callback

    def add_eventfd(self, fd: int, callback: Callback) -> None:
        """Call `callback()` after each time that the eventfd `fd`, which does not block, was written to.

        The counter is read beforehand. A callback that has more to do returns True: it is called again, after others,
        and not before a hold ends. Raise StateError and OSError as add_fd() does.
        """

        def serve() -> None:
            try:
                os.eventfd_read(fd)
            except BlockingIOError:
                return  # read by somebody else
            if callback() is True:
                os.eventfd_write(fd, 1)

        self.add_fd(fd, serve)

    def remove_fd(self, fd: int) -> None:
        """Stop to look at `fd`: once this returns, its callback does not run, and `fd` can be closed.

        Call it without a lock that the callback takes: it waits for the callback's end, but on the loop's own thread.
        Nothing happens when `fd` was never added, or in a forked child, whose parent goes on to use it.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            callback = self._callbacks.pop(fd, None)
            if callback is None:
                return
            if self._epoll is not None:
                try:  # noqa: SIM105 - contextlib takes time to import
                    self._epoll.unregister(fd)
                except OSError:
                    pass  # it is closed already
        self._wait_idle(callback, None)

    def timer(self, callback: Callback) -> Timer:
        """Return a timer that calls `callback()`, not set yet."""
        return Timer(self, callback)

    def clock(self) -> int:
        """Return the monotonic clock in nanoseconds, less the time for which the loop was held."""
        with self._lock:
            return self._now()

    @property
    def has_thread(self) -> bool:
        """Whether something was added that is to be served."""
        return self._thread is not None

    def is_own_thread(self) -> bool:
        """Return whether the calling thread is the loop's, that is, whether this is a callback."""
        return self._thread is threading.current_thread()

    # Standing still

    def hold(self, timeout: float | None = None, who: object = None) -> bool:
        """Wait until no callback runs, and let none run until release(); False when `timeout` seconds passed first.

        `who`: whoever holds it under a name holds it once, however often it asks, and can release it without knowing
        whether it has got it. Without a name, each call takes a release() of its own. What is raised here (a
        KeyboardInterrupt), and False, leave no hold behind that was not there before. From a callback it returns True
        at once: that callback runs on to its end.
        """
        name: object = _Nameless() if who is None else who
        added = False
        try:
            with self._lock:
                if not any(holder is name for holder in self._holders):
                    added = True
                    self._holders.append(name)
                    if self._stopped is None:
                        self._stopped = monotonic_ns()
            idle = self._wait_idle(None, timeout)
        except BaseException:
            if added:
                self._release(lambda holder: holder is name)
            raise
        if not idle and added:
            self._release(lambda holder: holder is name)
        return idle

    def release(self, who: object = None) -> None:
        """Take back one hold(), that of `who` or one without a name; nothing happens when there is none."""
        self._release(lambda holder: type(holder) is _Nameless if who is None else holder is who)

    def wanted_still(self) -> bool:
        """Return whether a callback is to return soon: somebody waits in hold() or close()."""
        return bool(self._holders) or self._closed

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until each descriptor that is readable now was served; False when held, closed, or out of time.

        A guest that asks for more all the time can make that last: give a `timeout`, in seconds. False from a callback.
        """
        bell = new_bell()
        with self._lock:
            if self._thread is None:
                return not self._closed
            if self._holders or self._closed or self._thread is threading.current_thread():
                return False
            self._drains.append(bell)
            self._wake_up()
        try:
            rung = wait_for_bell(bell, timeout)
        finally:
            with self._lock:
                if bell in self._drains:
                    self._drains.remove(bell)
        return rung and not self._closed

    # The end

    def close(self) -> None:
        """End the thread and close the loop's own descriptors; those that were added stay open.

        Any thread may close it, more than once: it is closed when this returns. From a callback, the thread ends after
        that callback. In a forked child it closes what the child has inherited, and nothing else.
        """
        if os.getpid() != self._pid:
            self._closed = True
            self._close_fds()  # without the lock: a thread of the parent may have held it
            return
        with self._lock:
            self._closed = True
            self._wake_up()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # Below, `_lock` is held where a docstring says so.

    def _started(self) -> select.epoll:
        """Start the thread unless it is there; _lock held."""
        if self._closed:
            raise StateError("the event loop is closed, as its machine is")
        if self._epoll is not None:
            return self._epoll
        self._epoll = select.epoll()
        try:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._epoll.register(self._wake, select.EPOLLIN)
            self._thread = threading.Thread(target=self._run, name="io", daemon=True)
            self._thread.start()
        except (OSError, RuntimeError) as error:
            self._thread = None
            self._close_fds()
            if isinstance(error, OSError):
                raise
            message = "the host gives no thread for the event loop; look at `ulimit -u` and the cgroup's pids.max"
            raise StateError(message) from None
        return self._epoll

    def _close_fds(self) -> None:
        epoll, self._epoll = self._epoll, None
        wake, self._wake = self._wake, -1
        if epoll is not None:
            epoll.close()
        if wake >= 0:
            os.close(wake)

    def _wake_up(self) -> None:
        """Have the thread look around; _lock held."""
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def _now(self) -> int:
        """Return what clock() returns; _lock held."""
        return (monotonic_ns() if self._stopped is None else self._stopped) - self._lost

    def _release(self, is_it: Callable[[object], bool]) -> None:
        with self._lock:
            self._wake_up()  # first: whatever comes of this thread now, the loop's looks at what is left
            for at, holder in enumerate(self._holders):
                if is_it(holder):
                    del self._holders[at]
                    break
            self._settle()

    def _settle(self) -> bool:
        """Let the clock go on if nobody holds the loop; return whether nobody does; _lock held."""
        if self._holders:
            return False
        if self._stopped is not None:
            stopped, self._stopped = self._stopped, None
            self._lost += monotonic_ns() - stopped
        return True

    def _wait_idle(self, callback: object, timeout: float | None) -> bool:
        """Wait until `callback`, or with None any, does not run; False when `timeout` seconds passed first."""
        bell = new_bell()
        with self._lock:
            if self._busy is None or callback not in (None, self._busy):
                return True
            if self._thread is threading.current_thread():
                return True
            self._bells.append(bell)
        return wait_for_bell(bell, timeout)

    # The thread

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        epoll, wake, woken = self._epoll, self._wake, select.poll()
        assert epoll is not None
        woken.register(wake, select.POLLIN)
        while not self._closed:
            with self._lock:
                free, drains = self._settle(), self._drains.copy()
            if not free:
                woken.poll()
                _rest(wake)
                continue
            ready = [fd for fd, _ in epoll.poll(0 if drains else self._sleep())]
            if wake in ready:
                ready.remove(wake)
                _rest(wake)
            for fd in ready:
                self._serve(self._callbacks.get, fd)
            for _ in range(len(self._timers)):
                if not self._serve(self._next_timer):
                    break
            if not ready:
                _ring(drains)
        with self._lock:
            bells, self._bells = self._bells + self._drains, []
            self._close_fds()
        _ring(bells)

    def _sleep(self) -> float | None:
        """Return the seconds until the next timer runs out, None without any."""
        with self._lock:
            self._forget_cancelled()
            return max(self._timers[0][0] - self._now(), 0) / SECOND if self._timers else None

    def _forget_cancelled(self) -> None:
        """Drop timers from the head of the heap that were cancelled or set anew; _lock held."""
        while self._timers and self._timers[0][2].number != self._timers[0][1]:
            heappop(self._timers)

    def _next_timer(self) -> Callback | None:
        """Take the next timer that has run out, and return its callback; _lock held."""
        self._forget_cancelled()
        if not self._timers or self._timers[0][0] > self._now():
            return None
        timer = heappop(self._timers)[2]
        timer.number = 0
        return timer.callback

    def _serve(self, choose: Callable[..., Callback | None], *arguments: int) -> bool:
        """Call what `choose()` returns, with _lock held; False when nothing is to be called, or not now."""
        with self._lock:
            callback = None if self._holders or self._closed else choose(*arguments)
            self._busy = callback
        if callback is None:
            return False
        try:
            callback()
        except BaseException as error:  # a mistake of ours: the machine ends with it
            self._report(error)
        with self._lock:
            self._busy = None
            bells, self._bells = self._bells, []
        _ring(bells)
        return True

    def _report(self, error: BaseException) -> None:
        try:
            self._on_error(error)
        except BaseException as second:
            second.__context__ = error
            threading.excepthook(
                threading.ExceptHookArgs((type(second), second, second.__traceback__, threading.current_thread()))
            )


class Timer:
    """A timer of a loop: at() sets it, again and again if need be; each time it calls back once."""

    __slots__ = ("_loop", "callback", "number")

    def __init__(self, loop: EventLoop, callback: Callback) -> None:
        self._loop = loop
        self.callback = callback
        self.number = 0  # of the entry in the loop's heap that counts; 0 for none

    def at(self, when: int) -> None:
        """Call back once loop.clock() has come to `when`, in nanoseconds; what was set before is forgotten.

        Raise StateError as EventLoop.add_fd does.
        """
        loop = self._loop
        with loop._lock:
            loop._started()
            loop._number += 1
            self.number = loop._number
            heappush(loop._timers, (when, self.number, self))
            if len(loop._timers) > 64 and len(loop._timers) > 8 * sum(t.number == n for _, n, t in loop._timers):
                loop._timers = sorted(entry for entry in loop._timers if entry[2].number == entry[1])
            if loop._timers[0][1] == self.number:
                loop._wake_up()

    def cancel(self) -> None:
        """Forget what was set. A callback that has begun runs to its end; this does not wait for it."""
        with self._loop._lock:
            self.number = 0


def _rest(wake: int) -> None:
    try:  # noqa: SIM105 - as above
        os.eventfd_read(wake)
    except BlockingIOError:
        pass


def _ring(bells: Iterable[threading.Lock]) -> None:
    for bell in bells:
        if bell.locked():
            bell.release()


class _Nameless:
    """Whoever holds a loop without a name."""
