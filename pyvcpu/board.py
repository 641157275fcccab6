"""Board: the devices of a small PC, put on the buses and interrupt lines of one machine."""

from __future__ import annotations

from .devices.debug import CONSOLE_PORT, EXIT_PORT, After, DebugConsole, DebugExit
from .devices.reset import RESET_CONTROL_PORT, KeyboardController, ResetControl
from .devices.serial import COM1, COM1_IRQ, Serial
from .errors import ConfigError
from .kvm.errors import KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Sequence

    from .devices.bus import Bus
    from .devices.ioapic import Ioapic, Route
    from .devices.virtio import VirtioDevice
    from .devices.virtio_mmio import VirtioMmio
    from .kvm.vm import VmFd
    from .memory import GuestMemory

    SetLine = Callable[[int, bool], object]
    Stop = Callable[[str, int | None], object]

# Where virtio devices are: in the hole below 4 GiB, on the IOAPIC's pins that no ISA device has.
VIRTIO_BASE, VIRTIO_STRIDE = 0xD000_0000, 0x1000
VIRTIO_FIRST_GSI, VIRTIO_MOST = 16, 8
WORTH_COLLECTING = 256  # bytes: a guest that says less is served before a thread to look after the ring would pay


class Board:
    """What every machine has at once (COM1, debug console and exit, reset ports), and what comes with interrupts.

    `output` gets what COM1 and the debug console say; `collect()` is called once the latter has said a good deal, to
    have its writes collected by KVM. `set_line(gsi, level)` drives an interrupt line, from any thread.
    `on_queues(transport, address)` has the queues of a virtio device at `address` served when the guest says so.
    `stop(reason, status)` ends the run; status None is the reason's own.
    """

    def __init__(
        self,
        ports: Bus,
        mmio: Bus,
        memory: GuestMemory,
        *,
        output: Callable[[bytes], object],
        collect: Callable[[], object],
        on_listen: Callable[[], object] | None,
        set_line: SetLine,
        on_queues: Callable[[VirtioMmio, int], object],
        stop: Stop,
    ) -> None:
        def reset() -> None:
            stop("reset", None)

        self._ports = ports
        self._mmio = mmio
        self._memory = memory
        self._set_line = set_line
        self._on_queues = on_queues
        self._stop = stop
        self._virtio: list[tuple[int, int, int]] = []  # address, length, GSI
        self.com1 = Serial(output, lambda level: set_line(COM1_IRQ, level), on_listen)
        ports.attach(COM1, Serial.LENGTH, self.com1)
        ports.attach(CONSOLE_PORT, 1, DebugConsole(After(output, WORTH_COLLECTING, collect)))
        ports.attach(EXIT_PORT, DebugExit.LENGTH, DebugExit(lambda status: stop("exit", status)))
        ports.attach(RESET_CONTROL_PORT, 1, ResetControl(reset))
        KeyboardController(reset).attach_to(ports)

    def add_clock_and_power(self) -> None:
        """Add what a machine with interrupt controllers has: the real-time clock, and ACPI's power-off."""
        from .devices.acpi import RTC_LENGTH, RTC_PORT, SLEEP_PORT, SleepControl
        from .devices.rtc import Rtc

        self._ports.attach(RTC_PORT, RTC_LENGTH, Rtc())
        self._ports.attach(SLEEP_PORT, SleepControl.LENGTH, SleepControl(lambda: self._stop("power-off", None)))

    def add_ioapic(self, vm: VmFd) -> Ioapic:
        """Add the IOAPIC of a machine whose kernel has the local APICs only."""
        from .devices.ioapic import BASE, Ioapic
        from .kvm.routes import MsiRoute
        from .kvm.vm_irq import VmIrq  # see Machine._create_irqchip

        def send_msi(address: int, data: int) -> int:
            try:
                return VmIrq.signal_msi(vm, address, data)
            except KvmError:
                return 0  # the guest's doing: a message to nobody

        def set_routes(routes: Sequence[Route]) -> None:
            VmIrq.set_gsi_routing(vm, [MsiRoute(*route) for route in routes])

        ioapic = Ioapic(send_msi, set_routes)
        self._mmio.attach(BASE, Ioapic.LENGTH, ioapic)
        return ioapic

    def add_virtio(self, device: VirtioDevice) -> VirtioMmio:
        """Put a virtio device on the MMIO bus; the ACPI tables will name it. Before the image is loaded."""
        from .devices.virtio_mmio import VirtioMmio

        index = len(self._virtio)
        if index == VIRTIO_MOST:
            raise ConfigError(f"there is room for {VIRTIO_MOST} virtio devices, not for another")
        address, gsi = VIRTIO_BASE + index * VIRTIO_STRIDE, VIRTIO_FIRST_GSI + index
        transport = VirtioMmio(device, self._memory, lambda level: self._set_line(gsi, level))
        self._mmio.attach(address, VirtioMmio.LENGTH, transport)
        self._virtio.append((address, VirtioMmio.LENGTH, gsi))
        self._on_queues(transport, address)
        return transport

    def acpi(self, apic_ids: Sequence[int], pic: bool) -> tuple[int, bytes]:
        """Return the address and the bytes of the ACPI tables, the RSDP first."""
        from .devices.acpi import BASE, build

        return BASE, build(apic_ids, virtio=self._virtio, pic=pic)
