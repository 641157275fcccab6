"""What a machine has to do with its host: what it needs of KVM, where output and warnings go, image files."""

from __future__ import annotations

import sys

from ..errors import ConfigError
from ..kvm.abi import basic as abi
from ..kvm.errors import KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import os

    from ..kvm.system import Kvm

CHUNK = 1 << 20
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


def to_stdout(data: bytes) -> None:
    """Write what the guest says to standard output, at once, and behind what the program has printed before."""
    out = sys.stdout
    if out is None:  # as print() does where there is none
        return
    out.flush()
    stream = getattr(out, "buffer", None)
    if stream is None:  # a replacement that takes text only
        out.write(data.decode("latin-1"))
    else:
        stream.write(data)
    out.flush()


def read_image(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read an image file; of one that is larger than `limit` bytes, only so much as shows that it is."""
    content = bytearray()
    with open(path, "rb") as file:
        while len(content) <= limit and (chunk := file.read(CHUNK)):
            content += chunk
    return bytes(content)
