"""VmFd's methods for interrupts: lines, controllers, timer, irqfd, messages. Those for routes are in routes.py."""

from __future__ import annotations

import ctypes

from .abi import irq as abi
from .fd import U32, U64, fd_number, in_range
from .registration import Registration

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from .fd import HasFileno
    from .vm import VmFd

CHIPS = abi.KVM_NR_IRQCHIPS - 1


def irq_line(vm: VmFd, gsi: int, level: bool | int) -> None:
    """Raise (1) or lower (0) a line of the controllers in the kernel (KVM_IRQ_LINE, api.rst 4.25).

    Needs KVM_CAP_IRQCHIP.
    """
    vm.ioctl(abi.KVM_IRQ_LINE, _level(gsi, level))


def irq_line_status(vm: VmFd, gsi: int, level: bool | int) -> int:
    """Do what irq_line() does; return how many vCPUs got the interrupt, 0 when one was pending already.

    -1: it was masked. KVM_IRQ_LINE_STATUS, api.rst 4.25. Needs KVM_CAP_IRQ_INJECT_STATUS.
    """
    request = _level(gsi, level)
    vm.ioctl(abi.KVM_IRQ_LINE_STATUS, request)
    return int(request.status)


def get_irqchip(vm: VmFd, chip_id: int) -> abi.kvm_irqchip:
    """Read a controller: abi.KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC (KVM_GET_IRQCHIP, api.rst 4.26).

    Needs KVM_CAP_IRQCHIP.
    """
    chip = abi.kvm_irqchip(chip_id=in_range("a controller", chip_id, CHIPS))
    vm.ioctl(abi.KVM_GET_IRQCHIP, chip)
    return chip


def set_irqchip(vm: VmFd, chip: abi.kvm_irqchip) -> None:
    """Write the controller that `chip.chip_id` names (KVM_SET_IRQCHIP, api.rst 4.27). Needs KVM_CAP_IRQCHIP."""
    vm.ioctl(abi.KVM_SET_IRQCHIP, chip)


def create_pit(vm: VmFd) -> None:
    """Create a timer (8254) in the kernel; create_pit2() is the newer one.

    KVM_CREATE_PIT. Needs KVM_CAP_PIT.
    """
    vm.ioctl(abi.KVM_CREATE_PIT)


def create_pit2(vm: VmFd, flags: int = 0) -> None:
    """Create a timer (8254) in the kernel, after the controllers; `flags`: abi.KVM_PIT_SPEAKER_DUMMY.

    KVM_CREATE_PIT2, api.rst 4.71. Needs KVM_CAP_PIT2.
    """
    vm.ioctl(abi.KVM_CREATE_PIT2, abi.kvm_pit_config(in_range("flags", flags, U32)))


def get_pit(vm: VmFd) -> abi.kvm_pit_state:
    """Read the timer (KVM_GET_PIT). Needs KVM_CAP_PIT."""
    state = abi.kvm_pit_state()
    vm.ioctl(abi.KVM_GET_PIT, state)
    return state


def set_pit(vm: VmFd, state: abi.kvm_pit_state) -> None:
    """Write the timer (KVM_SET_PIT). Needs KVM_CAP_PIT."""
    vm.ioctl(abi.KVM_SET_PIT, state)


def get_pit2(vm: VmFd) -> abi.kvm_pit_state2:
    """Read the timer with its flags (KVM_GET_PIT2, api.rst 4.72). Needs KVM_CAP_PIT_STATE2."""
    state = abi.kvm_pit_state2()
    vm.ioctl(abi.KVM_GET_PIT2, state)
    return state


def set_pit2(vm: VmFd, state: abi.kvm_pit_state2) -> None:
    """Write the timer with its flags (KVM_SET_PIT2, api.rst 4.73). Needs KVM_CAP_PIT_STATE2."""
    vm.ioctl(abi.KVM_SET_PIT2, state)


def reinject_control(vm: VmFd, pit_reinject: bool) -> None:
    """Choose whether KVM delivers later the ticks of the timer that the guest missed; at first it does.

    KVM_REINJECT_CONTROL, api.rst 4.99. Needs KVM_CAP_REINJECT_CONTROL.
    """
    control = abi.kvm_reinject_control(pit_reinject=in_range("pit_reinject", pit_reinject, 1))
    # Its number says that it takes a plain value. It takes a pointer.
    vm.ioctl(abi.KVM_REINJECT_CONTROL, ctypes.addressof(control))


def set_boot_cpu_id(vm: VmFd, vcpu_id: int) -> None:
    """Choose the vCPU that starts first, before any is created (KVM_SET_BOOT_CPU_ID, api.rst 4.41).

    Needs KVM_CAP_SET_BOOT_CPU_ID.
    """
    vm.ioctl(abi.KVM_SET_BOOT_CPU_ID, in_range("a vCPU id", vcpu_id, U32))


def irqfd(vm: VmFd, eventfd: int | HasFileno, gsi: int, resamplefd: int | HasFileno | None = None) -> Registration:
    """Raise line `gsi` when `eventfd` is written to, until the registration is closed.

    With `resamplefd` the line is level-triggered: it stays up until the guest acknowledges it, which signals
    `resamplefd`. KVM_IRQFD, api.rst 4.75. Needs KVM_CAP_IRQFD; KVM_CAP_IRQFD_RESAMPLE for `resamplefd`.
    """
    request = abi.kvm_irqfd(fd_number("an eventfd", eventfd), in_range("a GSI", gsi, U32))
    if resamplefd is not None:
        request.flags = abi.KVM_IRQFD_FLAG_RESAMPLE
        request.resamplefd = fd_number("a resamplefd", resamplefd)
    vm.ioctl(abi.KVM_IRQFD, request)
    undo = abi.kvm_irqfd(request.fd, gsi, abi.KVM_IRQFD_FLAG_DEASSIGN)
    return Registration(f"irqfd {request.fd} for GSI {gsi}", vm, abi.KVM_IRQFD, undo)


def signal_msi(vm: VmFd, address: int, data: int, devid: int | None = None) -> int:
    """Send a message-signalled interrupt; return 1 when it was delivered, 0 when the guest blocks it.

    KVM_SIGNAL_MSI, api.rst 4.71. Needs KVM_CAP_SIGNAL_MSI; KVM_CAP_MSI_DEVID for `devid`.
    """
    in_range("a message's address", address, U64)
    request = abi.kvm_msi(address & U32, address >> 32, in_range("a message's data", data, U32))
    if devid is not None:
        request.flags, request.devid = abi.KVM_MSI_VALID_DEVID, in_range("a device id", devid, U32)
    return vm.ioctl(abi.KVM_SIGNAL_MSI, request)


def _level(gsi: int, level: bool | int) -> abi.kvm_irq_level:
    return abi.kvm_irq_level(irq=in_range("a GSI", gsi, U32), level=in_range("a level", level, 1))
