"""`pyvcpu boot`: run an image and end with its status."""

from __future__ import annotations

import os
import signal

from ..errors import ConfigError
from . import USAGE, complain, say
from .console import Input, Output, OutputError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import argparse
    from types import FrameType

    from ..machine import Machine
    from ..outcome import Outcome

NAME = "boot"
HELP = "run an image"
DESCRIPTION = """\
Run IMAGE in a virtual machine. What the guest writes to COM1 (port 0x3f8) and to the debug console (port 0xe9)
goes to standard output, and nothing else does; standard input feeds COM1."""
EPILOG = """\
exit status: (v << 1) | 1 for a guest that writes v to port 0xf4; 0 the guest ended by itself (all vCPUs halted,
power-off or reset); 2 bad usage or bad image; 4 KVM is missing or refused; 6 the guest crashed; 124 --timeout
passed; 130 interrupted.

example: python -m pyvcpu boot examples/images/hello.bin --smp 4"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `boot`."""
    parser.add_argument("image", metavar="IMAGE", help="the file to boot")
    parser.add_argument("--smp", metavar="N", default="1", help="number of vCPUs (default 1)")
    parser.add_argument(
        "--memory", "-m", metavar="SIZE", default="64M", help="guest memory, such as 64M or 2G (default 64M)"
    )
    parser.add_argument("--format", metavar="NAME", help="flat or bootsector (default: what the image looks like)")
    parser.add_argument("--mode", metavar="MODE", help="flat images: real, protected or long (default real)")
    parser.add_argument("--load", metavar="ADDR", help="flat images: where to load (default 0x1000)")
    parser.add_argument("--entry", metavar="ADDR", help="flat images: where to start (default: the load address)")
    parser.add_argument(
        "--start", metavar="WHO", help="all: every vCPU starts (flat images); bsp: the others wait for SIPI"
    )
    parser.add_argument("--irqchip", metavar="KIND", help="none (flat images), kernel (all others) or split")
    parser.add_argument("--timeout", metavar="S", help="end with status 124 after S seconds")
    parser.add_argument(
        "--kvm",
        metavar="PATH",
        default=os.environ.get("PYVCPU_KVM") or "/dev/kvm",
        help="the KVM device (default /dev/kvm, or PYVCPU_KVM)",
    )


def run(options: argparse.Namespace) -> int:
    """Boot, wait for the end, put everything back, and return the exit status."""
    smp, timeout = number("--smp", options.smp), seconds(options.timeout)
    load, entry = address("--load", options.load), address("--entry", options.entry)
    from ..machine import Machine, read_image
    from ..memory import parse_size

    memory = parse_size(options.memory)
    try:
        image = read_image(options.image, memory) if memory > 0 else b""
    except OSError as error:
        return complain(f"{options.image}: {error.strerror}", USAGE)
    output, console = Output(), Input()
    try:
        with Machine(
            memory,
            smp,
            irqchip=options.irqchip,
            output=output.write,
            on_listen=lambda: console.start(machine.com1),
            kvm=options.kvm,
        ) as machine:
            output.on_broken = lambda: machine.stop("output closed")
            machine.load(image, format=options.format, mode=options.mode, load=load, entry=entry, start=options.start)
            outcome = _run_with_console(machine, output, console, timeout)
    except OutputError as error:
        return complain(error, USAGE)
    for line in outcome.report.splitlines():
        say(line)
    return outcome.status


class _Terminated(BaseException):
    """A signal that ends the program, turned into an exception so that the terminal is put back first."""


def _run_with_console(machine: Machine, output: Output, console: Input, timeout: float | None) -> Outcome:
    from ..outcome import Outcome

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _terminate)
    try:
        machine.start()
        machine.resume()
        outcome = machine.wait(timeout)
        if outcome is None:
            output.cancel()
            outcome = Outcome("timeout")
        machine.pause()
        return outcome
    except KeyboardInterrupt:
        output.cancel()
        return Outcome("interrupted")
    except _Terminated as death:
        output.cancel()
        console.close()
        _die_of(death.args[0])
        raise
    finally:
        # What is left takes milliseconds: a second Ctrl-C must not leave it half done.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        console.close()


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated(number)


def _die_of(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def number(option: str, text: str) -> int:
    """Return the decimal number in `text`; raise ConfigError in the option's words."""
    try:
        return int(text, 10)
    except ValueError:
        raise ConfigError(f"{option} takes a whole number, not {text!r}") from None


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
