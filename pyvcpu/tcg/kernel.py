"""TcgKernel: a KVM in software behind the door that pyvcpu.kvm goes through to the kernel.

    with Kvm("tcg", TcgKernel()) as kvm: ...

The fds are real ones, of memory files: their numbers are taken, /proc shows them, and a vCPU's can be mapped. What a
request does is up to the object behind the fd: tcg.system, tcg.vm, tcg.vcpu.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading

from ..kvm.abi.basic import KVM_RUN
from ..kvm.kernel import LinuxKernel
from .hostmap import lay_over
from .run import kvm_run
from .system import System
from .vcpu import Vcpu

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .thing import Thing

RUN = KVM_RUN.number
PAGE = 4096


class TcgKernel(LinuxKernel):
    """The software KVM. Any thread; `_lock` guards the table of fds.

    A request returns -1 where KVM's would, with KVM's errno in errno() of the same thread. In a forked child every
    request gives EIO, as KVM's do.
    """

    __slots__ = ("_errors", "_lock", "_things")

    def __init__(self) -> None:
        super().__init__()
        self._errors = threading.local()
        self._lock = threading.Lock()
        self._things: dict[int, Thing] = {}
        self.ioctl = self._ioctl
        self.errno = self._errno
        self.request = self._ask

    def open(self, path: str) -> int:
        """Open the software KVM, whatever the path's name."""
        return self.install(System(self))

    def install(self, thing: Thing) -> int:
        """Give an object an fd."""
        fd = thing.file()
        with self._lock:
            self._things[fd] = thing
        return fd

    def mmap(self, fd: int, length: int) -> mmap.mmap:
        """Map a vCPU's page; its last page is the VM's ring of coalesced writes."""
        thing = self._things.get(fd)
        made = super().mmap(fd, length)
        if isinstance(thing, Vcpu) and length >= thing.RING + PAGE:
            pinned = ctypes.c_char.from_buffer(made, thing.RING)
            lay_over(ctypes.addressof(pinned), PAGE, thing.vm.zones.fd)
        return made

    def close(self, fd: int) -> None:
        """Close an fd; the object behind it lives on while others need it."""
        with self._lock:
            thing = self._things.pop(fd, None)
        if thing is not None and thing.pid == os.getpid():
            thing.closed(fd)
        os.close(fd)

    def _errno(self) -> int:
        return int(getattr(self._errors, "code", 0))

    def _ioctl(self, fd: int, number: int, argument: int) -> int:
        try:
            return self._answer(fd, number, argument)
        except OSError as error:
            self._errors.code = error.errno or errno.EINVAL
            return -1

    def _answer(self, fd: int, number: int, argument: int) -> int:
        thing = self._things.get(fd)
        if thing is None:
            os.fstat(fd)  # EBADF
            raise OSError(errno.ENOTTY, "no KVM fd")
        if thing.pid != os.getpid():
            raise OSError(errno.EIO, "forked")
        request = thing.REQUESTS.get(number & 0xFFFF_FFFF)
        if request is None:
            raise OSError(thing.unknown(number), "no such request")
        return request(thing, argument)

    def _ask(self, fd: int, number: int) -> None:
        thing = self._things.get(fd)
        if number == RUN and type(thing) is Vcpu and thing.pid == os.getpid():
            kvm_run(thing, 0)
        else:
            self._answer(fd, number, 0)
