"""VcpuFd: one virtual processor, as the kernel sees it."""

from __future__ import annotations

import ctypes
import errno

from .abi import basic as abi
from .cpuid import CpuidTable
from .errors import KvmError
from .fd import U32, U64, Fd, in_range

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import mmap
    from collections.abc import Iterable
    from typing import Any

RUN_AGAIN = (errno.EINTR, errno.EAGAIN)


class VcpuCore(Fd):
    """What every boot needs of VcpuFd."""

    __slots__ = ()

    def map_run(self, size: int) -> mmap.mmap:
        """Map struct kvm_run and what follows it; `size` is Kvm.get_vcpu_mmap_size()."""
        if size != self._mmap_size():  # a page behind the end would end the process with SIGBUS when touched
            raise ValueError(f"size must be Kvm.get_vcpu_mmap_size(), {self._mmap_size():#x}, not {size!r}")
        return self.kernel.mmap(self.fd, size)

    def _mmap_size(self) -> int:
        kvm: Any = self.parent and self.parent.parent
        return int(kvm.mmap_size or kvm.get_vcpu_mmap_size())

    def run(self) -> int:
        """Run the guest until it exits: return 0, or the errno EINTR or EAGAIN, which are answers and not errors.

        After EINTR kvm_run.exit_reason may be an old one. Raise KvmError for any other errno (KVM_RUN, api.rst 4.10).
        """
        if self.kernel.ioctl(self.fd, abi.KVM_RUN.number, 0) == 0:
            return 0
        code = self.kernel.errno()
        if code in RUN_AGAIN:
            return code
        raise KvmError("KVM_RUN", code, self.where)

    def get_regs(self) -> abi.kvm_regs:
        """Read the general registers (KVM_GET_REGS, api.rst 4.11)."""
        regs = abi.kvm_regs()
        self.ioctl(abi.KVM_GET_REGS, regs)
        return regs

    def set_regs(self, regs: abi.kvm_regs) -> None:
        """Write the general registers (KVM_SET_REGS, api.rst 4.12)."""
        self.ioctl(abi.KVM_SET_REGS, regs)

    def get_sregs(self) -> abi.kvm_sregs:
        """Read segments, control registers, EFER and APIC base (KVM_GET_SREGS, api.rst 4.13)."""
        sregs = abi.kvm_sregs()
        self.ioctl(abi.KVM_GET_SREGS, sregs)
        return sregs

    def set_sregs(self, sregs: abi.kvm_sregs) -> None:
        """Write segments, control registers, EFER and APIC base (KVM_SET_SREGS, api.rst 4.14)."""
        self.ioctl(abi.KVM_SET_SREGS, sregs)

    def translate(self, linear_address: int) -> int | None:
        """Return the guest physical address behind `linear_address` in the current mode, or None.

        KVM_TRANSLATE, api.rst 4.15.
        """
        translation = abi.kvm_translation(linear_address=in_range("a linear address", linear_address, U64))
        self.ioctl(abi.KVM_TRANSLATE, translation)
        return translation.physical_address if translation.valid else None

    def set_cpuid2(self, table: CpuidTable) -> None:
        """Set what the CPUID instruction shows; only before the first KVM_RUN (KVM_SET_CPUID2, api.rst 4.20).

        Needs KVM_CAP_EXT_CPUID.
        """
        if not isinstance(table, CpuidTable):
            raise TypeError(f"what CPUID shows must be a CpuidTable, not {table!r}")
        self.ioctl(abi.KVM_SET_CPUID2, table.buffer)

    def get_cpuid2(self) -> CpuidTable:
        """Read what the CPUID instruction shows (KVM_GET_CPUID2). Needs KVM_CAP_EXT_CPUID."""
        return CpuidTable.fetch(self, abi.KVM_GET_CPUID2)

    def get_mp_state(self) -> int:
        """Return one of the KVM_MP_STATE_* (KVM_GET_MP_STATE, api.rst 4.38). Needs KVM_CAP_MP_STATE."""
        state = abi.kvm_mp_state()
        self.ioctl(abi.KVM_GET_MP_STATE, state)
        return int(state.mp_state)

    def set_mp_state(self, mp_state: int) -> None:
        """Set one of the KVM_MP_STATE_* (KVM_SET_MP_STATE, api.rst 4.39). Needs KVM_CAP_MP_STATE."""
        self.ioctl(abi.KVM_SET_MP_STATE, abi.kvm_mp_state(in_range("an MP state", mp_state, U32)))

    def get_tsc_khz(self) -> int:
        """Return the rate of the guest's time-stamp counter in kHz (KVM_GET_TSC_KHZ, api.rst 4.56).

        Needs KVM_CAP_GET_TSC_KHZ.
        """
        return self.ioctl(abi.KVM_GET_TSC_KHZ)

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """Block exactly the signals `blocked` while in KVM_RUN; None: the thread's own mask (KVM_SET_SIGNAL_MASK).

        A signal that the thread blocks but `blocked` does not list makes KVM_RUN return EINTR and stays pending:
        no handler runs. api.rst 4.21.
        """
        if blocked is None:
            self.ioctl(abi.KVM_SET_SIGNAL_MASK, 0)
            return
        bits = 0
        for number in blocked:
            bits |= 1 << (in_range("a signal", number, 64, 1) - 1)
        head = abi.kvm_signal_mask(len=8)  # the kernel's sigset has 64 bits
        raw = bytes(head) + bits.to_bytes(8, "little")
        self.ioctl(abi.KVM_SET_SIGNAL_MASK, ctypes.create_string_buffer(raw, len(raw)))


if TYPE_CHECKING:
    from .vcpu_control import VcpuControl
    from .vcpu_msr import VcpuMsr
    from .vcpu_state import VcpuState

    class _VcpuBase(VcpuState, VcpuMsr, VcpuControl):
        __slots__ = ()
else:
    _VcpuBase = VcpuCore


class VcpuFd(_VcpuBase):
    """A vCPU: its registers and KVM_RUN. KVM wants its requests from one thread, and warns of slowness otherwise.

    Its rarer methods are in vcpu_state, vcpu_msr and vcpu_control, imported when the first of them is asked for.
    """

    __slots__ = ()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            from . import themes as themes  # gives Kvm, VmFd and VcpuFd the rest of their bases

            return object.__getattribute__(self, name)

        def __dir__(self) -> list[str]:
            from . import themes as themes

            return list(object.__dir__(self))
