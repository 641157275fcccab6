"""Accelerators: who runs the guest. QEMU's names, and lists as it has them: kvm:tcg."""

from __future__ import annotations

import os

from ..errors import ConfigError
from ..kvm.errors import KvmError
from ..kvm.kernel import LinuxKernel
from ..kvm.system import DEVICE, Kvm
from .host import warn_by_default

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from ..kvm.kernel import Kernel

    See = Callable[[Kernel], Kernel]

DEFAULT = "kvm:tcg"
NAMES = ("kvm", "tcg", "dummy")
# The others that QEMU's qemu_init_vcpu() knows, and where they are.
ELSEWHERE = {
    "hax": "Intel's HAXM, for Windows and macOS",
    "hvf": "Hypervisor.framework, which macOS has",
    "whpx": "the Windows Hypervisor Platform",
    "nvmm": "NetBSD's hypervisor",
    "xen": "for guests of a Xen host",
}
ENVIRONMENT = "PYVCPU_ACCEL"


def parse(text: str) -> tuple[str, ...]:
    """Return the accelerators of a list such as "kvm:tcg", in their order; raise ConfigError for what is none."""
    if not isinstance(text, str):
        raise TypeError(f"accel is a name or a list such as {DEFAULT!r}, not {text!r}")
    names = tuple(text.split(":"))
    for name in names:
        if name in ELSEWHERE:
            raise ConfigError(f"--accel {name}: that is {ELSEWHERE[name]}; here there are {', '.join(NAMES)}")
        if name not in NAMES:
            raise ConfigError(f"--accel takes {', '.join(NAMES)}, or a list such as {DEFAULT}, not {text!r}")
    return names


def default() -> str:
    """Return what PYVCPU_ACCEL says, else DEFAULT."""
    return os.environ.get(ENVIRONMENT) or DEFAULT


def open_accel(text: str | None = None, warn: Callable[[str], object] = warn_by_default, see: See | None = None) -> Kvm:
    """Open the first accelerator of a list (None: the default's) that can be used here; its owner closes it.

    `warn` gets a line where it is not the first. `see(kernel)` may put something between the Kvm and what it goes
    through. Raise ConfigError for a list that is none, KvmError where only KVM was
    asked for, or comes last, and cannot be used.
    """
    names = parse(default() if text is None else text)
    for name in names[:-1]:
        try:
            return open_one(name, see)
        except KvmError as error:
            after = names[names.index(name) + 1]
            warn(f"no KVM here: {error}; going on with {after}{SLOWER.get(after, '')}")
    return open_one(names[-1], see)


def open_machine(accel: str | None, path: str | None, warn: Callable[[str], object], see: See | None = None) -> Kvm:
    """Open what a machine runs on: a device that is named is KVM and nothing else, if `accel` does not contradict."""
    if path is not None and not isinstance(path, str):
        raise TypeError(f"kvm is the name of a device or an open Kvm, not {path!r}")
    if path is None:
        return open_accel(accel, warn, see)
    if accel is not None and "kvm" not in parse(accel):
        raise ConfigError(f"--accel {accel} and a KVM device, {path}, contradict each other")
    return open_one("kvm", see, path)


SLOWER = {"tcg": ", a processor in software", "dummy": ", which runs no guest code"}


def open_one(name: str, see: See | None = None, path: str = DEVICE) -> Kvm:
    """Open the accelerator `name`; raise KvmError where it cannot be used."""
    kernel: Kernel | None = None
    if name == "tcg":
        from ..tcg.kernel import TcgKernel

        path, kernel = "tcg", TcgKernel()
    elif name == "dummy":
        from ..tcg.dummy import DummyKernel

        path, kernel = "dummy", DummyKernel()
    if see is not None:
        kernel = see(kernel or LinuxKernel())
    return Kvm(path, kernel)
