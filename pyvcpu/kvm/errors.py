"""KvmError: what the kernel refused, with the evidence and a way out."""

from __future__ import annotations

import errno
import os

from ..errors import PyvcpuError

# What an error number means for a request, where the manual (Documentation/virt/kvm/api.rst) or the kernel's source
# says more than strerror does. An entry under "" holds for every request without one of its own. Errors that say that
# something has run out must be here: hints.py, which has the rarer ones, may be impossible to load then.
HINTS: dict[tuple[str, int], str] = {
    ("", errno.ENOTTY): "this KVM does not know the request, or the file is not a KVM device",
    ("", errno.EIO): "a VM can only be used by the process that created it, not by a forked child",
    ("", errno.EBADF): "the fd was closed",
    (
        "",
        errno.ENOMEM,
    ): "the kernel has no memory left for this, or this process may have no more (ulimit -v, cgroup)",
    ("", errno.EMFILE): "this process has as many files open as it may (ulimit -n)",
    ("", errno.ENFILE): "the system has as many files open as it may (sysctl fs.file-max)",
    ("KVM_GET_API_VERSION", errno.ENOTTY): "this is not a KVM device; the usual one is /dev/kvm",
    ("KVM_CREATE_VM", errno.ENOMEM): "the kernel has no memory left for another VM",
    ("KVM_CREATE_VM", errno.EBUSY): "another hypervisor holds the processor's virtualization",
    ("KVM_CREATE_VCPU", errno.EEXIST): (
        "a vCPU with this id was created before in this VM; KVM keeps it after its fd is closed, so keep the fd"
    ),
    (
        "KVM_CREATE_VCPU",
        errno.EINVAL,
    ): "the id must be below KVM_CAP_MAX_VCPU_ID, the number of vCPUs within KVM_CAP_MAX_VCPUS",
    ("KVM_CREATE_VCPU", errno.ENOMEM): "the kernel has no memory left for another vCPU",
    ("KVM_CREATE_IRQCHIP", errno.EINVAL): "the interrupt controllers must be created before the first vCPU",
    ("KVM_CREATE_IRQCHIP", errno.EEXIST): "this VM has its interrupt controllers already",
    ("KVM_SET_USER_MEMORY_REGION", errno.EEXIST): "the range overlaps another slot",
    ("KVM_SET_USER_MEMORY_REGION", errno.EINVAL): (
        "addresses and size must be whole pages, the slot number below KVM_CAP_NR_MEMSLOTS, the host memory mapped"
    ),
    (
        "KVM_SET_USER_MEMORY_REGION",
        errno.ENOMEM,
    ): "the kernel has no memory left to keep track of this much guest memory",
    (
        "KVM_SET_CPUID2",
        errno.EINVAL,
    ): "CPUID cannot change once the vCPU has run; before that, it must be consistent",
    ("KVM_SET_CPUID2", errno.E2BIG): "more CPUID entries than KVM takes (256)",
    ("KVM_GET_SUPPORTED_CPUID", errno.E2BIG): "more CPUID entries than the buffer holds",
    ("KVM_SET_MP_STATE", errno.EINVAL): "this state needs the interrupt controllers in the kernel",
    ("KVM_SET_SREGS", errno.EINVAL): "the control registers, EFER, segments and APIC base must be consistent",
    ("KVM_KVMCLOCK_CTRL", errno.EINVAL): "the guest has not set up kvmclock",  # at every start
    ("KVM_RUN", errno.EINVAL): "kvm_valid_regs or kvm_dirty_regs holds a bit that this KVM does not know",
    ("KVM_RUN", errno.EAGAIN): "the kernel may start no worker thread, if this lasts (ulimit -u, pids.max)",
    ("KVM_RUN", errno.EFAULT): "the guest reached memory that the host could not provide",
    ("KVM_RUN", errno.ENOEXEC): "the vCPU has not been initialized",
}


class KvmError(PyvcpuError, OSError):
    """The kernel refused a request, or KVM cannot be used.

    Attributes: `ioctl` (kernel name of the request, or what else was tried), `errno` (0 when the kernel gave none),
    `where` (such as "vCPU 3", or ""), `hint` (what to do, or "").
    """

    def __init__(self, ioctl: str, errno: int, where: str = "", hint: str = "") -> None:
        super().__init__(errno, os.strerror(errno) if errno else "")
        self.ioctl = ioctl
        self.where = where
        self.hint = hint or HINTS.get((ioctl, errno)) or _rare_hint(ioctl, errno) or HINTS.get(("", errno), "")

    def __str__(self) -> str:
        who = f"{self.where}: {self.ioctl}" if self.where else self.ioctl
        if not self.errno:
            return f"{who}: {self.hint}"
        told = f"[Errno {self.errno}] {who}: {self.strerror}"
        return f"{told} ({self.hint})" if self.hint else told

    def __reduce__(self) -> tuple[type[KvmError], tuple[str, int, str, str]]:
        return type(self), (self.ioctl, self.errno or 0, self.where, self.hint)


def _rare_hint(ioctl: str, code: int) -> str:
    """Return the hint of hints.py; "" where that cannot be loaded, because files or memory have run out."""
    try:
        from .hints import RARE_HINTS
    except (ImportError, OSError, MemoryError):
        return ""
    return RARE_HINTS.get((ioctl, code), "")


def explain_open(path: str, error: OSError) -> KvmError:
    """Turn a failed open of the KVM device into a KvmError that says what to do."""
    return KvmError(f"open {path}", error.errno or 0, hint=_open_hint(path, error.errno or 0))


def _open_hint(path: str, code: int) -> str:
    if code == errno.ENOENT:
        return (
            "no such device; turn virtualization on in the firmware, then load kvm_intel or kvm_amd (modprobe)"
            if path == "/dev/kvm"
            else "no such device; the usual one is /dev/kvm"
        )
    if code in (errno.EACCES, errno.EPERM):
        return _group_hint(path)
    if code in (errno.ENODEV, errno.ENXIO):
        return "the device file is there but no KVM module is loaded: modprobe kvm_intel or kvm_amd"
    if code == errno.EISDIR:
        return "this is a directory; the usual device is /dev/kvm"
    return ""


def _group_hint(path: str) -> str:
    try:
        import grp

        status = os.stat(path)
        group = grp.getgrgid(status.st_gid).gr_name
    except (ImportError, OSError, KeyError, MemoryError):
        return "ask the administrator for access to it"
    if status.st_mode & 0o060 == 0o060 and status.st_gid != 0:
        return f"it belongs to group {group}: sudo usermod -aG {group} $USER, then log in again"
    return (
        f"it belongs to group {group} with mode {status.st_mode & 0o777:o}: as root, "
        f"chgrp kvm {path}; chmod 660 {path}; usermod -aG kvm USER"
    )
