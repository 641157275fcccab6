"""Machine: memory, processors and the devices of a small PC, wired together."""

from __future__ import annotations

import os
import threading
from time import monotonic

from .. import boot
from ..addresses import AddressSpace
from ..devices.debug import CONSOLE_PORT
from ..errors import ConfigError, StateError
from ..kvm.system import Kvm
from ..memory import GuestMemory
from ..vcpu import Command, State, Vcpu
from ..vcpu.cond import check_timeout
from ..vcpu.context import KvmContext
from ..vcpu.states import NO_THREAD
from ..vcpu.template import CpuTemplate
from ..vcpu.thread import VcpuThread
from ..x86 import topology
from ..x86.cpu import Cpu as CpuModel
from ..x86.cpu import parse as parse_cpu
from .accel import open_machine
from .board import Board
from .debugging import GuestSymbols, debugger_maker
from .host import check_smp, read_image, require_capabilities, to_stdout, warn_by_default
from .irqchip import KINDS, IrqChip
from .outcome import Outcome
from .serving import Serving

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Self

    from ..bios import Bios
    from ..boot import Plan
    from ..debug.debugger import Debugger
    from ..debug.points import Breakpoint
    from ..devices.virtio import VirtioDevice
    from ..snapshot.data import Snapshot
    from ..snapshot.quick import Quick
    from ..snapshot.tracker import Tracker
    from ..symbols import Symbols
    from ..vcpu.standin import StandIn, Watchdog

    Image = bytes | bytearray | str | os.PathLike[str]

BIOS_FORMATS, BIOS_LEAST = ("bootsector", "linux16"), 1 << 20  # whose guests call a BIOS; bytes of RAM for it
ACPI_BASE, ACPI_END = 0xE0000, 0xFC000  # where the tables are (devices.acpi.BASE), and until where
COUNTED = ("flat", "elf")  # formats whose guests are told the number of vCPUs in (R)SI
# Below 4 GiB and outside RAM: pages that KVM on Intel needs for real mode (api.rst 4.36, 4.55).
IDENTITY_MAP, TSS = 0xFEFF_C000, 0xFEFF_D000


