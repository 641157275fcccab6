"""Board: the devices of a small PC, put on the buses and interrupt lines of one machine."""

from __future__ import annotations

import threading

from ..devices.debug import CONSOLE_PORT, EXIT_PORT, After, DebugConsole, DebugExit
from ..devices.reset import RESET_CONTROL_PORT, KeyboardController, ResetControl
from ..devices.serial import COM1, COM1_IRQ, Serial
from ..errors import ConfigError, PyvcpuError
from ..kvm.abi.basic import KVM_CAP_IOEVENTFD
from ..kvm.errors import KvmError
from .gate import Gate
from .irqchip import IrqChip

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from ..bios import Bios
    from ..bios.drives import Backend
    from ..bios.keyboard import Keyboard
    from ..bus import Region
    from ..devices.ioapic import Ioapic, Route
    from ..devices.virtio import VirtioDevice
    from ..devices.virtio_mmio import VirtioMmio
    from ..devices.virtio_notify import Notifiers
    from ..kvm.vm import VmFd
    from ..vcpu.context import KvmContext
    from ..x86.topology import Topology
    from .eventloop import EventLoop
    from .runcontrol import RunControl

KEYBOARD_IRQ = 1
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
        self._output = output
        self._on_listen = on_listen or bool
        self._topology = topology
        self.fw_cfg_items: dict[int, bytes] = {}  # beside those that every guest gets, by number
        self.fw_cfg_files: list[tuple[str, bytes]] = []
        self._bios: Bios | None = None
        self.drives: list[tuple[Backend, bool]] = []  # for a BIOS, should there be one; whether it boots from it
        self._ports, self._mmio = context.ports, context.mmio
        self._virtio: list[tuple[int, int, int]] = []  # address, length, GSI
        self._loop: EventLoop | None = None
        self._loop_lock = threading.Lock()
        self._notifiers: list[Notifiers] = []
        self.devices: dict[str, Any] = {}
        self._lines: dict[str, int] = {}
        self.gate = Gate()
        control.feeds.append(self.gate)
        self.irqchip = IrqChip(context, topology, self._add_ioapic)
        self.com1 = Serial(output, lambda level: self.irqchip.set_line(COM1_IRQ, level), on_listen, self.gate)
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
    def loop(self) -> EventLoop:
        """What serves descriptors and timers beside the vCPUs, made when it is first asked for. Any thread."""
        with self._loop_lock:
            if self._loop is None:
                from .eventloop import EventLoop

                self._loop = EventLoop(self._control.fail)
                self._control.add_devices(self._loop)
            return self._loop

    def is_own_thread(self) -> bool:
        """Return whether the calling thread is one that serves devices."""
        return self._loop is not None and self._loop.is_own_thread()

    @property
    def has_thread(self) -> bool:
        """Whether devices are served beside the vCPUs."""
        return self._loop is not None and self._loop.has_thread

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
        """Add what guests with interrupts, operating systems, look for. Can be tried again."""
        from ..devices import acpi_pm, fw_cfg, pci, ports, rtc

        loop, ports_bus = self.loop, self._ports
        made: list[tuple[str, Any, int, int | None]] = [  # name, device, first port, interrupt line
            (
                "acpi-pm",
                acpi_pm.PowerManagement(
                    lambda: self._control.finish("power-off"), self._line_of(acpi_pm.SCI), loop.clock, loop.timer
                ),
                acpi_pm.PM_BASE,
                acpi_pm.SCI,
            ),
            (
                "rtc",
                rtc.Rtc(cmos=self._cmos(), set_irq=self._line_of(rtc.RTC_IRQ), timers=(loop.clock, loop.timer)),
                rtc.RTC_PORT,
                rtc.RTC_IRQ,
            ),
            ("system-control", ports.SystemControl(loop.clock), ports.SYSTEM_PORT, None),
            ("post", ports.PostCode(), ports.POST_PORT, None),
            ("port92", ports.FastControl(lambda: self._control.finish("reset")), ports.FAST_PORT, None),
            ("pvpanic", ports.PvPanic(self._panicked), ports.PANIC_PORT, None),
            ("fw-cfg", fw_cfg.FwCfg(self._fw_cfg_items(), self._context.memory), fw_cfg.SELECTOR_PORT, None),
        ]
        claimed: list[Region] = []
        host = pci.PciHost()
        try:
            for _, device, port, _ in made:
                claimed.append(ports_bus.attach(port, device.LENGTH, device))
            host.attach_to(ports_bus)
        except PyvcpuError:
            for region in claimed:
                ports_bus.release(region)
            raise
        for name, device, _, line in made:
            self._add(name, device, line=line)
        self._add("pci-host", host)

    def _line_of(self, gsi: int) -> Callable[[bool], object]:
        return lambda level: self.irqchip.set_line(gsi, level)

    def _panicked(self) -> None:
        self._control.finish("panicked", report="the guest's kernel has panicked (pvpanic)")

    def _cmos(self) -> dict[int, int]:
        from ..devices.cmos import contents

        floppies = [backend.size for backend, _ in self.drives]
        return contents(self._context.memory.ranges, floppies, self._topology.cpus)

    def tell_kernel(self, image: bytes, append: str, initrd: Sequence[tuple[str, bytes]]) -> None:
        """Have fw_cfg hold the Linux kernel that is being booted, its command line and initrd."""
        from ..boot.layout import c_string
        from ..devices.fw_cfg import kernel_items

        self.fw_cfg_items = kernel_items(image, c_string(append), b"".join(data for _, data in initrd[:1]))

    def _fw_cfg_items(self) -> dict[int, bytes]:
        from ..boot.layout import memory_map
        from ..devices import fw_cfg

        ranges = [(start, end) for start, end, _ in self._context.memory.ranges]
        ram = sum(end - start for start, end in ranges)
        items = fw_cfg.basic_items(ram, self._topology.cpus, self._topology.maxcpus)
        files = [("etc/e820", fw_cfg.e820_file(memory_map(ranges))), *self.fw_cfg_files]
        return items | self.fw_cfg_items | fw_cfg.directory(files)

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

    @property
    def bios(self) -> Bios:
        """The BIOS of real-mode guests; there is one from the first use on."""
        if self._bios is None:
            self._bios = self._add_bios()
        return self._bios

    @property
    def has_bios(self) -> bool:
        """Whether somebody has asked for a BIOS."""
        return self._bios is not None

    @property
    def input(self) -> Serial | Keyboard:
        """Where the host's input goes: the keyboard of a BIOS, until the guest listens at COM1; else COM1."""
        return self.com1 if self._bios is None else self._bios.keyboard

    def _add_bios(self) -> Bios:
        from ..bios import Bios
        from ..bios.layout import PORT
        from ..devices.rtc import register_access

        bios = Bios(
            self._context.memory,
            output=self._output,
            say=self._context.warn,
            press=lambda level: self.irqchip.set_line(KEYBOARD_IRQ, level),
            on_listen=self._on_listen,
            serial=self.com1,
            gate=self.gate,
            cmos=lambda: register_access(self.devices["rtc"]) if "rtc" in self.devices else None,
            end=lambda reason, report: self._control.finish(reason, report=report),
            sleeps=lambda: self.irqchip.kind == "kernel",
        )
        for backend, first in self.drives:
            bios.drives.add(backend, first=first)
        serve = bios.serve
        self._ports.claim(
            PORT,
            1,
            write=lambda vcpu, offset, data: serve(vcpu),
            direct=lambda vcpu, data: serve(vcpu),
            name=bios.name,
        )
        self._add("bios", bios)
        return bios

    def acpi(self, apic_ids: Sequence[int], pic: bool) -> tuple[int, bytes]:
        """Return the address and the bytes of the ACPI tables, the RSDP first."""
        from ..devices.acpi import BASE, build

        return BASE, build(apic_ids, virtio=self._virtio, pic=pic)

    def smbios(self) -> tuple[int, bytes]:
        """Return the address and the bytes of the SMBIOS tables, the entry points first."""
        from .. import __version__
        from ..devices.smbios import BASE, build

        ranges = [(start, end) for start, end, _ in self._context.memory.ranges]
        topology = self._topology
        return BASE, build(ranges, topology.sockets, topology.cores, topology.threads, __version__)

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
        if self._bios is not None:
            self._bios.keyboard.close()

    def close(self) -> None:
        """End the threads of the devices; no vCPU runs any more."""
        if self._loop is not None:
            self._loop.close()
        self.irqchip.unplug()  # a thread that feeds a device may be late
        self._close_notifiers()

    def close_copies(self) -> None:
        """Close the fds that a forked child has copies of."""
        if self._loop is not None:
            self._loop.close()
        self._close_notifiers()

    def _close_notifiers(self) -> None:
        while self._notifiers:
            self._notifiers[-1].close()
            self._notifiers.pop()
