"""Kvm: the system fd, /dev/kvm itself."""

from __future__ import annotations

import errno

from .abi import basic as abi
from .cpuid import CpuidTable
from .errors import KvmError, explain_open
from .fd import U32, Fd, LazyModule, in_range
from .kernel import LinuxKernel
from .vm import VmFd

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from . import system_more
    from .kernel import Kernel
else:
    system_more = LazyModule("pyvcpu.kvm.system_more")

DEVICE = "/dev/kvm"


class Kvm(Fd):
    """An open /dev/kvm: what this host's KVM can do, and where VMs come from.

    >>> with Kvm() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
    ...     vcpu.get_regs().rip
    65520
    """

    __slots__ = ("mmap_size", "path")

    def __init__(self, path: str = DEVICE, kernel: Kernel | None = None) -> None:
        """Open `path` and ask KVM_GET_API_VERSION; `kernel` is who is asked, LinuxKernel if not given.

        Raise KvmError when it is missing, forbidden, not a KVM device, or of another API version than 12.
        """
        super().__init__(kernel or LinuxKernel())
        self.path = path
        self.mmap_size = 0
        try:
            self.own(map(self.kernel.open, (path,)))
        except OSError as error:
            raise explain_open(path, error) from None
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
                f"version must be {abi.KVM_API_VERSION}, not {version}: this KVM cannot be used",
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

        A signal can interrupt the kernel while it sets the VM up; the request is then made again.
        """
        in_range("a VM type", vm_type, U32)
        while True:
            try:
                return self.create(VmFd, abi.KVM_CREATE_VM, vm_type)
            except KvmError as error:
                if error.errno != errno.EINTR:
                    raise

    # The rarer requests, loaded when first used.
    # system_more.py
    get_msr_index_list = system_more.get_msr_index_list
    get_msr_feature_index_list = system_more.get_msr_feature_index_list
    get_msrs = system_more.get_msrs
    get_emulated_cpuid = system_more.get_emulated_cpuid
    get_supported_hv_cpuid = system_more.get_supported_hv_cpuid
    x86_get_mce_cap_supported = system_more.x86_get_mce_cap_supported
    has_device_attr = system_more.has_device_attr
    get_device_attr = system_more.get_device_attr
