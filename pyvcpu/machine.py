"""Machine: memory, processors and the devices of a small PC, wired together."""

from __future__ import annotations

import sys
import threading

from . import boot
from .board import Board
from .devices.bus import MMIO_SIZE, PORTS_SIZE, Bus
from .devices.debug import CONSOLE_PORT
from .errors import ConfigError, PyvcpuError, StateError
from .kvm.abi import basic as abi
from .kvm.errors import KvmError
from .kvm.system import DEVICE, Kvm
from .memory import GuestMemory
from .running import Running
from .vcpu import Accel, State, Vcpu
from .vcpu.arch_realize import enable_x2apic_api
from .vcpu.states import NO_THREAD
from .x86 import topology
from .x86.cpu import Cpu
from .x86.cpu import parse as parse_cpu

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import os
    from collections.abc import Callable, Sequence
    from typing import Self

    from .boot import Plan
    from .devices.bus import Region
    from .devices.virtio_mmio import VirtioMmio
    from .exits import ExitEvent
    from .iothread import IoThread
    from .kvm.vm import VmFd
    from .vcpu.accel import Observer
    from .vcpu.coalesced import Coalescer

    Image = bytes | bytearray | str | os.PathLike[str]

COUNTED = ("flat", "elf")  # formats whose guests are told the number of vCPUs in (R)SI
IRQCHIPS = ("none", "kernel", "split")
# Below 4 GiB and outside RAM: pages that KVM on Intel needs for real mode (api.rst 4.36, 4.55).
IDENTITY_MAP, TSS = 0xFEFF_C000, 0xFEFF_D000
IOAPIC_PINS = 24
SPEAKER_DUMMY = 1  # KVM_PIT_SPEAKER_DUMMY: KVM answers port 0x61, too
CHUNK = 1 << 20
KVM_CAP_IOEVENTFD = 36  # a number: the table of all capabilities takes time to load
REQUIRED = {
    "KVM_CAP_USER_MEMORY": (abi.KVM_CAP_USER_MEMORY, "Linux 2.6.24"),
    "KVM_CAP_EXT_CPUID": (abi.KVM_CAP_EXT_CPUID, "Linux 2.6.26"),
    "KVM_CAP_IMMEDIATE_EXIT": (abi.KVM_CAP_IMMEDIATE_EXIT, "Linux 4.13"),
    "KVM_CAP_SYNC_REGS": (abi.KVM_CAP_SYNC_REGS, "Linux 4.17"),
}


def to_stdout(data: bytes) -> None:
    """Write what the guest says to standard output, at once, and behind what the program has printed before."""
    sys.stdout.flush()
    stream = getattr(sys.stdout, "buffer", None)
    if stream is None:  # a replacement that takes text only
        sys.stdout.write(data.decode("latin-1"))
    else:
        stream.write(data)
    sys.stdout.flush()


