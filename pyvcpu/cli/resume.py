"""`pyvcpu resume`: go on with a machine from a snapshot."""

from __future__ import annotations

from ..errors import ConfigError
from . import boot, say
from .options import ACCEL_OPTION, KVM_OPTION, Option, named_kvm
from .saving import load
from .signals import Signals

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from types import SimpleNamespace

    from ..devices.virtio import VirtioDevice
    from ..machine import Machine
    from ..machine.outcome import Outcome
    from .console import Input
    from .files import Disks
    from .output import Output
    from .watch import Watch

HELP = "go on with a machine from a snapshot"
DESCRIPTION = """\
Go on with the machine whose state `boot --snapshot FILE` or `--snapshot-on-exit FILE` has saved in FILE. Its disks are
to be given again, in the same order. Output, input and keys are those of boot."""
EPILOG = """\
exit status: as of boot; 2 also for a file that is no snapshot, 4 for one that cannot be run here.

example: python -m pyvcpu resume guest.snapshot --disk root.img"""
OPTIONS = (
    Option("file", "the snapshot", "FILE"),
    Option("--disk", "a virtio disk, of raw bytes; can be given again", "FILE[,ro]", repeated=True),
    Option("--any-disk", "take a disk, too, that was written to since, or is another"),
    Option("--rng", "a virtio entropy source, where the machine had one"),
    Option(
        "--time", "continue: the guest sees how long it stood still; or frozen (default continue)", "HOW", "continue"
    ),
    Option("--verify", "read all of the memory first, and compare its checksums"),
    *(option for option in boot.OPTIONS if option.key in boot.KEPT),
    ACCEL_OPTION,
    KVM_OPTION,
)


def run(options: SimpleNamespace) -> int:
    """Resume, wait for the end, put everything back, and return the exit status."""
    return boot.run_job(Job(options))


class Job(boot.Job):
    """What the command line asks for."""

    def __init__(self, options: SimpleNamespace) -> None:
        self._options = options
        self._timeout = boot.seconds(options.timeout)
        self._disks: Disks | None = None
        self._watch: Watch | None = None
        if options.disk:
            from .files import Disks

            self._disks = Disks(options.disk)
        if options.time not in ("continue", "frozen"):
            raise ConfigError(f"--time takes continue or frozen, not {options.time!r}")
        options.reboot = False
        self._signals = Signals()

    def _run_machine(self, console: Input, output: Output, watch: Watch | None) -> Outcome:
        from ..machine import Machine

        options = self._options
        snapshot = load(options.file, options.verify)
        made: list[Machine] = []
        listens: list[bool] = []  # the guest did when the snapshot was taken

        def on_listen() -> None:
            if made:
                console.start(made[0].board.input)
            else:
                listens.append(True)

        with (
            snapshot,
            Machine.from_snapshot(
                snapshot,
                devices=self._devices(),
                time=options.time,
                any_disk=options.any_disk,
                output=output.write,
                on_listen=on_listen,
                warn=say,
                accel=options.accel if watch is None else None,
                kvm=named_kvm(options.kvm) if watch is None else watch.open_kvm(options.accel, named_kvm(options.kvm)),
            ) as machine,
        ):
            made.append(machine)
            output.on_broken = lambda: machine.stop("output closed")
            console.on_quit = lambda: boot.quit(machine, output)
            if listens:
                console.start(machine.board.input)
            return self._watched(machine, output, console, watch)

    def _devices(self) -> list[VirtioDevice]:
        found: list[VirtioDevice] = list(self._disks.devices) if self._disks is not None else []
        if self._options.rng:
            from ..devices.virtio_rng import VirtioRng

            found.append(VirtioRng())
        return found
