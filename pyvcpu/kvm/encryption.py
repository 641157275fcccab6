"""KVM_MEMORY_ENCRYPT_OP: one request of VM and vCPU for all the commands of SEV and TDX."""

from __future__ import annotations

import ctypes

from .abi import sev, tdx
from .fd import Fd


def encrypt_op(fd: Fd, command: sev.kvm_sev_cmd | tdx.kvm_tdx_cmd | None, data: ctypes.Structure | None) -> None:
    """Make the request on `fd`; `command.error` or `.hw_error` then holds the answer of firmware or TDX module."""
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
    # The request is numbered as if it took an unsigned long; what it takes is the command.
    whole = (ctypes.c_char * ctypes.sizeof(command)).from_buffer(command)
    fd.ioctl(sev.KVM_MEMORY_ENCRYPT_OP, whole)
