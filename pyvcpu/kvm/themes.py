"""The rest of the methods of Kvm, VmFd and VcpuFd, put on them when the first is asked for.

A boot needs few of the methods; importing all of them would make every start about 2 ms longer. Once this module is
imported, the three classes have the bases that their type annotations show, and no look-up comes here again. The
import system's own lock makes the change once, whichever thread asks first.
"""

from __future__ import annotations

from .system import Kvm
from .system_more import KvmMore
from .vcpu import VcpuFd
from .vcpu_control import VcpuControl
from .vcpu_msr import VcpuMsr
from .vcpu_state import VcpuState
from .vm import VmFd
from .vm_guests import VmGuests
from .vm_io import VmIo
from .vm_irq import VmIrq
from .vm_memory import VmMemory

Kvm.__bases__ = (KvmMore,)
VmFd.__bases__ = (VmIrq, VmMemory, VmIo, VmGuests)
VcpuFd.__bases__ = (VcpuState, VcpuMsr, VcpuControl)
