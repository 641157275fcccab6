"""Board: the devices of a small PC, put on the buses and interrupt lines of one machine."""

from __future__ import annotations

from ..devices.debug import CONSOLE_PORT, EXIT_PORT, After, DebugConsole, DebugExit
from ..devices.reset import RESET_CONTROL_PORT, KeyboardController, ResetControl
from ..devices.serial import COM1, COM1_IRQ, Serial
from ..errors import ConfigError, PyvcpuError
from ..kvm.abi.capabilities import KVM_CAP_IOEVENTFD
from ..kvm.errors import KvmError
from .eventloop import EventLoop
from .gate import Gate
from .irqchip import IrqChip

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from ..bus import Region
    from ..devices.ioapic import Ioapic, Route
    from ..devices.virtio import VirtioDevice
    from ..devices.virtio_mmio import VirtioMmio
    from ..devices.virtio_notify import Notifiers
    from ..kvm.vm import VmFd
    from ..vcpu.context import KvmContext
    from ..x86.topology import Topology
    from .runcontrol import RunControl

# Where virtio devices are: in the hole below 4 GiB, on the IOAPIC's pins that no ISA device has.
VIRTIO_BASE, VIRTIO_STRIDE = 0xD000_0000, 0x1000
VIRTIO_FIRST_GSI, VIRTIO_MOST = 16, 8
WORTH_COLLECTING = 256  # bytes: a guest that says less is served before a thread to look after the ring would pay


