"""/dev/kvm as Python objects, for those who bring their own run loop.

One class per kind of file descriptor: Kvm (the system), VmFd, VcpuFd, DeviceFd. The names of methods are those of the
ioctls in lower case; `abi` has the structures and constants under their kernel names.
"""

from __future__ import annotations

from . import abi as abi
from .cpuid import CpuidTable as CpuidTable
from .errors import KvmError as KvmError
from .kernel import Kernel as Kernel
from .kernel import LinuxKernel as LinuxKernel
from .system import DEVICE as DEVICE
from .system import Kvm as Kvm
from .vcpu import VcpuFd as VcpuFd
from .vm import VmFd as VmFd

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True; __getattr__ does it at run time
    from .device import DeviceFd as DeviceFd
    from .msrs import MsrError as MsrError
    from .msrs import MsrFilterRange as MsrFilterRange
    from .registration import Registration as Registration
    from .rings import CoalescedRing as CoalescedRing
    from .rings import CoalescedWrite as CoalescedWrite
    from .rings import DirtyRing as DirtyRing
    from .routes import HvSintRoute as HvSintRoute
    from .routes import IrqchipRoute as IrqchipRoute
    from .routes import MsiRoute as MsiRoute
    from .routes import Route as Route
    from .routes import XenEvtchnRoute as XenEvtchnRoute
    from .stats import Statistic as Statistic
    from .stats import StatsFd as StatsFd
    from .vm_memory import GuestMemfd as GuestMemfd

_LATER = {
    "device": ("DeviceFd",),
    "msrs": ("MsrError", "MsrFilterRange"),
    "registration": ("Registration",),
    "rings": ("CoalescedRing", "CoalescedWrite", "DirtyRing"),
    "routes": ("HvSintRoute", "IrqchipRoute", "MsiRoute", "Route", "XenEvtchnRoute"),
    "stats": ("Statistic", "StatsFd"),
    "vm_memory": ("GuestMemfd",),
}


def __getattr__(name: str) -> object:
    """Import what a boot does not need at its first use."""
    for module, names in _LATER.items():
        if name in names:
            from importlib import import_module

            return vars(import_module(f"{__name__}.{module}"))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(name for names in _LATER.values() for name in names)})
