"""What was registered with a VM, such as an eventfd: an object that takes it back, best with `with`."""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import Self

    from .abi.base import Ioctl
    from .fd import Fd


class Registration:
    """Something registered with a VM, until close() or the end of the VM. Dropping the object changes nothing.

    `undo` is the argument of `request` that takes it back.
    """

    __slots__ = ("_closed", "_fd", "_once", "_pid", "_request", "_undo", "what")

    def __init__(self, what: str, fd: Fd, request: Ioctl, undo: ctypes.Structure) -> None:
        self.what = what
        self._fd = fd
        self._request = request
        self._undo = undo
        self._pid = os.getpid()
        self._closed = False  # for __repr__ alone
        self._once = iter((request.number,))

    def close(self) -> None:
        """Take it back; doing so again does nothing. In a forked child, which cannot use the VM, do nothing at all.

        Any thread, several at once: the request is made once. map() takes it and makes it in one step of C, as in
        Fd.close(), so that no Ctrl-C can come between.
        """
        if self._pid != os.getpid():
            return
        fd, self._closed = self._fd, True
        for result in map(fd.kernel.ioctl, (fd.fd,), self._once, (ctypes.addressof(self._undo),)):
            if result < 0:
                raise fd.refusal(self._request.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.what}{', taken back' if self._closed else ''}>"