class Machine(Running):
    """A virtual machine with `smp` processors and `memory` bytes of RAM.

    `memory`: a size such as "64M". `smp`: a number, or a text as of --smp: "8,sockets=2,cores=2,threads=2,maxcpus=16".
    `cpu`: what the processors are, a text as of --cpu: "host,-avx2", "x86-64-v3,check". `irqchip`: none, kernel or
    split; None for what the image's format needs. `output`: gets the bytes that the guest writes to COM1 and to the
    debug console, in the thread of the vCPU that writes them. `on_listen`: called once, on such a thread, when the
    guest first looks for input at COM1; what `machine.com1.receive()` is given before that waits. `warn`: gets a line
    on what was asked for and cannot be had, but is no reason to stop; warnings.warn otherwise. `kvm`: the device file,
    or an open Kvm.

    Use it with `with`: it owns threads, memory and file descriptors. Methods are for threads that are no vCPU's, unless
    they say otherwise. Raises ConfigError, ImageError, KvmError, HostMemoryError, all of them PyvcpuError.

    >>> with Machine(memory="1M", smp=2) as machine:
    ...     machine.load(bytes([0x97, 0xE6, 0x50, 0xF4]))  # xchg %ax,%di; out %al,$0x50; hlt
    ...     _ = machine.on_port(0x50, write=lambda vcpu, data: seen.append((vcpu.index, data)))
    ...     seen = []
    ...     machine.run(timeout=5)
    <Outcome halted by vCPU ..., status 0>
    """

    def __init__(
        self,
        memory: str | int = "64M",
        smp: int | str = 1,
        *,
        cpu: str | Cpu = "host",
        irqchip: str | None = None,
        output: Callable[[bytes], object] = to_stdout,
        on_listen: Callable[[], object] | None = None,
        warn: Callable[[str], object] | None = None,
        kvm: str | Kvm = DEVICE,
    ) -> None:
        self.topology = topology.parse(smp)
        self._cpu = parse_cpu(cpu) if isinstance(cpu, str) else cpu
        if irqchip not in (None, *IRQCHIPS):
            raise ConfigError(f"irqchip must be none, kernel or split, not {irqchip!r}")
        self._irqchip = irqchip
        self._plan: Plan | None = None
        self._drive_line: Callable[[int, bool], object] = lambda gsi, level: None
        self._coalescer: Coalescer | None = None
        self._coalescer_lock = threading.Lock()
        self._iothread: IoThread | None = None
        self._closers: list[Callable[[], object]] = []  # in order of creation
        try:
            self._build(memory, kvm, warn or _warn)
        except BaseException:
            self._close_all()
            raise
        self.board = Board(
            self.ports,
            self.mmio,
            self.memory,
            output=output,
            collect=lambda: self._coalesce(CONSOLE_PORT, 1, None, pio=True),
            on_listen=on_listen,
            set_line=self.set_line,
            on_queues=self._serve_queues,
            stop=self.stop,
        )
        self.com1 = self.board.com1

    def _build(self, memory: str | int, kvm: str | Kvm, warn: Callable[[str], object]) -> None:
        self.memory = GuestMemory(memory)
        self._closers.append(self.memory.close)
        if isinstance(kvm, str):
            kvm = Kvm(kvm)
            self._closers.append(kvm.close)
        self.kvm = kvm
        _require_capabilities(kvm)
        _check_smp(kvm, self.topology.maxcpus)
        self.vm = kvm.create_vm()
        self._closers.append(self.vm.close)
        self.vm.set_identity_map_addr(IDENTITY_MAP)
        self.vm.set_tss_addr(TSS)
        self.memory.register(self.vm)
        self.ports = Bus("port", PORTS_SIZE)
        self.mmio = Bus("MMIO", MMIO_SIZE)
        self.accel = Accel(kvm, self.vm, self.memory, self.ports, self.mmio, self.topology, self._cpu, warn)
        self.vcpus = tuple(Vcpu(index, self.accel) for index in range(self.topology.maxcpus))
        self.accel.vcpus = self.vcpus
        self._closers.append(self._stop_threads)

    # What to run.

    def load(
        self,
        image: Image,
        *,
        format: str | None = None,
        initrd: Sequence[tuple[str, bytes]] = (),
        append: str = "",
        mode: str | None = None,
        load: int | None = None,
        entry: int | None = None,
        start: str | None = None,
        name: str = "",
    ) -> None:
        """Put `image` (bytes, or the name of a file) into memory, and set how the vCPUs start.

        `format`: one of boot.FORMATS; None to see for itself. `initrd`: command lines and contents of the files that
        Linux, Multiboot and PVH images get beside them; `append`: their command line. `mode`, `load`, `entry`: for flat
        images, see boot.Target. `start`: all or bsp. `name`: what a Multiboot guest is told that it was loaded from.

        Raise ImageError for an image that cannot be booted here, OSError for an unreadable file.
        """
        if start not in (None, "all", "bsp"):
            raise ConfigError(f"start must be all or bsp, not {start!r}")
        target = boot.Target(
            [(first, last) for first, last, _ in self.memory.ranges],
            len(self.vcpus),
            start=start,
            mode=mode,
            load=load,
            entry=entry,
            name=name or ("" if isinstance(image, (bytes, bytearray)) else str(image)),
            append=append,
            initrd=initrd,
            acpi=self._acpi,
        )
        content = bytes(image) if isinstance(image, (bytes, bytearray)) else read_image(image, self.memory.size)
        self.load_plan(boot.plan(content, target, format))

    def _acpi(self) -> tuple[int, bytes]:
        there = self.vcpus[: self.topology.cpus]
        return self.board.acpi([vcpu.apic_id for vcpu in there], pic=self._irqchip != "split")

    def load_plan(self, plan: Plan) -> None:
        """Load what a loader planned, or what you made yourself. Before the first start only."""
        self._not_closed()
        if any(vcpu.state not in NO_THREAD for vcpu in self.vcpus):
            raise StateError("the vCPUs are started already: load the image before start() or run()")
        for vcpu, start in zip(self.vcpus, plan.starts, strict=True):
            vcpu.start = start
            if start is not None and plan.format in COUNTED and self.topology.cpus < len(self.vcpus):
                start.registers["rsi"] = self.topology.cpus  # as many as will come; maxcpus has room for more
        self._plan = plan
        self._write_segments()

    def _write_segments(self) -> None:
        for address, data in self._plan.segments if self._plan is not None else ():
            self.memory.write(address, data)

    def on_port(
        self,
        port: int,
        *,
        read: Callable[[Vcpu, int], bytes | int] | None = None,
        write: Callable[[Vcpu, bytes], object] | None = None,
        name: str = "handler",
        coalesce: bool = False,
    ) -> Region:
        """Serve `port`: `read(vcpu, size)` returns `size` bytes or a number, `write(vcpu, data)` takes bytes.

        They run on the thread of the vCPU that made the access; what they raise stops the machine and comes out of
        run(). A string instruction calls once per element. Raise ConfigError when the port is taken. Any thread.

        `coalesce`: KVM collects the writes, which is four times as fast as an exit for each. They are served before
        any later exit, within 20 ms, and at the end. `write` is then called with None for the vCPU, and once for
        several writes in turn, their bytes joined.
        """
        region = self.ports.claim(
            port,
            1,
            read=None if read is None else lambda vcpu, offset, size: read(vcpu, size),
            write=None if write is None else lambda vcpu, offset, data: write(vcpu, data),
            direct=write,
            name=name,
        )
        if coalesce:
            self._coalesce(port, 1, region, pio=True)
        return region

    def on_mmio(
        self,
        address: int,
        length: int,
        *,
        read: Callable[[Vcpu, int, int], bytes | int] | None = None,
        write: Callable[[Vcpu, int, bytes], object] | None = None,
        name: str = "handler",
        coalesce: bool = False,
    ) -> Region:
        """Serve `length` bytes of address space from guest physical `address` on, which is not RAM.

        `read(vcpu, offset, size)`, `write(vcpu, offset, data)` and `coalesce` otherwise as in on_port(), but that
        each write is one call.
        """
        for first, last, _ in self.memory.ranges:
            if address < last and first < address + length:
                raise ConfigError(
                    f"MMIO at {address:#x} would lie in RAM, which is {first:#x}-{last - 1:#x}: it would never be asked"
                )
        region = self.mmio.claim(address, length, read=read, write=write, name=name)
        if coalesce:
            self._coalesce(address, length, region, pio=False)
        return region

    def _coalesce(self, address: int, length: int, region: Region | None, *, pio: bool) -> None:
        """Let KVM collect the writes to a range; where it cannot, give `region` back and raise its ConfigError."""
        from .vcpu.coalesced import Coalescer

        with self._coalescer_lock:
            coalescer = self._coalescer = self._coalescer or Coalescer(self.accel)
        try:
            coalescer.add(address, length, pio=pio)
        except PyvcpuError:
            if region is not None:
                (self.ports if pio else self.mmio).release(region)
                raise

    def _serve_queues(self, transport: VirtioMmio, address: int) -> None:
        """Have the queues of a virtio device served beside the vCPUs, where KVM can tell of them without an exit."""
        if not self.kvm.check_extension(KVM_CAP_IOEVENTFD):
            return
        from .devices.virtio_mmio import QUEUE_NOTIFY
        from .iothread import IoThread

        self._iothread = self._iothread or IoThread(self.accel)
        self._iothread.add(self.vm, address + QUEUE_NOTIFY, transport.device.queues, transport.notify)

    def on_exit(self, reason: int, handler: Callable[[Vcpu, ExitEvent], object]) -> None:
        """Call `handler(vcpu, exit)` at exits of `reason` (kvm.abi.Exit), before anything else looks at them.

        True from it: dealt with, run on. Anything else: go on as without it. Before start() only.
        """
        if any(vcpu.state not in NO_THREAD for vcpu in self.vcpus):
            raise StateError("the vCPUs are started already: register exit handlers before start() or run()")
        self.accel.exit_handlers[int(reason)] = handler

    def observe(self, observer: Observer) -> None:
        """Let `observer` see what the vCPUs do: a Stats or Timeline. Before start() only."""
        if any(vcpu.state not in NO_THREAD for vcpu in self.vcpus):
            raise StateError("the vCPUs are started already: observe() them before start() or run()")
        observer.attach(self.vcpus)
        self.accel.observer = observer

    # Running it.

    def start(self) -> None:
        """Realize the vCPUs and start their threads; each is created and paused when this returns."""
        self._not_closed()
        if self._plan is None:
            raise StateError("there is nothing to run: load() an image first")
        fresh = [vcpu for vcpu in self.vcpus if vcpu.state is State.REALIZED]
        if not self.accel.irqchip:
            self._create_irqchip(self._irqchip or self._plan.irqchip)
        for vcpu in self.vcpus:
            # Without a local APIC nothing can send a SIPI: such a processor waits for good, as a halted one does.
            vcpu.waits_for_sipi = vcpu.start is None and self.accel.irqchip == "none"
        for vcpu in fresh:
            vcpu.realize()
            vcpu.start_thread()
        for vcpu in fresh:
            vcpu.wait_created()
        if self._iothread is not None:
            self._iothread.start()

    def _create_irqchip(self, kind: str) -> None:
        if kind != "none":
            enable_x2apic_api(self.accel)
        if kind == "kernel":
            self.vm.create_irqchip()
            from .kvm.vm_irq import VmIrq  # and no more: vm.create_pit2 would have every method of the API loaded

            VmIrq.create_pit2(self.vm, SPEAKER_DUMMY)
            self._drive_line = line_driver(self.vm)
        elif kind == "split":
            self.vm.enable_cap(abi.KVM_CAP_SPLIT_IRQCHIP, IOAPIC_PINS)
            ioapic = self.board.add_ioapic(self.vm)
            self.accel.eoi, self._drive_line = ioapic.eoi, ioapic.set_line
        if kind != "none":
            self.board.add_clock_and_power()
        self.accel.irqchip = kind

    def set_line(self, gsi: int, level: bool) -> None:
        """Drive interrupt line `gsi`: 0 to 15 as on the PICs, up to 23 on the IOAPIC only. Any thread.

        Without interrupt controllers the line leads nowhere. Raise ConfigError for a line that there is not.
        """
        if not 0 <= gsi < IOAPIC_PINS:
            raise ConfigError(f"an interrupt line must be from 0 to {IOAPIC_PINS - 1}, not {gsi}")
        self._drive_line(gsi, level)

    # The end.

    def close(self) -> None:
        """Stop the threads and give everything back, in reverse order; closing again does nothing."""
        self._not_in_handler("close")
        self._close_all()

    def _close_all(self) -> None:
        while self._closers:
            self._closers[-1]()  # each can be called again: a Ctrl-C in the middle leaves it for the next close()
            self._closers.pop()

    def _stop_threads(self) -> None:
        self.stop("closed")  # for another thread that still waits for the end
        self.com1.close()
        self.accel.unplug_all()
        if self._iothread is not None:
            self._iothread.close()
        self._drive_line = lambda gsi, level: None  # a thread that feeds a device may be late
        if self._coalescer is not None:
            self._coalescer.close()
        self.accel.close_parked()

    def _not_closed(self) -> None:
        if self.accel.closed:
            raise StateError("the machine is closed; make another one")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Machine smp={self.topology.cpus} memory={self.memory.size >> 10}K>"


