"""Notifiers: eventfds by which a guest has a virtio device's queues served from an event loop."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Protocol

    class Loop(Protocol):
        """What serves eventfds (EventLoop)."""

        def add_eventfd(self, fd: int, callback: Callable[[], object]) -> None: ...
        def remove_fd(self, fd: int) -> None: ...


class Notifiers:
    """An eventfd for each queue of a device.

    KVM writes to them when the guest notifies: `fds` are for ioeventfds, with the number of the queue as datamatch.
    notify() does it for guests whose notification is an exit. What serve() was given is called on the loop's thread.
    """

    def __init__(self, loop: Loop, queues: int) -> None:
        self._loop = loop
        self.fds: list[int] = []
        try:
            for _ in range(queues):
                self.fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except BaseException:
            self.close()
            raise

    def notify(self, queue: int) -> None:
        """Have `queue` served soon. Any thread; nothing happens after close()."""
        if queue < len(self.fds):
            os.eventfd_write(self.fds[queue], 1)

    def serve(self, notify: Callable[[int], bool]) -> None:
        """Have the loop call `notify(queue)` for each notification, and again when it returns True.

        Raise StateError when the host gives no thread for the loop.
        """
        for queue, fd in enumerate(self.fds):
            self._loop.add_eventfd(fd, lambda queue=queue: notify(queue))  # type: ignore[misc]  # the default binds it

    def close(self) -> None:
        """Close the eventfds, once no callback uses them; no vCPU runs any more. Closing again does nothing."""
        while self.fds:
            fd = self.fds.pop()
            self._loop.remove_fd(fd)
            os.close(fd)
