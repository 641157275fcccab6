"""What the KVM tests share: guests in bytes, machines that record their exits, and the command in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyvcpu import Machine, State, Vcpu
from pyvcpu.exits import ExitEvent, MmioRead, MmioWrite, PortIn, PortOut
from pyvcpu.kvm.abi.exits import Exit
from tests.threads import DEADLINE, until

ROOT = Path(__file__).resolve().parents[2]
GUESTS = ROOT / "tests" / "guests"
IMAGES = ROOT / "examples" / "images"
DEVICE = os.environ.get("PYVCPU_KVM", "/dev/kvm")
SOFTWARE = os.environ.get("PYVCPU_ACCEL") == "tcg"

HLT = b"\xf4"
SPIN = b"\xeb\xfe"  # jmp .


def machine(
    code: bytes | Path, smp: int | str = 1, *, memory: str = "1M", mode: str | None = None, **options: Any
) -> Machine:
    """Return a machine with a flat image, real mode where nothing else is said; its output goes nowhere."""
    made = Machine(
        memory,
        smp,
        kvm=options.pop("kvm", DEVICE),
        cpu=options.pop("cpu", "host"),
        irqchip=options.pop("irqchip", None),
        output=options.pop("output", lambda data: None),
    )
    try:
        made.load(code, format=options.pop("format", "flat"), mode=mode, **options)
    except BaseException:
        made.close()
        raise
    return made


def record(made: Machine) -> list[ExitEvent]:
    """Return a list to which every exit is added that a vCPU makes, before it is served. For machines with one."""
    events: list[ExitEvent] = []
    for reason in Exit:
        made.on_exit(reason, lambda vcpu, event: events.append(event))
    return events


def accesses(events: Sequence[ExitEvent]) -> list[Any]:
    """Return the events with each string access taken apart: how many elements come in one exit is up to KVM."""
    single: list[ExitEvent] = []
    for event in events:
        match event:
            case PortOut(port, data, size):
                single += [PortOut(port, data[i : i + size], size) for i in range(0, len(data), size)]
            case PortIn(port, size, count):
                single += [PortIn(port, size)] * count
            case _:
                single.append(event)
    return single


def is_access(event: ExitEvent) -> bool:
    """Tell whether the exit is an access to a port or to MMIO."""
    return isinstance(event, (PortIn, PortOut, MmioRead, MmioWrite))


# Guests that show whether they run.

TICKER = IMAGES / "ticker.bin"  # vCPU i counts in the 32-bit word at 0x8000 + 4 * i, and never exits
OUT_COUNT = bytes.fromhex(
    "e6 50"  # 1: out %al,$0x50
    "ff 06 00 80"  # incw 0x8000
    "eb f8"  # jmp 1b
)


def counter(made: Machine, index: int) -> int:
    return made.memory.read_int(0x8000 + 4 * index)


def check_counting(made: Machine, index: int) -> None:
    before = counter(made, index)
    until(lambda: counter(made, index) != before, f"vCPU {index} does not run")


def check_standing(made: Machine, index: int) -> None:
    before = counter(made, index)
    assert [counter(made, index) for _ in range(20)] == [before] * 20, f"vCPU {index} runs"


def started(code: bytes | Path, smp: int = 1) -> Machine:
    """Return a machine whose vCPUs run, or have run."""
    made = machine(code, smp)
    made.start()
    made.resume()
    for vcpu in made.vcpus:
        state_of(vcpu)
    return made


def state_of(vcpu: Vcpu) -> State:
    """Return the state once the vCPU has done what was posted to it."""
    return vcpu.run_on_cpu(lambda vcpu: vcpu.state, DEADLINE) if vcpu.thread else vcpu.state


# The command.

LONG = 240.0 if os.environ.get("PYVCPU_HOST") else 60.0  # seconds after which a process hangs; an emulated host is slow


def command(*arguments: object) -> list[str]:
    """Return the command line of `python -m pyvcpu`."""
    return [sys.executable, "-m", "pyvcpu", *map(str, arguments)]


def environment(**changes: str | None) -> Mapping[str, str]:
    """Return the environment of the command: this checkout is found from every directory."""
    result = {**os.environ, "PYTHONPATH": str(ROOT), **({} if SOFTWARE else {"PYVCPU_KVM": DEVICE}), **changes}
    return {name: value for name, value in result.items() if value is not None}


def pyvcpu(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run `python -m pyvcpu` to its end, in another directory than this one."""
    settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "cwd": "/", "env": environment(), "timeout": LONG}
    if "stdout" not in options:
        settings["stdout"] = subprocess.PIPE
    if "stderr" not in options:
        settings["stderr"] = subprocess.PIPE
    if "input" in options:
        del settings["stdin"]
    return subprocess.run(command(*arguments), check=False, **{**settings, **options})


def boot(image: Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run `python -m pyvcpu boot` to its end."""
    return pyvcpu("boot", image, *arguments, **options)