class Machine(Serving):
    """A virtual machine with `smp` processors and `memory` bytes of RAM.

    `memory`: a size such as "64M". `smp`: a number, or a text as of --smp: "8,sockets=2,cores=2,threads=2,maxcpus=16".
    `cpu`: what the processors are, a text as of --cpu: "host,-avx2", "x86-64-v3,check". `irqchip`: none, kernel or
    split; None for what the image's format needs. `output`: gets the bytes that the guest writes to COM1 and to the
    debug console, in the thread of the vCPU that writes them. `on_listen`: called once, on such a thread, when the
    guest first looks for input at COM1; what `machine.com1.receive()` is given before that waits. `warn`: gets a line
    on what was asked for and cannot be had, but is no reason to stop; warnings.warn otherwise. `accel`: who runs the
    guest, kvm, tcg or dummy, or a list such as "kvm:tcg", the default (or PYVCPU_ACCEL): KVM where it can be used,
    else a processor in software. `kvm`: the device file, or an open Kvm: that one and no other.

    Use it with `with`: it owns threads, memory and file descriptors. Methods are for threads that are no vCPU's of this
    machine, unless they say otherwise. Raises ConfigError, ImageError, KvmError, HostMemoryError, all of them
    PyvcpuError.

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
        cpu: str | CpuModel = "host",
        irqchip: str | None = None,
        output: Callable[[bytes], object] = to_stdout,
        on_listen: Callable[[], object] | None = None,
        warn: Callable[[str], object] | None = None,
        accel: str | None = None,
        kvm: str | Kvm | None = None,
    ) -> None:
        super().__init__()
        self._open = False
        self.topology = topology.parse(smp)
        model = parse_cpu(cpu) if isinstance(cpu, str) else cpu
        if irqchip not in (None, *KINDS):
            raise ConfigError(f"irqchip must be none, kernel or split, not {irqchip!r}")
        self._wanted_irqchip = irqchip
        self._plan: Plan | None = None
        self._parent: Snapshot | None = None  # what it was restored from last
        self._tracker: Tracker | None = None
        self._quick: Quick | None = None
        self._stand_in: StandIn | None = None
        self._watchdog: Watchdog | None = None
        self._clock_line = os.urandom(16)
        self._closers: list[Callable[[], object]] = []  # in order of creation
        try:
            self._build(memory, model, accel, kvm, warn or warn_by_default)
            self._build_board(output, on_listen)
        except BaseException:
            self._close_all()
            raise
        self._open = True

    def _build(
        self,
        memory: str | int,
        model: CpuModel,
        accel: str | None,
        kvm: str | Kvm | None,
        warn: Callable[[str], object],
    ) -> None:
        self.memory = GuestMemory(memory)
        self._closers.append(self.memory.close)
        if not isinstance(kvm, Kvm):
            kvm = open_machine(accel, kvm, warn)
            self._closers.append(kvm.close)
        self.kvm = kvm
        require_capabilities(kvm)
        check_smp(kvm, self.topology.maxcpus)
        self.vm = kvm.create_vm()
        self._closers.append(self.vm.close)
        self.vm.set_identity_map_addr(IDENTITY_MAP)
        self.vm.set_tss_addr(TSS)
        self.memory.register(self.vm)
        self.addresses = AddressSpace(self.memory)
        self.ports, self.mmio = self.addresses.ports, self.addresses.mmio
        control, context = self.control, KvmContext(kvm, self.vm, self.addresses, warn)
        self.context, template = context, CpuTemplate(model, self.topology)
        self.vcpus = tuple(
            Vcpu(index, self.topology.apic_id(index), control, present=index < self.topology.cpus)
            for index in range(self.topology.maxcpus)
        )
        self._threads = [VcpuThread(vcpu, context, template, control) for vcpu in self.vcpus]
        control.add(self.vcpus)
        context.make_debugger = debugger_maker(control, context, self._threads)
        context.symbols = self._symbols = GuestSymbols()
        self._closers.append(self._stop_threads)

    def _build_board(self, output: Callable[[bytes], object], on_listen: Callable[[], object] | None) -> None:
        # The board must not know this object: devices are in the hands of threads, and it could never be dropped.
        collect = _Collect(self)
        self.board = Board(
            self.context, self.control, self.topology, output=output, collect=collect, on_listen=on_listen
        )
        self.irqchip: IrqChip = self.board.irqchip
        self.com1 = self.board.com1

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
        if not isinstance(image, (bytes, bytearray, str, os.PathLike)):
            raise TypeError(f"an image is bytes or the name of a file, not {type(image).__name__}")
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
        plan = boot.plan(content, target, format)
        if plan.format == "bootsector" and self.board.bios.drives.boots_nothing:
            from ..bios.drives import MemoryDisk

            self.board.bios.drives.add(MemoryDisk(content), first=True)
        if plan.format in ("linux", "linux16"):
            self.board.tell_kernel(content, append, initrd)
        self.load_plan(plan)
        self._symbols.set_image(content, None if isinstance(image, (bytes, bytearray)) else image)

    def _acpi(self) -> tuple[int, bytes]:
        there = self.vcpus[: self.topology.cpus]
        return self.board.acpi([vcpu.apic_id for vcpu in there], pic=self._wanted_irqchip != "split")

    def load_plan(self, plan: Plan) -> None:
        """Load what a loader planned, or what you made yourself. Before the first start only."""
        self._not_closed()
        self._not_started("load the image")
        plan = self._with_smbios(self._with_bios(plan))
        for vcpu, start in zip(self.vcpus, plan.starts, strict=True):
            vcpu.start = start
            if start is not None and plan.format in COUNTED and self.topology.cpus < len(self.vcpus):
                start.registers["rsi"] = self.topology.cpus  # as many as will come; maxcpus has room for more
        self._plan = plan
        self._write_segments()

    def _with_bios(self, plan: Plan) -> Plan:
        """Return `plan` with a BIOS in it where the format counts on one, or somebody has asked for one."""
        first = plan.starts[0]
        if first is None or first.mode != "real" or self.memory.end_of_low < BIOS_LEAST:
            return plan
        if plan.format not in BIOS_FORMATS and not self.board.has_bios:
            return plan
        irqchip = self._wanted_irqchip or plan.irqchip
        plan = self.board.bios.take_over(plan, irqchip)
        return plan if irqchip == "none" else plan.with_segments([self._acpi()])

    def _with_smbios(self, plan: Plan) -> Plan:
        """Return `plan` with SMBIOS tables where it has ACPI's: for guests that search for either."""
        if not any(ACPI_BASE <= address < ACPI_END for address, _ in plan.segments):
            return plan
        address, tables = self.board.smbios()
        taken = any(first < address + len(tables) and address < first + len(data) for first, data in plan.segments)
        return plan if taken else plan.with_segments([(address, tables)])

    def _write_segments(self) -> None:
        for address, data in self._plan.segments if self._plan is not None else ():
            self.memory.write(address, data)

    # Running it.

    def start(self) -> None:
        """Realize the vCPUs and start their threads; each is created and paused when this returns."""
        with self.control.start_lock:
            self._not_closed()
            if self._plan is None:
                raise StateError("there is nothing to run: load() an image first")
            if not self.irqchip.kind:
                self.board.create_irqchip(self._wanted_irqchip or self._plan.irqchip)
            fresh = [thread for thread in self._threads if thread.vcpu.state is State.REALIZED]
            for thread in self._threads:
                # Without a local APIC nothing can send a SIPI: such a processor waits for good, as a halted one does.
                thread.waits_for_sipi = thread.vcpu.start is None and not thread.has_apic
            for thread in fresh:
                thread.realize()
                thread.start_thread()
            for thread in fresh:
                thread.wait_created()

    def run(self, timeout: float | None = None) -> Outcome:
        """Start the vCPUs that are not yet, let it run to its end or for `timeout` seconds, and pause it.

        Returns how it ended; raises what a handler raised. A machine that has paused can be run on by another call. An
        end that nobody has seen yet, such as that of a stop() just before, is returned at once.
        """
        self._not_in_handler("run")
        check_timeout(timeout)
        end = None if timeout is None else monotonic() + timeout
        if self._stand_in is not None and (outcome := self._run_here(timeout)) is not None:
            return outcome
        run = self.control.open()
        self.start()
        try:
            if run.outcome is None and (end is None or end > monotonic()):
                self.control.resume()
            outcome = self.control.wait(run, None if end is None else max(end - monotonic(), 0))
        finally:
            self.pause()
        # What ended the machine while it was being paused counts, too: a handler's exception must not get lost.
        return self.control.wait(run, 0) or outcome or Outcome("timeout")

    def _run_here(self, timeout: float | None) -> Outcome | None:
        """Run the one vCPU on the calling thread, where nothing is in the way of that, and return how the run ended.

        None where it has not ended: it is still to be begun, goes on on the vCPU's own thread, or was paused.
        """
        control, stand_in, watchdog, vcpu = self.control, self._stand_in, self._watchdog, self.vcpus[0]
        if stand_in is None or self._quick is None or self.board.has_thread or not stand_in.can_be_kicked():
            return None
        if timeout is not None and watchdog is None:
            from ..vcpu.standin import Watchdog

            watchdog = self._watchdog = Watchdog(vcpu, control)
        with control.lock:
            run = control.begin_here_locked()
            if run is None or not stand_in.begin_locked():
                return None
            control.running = True
            vcpu.stopped = False
            vcpu.take_step_locked(Command.RESUME)
        outcome = None
        try:
            if watchdog is not None and timeout is not None:
                watchdog.arm(timeout)
            stand_in.run()
        finally:
            with control.lock:
                if watchdog is not None:
                    watchdog.disarm_locked()
                stand_in.end_locked()
                if vcpu.state is State.PAUSED:
                    outcome = run.tell()
        return outcome

    def reset(self, reload: bool = False) -> None:
        """Put the machine back to its start: every vCPU that is in it, the interrupt controllers, every device.

        It goes on if it runs; where it had ended, resume() or run() begins anew. `reload`: memory, too, is made what
        it was when the image was loaded: the image, and zeros elsewhere. Raise StateError before start().
        """
        self._not_in_handler("reset")
        with self.control.start_lock:
            self._not_closed()
            if not self.irqchip.kind:
                raise StateError("there is nothing to reset: start() or run() the machine first")
            if reload and self._plan is not None and not self._plan.segments:
                raise StateError("a snapshot does not have the image: restore() it instead")
            with self.paused("reset"):
                if reload:
                    self._parent = None
                    self.memory.clear()
                    self._write_segments()
                self.board.reset()
                for thread in self._threads:
                    if thread.vcpu.state not in NO_THREAD:
                        thread.reset()
                self.control.forget_end()

    # Debugging it: docs/debugging.md.

    def keep_exits(self) -> None:
        """Keep the last 16 exits of each vCPU, for crash reports and last_exits(). Before start() only."""
        from ..vcpu.recent import RecentExits

        self._not_started("keep_exits()")
        self.context.recent = self.context.recent or RecentExits()

    def last_exits(self, vcpu: int = 0) -> list[str]:
        """Return the last exits of a vCPU in words, the latest at the end; none without keep_exits()."""
        recent = self.context.recent
        return [] if recent is None else recent.lines(self._vcpu(vcpu).index)

    @property
    def debugger(self) -> Debugger:
        """Who has the breakpoints; from the first use on, the vCPUs ask it at debug exits."""
        if self.context.debugger is None:
            self._not_closed()
            self.context.debugger = self.context.make_debugger()
        debugger: Any = self.context.debugger
        return debugger  # type: ignore[no-any-return]

    @property
    def symbols(self) -> Symbols:
        """The symbols of the ELF image that was loaded, and of what add_symbols() added: names to addresses."""
        return self._symbols.get()

    def add_symbols(self, source: Image) -> None:
        """Add the symbols of an ELF file or a System.map: bytes, or the name of a file. Raise ImageError, OSError."""
        self._symbols.add(source)

    def break_at(self, where: int | str, handler: Callable[[Vcpu], object] | None = None) -> Breakpoint:
        """Call `handler(vcpu)` each time before a vCPU executes the instruction at `where`. Any thread, also later.

        `where`: a linear address or a symbol. The handler runs on the vCPU's thread, while the others run on. It may
        read and change registers and memory. Returning False it stops the machine: a debugger, if there is one, is
        told of it, else run() returns an Outcome "debug"; after anything else the guest goes on. No handler: stop.
        Raise SymbolError, or DebugError where this host's KVM offers no way.
        """
        return self.debugger.break_at(self.symbols[where] if isinstance(where, str) else where, handler)

    def watch(
        self, where: int | str, size: int, kinds: str = "w", handler: Callable[[Vcpu], object] | None = None
    ) -> Breakpoint:
        """Call `handler(vcpu)` each time after an instruction accesses `size` bytes at `where`; as break_at().

        `kinds`: "w" for writes, "r" or "rw" for reads, too, which not every host can tell (`pyvcpu info`).
        """
        address = self.symbols[where] if isinstance(where, str) else where
        return self.debugger.watch(address, size, kinds, handler)

    def translate(self, address: int, vcpu: int = 0) -> int | None:
        """Return the physical address behind linear `address` for vCPU `vcpu`, None where nothing is mapped."""
        return self._vcpu(vcpu).memory.translate(address)

    def trace_instructions(self, limit: int, vcpu: int = 0) -> list[int]:
        """Run up to `limit` instructions of one vCPU of a machine that stands still, started if need be.

        Return the linear address of each, and at last that of the next one. Fewer where it halts or the machine ends.
        """
        self._not_in_handler("trace_instructions")
        self.start()
        return self.debugger.trace(self._vcpu(vcpu), limit)

    # Snapshots.

    def snapshot(self) -> Snapshot:
        """Return all of the machine's state, taken while it stands still; it goes on if it ran.

        Of one that was restored from a snapshot, the new one has only the pages that differ. Raise what start() raises.
        """
        from ..snapshot.take import take

        self._not_in_handler("snapshot")
        self._not_closed()
        return take(self)

    def restore(
        self, snapshot: Snapshot, *, time: str = "continue", any_disk: bool = False, all_pieces: bool = True
    ) -> None:
        """Put the machine, which must be of the same kind, into the state that `snapshot` is of.

        It goes on if it runs; where it had ended, resume() or run() begins anew. `time`: continue, the guest's clocks
        show how long ago the snapshot was taken; or frozen, they go on from where they stood. `any_disk`: take disks,
        too, that were written to since, or are others.

        Another restore() of the same snapshot puts back only what has changed: pages, registers, devices. A run() of a
        machine with one vCPU then needs no other thread. `all_pieces`: look at the whole state of the vCPUs. False:
        look only at their registers, and at what was seen to change after earlier runs; for guests that are known to
        change nothing else, for it saves KVM six requests.

        Raise SnapshotError: where it names a difference, nothing has changed; where KVM refuses something, the machine
        can only be restored again, or closed.
        """
        quick = self._quick
        if quick is not None and quick.reset_again(self, snapshot, time, any_disk=any_disk, all_pieces=all_pieces):
            return
        from ..snapshot.restore import restore

        self._not_in_handler("restore")
        self._not_closed()
        restore(self, snapshot, time=time, any_disk=any_disk)

    @classmethod
    def from_snapshot(
        cls,
        snapshot: Snapshot | str | os.PathLike[str],
        *,
        devices: Sequence[VirtioDevice] = (),
        time: str = "continue",
        any_disk: bool = False,
        **options: Any,
    ) -> Self:
        """Return a machine in the state of `snapshot`, or of the one in the file of that name; it is paused.

        Its memory is that of the snapshot until it writes to it, and all such machines share it. `devices`: the virtio
        devices, in the order in which they were added to the first machine. `options`: output, on_listen, warn and kvm,
        as for a new machine. `time`, `any_disk`: see restore(). Handlers are to be registered anew. Raise SnapshotError
        for a snapshot that this host cannot run, OSError for a file that cannot be read.
        """
        from ..snapshot.data import Snapshot
        from ..snapshot.fits import check_host
        from ..snapshot.rebuild import plan_of, shape_of
        from ..snapshot.restore import restore

        loaded = snapshot if isinstance(snapshot, Snapshot) else Snapshot.load(snapshot)
        machine = cls(**shape_of(loaded), **options)
        try:
            check_host(loaded, machine.kvm)
            for device in devices:
                machine.board.add_virtio(device)
            plan = plan_of(loaded)
            for vcpu, start in zip(machine.vcpus, plan.starts, strict=True):
                vcpu.start = start
            machine._plan = plan
            restore(machine, loaded, time=time, any_disk=any_disk, again=False)
        except BaseException:
            machine.close()
            raise
        return machine

    # What it consists of.

    @property
    def bios(self) -> Bios:
        """The BIOS that real-mode guests call: its drives, and `on_interrupt(number, handler)`.

        Boot sectors and kernels that start in real mode have one; other real-mode images do if this was looked at
        before load().
        """
        return self.board.bios

    @property
    def devices(self) -> Mapping[str, Any]:
        """The devices by name; each has reset(), state() and restore()."""
        return self.board.devices

    def describe(self) -> str:
        """Return what the machine consists of, in lines for people: memory and ports, and who answers there; lines."""
        return "\n".join([*self.addresses.describe(), *self.board.describe()])

    def set_line(self, gsi: int, level: bool) -> None:
        """Drive interrupt line `gsi`: 0 to 15 as on the PICs, up to 23 on the IOAPIC only. Any thread.

        It waits while the world is held still by another thread. Without interrupt controllers the line leads nowhere.
        Raise ConfigError for a line that there is not.
        """
        self.control.check_ours()
        if self.control.is_vcpu_thread():
            self.irqchip.set_line(gsi, level)
            return
        with self.board.gate:
            self.irqchip.set_line(gsi, level)

    # The end.

    def close(self) -> None:
        """Stop the threads and give everything back, in reverse order; closing again does nothing. Several may close.

        Raise what a handler raised and nobody has waited for, once all is closed. In a forked child, which has none of
        the threads, it closes what the child has copies of, and no more.
        """
        if not self.control.is_ours:
            self._close_copies()
            return
        self._not_in_handler("close")
        with self.control.start_lock:
            self._close_all()
        with self.control.lock:
            failure = self.control.run.unseen()
            if failure is not None:
                self.control.run.failures.clear()
        if failure is not None:
            raise failure

    def _close_all(self) -> None:
        self._open = False
        while self._closers:
            closer = self._closers[-1]
            closer()  # each can be called again: a Ctrl-C in the middle leaves it for the next close()
            if self._closers and self._closers[-1] is closer:
                self._closers.pop()

    def _stop_threads(self) -> None:
        self.board.close_input()
        self.control.close()
        self.board.close()
        if self._watchdog is not None:
            self._watchdog.close()
        if self._tracker is not None:
            self._tracker.close()
        self._tracker = self._quick = self._parent = None
        if self._coalescer is not None:
            self._coalescer.close()
        self.context.close_parked()

    def _close_copies(self) -> None:
        """Close fds and memory in a forked child; no lock is taken, because its holder may be a thread of the
        parent.
        """
        self._open = False
        self._closers.clear()
        self.board.close_copies()
        for thread in self._threads:
            thread.close_copy()
        self.context.close_parked()
        self.vm.close()
        self.kvm.close()
        self.memory.close()

    def __del__(self) -> None:
        """Close what was dropped without close(), and say so: its threads would go on for ever."""
        if not getattr(self, "_open", False):
            return
        import warnings

        warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, stacklevel=2, source=self)
        if not self.control.is_ours:
            self._close_copies()
        elif self.control.is_vcpu_thread() or self.board.is_own_thread():
            threading.Thread(target=self._close_all, name="close", daemon=True).start()
        else:
            self._close_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Machine smp={self.topology.cpus} memory={self.memory.size >> 10}K>"


class _Collect:
    """Has KVM collect the writes to the debug console, once the guest says a good deal; knows the machine weakly."""

    def __init__(self, machine: Machine) -> None:
        from _weakref import ref

        self._machine = ref(machine)

    def __call__(self) -> None:
        machine = self._machine()
        if machine is not None:
            machine._coalesce(CONSOLE_PORT, 1, None, pio=True)
