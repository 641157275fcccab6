"""pyvcpu: virtual machines on Linux KVM, in pure Python.

`Machine` is the way in; `pyvcpu.kvm` binds the KVM API for those who bring their own run loop.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .boot import Plan as Plan
    from .errors import ConfigError as ConfigError
    from .errors import ImageError as ImageError
    from .errors import PyvcpuError as PyvcpuError
    from .errors import StateError as StateError
    from .kvm import Kvm as Kvm
    from .kvm import KvmError as KvmError
    from .machine import Machine as Machine
    from .machine.accel import open_accel as open_accel
    from .machine.outcome import Outcome as Outcome
    from .memory import GuestMemory as GuestMemory
    from .memory import GuestMemoryError as GuestMemoryError
    from .memory import HostMemoryError as HostMemoryError
    from .vcpu import State as State
    from .vcpu import Vcpu as Vcpu
    from .x86.start import StartState as StartState

__version__ = "0.1.0"

# Where each public name lives. It is loaded at first use: who wants pyvcpu.kvm only, or --help, pays for no more.
_HOME = {
    "ConfigError": "errors",
    "GuestMemory": "memory",
    "GuestMemoryError": "memory",
    "HostMemoryError": "memory",
    "ImageError": "errors",
    "Kvm": "kvm",
    "KvmError": "kvm",
    "Machine": "machine",
    "Outcome": "machine.outcome",
    "Plan": "boot",
    "PyvcpuError": "errors",
    "StartState": "x86.start",
    "State": "vcpu",
    "StateError": "errors",
    "Vcpu": "vcpu",
    "open_accel": "machine.accel",
}
__all__ = sorted(_HOME)  # strings all, though the linter cannot see it


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
