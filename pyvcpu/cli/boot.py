"""`pyvcpu boot`: run an image and end with its status."""

from __future__ import annotations

import gc
from time import monotonic

from ..errors import ConfigError
from ..machine.outcome import Outcome
from ..posix import signal
from . import INTERRUPTED, USAGE, complain, say
from .console import Input
from .options import ACCEL_OPTION, CPU_OPTION, KVM_OPTION, SMP_OPTION, Option, named_kvm
from .output import TICK, Output, OutputError
from .signals import Signalled, Signals, die_of

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Sequence
    from types import SimpleNamespace

    from ..machine import Machine
    from .files import Disks
    from .watch import Watch

    Wait = Callable[[float | None], Outcome | None]

HELP = "run an image"
DESCRIPTION = """\
Run IMAGE in a virtual machine. What the guest writes to COM1 (port 0x3f8) and to the debug console (port 0xe9)
goes to standard output, and nothing else does; standard input feeds COM1."""
EPILOG = """\
keys: once the guest looks at COM1, a terminal is raw, and all keys are the guest's but for Ctrl-A X, which ends the
machine with status 0, Ctrl-A S, which takes a snapshot, Ctrl-A H, which lists such keys, and Ctrl-A A, which sends
Ctrl-A. Ctrl-C interrupts a guest that takes no input.

exit status: (v << 1) | 1 for a guest that writes v to port 0xf4; 0 the guest ended by itself (all vCPUs halted,
power-off or reset); 2 bad usage or bad image; 4 KVM is missing or refused; 6 the guest crashed; 124 --timeout
passed; 130 interrupted.

example: python -m pyvcpu boot examples/images/hello.bin --smp 4"""


FW_CFG = "name=NAME,file=F|string=S"
OPTIONS = (
    Option("image", "the file to boot", "IMAGE"),
    SMP_OPTION,
    CPU_OPTION,
    Option("--memory", "guest memory, such as 64M or 2G (default 64M)", "SIZE", "64M", short="-m"),
    Option(
        "--format",
        "linux, linux16, multiboot2, multiboot, pvh, elf, bootsector or flat (default: what the image looks like)",
        "NAME",
    ),
    Option("--initrd", "Linux: the initial RAM disk; Multiboot: modules, FILE[ ARGUMENTS],...", "FILE"),
    Option("--append", "the command line of Linux, Multiboot and PVH images", "TEXT", ""),
    Option("--mode", "flat images: real, protected or long (default real)", "MODE"),
    Option("--load", "flat images: where to load (default 0x1000)", "ADDR"),
    Option("--entry", "flat images: where to start (default: the load address)", "ADDR"),
    Option("--start", "all: every vCPU starts (flat images); bsp: the others wait for SIPI", "WHO"),
    Option("--irqchip", "none (flat images), kernel (all others) or split", "KIND"),
    Option("--disk", "a virtio disk, of raw bytes; can be given again", "FILE[,ro]", repeated=True),
    Option("--fw-cfg", "a file that the guest finds in fw_cfg; can be given again", FW_CFG, repeated=True),
    Option("--rng", "a virtio entropy source"),
    Option("--reboot", "boot again when the guest asks for a reset, instead of ending"),
    Option("--timeout", "end with status 124 after S seconds", "S"),
    Option("--stats", "at the end, say how many exits there were, of which kind, and how long they took"),
    Option("--trace", "write a timeline of the vCPUs, for Perfetto or chrome://tracing", "FILE"),
    Option("--explain", "say, step by step, what happens in the life of each vCPU"),
    Option("--top", "show exits per second at the bottom of the terminal that standard error is"),
    Option("--snapshot", "at SIGUSR1 and Ctrl-A S, save the machine's state in FILE, for `resume`", "FILE"),
    Option("--snapshot-on-exit", "save the machine's state in FILE when the run ends, for `resume`", "FILE"),
    Option("--gdb", "serve gdb and lldb there", "HOST:PORT|unix:PATH"),
    Option("-s", "the same as --gdb localhost:1234"),
    Option("--gdb-wait", "stand still before the first instruction, until a debugger lets the guest run", short="-S"),
    Option("--shell", "Ctrl-A C, a breakpoint or a crash opens a Python prompt with the machine in it"),
    ACCEL_OPTION,
    KVM_OPTION,
)
# Those that `resume` has, too.
KEPT = ("timeout", "stats", "trace", "explain", "top", "snapshot", "snapshot_on_exit", "gdb", "s", "gdb_wait", "shell")


