"""What a machine needs of its host's KVM."""

from __future__ import annotations

from ..errors import ConfigError
from ..kvm.abi import basic as abi
from ..kvm.errors import KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from ..kvm.system import Kvm

REQUIRED = {
    "KVM_CAP_USER_MEMORY": (abi.KVM_CAP_USER_MEMORY, "Linux 2.6.24"),
    "KVM_CAP_EXT_CPUID": (abi.KVM_CAP_EXT_CPUID, "Linux 2.6.26"),
    "KVM_CAP_IMMEDIATE_EXIT": (abi.KVM_CAP_IMMEDIATE_EXIT, "Linux 4.13"),
    "KVM_CAP_SYNC_REGS": (abi.KVM_CAP_SYNC_REGS, "Linux 4.17"),
}


def require_capabilities(kvm: Kvm) -> None:
    """Raise KvmError, which names it, where this KVM lacks what every machine needs."""
    for name, (cap, since) in REQUIRED.items():
        if not kvm.check_extension(cap):
            raise KvmError("KVM_CHECK_EXTENSION", 0, kvm.path, f"this KVM lacks {name}, which came with {since}")


def check_smp(kvm: Kvm, smp: int) -> None:
    limit = kvm.check_extension(abi.KVM_CAP_MAX_VCPUS) or kvm.check_extension(abi.KVM_CAP_NR_VCPUS) or 4
    if smp > limit:
        raise ConfigError(f"this host's KVM runs at most {limit} vCPUs in a machine (KVM_CAP_MAX_VCPUS), not {smp}")


def warn_by_default(line: str) -> None:
    """Say `line` as Python says warnings."""
    import warnings

    warnings.warn(line, stacklevel=2)
