"""IoThread: virtqueues served beside the vCPUs, so that a guest runs on while its disk is at work."""

from __future__ import annotations

import os
import select
import threading
from time import monotonic

from ..errors import StateError
from ..posix import signal

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from ..kvm.vm import VmFd


class IoThread:
    """The thread `virtqueues`, which KVM wakes through an ioeventfd for each queue (QEMU: iothread)."""

    def __init__(self, fail: Callable[[BaseException], object]) -> None:
        self._fail = fail
        self._queues: dict[int, tuple[Callable[[int], object], int]] = {}  # by eventfd
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._changed = threading.Condition(threading.Lock())
        self._holds = 0
        self._serving = False
        self.thread: threading.Thread | None = None

    def add(self, vm: VmFd, address: int, queues: int, serve: Callable[[int], object]) -> None:
        """Serve `queues` queues, whose numbers the guest writes, with 4 bytes, to the register at `address`."""
        for queue in range(queues):
            fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._queues[fd] = serve, queue
            vm.ioeventfd(fd, address, 4, datamatch=queue)

    def start(self) -> None:
        """Start the thread, once; before the vCPUs run."""
        if self.thread is None:
            thread = threading.Thread(target=self._run, name="virtqueues", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise StateError(f"virtqueues: {error}; the host limits threads (ulimit -u)") from None
            self.thread = thread

    def hold(self, timeout: float | None = None) -> bool:
        """Serve what the guest has asked for so far, and nothing more until release()."""
        end = None if timeout is None else monotonic() + timeout
        with self._changed:
            self._holds += 1
            while self._serving:
                left = None if end is None else end - monotonic()
                if left is not None and left <= 0:
                    self._holds -= 1
                    self._changed.notify_all()
                    return False
                self._changed.wait(left)
        for fd in self._queues:
            self._serve(fd)
        return True

    def release(self) -> None:
        """Take back one hold()."""
        with self._changed:
            self._holds -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread; no vCPU runs any more. Closing again does nothing."""
        if self._stop < 0:
            return
        with self._changed:
            self._holds = 0
            self._changed.notify_all()
        os.eventfd_write(self._stop, 1)
        if self.thread is not None:
            self.thread.join()
        self.close_copies()

    def close_copies(self) -> None:
        """Close the fds."""
        while self._queues:
            os.close(self._queues.popitem()[0])
        stop, self._stop = self._stop, -1
        if stop >= 0:
            os.close(stop)

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        poll = select.poll()
        for fd in (*self._queues, self._stop):
            poll.register(fd, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self._stop in ready:
                return
            for fd in ready:
                with self._changed:
                    while self._holds:
                        self._changed.wait()
                    self._serving = True
                try:
                    self._serve(fd)
                except BaseException as error:  # of a device: the machine ends with it, the thread lives
                    self._fail(error)
                finally:
                    with self._changed:
                        self._serving = False
                        self._changed.notify_all()

    def _serve(self, fd: int) -> None:
        """Serve the queue of `fd` if it was notified; while nobody else serves."""
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            return  # hold() has served it
        serve, queue = self._queues[fd]
        serve(queue)
