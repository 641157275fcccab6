"""The MSRs of a vCPU, as a piece of its state: those that KVM lets the host read and write, in a safe order."""

from __future__ import annotations

from struct import pack

from .pieces import VcpuStateError, pairs

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Any

    from .core import Cpu

MSR = "<QQ"  # index, value


def get_msrs(cpu: Cpu) -> bytes:
    """Return the MSRs that KVM lets the host read and write, 16 bytes each: index, value; in a safe order."""
    return b"".join(pack(MSR, index, value) for index, value in cpu.fd.get_msrs(msrs_after_reset(cpu)))


def set_msrs(cpu: Cpu, data: bytes) -> None:
    """Set MSRs; raise VcpuStateError, which names it, at one that KVM refuses: those before it are set."""
    from ..kvm.msrs import MsrError

    values = pairs("MSR", data)
    try:
        cpu.fd.set_msrs(values)
    except MsrError as error:
        value = dict(values)[error.index]
        raise VcpuStateError(f"vCPU {cpu.index}: KVM refuses {value:#x} for MSR {error.index:#x}") from None
    except ValueError as error:
        raise VcpuStateError(str(error)) from None


def reset_msrs(cpu: Cpu, machine_wide: bool) -> bytes:
    """Return what MSRs hold after reset; those that belong to the machine only if all of it is being reset."""
    from ..x86.reset import OF_MACHINE

    known = msrs_after_reset(cpu).items()
    return b"".join(pack(MSR, *pair) for pair in known if machine_wide or pair[0] not in OF_MACHINE)


def msrs_after_reset(cpu: Cpu) -> dict[int, int]:
    """Return the MSRs and their values after reset: KVM is asked, once per machine, with a vCPU that never ran.

    It is one of a VM of its own, because a VM can use an id once only.
    """
    template, kvm = cpu.template, cpu.context.kvm
    with cpu.control.lock:
        known = template.reset_msrs
    if known is None:
        with kvm.create_vm() as vm, vm.create_vcpu(0) as fd:
            known = _read_new(cpu, fd)
        with cpu.control.lock:
            template.reset_msrs = known
    return known


def _read_new(cpu: Cpu, fd: Any) -> dict[int, int]:
    """Return what `fd`, a vCPU that never ran, holds in all MSRs that can be read and written back."""
    from ..x86 import reset

    fd.set_cpuid2(cpu.cpuid)
    if cpu.mcg_cap:
        fd.x86_setup_mce(cpu.mcg_cap)
    listed = [*cpu.context.kvm.get_msr_index_list(), *reset.MTRRS, *reset.machine_check_msrs(cpu.mcg_cap & 0xFF)]
    last = [index for index in listed if index in reset.LAST_MSRS]
    readable = _accepted(fd.get_msrs, [index for index in dict.fromkeys(listed) if index not in last] + last)
    found = dict(_accepted(fd.set_msrs, fd.get_msrs(readable)))
    found.pop(reset.HV_VP_INDEX, None)
    found[reset.IA32_TSC] = reset.TSC_TO_SYNCHRONIZE
    return found


def _accepted(request: Callable[[list[Any]], object], items: list[Any]) -> list[Any]:
    """Return those of `items` that `request`, which stops at the first that KVM refuses, accepts."""
    from ..kvm.msrs import MsrError

    accepted: list[Any] = []
    while True:
        try:
            request(items)
            return accepted + items
        except MsrError as error:  # listed, and yet not for this processor
            accepted += items[: error.position]
            items = items[error.position + 1 :]
