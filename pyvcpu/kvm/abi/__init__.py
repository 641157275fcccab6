"""The KVM ABI as data: structures, ioctl requests, capabilities and exit reasons under their kernel names.

Each name is loaded from its submodule at first use, because a boot needs few of them.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .base import Ioctl as Ioctl
    from .basic import *  # noqa: F403  # for mypy; __getattr__ does it at run time
    from .caps import Cap as Cap
    from .exits import Exit as Exit
    from .exits import InternalError as InternalError
    from .exits import SystemEvent as SystemEvent
    from .run import *  # noqa: F403

_SUBMODULES = ("base", "basic", "exits", "caps", "run")


def __getattr__(name: str) -> object:
    """Find `name` in the submodules, in the order in which a boot loads them."""
    from importlib import import_module

    if not name.startswith("__"):
        for submodule in _SUBMODULES:
            module = import_module(f"{__name__}.{submodule}")
            if name in vars(module):
                return vars(module)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
