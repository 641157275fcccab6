"""Where interrupt lines (GSIs) go: the typed entries of VmFd.set_gsi_routing() (api.rst 4.52)."""

from __future__ import annotations

import ctypes

from .abi import irq as abi
from .fd import U32, U64, in_range

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable
    from typing import ClassVar

    from .vm import VmFd

MAX_ROUTES = 4096  # KVM_MAX_IRQ_ROUTES in the kernel's source


class Route:
    """Base of the kinds of route. Two are equal when their kinds and fields are."""

    __slots__ = ("gsi",)
    __match_args__: ClassVar[tuple[str, ...]] = ("gsi",)

    def __init__(self, gsi: int) -> None:
        self.gsi = in_range("a GSI", gsi, U32)

    def entry(self) -> abi.kvm_irq_routing_entry:
        """Return the kernel's form of it."""
        raise NotImplementedError

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Route) and type(self) is type(other) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
        return f"{type(self).__name__}({', '.join(shown)})"


class IrqchipRoute(Route):
    """To `pin` of a controller in the kernel, abi.KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC."""

    __slots__ = ("chip", "pin")
    __match_args__ = ("gsi", "chip", "pin")

    def __init__(self, gsi: int, chip: int, pin: int) -> None:
        super().__init__(gsi)
        self.chip = in_range("a controller", chip, U32)
        self.pin = in_range("a pin", pin, U32)

    def entry(self) -> abi.kvm_irq_routing_entry:
        entry = abi.kvm_irq_routing_entry(self.gsi, abi.KVM_IRQ_ROUTING_IRQCHIP)
        entry.u.irqchip.irqchip, entry.u.irqchip.pin = self.chip, self.pin
        return entry


class MsiRoute(Route):
    """To a message: `data` written to `address`; `devid` names the device where KVM_CAP_MSI_DEVID asks for it."""

    __slots__ = ("address", "data", "devid")
    __match_args__ = ("gsi", "address", "data", "devid")

    def __init__(self, gsi: int, address: int, data: int, devid: int | None = None) -> None:
        super().__init__(gsi)
        self.address = in_range("a message's address", address, U64)
        self.data = in_range("a message's data", data, U32)
        self.devid = devid if devid is None else in_range("a device id", devid, U32)

    def entry(self) -> abi.kvm_irq_routing_entry:
        entry = abi.kvm_irq_routing_entry(self.gsi, abi.KVM_IRQ_ROUTING_MSI)
        entry.u.msi.address_lo, entry.u.msi.address_hi = self.address & U32, self.address >> 32
        entry.u.msi.data = self.data
        if self.devid is not None:
            entry.flags, entry.u.msi.devid = abi.KVM_MSI_VALID_DEVID, self.devid
        return entry


class HvSintRoute(Route):
    """To the synthetic interrupt source `sint` of `vcpu` (Hyper-V)."""

    __slots__ = ("sint", "vcpu")
    __match_args__ = ("gsi", "vcpu", "sint")

    def __init__(self, gsi: int, vcpu: int, sint: int) -> None:
        super().__init__(gsi)
        self.vcpu = in_range("a vCPU", vcpu, U32)
        self.sint = in_range("a synthetic interrupt", sint, U32)

    def entry(self) -> abi.kvm_irq_routing_entry:
        entry = abi.kvm_irq_routing_entry(self.gsi, abi.KVM_IRQ_ROUTING_HV_SINT)
        entry.u.hv_sint.vcpu, entry.u.hv_sint.sint = self.vcpu, self.sint
        return entry


class XenEvtchnRoute(Route):
    """To the event channel `port` of `vcpu` (Xen)."""

    __slots__ = ("port", "priority", "vcpu")
    __match_args__ = ("gsi", "port", "vcpu", "priority")

    def __init__(
        self, gsi: int, port: int, vcpu: int, priority: int = abi.KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL
    ) -> None:
        super().__init__(gsi)
        self.port = in_range("a port", port, U32)
        self.vcpu = in_range("a vCPU", vcpu, U32)
        self.priority = in_range("a priority", priority, U32)

    def entry(self) -> abi.kvm_irq_routing_entry:
        entry = abi.kvm_irq_routing_entry(self.gsi, abi.KVM_IRQ_ROUTING_XEN_EVTCHN)
        target = entry.u.xen_evtchn
        target.port, target.vcpu, target.priority = self.port, self.vcpu, self.priority
        return entry


def set_gsi_routing(vm: VmFd, routes: Iterable[Route]) -> None:
    """Set where all lines go: IrqchipRoute, MsiRoute, HvSintRoute or XenEvtchnRoute each; a line may have several.

    KVM_SET_GSI_ROUTING, api.rst 4.52. Needs KVM_CAP_IRQ_ROUTING.
    """
    entries = [_entry(route) for route in routes]
    if len(entries) > MAX_ROUTES:
        raise ValueError(f"at most {MAX_ROUTES} routes, not {len(entries)}")
    raw = bytes(abi.kvm_irq_routing(nr=len(entries))) + b"".join(map(bytes, entries))
    vm.ioctl(abi.KVM_SET_GSI_ROUTING, ctypes.create_string_buffer(raw, len(raw)))


def _entry(route: Route) -> abi.kvm_irq_routing_entry:
    if not isinstance(route, Route):
        raise TypeError(f"a route must be an IrqchipRoute, MsiRoute, HvSintRoute or XenEvtchnRoute, not {route!r}")
    return route.entry()