def run(options: SimpleNamespace) -> int:
    """Boot, wait for the end, put everything back, and return the exit status."""
    return run_job(Job(options))


def run_job(job: Job) -> int:
    """Do what a command line asks for, and return the exit status."""
    try:
        try:
            outcome = job.boot()
        finally:
            whole = job.close()
    except OutputError as error:
        return complain(error, USAGE)
    except Signalled as death:
        if death.number == signal.SIGINT:
            return INTERRUPTED
        die_of(death.number)
    for line in outcome.report.splitlines():
        say(line)
    return outcome.status if whole else USAGE


class Job:
    """What the command line asks for, checked and read."""

    def __init__(self, options: SimpleNamespace) -> None:
        self._options = options
        self._timeout = seconds(options.timeout)
        self._load, self._entry = address("--load", options.load), address("--entry", options.entry)
        from ..machine import read_image
        from ..memory import parse_size

        self._memory = limit = parse_size(options.memory)
        try:
            self._image = read_image(options.image, limit) if limit > 0 else b""
        except OSError as error:
            raise ConfigError(f"{options.image}: {error.strerror}") from None
        self._initrd: Sequence[tuple[str, bytes]] = ()
        self._disks: Disks | None = None
        self._watch: Watch | None = None
        is_sector = len(self._image) > 512 and self._image[510:512] == b"\x55\xaa"
        if options.initrd is not None or options.disk or is_sector:
            from .files import Disks, boots_as_disk, read_initrd

            self._initrd = read_initrd(options.initrd, limit)
            is_disk = is_sector and boots_as_disk(options.image, self._image, options.format)
            if options.disk or is_disk:
                self._disks = Disks(options.disk, options.image if is_disk else None)
        self._fw_cfg: list[tuple[str, bytes]] = []
        if options.fw_cfg:
            from .files import read_fw_cfg

            self._fw_cfg = [read_fw_cfg(text) for text in options.fw_cfg]
        self._signals = Signals()

    def boot(self) -> Outcome:
        """Make the machine, run it to its end, take it down, and put the terminal back."""
        console = Input()
        try:
            return self._boot(console)
        finally:
            console.close()

    def _boot(self, console: Input) -> Outcome:
        options = self._options
        if self._watch is None and (options.stats or options.trace is not None or options.explain or options.top):
            from .watch import Watch

            self._watch = Watch(options)
        output = Output()
        try:
            return self._run_machine(console, output, self._watch)
        finally:
            try:
                output.close()
            finally:
                if self._watch is not None:
                    self._watch.report()

    def _run_machine(self, console: Input, output: Output, watch: Watch | None) -> Outcome:
        from ..machine import Machine

        options = self._options
        with Machine(
            self._memory,
            options.smp,
            cpu=options.cpu,
            irqchip=options.irqchip,
            output=output.write,
            on_listen=lambda: console.start(machine.board.input),
            warn=say,
            accel=options.accel if watch is None else None,
            kvm=named_kvm(options.kvm) if watch is None else watch.open_kvm(options.accel, named_kvm(options.kvm)),
        ) as machine:
            output.on_broken = lambda: machine.stop("output closed")
            console.on_quit = lambda: quit(machine, output)
            self._add_devices(machine)
            machine.load(
                self._image,
                format=options.format,
                initrd=self._initrd,
                append=options.append,
                mode=options.mode,
                load=self._load,
                entry=self._entry,
                start=options.start,
                name=options.image,
            )
            return self._watched(machine, output, console, watch)

    def _watched(self, machine: Machine, output: Output, console: Input, watch: Watch | None) -> Outcome:
        options, saver = self._options, None
        if options.snapshot is not None or options.snapshot_on_exit is not None:
            from .saving import Saver, check_folder, save_at_exit

            if options.snapshot is not None:
                saver = Saver(machine, options.snapshot)
                console.on_snapshot = saver.ask
            if options.snapshot_on_exit is not None:
                check_folder(options.snapshot_on_exit)
        if watch is not None:
            watch.begin(machine)
        try:
            outcome = self._run_to_end(machine, console, output)
        finally:
            if watch is not None:
                watch.end(machine)
            if saver is not None:
                saver.close()
        if options.snapshot_on_exit is not None:
            save_at_exit(machine, options.snapshot_on_exit)
        return outcome

    def _run_to_end(self, machine: Machine, console: Input, output: Output) -> Outcome:
        """Run until the guest ends, or asks for a reset that it is not to get; the timeout is that of the whole run."""
        end = None if self._timeout is None else monotonic() + self._timeout
        options, wait = self._options, machine.wait
        debugging = outcome = None
        if options.gdb is not None or options.s or options.gdb_wait or options.shell:
            from .debug import Debugging

            debugging = Debugging(machine, options, console)
            wait = debugging.wait
        try:
            while True:
                outcome = _run(machine, self._signals, output, end, wait)
                if not options.reboot or outcome.reason != "reset":
                    return outcome
                machine.reset(reload=True)
        finally:
            if debugging is not None:
                debugging.close(outcome)

    def _add_devices(self, machine: Machine) -> None:
        machine.board.fw_cfg_files += self._fw_cfg
        if self._disks is not None:
            for device in self._disks.devices:
                machine.board.add_virtio(device)
            for index, file in enumerate(self._disks.files):
                machine.board.drives.append((file, index == 0 and self._disks.booted))
        if self._options.rng:
            from ..devices.virtio_rng import VirtioRng

            machine.board.add_virtio(VirtioRng())

    def close(self) -> bool:
        """Close the disks, write the timeline; False when that is not possible."""
        if self._disks is not None:
            self._disks.close()
        return self._watch is None or self._watch.close()