class Board:
    """What every machine has at once (COM1, debug console and exit, reset ports), and what comes with interrupts.

    `output` gets what COM1 and the debug console say; `collect()` is called once the latter has said a good deal, to
    have its writes collected by KVM. `devices` are all of them by name, `irqchip` the interrupt controllers among them;
    `gate` is where what the host feeds them waits while the world stands still.

    One thread at a time, the one that has `RunControl.start_lock`, calls the methods.
    """

    def __init__(
        self,
        context: KvmContext,
        control: RunControl,
        topology: Topology,
        *,
        output: Callable[[bytes], object],
        collect: Callable[[], object],
        on_listen: Callable[[], object] | None,
    ) -> None:
        def reset() -> None:
            control.finish("reset")

        self._context = context
        self._control = control
        self._ports, self._mmio = context.ports, context.mmio
        self._virtio: list[tuple[int, int, int]] = []  # address, length, GSI
        self.loop = EventLoop(control.fail)
        control.devices.append(self.loop)
        self._notifiers: list[Notifiers] = []
        self.devices: dict[str, Any] = {}
        self._lines: dict[str, int] = {}
        self.gate = Gate()
        control.feeds.append(self.gate)
        self.irqchip = IrqChip(context, topology, self._add_ioapic)
        self.com1 = Serial(output, lambda level: self.irqchip.set_line(COM1_IRQ, level), on_listen)
        self._add("com1", self.com1, self._ports.attach(COM1, Serial.LENGTH, self.com1), line=COM1_IRQ)
        console = DebugConsole(After(output, WORTH_COLLECTING, collect))
        self._add("debugcon", console, self._ports.attach(CONSOLE_PORT, 1, console))
        debug_exit = DebugExit(lambda status: control.finish("exit", status))
        self._add("debug-exit", debug_exit, self._ports.attach(EXIT_PORT, DebugExit.LENGTH, debug_exit))
        reset_control = ResetControl(reset)
        self._add("reset-control", reset_control, self._ports.attach(RESET_CONTROL_PORT, 1, reset_control))
        keyboard = KeyboardController(reset)
        keyboard.attach_to(self._ports)
        self._add("i8042", keyboard)

    @property
    def has_thread(self) -> bool:
        """Whether devices are served beside the vCPUs."""
        return self.loop.has_thread

    def _add(self, name: str, device: Any, region: Region | None = None, *, line: int | None = None) -> None:
        self.devices[name] = device
        if line is not None:
            self._lines[name] = line

    def create_irqchip(self, kind: str) -> None:
        """Make the interrupt controllers, and what a machine that has them has besides. Can be tried again."""
        self.irqchip.create(kind)
        if kind != "none" and "rtc" not in self.devices:
            self._add_clock_and_power()
        self.devices.setdefault("irqchip", self.irqchip)

    def _add_clock_and_power(self) -> None:
        from ..devices.acpi import RTC_LENGTH, RTC_PORT, SLEEP_PORT, SleepControl
        from ..devices.rtc import Rtc

        sleep = SleepControl(lambda: self._control.finish("power-off"))
        region = self._ports.attach(SLEEP_PORT, SleepControl.LENGTH, sleep)
        rtc = Rtc()
        try:
            self._ports.attach(RTC_PORT, RTC_LENGTH, rtc)
        except PyvcpuError:
            self._ports.release(region)
            raise
        self._add("acpi-sleep", sleep)
        self._add("rtc", rtc)

    def _add_ioapic(self, vm: VmFd) -> Ioapic:
        """Add the IOAPIC of a machine whose kernel has the local APICs only."""
        from ..devices.ioapic import BASE, Ioapic
        from ..kvm.routes import MsiRoute

        def send_msi(address: int, data: int) -> int:
            try:
                return vm.signal_msi(address, data)
            except KvmError:
                return 0  # the guest's doing: a message to nobody

        def set_routes(routes: Sequence[Route]) -> None:
            vm.set_gsi_routing([MsiRoute(*route) for route in routes])

        ioapic = Ioapic(send_msi, set_routes)
        self._add("ioapic", ioapic, self._mmio.attach(BASE, Ioapic.LENGTH, ioapic))
        return ioapic

    def add_virtio(self, device: VirtioDevice) -> VirtioMmio:
        """Put a virtio device on the MMIO bus; the ACPI tables will name it. Before the image is loaded."""
        from ..devices.virtio_mmio import QUEUE_NOTIFY, VirtioMmio
        from ..devices.virtio_notify import Notifiers
        from ..memory import DeviceMemory

        index = len(self._virtio)
        if index == VIRTIO_MOST:
            raise ConfigError(f"there is room for {VIRTIO_MOST} virtio devices, not for another")
        address, gsi = VIRTIO_BASE + index * VIRTIO_STRIDE, VIRTIO_FIRST_GSI + index
        notifiers = Notifiers(self.loop, device.queues)
        self._notifiers.append(notifiers)
        transport = VirtioMmio(
            device,
            DeviceMemory(self._context.memory),
            lambda level: self.irqchip.set_line(gsi, level),
            later=notifiers.notify,
            wanted_still=self.loop.wanted_still,
        )
        region = self._mmio.attach(address, VirtioMmio.LENGTH, transport)
        self._virtio.append((address, VirtioMmio.LENGTH, gsi))
        self._add(f"virtio{index}", transport, region, line=gsi)
        notifiers.serve(transport.notify)
        if self._context.has(KVM_CAP_IOEVENTFD):  # then a notification is no exit
            for queue, fd in enumerate(notifiers.fds):
                self._context.vm.ioeventfd(fd, address + QUEUE_NOTIFY, 4, datamatch=queue)
        return transport

    def acpi(self, apic_ids: Sequence[int], pic: bool) -> tuple[int, bytes]:
        """Return the address and the bytes of the ACPI tables, the RSDP first."""
        from ..devices.acpi import BASE, build

        return BASE, build(apic_ids, virtio=self._virtio, pic=pic)

    # The machine's life.

    def reset(self) -> None:
        """Reset every device; the world is held still."""
        for device in self.devices.values():
            device.reset()

    def describe(self) -> Iterator[str]:
        """Yield a line for each device: its name, and the interrupt line that it has."""
        yield "devices"
        for name, device in self.devices.items():
            line = f", line {self._lines[name]}" if name in self._lines else ""
            yield f"  {name}: {device.name}{line}"

    def close_input(self) -> None:
        """Let nobody wait for room in what feeds the guest."""
        self.com1.close()

    def close(self) -> None:
        """End the threads of the devices; no vCPU runs any more."""
        self.loop.close()
        self.irqchip.unplug()  # a thread that feeds a device may be late
        self._close_notifiers()

    def close_copies(self) -> None:
        """Close the fds that a forked child has copies of."""
        self.loop.close()
        self._close_notifiers()

    def _close_notifiers(self) -> None:
        while self._notifiers:
            self._notifiers[-1].close()
            self._notifiers.pop()
