"""Registers by name: `vcpu.registers` and `vcpu.sregs`."""

from __future__ import annotations

from ..errors import PyvcpuError
from ..kvm.abi import basic as abi
from ..kvm.fd import in_range
from .shared import SETS

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Any

    from .shared import SharedRegisters

    # Calls a function with the shared registers of the vCPU, on its thread, and returns what that does.
    OnCpu = Callable[[Callable[[SharedRegisters], Any]], Any]


class RegisterError(PyvcpuError, AttributeError):
    """There is no register of this name."""


class RegisterFile:
    """`vcpu.registers` and `vcpu.sregs`: attributes named as in struct kvm_regs and struct kvm_sregs.

    In a handler, on the vCPU's own thread, an access costs no ioctl: from the first one on, KVM leaves the registers
    in the shared page at every exit, and takes back what was changed. From another thread an access interrupts the
    vCPU and is made by its thread, and copy() gets all registers at once. Segments and tables come as copies: change
    the copy and assign it. What `vcpu.fd` gets and sets is the same registers.

    >>> from pyvcpu import Machine
    >>> with Machine() as machine:
    ...     machine.load(bytes([0xB8, 0x34, 0x12, 0xF4]))        # mov $0x1234,%ax; hlt
    ...     outcome = machine.run()
    ...     hex(machine.vcpus[0].registers.rax)
    '0x1234'
    """

    __slots__ = ("_kind", "_on_cpu", "_which")

    def __init__(self, on_cpu: OnCpu, which: int) -> None:
        for name, value in (("_on_cpu", on_cpu), ("_which", which), ("_kind", SETS[which][0])):
            object.__setattr__(self, name, value)

    def copy(self) -> Any:
        """Return all of them as a structure of its own (kvm_regs or kvm_sregs)."""
        return self._on_cpu(lambda shared: self._kind.from_buffer_copy(shared.view(self._which)))

    def __getattr__(self, name: str) -> Any:
        self._check(name)
        return self._on_cpu(lambda shared: _copy_of(getattr(shared.view(self._which), name)))

    def __setattr__(self, name: str, value: Any) -> None:
        self._check(name)
        if isinstance(value, int):
            value = in_range(name, value, (1 << 8 * getattr(self._kind, name).size) - 1)

        def change(shared: SharedRegisters) -> None:
            # No local name for the page: the traceback of a TypeError would keep it mapped.
            setattr(shared.view(self._which), name, value)
            shared.changed(self._which)

        self._on_cpu(change)

    def __dir__(self) -> list[str]:
        return [field[0] for field in self._kind._fields_] + ["copy"]

    def _check(self, name: str) -> None:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # what copy, pickle and others look for on any object
        names = [field[0] for field in self._kind._fields_]
        if name in names:
            return
        from difflib import get_close_matches

        close = get_close_matches(name, names, 1)
        hint = f"; did you mean {close[0]}?" if close else f": one of {', '.join(names)}"
        raise RegisterError(f"no register {name!r}{hint}")


def _copy_of(value: Any) -> Any:
    return value if isinstance(value, int) else type(value).from_buffer_copy(value)


def general(on_cpu: OnCpu) -> RegisterFile:
    """Return the general registers, RIP and RFLAGS (struct kvm_regs)."""
    return RegisterFile(on_cpu, abi.KVM_SYNC_X86_REGS)


def system(on_cpu: OnCpu) -> RegisterFile:
    """Return segments, tables, control registers, EFER and APIC base (struct kvm_sregs)."""
    return RegisterFile(on_cpu, abi.KVM_SYNC_X86_SREGS)
