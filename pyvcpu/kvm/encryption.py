"""Methods of VmFd and VcpuFd for encrypted guests: one request for all commands of SEV and TDX, and pinned memory."""

from __future__ import annotations

import ctypes

from .abi import sev, tdx
from .fd import U64, in_range
from .registration import Registration

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .vcpu import VcpuFd
    from .vm import VmFd


def memory_encrypt_op(
    fd: VmFd | VcpuFd,
    command: sev.kvm_sev_cmd | tdx.kvm_tdx_cmd | None = None,
    data: ctypes.Structure | None = None,
) -> None:
    """Do a command of SEV or TDX with `data`, the structure that belongs to it; None: only ask whether KVM can.

    Commands for one vCPU, which TDX has, are methods of VcpuFd, all others of VmFd. Addresses in `data` are of this
    process and must stay valid until the call returns. `command.error` or `.hw_error` then holds the answer of the
    firmware or the TDX module.
    KVM_MEMORY_ENCRYPT_OP, api.rst 4.110. Needs KVM_CAP_VM_TYPES with one of the encrypted types, or older SEV.
    """
    if command is None:
        if data is not None:
            raise TypeError("data needs a command to belong to")
        fd.ioctl(sev.KVM_MEMORY_ENCRYPT_OP)
        return
    if not isinstance(command, sev.kvm_sev_cmd | tdx.kvm_tdx_cmd):
        raise TypeError(f"command must be a kvm_sev_cmd or a kvm_tdx_cmd, not {command!r}")
    if data is not None and not isinstance(data, ctypes.Structure):
        raise TypeError(f"data must be a structure of the command's, not {data!r}")
    command.data = 0 if data is None else ctypes.addressof(data)
    # The number of the request says that it takes an unsigned long. It takes the command.
    whole = (ctypes.c_char * ctypes.sizeof(command)).from_buffer(command)
    fd.ioctl(sev.KVM_MEMORY_ENCRYPT_OP, whole)


def memory_encrypt_reg_region(vm: VmFd, address: int, size: int) -> Registration:
    """Pin memory of this process that an SEV guest uses, until the registration is closed.

    KVM_MEMORY_ENCRYPT_REG_REGION, api.rst 4.111.
    """
    region = sev.kvm_enc_region(in_range("address", address, U64), in_range("size", size, U64))
    vm.ioctl(sev.KVM_MEMORY_ENCRYPT_REG_REGION, region)
    what = f"encrypted region {address:#x}, {size} bytes"
    return Registration(what, vm, sev.KVM_MEMORY_ENCRYPT_UNREG_REGION, region)


def memory_encrypt_unreg_region(vm: VmFd, address: int, size: int) -> None:
    """Release what memory_encrypt_reg_region() pinned (KVM_MEMORY_ENCRYPT_UNREG_REGION, api.rst 4.112)."""
    region = sev.kvm_enc_region(in_range("address", address, U64), in_range("size", size, U64))
    vm.ioctl(sev.KVM_MEMORY_ENCRYPT_UNREG_REGION, region)
