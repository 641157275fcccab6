"""DeviceFd: a device that lives in the kernel (KVM_CREATE_DEVICE)."""

from __future__ import annotations

from .fd import Fd


class DeviceFd(Fd):
    """An in-kernel device of a VM."""

    __slots__ = ()