def quit(machine: Machine, output: Output) -> None:
    """End the run at the user's wish, also when a vCPU waits for a reader of our output that does not read."""
    machine.stop("quit", 0)
    output.cancel()


def _run(machine: Machine, signals: Signals, output: Output, end: float | None, wait: Wait) -> Outcome:
    """Do what Machine.run() does, until the time `end`; a reader of our output that does not read cannot hold it up.

    `wait` does what Machine.wait() does.
    """
    machine.start()
    if not gc.isenabled():  # in the command, before the first boot (see __main__.py)
        gc.freeze()  # modules stay
        gc.enable()
    try:
        with signals:
            machine.resume()
            # Most guests that only say something are done by now: they need no thread for their output.
            outcome = wait(TICK if end is None else min(TICK, _left(end) or 0))
        if outcome is None:
            output.start()
            with signals:
                outcome = wait(_left(end))
        if outcome is None:
            output.cancel()
        with signals:
            machine.pause()
        while outcome is not None and output.push():
            with signals:
                if not output.wait_room(_left(end)):
                    outcome = None
    except Signalled:
        output.cancel()
        raise
    return outcome or machine.wait(0) or Outcome("timeout")


def _left(end: float | None) -> float | None:
    return None if end is None else max(end - monotonic(), 0)


def address(option: str, text: str | None) -> int | None:
    """Return the address in `text`: decimal, 0x..., or a size such as 1M."""
    if text is None:
        return None
    from ..memory import parse_size

    try:
        value = int(text, 0)
    except ValueError:
        try:
            value = parse_size(text)
        except ConfigError:
            raise ConfigError(f"{option} takes an address such as 0x7c00, not {text!r}") from None
    if value < 0:
        raise ConfigError(f"{option} takes an address, which is not negative, not {text!r}")
    return value


def seconds(text: str | None) -> float | None:
    """Return the time in `text`, in seconds, or None for none."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise ConfigError(f"--timeout takes a number of seconds above 0, not {text!r}")
    return value
