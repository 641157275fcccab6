"""The registers in struct kvm_run (KVM_CAP_SYNC_REGS, api.rst section 5), and an fd that keeps them in step with KVM.

There is one truth. While the vCPU is out of KVM_RUN, a register may have been changed in the page that KVM shares:
the vCPU is dirty then (QEMU: vcpu_dirty). Whoever asks KVM meanwhile gets what is in the page, because it is written
back first (QEMU: cpu_synchronize_state); whoever sets something in KVM has the page fetched anew.
"""

from __future__ import annotations

from ..kvm.abi import basic as abi
from ..kvm.abi.layout import DIRTY_REGS, SYNC_EVENTS, SYNC_REGS, SYNC_SREGS, VALID_REGS
from ..kvm.vcpu import VcpuFd

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import ctypes
    import mmap
    from typing import Any

    from ..kvm.abi.base import Ioctl
    from ..kvm.fd import Fd
    from ..kvm.kernel import Kernel


class SyncedFd(VcpuFd):
    """The fd of a vCPU with a page: each request finds in KVM what the page holds, and leaves both the same.

    For the vCPU's thread. KVM_RUN does not go through it: KVM itself takes and fills the page then.
    """

    __slots__ = ("debug_control", "events_set", "shared")

    shared: SharedRegisters | None
    debug_control: bytes  # the argument of the last KVM_SET_GUEST_DEBUG, which KVM does not give back
    events_set: bool  # an interrupt or NMI was given to KVM: it ends a HLT

    def __init__(self, kernel: Kernel, fd: int = -1, where: str = "", parent: Fd | None = None) -> None:
        super().__init__(kernel, fd, where, parent)
        self.shared, self.debug_control, self.events_set = None, b"", False

    def ioctl(self, request: Ioctl, argument: int | ctypes._CData = 0, where: str = "") -> int:
        """Make `request` as Fd.ioctl() does, with the shared registers written back before and fetched after."""
        shared = self.shared
        if shared is None:
            return super().ioctl(request, argument, where)
        shared.flush()
        result = super().ioctl(request, argument, where)
        name = getattr(request, "name", "")
        if name in EVENTS_SET:
            self.events_set = True
        elif name == "KVM_SET_GUEST_DEBUG":
            self.debug_control = bytes(argument)  # a structure: Fd.ioctl has seen to it
        if not name.startswith(ONLY_READ):
            shared.fetch()
        return result

    def raw(self, request: Ioctl, argument: ctypes._CData) -> int:
        """Make `request` without a look at the shared registers."""
        return super().ioctl(request, argument)


EVENTS_SET = ("KVM_INTERRUPT", "KVM_NMI", "KVM_SET_VCPU_EVENTS")
ONLY_READ = ("KVM_GET_", "KVM_CHECK_", "KVM_TRANSLATE", "KVM_KVMCLOCK_CTRL")


class SharedRegisters:
    """General registers, segments and control registers, and events in the page of one vCPU. For the vCPU's thread.

    A set is in use from the first access on: KVM then leaves it in the page at every exit.
    """

    __slots__ = ("_fd", "_run", "_views")

    def __init__(self, fd: SyncedFd, run: mmap.mmap) -> None:
        self._fd = fd
        self._run = run
        self._views: dict[int, Any] = {}
        run[VALID_REGS:SYNC_REGS] = bytes(SYNC_REGS - VALID_REGS)  # the page of a parked fd is as it was left

    @property
    def vcpu_dirty(self) -> bool:
        """Whether registers were changed in the page that KVM does not have yet (QEMU: vcpu_dirty)."""
        return self._run[DIRTY_REGS] != 0

    @property
    def in_use(self) -> int:
        """The sets (KVM_SYNC_X86_*) that KVM is to leave in the page at each exit."""
        used = 0
        for which in self._views:
            used |= which
        return used

    def view(self, which: int) -> Any:
        """Return the set `which` (KVM_SYNC_X86_*) in the page; keep no reference to it."""
        view = self._views.get(which)
        if view is None:
            kind, offset, get, _ = SETS[which]
            view = kind.from_buffer(self._run, offset)
            self._fd.raw(get, view)
            self._run[VALID_REGS] |= which
            self._views[which] = view
        return view

    def changed(self, which: int) -> None:
        """Note that the set was changed in the page: KVM takes it at the next KVM_RUN, or at flush()."""
        self._run[DIRTY_REGS] |= which

    def flush(self) -> None:
        """Give KVM what was changed in the page (QEMU: the second half of cpu_synchronize_state)."""
        dirty = self._run[DIRTY_REGS]
        if not dirty:
            return
        self._run[DIRTY_REGS] = 0
        for which in IN_ORDER:
            if dirty & which:
                self._fd.raw(SETS[which][3], self._views[which])

    def fetch(self) -> None:
        """Read the sets in use anew: somebody has set registers in KVM."""
        for which, view in self._views.items():
            self._fd.raw(SETS[which][2], view)

    def drop(self) -> None:
        """Let go of the page, before it is unmapped; what was changed in it stays behind."""
        self._views.clear()


# Structure, where it lies in struct kvm_run, and the requests that get and set it.
SETS: dict[int, tuple[Any, int, Ioctl, Ioctl]] = {
    abi.KVM_SYNC_X86_REGS: (abi.kvm_regs, SYNC_REGS, abi.KVM_GET_REGS, abi.KVM_SET_REGS),
    abi.KVM_SYNC_X86_SREGS: (abi.kvm_sregs, SYNC_SREGS, abi.KVM_GET_SREGS, abi.KVM_SET_SREGS),
}
# Segments first: KVM checks rflags and rip against them.
IN_ORDER = (abi.KVM_SYNC_X86_SREGS, abi.KVM_SYNC_X86_REGS, abi.KVM_SYNC_X86_EVENTS)


def share_events() -> None:
    """Let SharedRegisters.view() give the events, too, which few have a use for."""
    from ..kvm.abi import events

    get, set = events.KVM_GET_VCPU_EVENTS, events.KVM_SET_VCPU_EVENTS
    SETS[abi.KVM_SYNC_X86_EVENTS] = (events.kvm_vcpu_events, SYNC_EVENTS, get, set)
