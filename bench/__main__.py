"""Run every measurement, interleaved, and print a table of medians and ratios: `make bench`.

python -m bench [--rounds N] [--seconds S] [--json FILE] [--plot FILE]

The C peer is compiled with gcc. The library runs in the interpreter that runs this. Needs /dev/kvm.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median

from .boot import BOOT, ENVIRONMENT, NOTHING, measure, most_memory
from .guests import MMIO_LOOP, PIO_LOOP, SPIN
from .lives import KICKS

ROOT = Path(__file__).resolve().parent.parent
QEMU = "qemu-system-x86_64"
# A boot sector: mov $msg,%si; cld; 1: lodsb; test %al,%al; jz 2f; out %al,$0xe9; jmp 1b; 2: out %al,$0xf4; jmp .
HELLO = bytes.fromhex("be117c fc ac 84c0 7404 e6e9 ebf7 e6f4 ebfe") + b"hello\n\0"
BOOTSECTOR = HELLO.ljust(510, b"\0") + b"\x55\xaa"

# What is compared: figure, the library's kind, the peer's guest, vCPUs, the least that the ratio should be.
RATES: list[tuple[str, str, str, int, float | None]] = [
    ("PIO, 1 vCPU", "pio", "pio", 1, 0.85),
    ("PIO, 2 vCPUs", "pio", "pio", 2, 0.70),
    ("MMIO, 1 vCPU", "mmio", "mmio", 1, None),
    ("MMIO, 2 vCPUs", "mmio", "mmio", 2, None),
    ("PIO with --stats", "stats+pio", "pio", 1, None),
    ("PIO with --trace", "trace+pio", "pio", 1, None),
    ("coalesced PIO", "coalesced-pio", "pio", 1, 3.3),
    ("coalesced MMIO", "coalesced-mmio", "mmio", 1, None),
    ("ioeventfd", "ioeventfd", "pio", 1, None),
    ("console bytes", "console", "pio", 1, 3.0),
]
# The most that other figures should be, or with a minus sign the least.
LIMITS = {
    "cost of --stats": 0.10,
    "KVM_GET_REGS / SYNC_REGS": -10.0,
    "kick p99, us": 60.0,
    "kicks lost": 0.0,
    "pause of 254, ms": 20.0,
    "stall of the others, ms": 100.0,
    "hello boot / -c pass": 3.0,
    "boot sector / QEMU TCG": 0.7,
    "boot sector / QEMU KVM": 0.05,
    "single steps / C": -0.7,
    "predicates / gdb": -20.0,
    "resets, 8 pages, whole state, /s": -10_000.0,
    "resets, 1 page, registers, /s": -20_000.0,
    "resets, 8 pages, whole state / C": -0.6,
    "resets, 8 pages, registers / C": -0.6,
    "resets / fresh machines": -5.0,
    "PSS of 50 clones / one": 3.0,
}


def number(command: list[str]) -> float:
    """Run a side of a measurement and return the figure that it prints."""
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    return float(done.stdout)


def rates(work: Path, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Return, for each of RATES, writes per second of both sides and their ratio: the medians of the rounds."""
    peer = work / "peer"
    subprocess.run(["gcc", "-O2", "-pthread", "-o", peer, ROOT / "bench" / "peer.c"], check=True)
    for name, code in (("pio", PIO_LOOP), ("mmio", MMIO_LOOP)):
        (work / name).write_bytes(code)
    python = sys.executable
    found: dict[str, list[tuple[float, float]]] = {figure: [] for figure, *_ in RATES}
    for turn in range(rounds):
        for figure, kind, guest, vcpus, _ in RATES:
            print(f"\rround {turn + 1} of {rounds}: {figure:<20}", end="", file=sys.stderr)
            theirs = number([str(peer), str(work / guest), str(vcpus), str(seconds)])
            ours = number([python, "-m", "bench.library", kind, str(vcpus), str(seconds)])
            found[figure].append((ours, theirs))
    print(file=sys.stderr)
    return {
        figure: {
            "library": median(ours for ours, _ in pairs),
            "C": median(theirs for _, theirs in pairs),
            "ratio": median(ours / theirs for ours, theirs in pairs),
        }
        for figure, pairs in found.items()
    }


