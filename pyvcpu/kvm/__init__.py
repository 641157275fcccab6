"""/dev/kvm as Python objects, for those who bring their own run loop.

One class per kind of file descriptor: Kvm (the system), VmFd, VcpuFd, DeviceFd. The names of methods are those of the
ioctls in lower case; `abi` has the structures and constants under their kernel names.
"""

from __future__ import annotations

from . import abi as abi
from .cpuid import CpuidTable as CpuidTable
from .device import DeviceFd as DeviceFd
from .errors import KvmError as KvmError
from .kernel import Kernel as Kernel
from .system import DEVICE as DEVICE
from .system import Kvm as Kvm
from .vcpu import VcpuFd as VcpuFd
from .vm import VmFd as VmFd
