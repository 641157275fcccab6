"""Machine: memory, processors and the devices of a small PC, wired together."""

from __future__ import annotations

import os
import sys
import threading
from time import monotonic

from .. import boot
from ..addresses import AddressSpace
from ..bus import Region
from ..devices.debug import CONSOLE_PORT
from ..errors import ConfigError, PyvcpuError, StateError
from ..kvm.system import DEVICE, Kvm
from ..memory import GuestMemory
from ..vcpu import Command, State, Vcpu
from ..vcpu.context import KvmContext
from ..vcpu.states import NO_THREAD
from ..vcpu.template import CpuTemplate
from ..vcpu.thread import VcpuThread
from ..x86 import topology
from ..x86.cpu import Cpu as CpuModel
from ..x86.cpu import parse as parse_cpu
from .board import Board
from .checks import check_smp, require_capabilities, warn_by_default
from .irqchip import KINDS, IrqChip
from .outcome import Outcome
from .runcontrol import Hold, RunControl

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Self

    from ..boot import Plan
    from ..devices.virtio import VirtioDevice
    from ..exits import ExitEvent
    from ..snapshot.data import Snapshot
    from ..snapshot.quick import Quick
    from ..snapshot.tracker import Tracker
    from ..vcpu.context import Probe
    from ..vcpu.standin import StandIn, Watchdog
    from .coalesced import Coalescer

    Image = bytes | bytearray | str | os.PathLike[str]

COUNTED = ("flat", "elf")  # formats whose guests are told the number of vCPUs in (R)SI
# Below 4 GiB and outside RAM: pages that KVM on Intel needs for real mode (api.rst 4.36, 4.55).
IDENTITY_MAP, TSS = 0xFEFF_C000, 0xFEFF_D000
CHUNK = 1 << 20


def to_stdout(data: bytes) -> None:
    """Write what the guest says to standard output, at once, and behind what the program has printed before."""
    out = sys.stdout
    if out is None:  # as print() does where there is none
        return
    out.flush()
    stream = getattr(out, "buffer", None)
    if stream is None:  # a replacement that takes text only
        out.write(data.decode("latin-1"))
    else:
        stream.write(data)
    out.flush()


