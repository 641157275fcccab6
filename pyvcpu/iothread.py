"""IoThread: virtqueues served beside the vCPUs, so that a guest runs on while its disk is at work."""

from __future__ import annotations

import os
import select
import threading

from .posix import signal

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .kvm.vm import VmFd
    from .vcpu import Accel


class IoThread:
    """The thread `virtqueues`, which KVM wakes through an ioeventfd for each queue (QEMU: iothread).

    `serve(queue)` is what add() was given for a queue; it runs on this thread or, while the machine is being paused, on
    the one that pauses it, never on two at once.

    Threads: `_gate` is held while a queue is served, and as long as the machine is paused; `_books` guards `_held`, and
    is taken before the gate. add(), start() and close() belong to the thread that sets the machine up.
    """

    def __init__(self, accel: Accel) -> None:
        self._accel = accel
        self._queues: dict[int, tuple[Callable[[int], object], int]] = {}  # by eventfd
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._gate = threading.Lock()
        self._books = threading.Lock()
        self._held = False
        self._thread: threading.Thread | None = None

    def add(self, vm: VmFd, address: int, queues: int, serve: Callable[[int], object]) -> None:
        """Serve `queues` queues, whose numbers the guest writes, with 4 bytes, to the register at `address`."""
        from .kvm.vm_io import VmIo  # and no more: vm.ioeventfd would have every method of the API loaded

        for queue in range(queues):
            fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._queues[fd] = serve, queue
            VmIo.ioeventfd(vm, fd, address, 4, datamatch=queue)

    def start(self) -> None:
        """Start the thread, once; before the vCPUs run."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="virtqueues", daemon=True)
            self._thread.start()

    def hold(self) -> None:
        """Serve what the guest has asked for so far, and nothing more until go(): the machine is paused.

        Then memory and disks stay as they are, as if each notification had been served where it was made.
        """
        with self._books:
            if self._held or self._runs():  # another thread has resumed it meanwhile
                return
            self._gate.acquire()
            self._held = True
            for fd in self._queues:
                self._serve(fd)

    def go(self) -> None:
        """Go on after hold(), if there was one; once the machine is said to run."""
        with self._books:
            if self._held:
                self._held = False
                self._gate.release()

    def close(self) -> None:
        """End the thread; no vCPU runs any more. Closing again does nothing."""
        if self._stop < 0:
            return
        self.go()
        os.eventfd_write(self._stop, 1)
        if self._thread is not None:
            self._thread.join()
        while self._queues:
            os.close(self._queues.popitem()[0])
        stop, self._stop = self._stop, -1
        os.close(stop)

    def _runs(self) -> bool:
        with self._accel.lock:
            return self._accel.running

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        poll = select.poll()
        for fd in (*self._queues, self._stop):
            poll.register(fd, select.POLLIN)
        try:
            while True:
                ready = [fd for fd, _ in poll.poll()]
                if self._stop in ready:
                    return
                for fd in ready:
                    with self._gate:
                        self._serve(fd)
        except BaseException as error:  # a mistake of ours: the machine ends with it
            self._accel.fail(error)

    def _serve(self, fd: int) -> None:
        """Serve the queue of `fd` if it was notified; with the gate held."""
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            return  # hold() has served it
        serve, queue = self._queues[fd]
        serve(queue)
