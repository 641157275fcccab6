"""DummyKernel: vCPUs with their whole life, and no guest code (QEMU: accel/dummy-cpus.c).

For tests of devices: buses, devices, interrupt controllers and run control can be driven without a processor. KVM_RUN
waits for a kick, and runs nothing.
"""

from __future__ import annotations

import errno
import os

from ..kvm.abi.basic import KVM_RUN
from ..kvm.abi.layout import IMMEDIATE_EXIT, VALID_REGS
from . import run
from .kernel import TcgKernel
from .signals import drain
from .vcpu import Vcpu


class DummyKernel(TcgKernel):
    """The software KVM without its processor."""

    __slots__ = ()

    def _answer(self, fd: int, number: int, argument: int) -> int:
        thing = self._things.get(fd)
        if number == KVM_RUN.number and isinstance(thing, Vcpu) and thing.pid == os.getpid():
            wait_for_kick(thing)
        return super()._answer(fd, number, argument)

    def _ask(self, fd: int, number: int) -> None:
        self._answer(fd, number, 0)


def wait_for_kick(vcpu: Vcpu) -> None:
    """Be KVM_RUN, until a signal or immediate_exit; raise OSError EINTR then."""
    with vcpu.mutex:
        vcpu.signals.enter()
        try:
            vcpu.has_run = True
            _, dirty = run.MASKS.unpack_from(vcpu.page, VALID_REGS)
            if dirty:
                run._take_synced(vcpu, dirty)
            if vcpu.wake_fd < 0:
                vcpu.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            while not vcpu.page[IMMEDIATE_EXIT] and not vcpu.signals.sleep(vcpu.wake_fd):
                drain(vcpu.wake_fd)
            raise OSError(errno.EINTR, "KVM_RUN")
        finally:
            run._save(vcpu)
            vcpu.signals.leave()
