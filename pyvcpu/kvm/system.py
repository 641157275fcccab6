"""Kvm: the system fd, /dev/kvm itself."""

from __future__ import annotations

import errno

from .abi import basic as abi
from .cpuid import CpuidTable
from .errors import KvmError, explain_open
from .fd import U32, Fd, in_range
from .kernel import Kernel
from .vm import VmFd

TYPE_CHECKING = False

DEVICE = "/dev/kvm"


class KvmCore(Fd):
    """What every boot needs of Kvm."""

    __slots__ = ("mmap_size", "path")

    def __init__(self, path: str = DEVICE, kernel: Kernel | None = None) -> None:
        """Open `path` and ask KVM_GET_API_VERSION.

        Raise KvmError when it is missing, forbidden, not a KVM device, or of another API version than 12.
        """
        kernel = kernel or Kernel()
        try:
            fd = kernel.open(path)
        except OSError as error:
            raise explain_open(path, error) from None
        super().__init__(kernel, fd)
        self.path = path
        self.mmap_size = 0
        try:
            self._require_api_version()
        except BaseException:
            self.close()
            raise

    def _require_api_version(self) -> None:
        try:
            version = self.get_api_version()
        except KvmError as error:
            # A file that answers an ioctl with EINVAL is no more a KVM device than one that says ENOTTY.
            raise KvmError(
                error.ioctl,
                error.errno or 0,
                self.path,
                "this is not a KVM device; the usual one is /dev/kvm",
            ) from None
        if version != abi.KVM_API_VERSION:
            raise KvmError(
                "KVM_GET_API_VERSION",
                0,
                self.path,
                f"version must be {abi.KVM_API_VERSION}, not {version}: this is no KVM that anyone should use",
            )

    def get_api_version(self) -> int:
        """Return the API version, 12 since Linux 2.6.22 (KVM_GET_API_VERSION, api.rst 4.1)."""
        return self.ioctl(abi.KVM_GET_API_VERSION)

    def check_extension(self, cap: int) -> int:
        """Return 0 when this KVM lacks the capability `cap`, else 1 or a number that the capability defines.

        KVM_CHECK_EXTENSION, api.rst 4.4.
        """
        return self.ioctl(abi.KVM_CHECK_EXTENSION, in_range("a capability", cap, U32))

    def get_vcpu_mmap_size(self) -> int:
        """Return how many bytes of a vCPU's fd to map (KVM_GET_VCPU_MMAP_SIZE, api.rst 4.5)."""
        self.mmap_size = self.ioctl(abi.KVM_GET_VCPU_MMAP_SIZE)
        return self.mmap_size

    def get_supported_cpuid(self) -> CpuidTable:
        """Return the CPUID leaves that KVM can show a guest (KVM_GET_SUPPORTED_CPUID, api.rst 4.46).

        Needs KVM_CAP_EXT_CPUID.
        """
        return CpuidTable.fetch(self, abi.KVM_GET_SUPPORTED_CPUID)

    def create_vm(self, vm_type: int = 0) -> VmFd:
        """Create a VM without memory, processors or devices (KVM_CREATE_VM, api.rst 4.2).

        A signal may interrupt the kernel while it sets the VM up; the request is then made again.
        """
        in_range("a VM type", vm_type, U32)
        while True:
            try:
                return VmFd(self.kernel, self.ioctl(abi.KVM_CREATE_VM, vm_type), "", self)
            except KvmError as error:
                if error.errno != errno.EINTR:
                    raise


if TYPE_CHECKING:
    from .system_more import KvmMore as _KvmBase
else:
    _KvmBase = KvmCore


class Kvm(_KvmBase):
    """An open /dev/kvm: what this host's KVM can do, and where VMs come from.

    Its rarer methods are in system_more, which is imported when the first of them is asked for.

    >>> with Kvm() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
    ...     vcpu.get_regs().rip
    65520
    """

    __slots__ = ()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            from . import themes as themes  # gives Kvm, VmFd and VcpuFd the rest of their bases

            return object.__getattribute__(self, name)

        def __dir__(self) -> list[str]:
            from . import themes as themes

            return list(object.__dir__(self))