class Machine:
    """A virtual machine with `smp` processors and `memory` bytes of RAM.

    `memory`: a size such as "64M". `smp`: a number, or a text as of --smp: "8,sockets=2,cores=2,threads=2,maxcpus=16".
    `cpu`: what the processors are, a text as of --cpu: "host,-avx2", "x86-64-v3,check". `irqchip`: none, kernel or
    split; None for what the image's format needs. `output`: gets the bytes that the guest writes to COM1 and to the
    debug console, in the thread of the vCPU that writes them. `on_listen`: called once, on such a thread, when the
    guest first looks for input at COM1; what `machine.com1.receive()` is given before that waits. `warn`: gets a line
    on what was asked for and cannot be had, but is no reason to stop; warnings.warn otherwise. `kvm`: the device file,
    or an open Kvm.

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
        kvm: str | Kvm = DEVICE,
    ) -> None:
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
        self._coalescer: Coalescer | None = None
        self._closers: list[Callable[[], object]] = []  # in order of creation
        self.control = RunControl()
        try:
            self._build(memory, model, kvm, warn or warn_by_default)
            self._build_board(output, on_listen)
        except BaseException:
            self._close_all()
            raise
        self._open = True

    def _build(self, memory: str | int, model: CpuModel, kvm: str | Kvm, warn: Callable[[str], object]) -> None:
        self.memory = GuestMemory(memory)
        self._closers.append(self.memory.close)
        if isinstance(kvm, str):
            kvm = Kvm(kvm)
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
        self.load_plan(boot.plan(content, target, format))

    def _acpi(self) -> tuple[int, bytes]:
        there = self.vcpus[: self.topology.cpus]
        return self.board.acpi([vcpu.apic_id for vcpu in there], pic=self._wanted_irqchip != "split")

    def load_plan(self, plan: Plan) -> None:
        """Load what a loader planned, or what you made yourself. Before the first start only."""
        self._not_closed()
        self._not_started("load the image")
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
        region = self.addresses.claim_mmio(address, length, read=read, write=write, name=name)
        if coalesce:
            self._coalesce(address, length, region, pio=False)
        return region

    def _coalesce(self, address: int, length: int, region: Region | None, *, pio: bool) -> None:
        """Let KVM collect the writes to a range; where it cannot, give `region` back and raise its ConfigError."""
        from .coalesced import Coalescer

        with self.control.start_lock:
            coalescer = self._coalescer = self._coalescer or Coalescer(self.context, self.control)
        try:
            coalescer.add(address, length, pio=pio)
        except PyvcpuError:
            if region is not None:
                (self.ports if pio else self.mmio).release(region)
                raise

    def on_exit(self, reason: int, handler: Callable[[Vcpu, ExitEvent], object]) -> None:
        """Call `handler(vcpu, exit)` at exits of `reason` (kvm.abi.Exit), before anything else looks at them.

        True from it: dealt with, run on. Anything else: go on as without it. Before start() only.
        """
        self._not_started("register exit handlers")
        self.context.exit_handlers[int(reason)] = handler

    def observe(self, probe: Probe) -> None:
        """Let `probe` see what the vCPUs do: a Stats or Trace. Before start() only."""
        self._not_started("observe() it")
        probe.attach(len(self.vcpus))
        self.context.probe = probe
        for vcpu in self.vcpus:
            vcpu.probe = probe

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

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """Wait for the end of a machine that was resumed: None when `timeout` seconds passed first.

        Everyone who waits gets the same outcome, and each thread each exception of a handler once.
        """
        self._not_in_handler("wait")
        return self.control.wait(self.control.current(), timeout)

    def stop(self, reason: str = "stopped", status: int | None = None) -> None:
        """End the run with an Outcome of this reason and status. Any thread, also from handlers, of signals, too.

        It counts for the run under way, or for the next one where none has begun yet. The first end of a run counts.
        """
        self.control.finish(reason, status)

    def resume(self) -> None:
        """Let all vCPUs run (again). Any thread.

        The run goes on, or a new one begins where the last has ended. It does not as long as nobody has seen that end:
        wait() for it first.
        """
        self._not_closed()
        self.control.resume()

    def pause(self, timeout: float | None = None) -> bool:
        """Stop all vCPUs and wait until they have; False when `timeout` seconds passed first.

        From a handler it only posts the command. KVM has then completed every access, and no virtio device is in the
        middle of a request: registers, memory and disks are whole. paused() also keeps other threads from resuming it.
        """
        return self.control.pause(timeout)

    def paused(self, by: str = "", timeout: float | None = None) -> Hold:
        """Hold the world still: `with machine.paused(): ...`.

        Inside, all vCPUs stand still with their accesses completed, collected writes and virtio requests are served,
        and what the host feeds the guest waits: serial input, lines, timers of devices. It nests, and several threads
        may hold it; the machine goes on, if it ran, when the last lets go. `by` says what for: `machine.holders` has
        it. Raise StateError in a handler, TimeoutError when it does not stand still within `timeout` seconds.
        """
        return Hold(self.control, by, timeout)

    @property
    def holders(self) -> tuple[str, ...]:
        """Who holds the world still: the name of each thread, and what for."""
        with self.control.lock:
            return tuple(self.control.holders)

    def unplug(self, index: int) -> None:
        """Take vCPU `index` out of the running machine; its thread ends.

        Raise StateError when it is out already. From a handler it only posts the command.
        """
        vcpu = self._vcpu(index)
        if self.control.is_vcpu_thread():
            vcpu.unplug()
            return
        with self.control.start_lock:
            vcpu.unplug()

    def plug(self, index: int) -> None:
        """Put vCPU `index`, below maxcpus, into the machine: it starts anew, and runs if the machine does.

        It begins where its image has it begin: at the entry with start="all", with "bsp" waiting for INIT-SIPI-SIPI.
        Nothing of a former life is left. Raise StateError when it is in already, or the machine was never started.
        """
        self._not_closed()
        self._vcpu(index).plug()

    def _vcpu(self, index: int) -> Vcpu:
        if not isinstance(index, int):
            raise TypeError(f"a vCPU is named by its index, a number, not by {index!r}")
        if not 0 <= index < len(self.vcpus):
            hint = "; more need maxcpus= in smp" if index >= 0 else ""
            raise ConfigError(f"this machine has room for vCPUs 0 to {len(self.vcpus) - 1}, not for {index}{hint}")
        return self.vcpus[index]

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
        elif self.control.is_vcpu_thread() or self.board.loop.is_own_thread():
            threading.Thread(target=self._close_all, name="close", daemon=True).start()
        else:
            self._close_all()

    def _not_closed(self) -> None:
        if not self.control.is_ours:
            raise StateError("the machine belongs to the process that made it; a forked child can only close it")
        if self.control.closed:
            raise StateError("the machine is closed; make another one")

    def _not_started(self, what: str) -> None:
        if any(vcpu.state not in NO_THREAD for vcpu in self.vcpus):
            raise StateError(f"the vCPUs are started already: {what} before start() or run()")

    def _not_in_handler(self, what: str) -> None:
        if self.control.is_vcpu_thread():
            raise StateError(f"{what}() would wait for the vCPU whose handler calls it; use stop() there")

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


def read_image(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read an image file; of one that is larger than `limit` bytes, only so much as shows that it is."""
    content = bytearray()
    with open(path, "rb") as file:
        while len(content) <= limit and (chunk := file.read(CHUNK)):
            content += chunk
    return bytes(content)