def read_image(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read an image file; of one that is larger than `limit` bytes, only so much as shows that it is."""
    content = bytearray()
    with open(path, "rb") as file:
        while len(content) <= limit and (chunk := file.read(CHUNK)):
            content += chunk
    return bytes(content)


def line_driver(vm: VmFd) -> Callable[[int, bool], object]:
    """Return what drives the lines of the controllers in the kernel.

    With the requests made beforehand that takes 2 us, as much as an irqfd, which has no level and cannot be lowered.
    """
    from .kvm.abi.irq import KVM_IRQ_LINE, kvm_irq_level

    requests = [(kvm_irq_level(irq=gsi, level=0), kvm_irq_level(irq=gsi, level=1)) for gsi in range(IOAPIC_PINS)]

    def drive(gsi: int, level: bool) -> None:
        vm.ioctl(KVM_IRQ_LINE, requests[gsi][level])

    return drive


def _require_capabilities(kvm: Kvm) -> None:
    for name, (cap, since) in REQUIRED.items():
        if not kvm.check_extension(cap):
            raise KvmError("KVM_CHECK_EXTENSION", 0, kvm.path, f"this KVM lacks {name}, which came with {since}")


def _warn(line: str) -> None:
    import warnings

    warnings.warn(line, stacklevel=2)


def _check_smp(kvm: Kvm, smp: int) -> None:
    limit = kvm.check_extension(abi.KVM_CAP_MAX_VCPUS) or kvm.check_extension(abi.KVM_CAP_NR_VCPUS) or 4
    if smp > limit:
        raise ConfigError(f"this host's KVM runs at most {limit} vCPUs in a machine (KVM_CAP_MAX_VCPUS), not {smp}")
