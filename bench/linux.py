"""How long Debian's cloud kernel takes to user space with four CPUs: here, and under QEMU's microvm and pc.

    python -m bench.linux                        # 3 rounds in the rig (docs/rig.md)
    python -m bench.linux --rounds 10 --append 'console=ttyS0'
    python -m bench.linux --messages             # what the kernel complains of here, and does not under QEMU

All have the same kernel, initrd, command line, memory and CPUs, and run in turn. The time is from the start of the
process to the line that init prints. QEMU is the host's own, with its libraries and firmware.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.amd.linux import INITRD, KERNEL
from tools.rig.emulator import install_system
from tools.rig.run import run

ADDED = Path("/add")
LOADER = "ld-linux-x86-64.so.2"
QEMU = "qemu-system-x86_64"
FIRMWARE = ("bios-256k.bin", "bios-microvm.bin", "kvmvapic.bin", "linuxboot.bin", "linuxboot_dma.bin", "pvh.bin")
FIRMWARE_FOLDERS = ("/usr/share/qemu", "/usr/share/seabios")
LONG = 60.0  # seconds that a boot may take
READY, EXIT = b"READY cpus=4", b"EXIT 0"
# Warnings and what is worse, which the kernel sends to the console at this level; init powers off at once.
COMPLAINING = 'console=ttyS0 loglevel=5 RUN="true"'
KERNEL_LINE = re.compile(r"^\[ *\d+\.\d+\] (.*?)\r?$", re.MULTILINE)


def copy_qemu(folder: Path) -> None:
    """Copy the installed QEMU to `folder`, with what it loads."""
    install_system()
    program = shutil.which(QEMU)
    assert program is not None
    shutil.copy(program, folder)
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for library in re.findall(r"(/\S+) \(0x", listed):
        shutil.copy(library, folder)
    for name in FIRMWARE:
        found = [Path(place, name) for place in FIRMWARE_FOLDERS if Path(place, name).exists()]
        shutil.copy(found[0], folder)


def commands(append: str) -> dict[str, list[str]]:
    """Return the command lines to compare; ours is the first."""
    ours = [sys.executable, "-m", "pyvcpu", "boot", KERNEL, "--initrd", INITRD, "--smp", "4", "--memory", "256M"]
    theirs = [str(ADDED / LOADER), "--library-path", str(ADDED), str(ADDED / QEMU), "-L", str(ADDED)]
    theirs += ["-accel", "kvm", "-cpu", "host", "-smp", "4", "-m", "256M", "-nodefaults", "-no-user-config"]
    theirs += ["-display", "none", "-serial", "stdio", "-no-reboot"]
    theirs += ["-kernel", KERNEL, "-initrd", INITRD, "-append", append]
    return {
        "pyvcpu": [*ours, "--cpu", "host", "--append", append],
        "qemu -M microvm": [*theirs, "-M", "microvm"],
        "qemu -M pc": [*theirs, "-M", "pc"],
    }


class Stuck(Exception):
    """A boot that did not come to where it should."""


def boot(command: list[str], until: bytes) -> tuple[float, bytes]:
    """Boot until the console says `until`; return the seconds that took, and all that it said. Then end it.

    Raise Stuck when it ends before, or takes longer than LONG.
    """
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        signal.signal(signal.SIGALRM, lambda number, frame: process.kill())
        signal.setitimer(signal.ITIMER_REAL, LONG)
        said = bytearray()
        while until not in said and (data := os.read(process.stdout.fileno(), 1 << 16)):
            said += data
        took = time.perf_counter() - started
        signal.setitimer(signal.ITIMER_REAL, 0)
        process.kill()
        process.wait()
        process.stdout.close()
        errors.seek(0)
        if until not in said:
            raise Stuck(
                f"no {until!r} after {took:.0f} s: {shlex.join(command)}\n"
                f"{said[-2000:].decode('latin-1')}{errors.read().decode()}"
            )
    return took, bytes(said)


def compare(rounds: int, append: str) -> None:
    """Measure in turn, and print the table. A boot of QEMU that is stuck is told and does not count; ours ends all."""
    lines = commands(append)
    times: dict[str, list[float]] = {name: [] for name in lines}
    for number in range(rounds):
        for name, line in lines.items():
            try:
                times[name].append(boot(line, READY)[0])
                print(f"round {number + 1}: {name} {times[name][-1]:.2f} s", flush=True)
            except Stuck as error:
                print(error, flush=True)
                if name == "pyvcpu":
                    sys.exit(1)
    print(f"start to user space in s, {rounds} rounds, {append!r}")
    print(f"{'':<20}{'min':>8}{'median':>8}{'ratio of minima':>18}{'of medians':>12}")
    fastest, usual = min(times["pyvcpu"]), statistics.median(times["pyvcpu"])
    for name, values in times.items():
        if not values:
            print(f"{name:<20} never came to user space")
            continue
        low, middle = min(values), statistics.median(values)
        print(f"{name:<20}{low:>8.2f}{middle:>8.2f}{fastest / low:>18.2f}{usual / middle:>12.2f}")


def compare_messages() -> int:
    """Print what each kernel complains of; return 1 when ours has a line that no other has."""
    complaints = {}
    for name, line in commands(COMPLAINING).items():
        said = boot(line, EXIT)[1].decode("latin-1")
        # Numbers differ from boot to boot.
        complaints[name] = [re.sub(r"0x[0-9a-f]+|\d+", "#", message) for message in KERNEL_LINE.findall(said)]
        print(f"{name}: {len(complaints[name])} warnings and errors")
        print("".join(f"    {message}\n" for message in complaints[name]), end="")
    ours, *others = map(set, complaints.values())
    only = sorted(ours.difference(*others))
    print(f"only here: {len(only)}")
    print("".join(f"    {message}\n" for message in only), end="")
    return int(bool(only))


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how long Linux takes to user space, beside QEMU.")
    parser.add_argument("--rounds", type=int, default=3, help="how often (default 3)")
    parser.add_argument(
        "--append", default="console=ttyS0 quiet", help="the kernel's command line (default %(default)s)"
    )
    parser.add_argument("--messages", action="store_true", help="compare the kernel's complaints instead")
    parser.add_argument("--mmu", default="nested", help="the rig's kind of paging (default %(default)s)")
    options = parser.parse_args()
    if os.environ.get("PYVCPU_HOST") == "amd":
        if options.messages:
            return compare_messages()
        compare(options.rounds, options.append)
        return 0
    with tempfile.TemporaryDirectory() as name:
        copy_qemu(Path(name))
        again = ["--rounds", str(options.rounds), "--append", options.append, *["--messages"] * options.messages]
        return run(shlex.join(["python3", "-m", "bench.linux", *again]), mmu=options.mmu, add=name)


if __name__ == "__main__":
    sys.exit(main())
