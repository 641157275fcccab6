"""Registers by name, read and written in the page that KVM shares (KVM_CAP_SYNC_REGS, api.rst section 5)."""

from __future__ import annotations

import ctypes

from ..errors import PyvcpuError
from ..kvm.abi import basic as abi
from ..kvm.fd import in_range

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from typing import Any

    from .vcpu import Vcpu

VALID_REGS, DIRTY_REGS, SYNC = 288, 296, 304  # offsets in struct kvm_run
SREGS = SYNC + ctypes.sizeof(abi.kvm_regs)


class RegisterError(PyvcpuError, AttributeError):
    """There is no register of this name."""


class RegisterFile:
    """`vcpu.registers` and `vcpu.sregs`: attributes named as in struct kvm_regs and struct kvm_sregs.

    In a handler, on the vCPU's own thread, an access costs no ioctl: from the first one on, KVM leaves the registers
    in the shared page at every exit, and takes back what was changed. From another thread an access interrupts the
    vCPU and is made by its thread, and copy() gets all registers at once. Segments and tables come as copies: change
    the copy and assign it.

    >>> from pyvcpu import Machine
    >>> with Machine() as machine:
    ...     machine.load(bytes([0xB8, 0x34, 0x12, 0xF4]))        # mov $0x1234,%ax; hlt
    ...     outcome = machine.run()
    ...     hex(machine.vcpus[0].registers.rax)
    '0x1234'
    """

    __slots__ = ("_bit", "_kind", "_offset", "_vcpu", "_view")

    def __init__(self, vcpu: Vcpu, bit: int, kind: type[abi.kvm_regs | abi.kvm_sregs], offset: int) -> None:
        for name, value in (
            ("_vcpu", vcpu),
            ("_bit", bit),
            ("_kind", kind),
            ("_offset", offset),
            ("_view", None),
        ):
            object.__setattr__(self, name, value)

    def copy(self) -> Any:
        """Return all of them as a structure of its own (kvm_regs or kvm_sregs)."""
        return self._vcpu.run_on_cpu(lambda vcpu: self._kind.from_buffer_copy(self._shared()))

    def __getattr__(self, name: str) -> Any:
        self._check(name)
        return self._vcpu.run_on_cpu(lambda vcpu: self._get(name))

    def __setattr__(self, name: str, value: Any) -> None:
        self._check(name)
        self._vcpu.run_on_cpu(lambda vcpu: self._set(name, value))

    def __dir__(self) -> list[str]:
        return [field[0] for field in self._kind._fields_] + ["copy"]

    def _check(self, name: str) -> None:
        names = [field[0] for field in self._kind._fields_]
        if name in names:
            return
        from difflib import get_close_matches

        close = get_close_matches(name, names, 1)
        hint = f"; did you mean {close[0]}?" if close else f": one of {', '.join(names)}"
        raise RegisterError(f"no register {name!r}{hint}")

    def _get(self, name: str) -> Any:
        value = getattr(self._shared(), name)
        if isinstance(value, int):
            return value
        return type(value).from_buffer_copy(value)

    def _set(self, name: str, value: Any) -> None:
        if isinstance(value, int):
            field: Any = getattr(self._kind, name)
            value = in_range(name, value, (1 << 8 * field.size) - 1)
        # No local name for the page: the traceback of a TypeError would keep it mapped.
        setattr(self._shared(), name, value)
        self._vcpu.flag(DIRTY_REGS, self._bit)

    def _shared(self) -> Any:
        """Return the registers in the shared page, on the vCPU's own thread; ask KVM to keep them there from now on."""
        view = self._view
        if view is None:
            view = self._kind.from_buffer(self._vcpu.run, self._offset)
            request = abi.KVM_GET_REGS if self._bit == abi.KVM_SYNC_X86_REGS else abi.KVM_GET_SREGS
            self._vcpu.fd.ioctl(request, view)
            self._vcpu.flag(VALID_REGS, self._bit)
            object.__setattr__(self, "_view", view)
        return view

    def drop_view(self) -> None:
        """Let go of the shared page, before the vCPU's thread unmaps it."""
        object.__setattr__(self, "_view", None)


def general(vcpu: Vcpu) -> RegisterFile:
    """Return the general registers, RIP and RFLAGS of `vcpu` (struct kvm_regs)."""
    return RegisterFile(vcpu, abi.KVM_SYNC_X86_REGS, abi.kvm_regs, SYNC)


def system(vcpu: Vcpu) -> RegisterFile:
    """Return segments, tables, control registers, EFER and APIC base of `vcpu` (struct kvm_sregs)."""
    return RegisterFile(vcpu, abi.KVM_SYNC_X86_SREGS, abi.kvm_sregs, SREGS)