def peer_kicks(work: Path) -> dict[str, float]:
    """Return how long the peer's kicks take, in us: what signal, exit and host make of it without Python."""
    (work / "spin").write_bytes(SPIN)
    line = [str(work / "peer"), str(work / "spin"), "0", str(KICKS)]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    latencies = sorted(float(line) / 1000 for line in done.stdout.split())
    return {"C: kick median, us": median(latencies), "C: kick p99, us": latencies[KICKS * 99 // 100]}


def boots(work: Path, rounds: int) -> dict[str, float]:
    """Return times in ms: the interpreter alone, hello, a boot sector, and QEMU with it where that is installed."""
    python = sys.executable
    sector = work / "hello.img"
    sector.write_bytes(BOOTSECTOR)
    commands: dict[str, tuple[list[str], int, int]] = {
        "-c pass, ms": ([python, *NOTHING], 0, rounds),
        "hello boot, ms": ([python, *BOOT], 0, rounds),
        "boot sector, ms": ([python, "-m", "pyvcpu", "boot", str(sector)], 1, rounds),
    }
    qemu = shutil.which(QEMU)
    for accel in ("tcg", "kvm") if qemu else ():
        line = [qemu or "", "-accel", accel, "-display", "none", "-nodefaults", "-debugcon", "null"]
        line += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-drive", f"format=raw,file={sector}"]
        commands[f"QEMU {accel.upper()}, ms"] = (line, 1, min(rounds, 3) if accel == "kvm" else rounds)
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(rounds + 1):  # the first does not count: files are read from the disk, modules compiled
        for name, (command, status, most) in commands.items():
            if turn <= most:
                took = measure(command, status).wall
                times[name] += [took] if turn else []
    figures = {name: median(taken) for name, taken in times.items()}
    figures["hello boot / -c pass"] = figures["hello boot, ms"] / figures["-c pass, ms"]
    for accel in ("TCG", "KVM") if qemu else ():
        figures[f"boot sector / QEMU {accel}"] = figures["boot sector, ms"] / figures[f"QEMU {accel}, ms"]
    figures["most memory resident, MiB"] = most_memory(python, [*BOOT[2:], "--memory", "64M"])
    return figures


def own(module: str, *arguments: str) -> dict[str, float]:
    """Return the figures of a module of bench, measured in a process of its own."""
    line = [sys.executable, "-m", f"bench.{module}", *arguments]
    done = subprocess.run(line, check=True, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def verdict(value: float, limit: float | None) -> str:
    """Say whether a figure is what it should be: at most `limit`, at least if that is below zero."""
    if limit is None:
        return ""
    good = value <= limit if limit >= 0 else value >= -limit
    wanted = f"at most {limit:g}" if limit >= 0 else f"at least {-limit:g}"
    return f"{wanted}{'' if good else ': MISSED'}"


def table(compared: dict[str, dict[str, float]], figures: dict[str, float]) -> list[str]:
    """Return the lines of a Markdown table for docs/benchmarks.md."""
    lines = ["| writes per second | library | C, an exit each | ratio | wanted |", "|---|---:|---:|---:|---|"]
    for figure, _, _, _, least in RATES:
        row = compared[figure]
        wanted = verdict(row["ratio"], -least if least else None)
        lines.append(f"| {figure} | {row['library']:,.0f} | {row['C']:,.0f} | {row['ratio']:.2f} | {wanted} |")
    lines += ["", "| figure | value | wanted |", "|---|---:|---|"]
    lines += [f"| {name} | {value:,.2f} | {verdict(value, LIMITS.get(name))} |" for name, value in figures.items()]
    return lines


def plot(file: str, compared: dict[str, dict[str, float]]) -> None:
    """Draw the ratios; needs matplotlib."""
    import_module("matplotlib").use("Agg")  # by name: checks must pass where it is not installed
    pyplot = import_module("matplotlib.pyplot")
    names = list(compared)[::-1]
    figure, axes = pyplot.subplots(figsize=(8, 4))
    axes.barh(names, [compared[name]["ratio"] for name in names])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("writes per second, over C with an exit for each")
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the library beside C and QEMU.")
    parser.add_argument("--rounds", type=int, default=15, help="how often both sides of a rate run (default 15)")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each of them runs (default 0.5)")
    parser.add_argument("--json", default="bench.json", help="where to write all figures (default bench.json)")
    parser.add_argument("--plot", help="where to draw the ratios, such as docs/benchmarks.svg")
    options = parser.parse_args()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as work:
        compared = rates(Path(work), options.rounds, options.seconds)
        figures = {"cost of --stats": 1 - compared["PIO with --stats"]["ratio"] / compared["PIO, 1 vCPU"]["ratio"]}
        parts: list[Callable[[], dict[str, float]]] = [
            lambda: own("lives", "registers"),
            lambda: own("lives", "kicks"),
            lambda: peer_kicks(Path(work)),
            lambda: own("lives", "pauses"),
            lambda: own("lives", "creation"),
            lambda: own("lives", "plugs"),
            lambda: own("debug"),
            lambda: own("resets", str(options.seconds), str(options.rounds)),
            lambda: boots(Path(work), max(options.rounds, 1) * 3),
        ]
        for part in parts:
            figures |= part()
    print("\n".join(table(compared, figures)))
    with open(options.json, "w", encoding="utf-8") as file:
        json.dump({"python": sys.version, "rates": compared, "figures": figures}, file, indent=1)
    if options.plot:
        plot(options.plot, compared)


if __name__ == "__main__":
    main()
