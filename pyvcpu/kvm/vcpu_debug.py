"""VcpuFd's methods for debugging: stops for the host, the guest's debug registers, machine checks."""

from __future__ import annotations

import ctypes

from .abi import basic
from .abi import debug as abi
from .fd import U32, U64, in_range

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Sequence

    from .vcpu import VcpuFd


def set_guest_debug(vcpu: VcpuFd, control: int, debugreg: Sequence[int] = ()) -> None:
    """Single-step, or stop at breakpoints: `control` of abi.KVM_GUESTDBG_*, `debugreg` up to 8 registers.

    KVM_SET_GUEST_DEBUG, api.rst 4.87. Needs KVM_CAP_SET_GUEST_DEBUG.
    """
    if len(debugreg) > 8:
        raise ValueError(f"there are 8 debug registers, not {len(debugreg)}")
    request = abi.kvm_guest_debug(in_range("control", control, U32))
    for i, value in enumerate(debugreg):
        request.arch.debugreg[i] = in_range(f"debug register {i}", value, U64)
    vcpu.ioctl(abi.KVM_SET_GUEST_DEBUG, request)


def get_debugregs(vcpu: VcpuFd) -> abi.kvm_debugregs:
    """Read the guest's debug registers (KVM_GET_DEBUGREGS, api.rst 4.33). Needs KVM_CAP_DEBUGREGS."""
    registers = abi.kvm_debugregs()
    vcpu.ioctl(abi.KVM_GET_DEBUGREGS, registers)
    return registers


def set_debugregs(vcpu: VcpuFd, registers: abi.kvm_debugregs) -> None:
    """Write the guest's debug registers (KVM_SET_DEBUGREGS, api.rst 4.34). Needs KVM_CAP_DEBUGREGS."""
    vcpu.ioctl(abi.KVM_SET_DEBUGREGS, registers)


def x86_setup_mce(vcpu: VcpuFd, mcg_cap: int) -> None:
    """Give the vCPU machine-check banks: bits 7-0 how many, the rest of Kvm.x86_get_mce_cap_supported().

    KVM_X86_SETUP_MCE, api.rst 4.105. Needs KVM_CAP_MCE.
    """
    vcpu.ioctl(basic.KVM_X86_SETUP_MCE, ctypes.c_uint64(in_range("mcg_cap", mcg_cap, U64)))


def x86_set_mce(vcpu: VcpuFd, mce: abi.kvm_x86_mce) -> None:
    """Inject a machine check (KVM_X86_SET_MCE, api.rst 4.106). Needs KVM_CAP_MCE."""
    vcpu.ioctl(abi.KVM_X86_SET_MCE, mce)
