"""The KVM ABI of x86 as data: structures, ioctl requests, capabilities and exit reasons under their kernel names.

It holds what linux/kvm.h and asm/kvm.h have for x86 up to Linux 7.2, without what the kernel itself has dropped. Each
name is loaded from its submodule at first use, because a boot needs few of them; dir() lists all.

>>> from pyvcpu.kvm import abi
>>> abi.KVM_RUN.name, hex(abi.KVM_RUN.number), abi.Cap.IRQCHIP, abi.Exit.HLT
('KVM_RUN', '0xae80', <Cap.IRQCHIP: 0>, <Exit.HLT: 5>)
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True; __getattr__ does it at run time
    from .base import Ioctl as Ioctl
    from .basic import *  # noqa: F403
    from .capabilities import *  # noqa: F403
    from .caps import Cap as Cap
    from .clock import *  # noqa: F403
    from .debug import *  # noqa: F403
    from .device import *  # noqa: F403
    from .events import *  # noqa: F403
    from .exits import Exit as Exit
    from .exits import InternalError as InternalError
    from .exits import SystemEvent as SystemEvent
    from .features import *  # noqa: F403
    from .hyperv import *  # noqa: F403
    from .ioevent import *  # noqa: F403
    from .irq import *  # noqa: F403
    from .memory import *  # noqa: F403
    from .msr import *  # noqa: F403
    from .nested import *  # noqa: F403
    from .run import *  # noqa: F403
    from .sev import *  # noqa: F403
    from .state import *  # noqa: F403
    from .stats import *  # noqa: F403
    from .tdx import *  # noqa: F403
    from .xen import *  # noqa: F403


def __getattr__(name: str) -> object:
    """Import the one submodule that has `name`."""
    if name[:1].isupper() or name[:4] == "kvm_":  # `from .abi import basic` asks for "basic" first, too
        from importlib import import_module

        from .index import MODULE_OF

        if name in MODULE_OF:
            return vars(import_module(f"{__name__}.{MODULE_OF[name]}"))[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    from .index import MODULE_OF

    return sorted({*globals(), *MODULE_OF})
