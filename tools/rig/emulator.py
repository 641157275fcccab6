"""The QEMU that a rig runs in: the host's own, or one of another Debian release, unpacked beside its libraries."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from .debian import LIBRARIES, Release, RigError, begins, cache_folder, forget_old, locked, output, say, with_libraries

PACKAGE = "qemu-system-x86"
PROGRAM = "qemu-system-x86_64"
RELEASES = {"7.2": "bookworm", "10.0": "trixie"}  # the one of sid has a new version every few months
# With shadow paging, QEMU 10 stops every Linux guest at its first page fault; with nested paging 7.2 stands still at
# times, and 10 does not.
DEFAULTS = {"nested": "10.0", "shadow": "7.2"}
SYSTEM = "system"
KEPT = 4
# Of what QEMU's packages and those that they need hold, this is used.
FIRMWARE = ("usr/share/qemu", "usr/share/seabios")
USED = (f"usr/bin/{PROGRAM}", *LIBRARIES, *FIRMWARE)


@dataclass(frozen=True)
class Emulator:
    """A QEMU: the words its command line begins with, and what its environment needs."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def find_emulator(wanted: str | None, mmu: str) -> Emulator:
    """Return QEMU in the version that `wanted` begins, or at that path, or the host's ("system").

    None: the one that is best for this kind of paging, or the host's where that cannot be had.
    """
    version = wanted or DEFAULTS[mmu]
    if "/" in version:
        if not shutil.which(version):
            raise RigError(f"{version} is no program")
        return Emulator([version])
    there = system_version()
    if version == SYSTEM and not there:
        raise RigError(f"{PROGRAM} is not installed: apt-get install {PACKAGE}, or leave out QEMU=")
    if version == SYSTEM or begins(there, version):
        return Emulator([PROGRAM])
    try:
        return unpacked(version)
    except RigError as error:
        if wanted or not there:
            raise
        say(f"{error}\nQEMU {version} cannot be had; the host's {there} is used")
        return Emulator([PROGRAM])


def system_version() -> str:
    """Return the version of the host's QEMU, an empty string when it has none."""
    if not shutil.which(PROGRAM):
        return ""
    done = subprocess.run([PROGRAM, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    found = re.search(r"version (\d[\d.]*)", done.stdout)
    return found[1] if found else ""


def install_system() -> None:
    """Install the host's own QEMU when it is missing and we may."""
    if shutil.which(PROGRAM):
        return
    if os.geteuid() != 0:
        raise RigError(f"{PROGRAM} is not installed: apt-get install {PACKAGE}")
    say(f"installing {PACKAGE}")
    output(["apt-get", "-q", "update"])
    output(["apt-get", "-q", "install", "-y", "--no-install-recommends", PACKAGE])


def unpacked(wanted: str) -> Emulator:
    """Return the QEMU of a Debian release; it is unpacked when it is not cached. `wanted` may be "sid"."""
    name = next((name for number, name in RELEASES.items() if begins(number, wanted)), "sid")
    release = Release(name)
    there = release.version(PACKAGE).partition(":")[2]
    if wanted != "sid" and not begins(re.split(r"[+~-]", there)[0], wanted):
        known = " or ".join(f"QEMU={number}" for number in RELEASES)
        raise RigError(f"no Debian release has QEMU {wanted}: sid has {there}, which is QEMU=sid; else {known}")
    lines = release.closure(PACKAGE)
    cache = cache_folder() / "qemu"
    root = cache / hashlib.sha256("\n".join([*lines, *USED]).encode()).hexdigest()[:16]
    with locked(cache_folder() / "lock-qemu"):
        if root.is_dir():
            os.utime(root)
        else:
            cache.mkdir(parents=True, exist_ok=True)
            say(f"unpacking QEMU {there} with its libraries in {root}")
            with tempfile.TemporaryDirectory(dir=cache, prefix="new-") as folder:
                release.unpack(lines, Path(folder, "all"))
                os.rename(keep_used(Path(folder, "all"), Path(folder, "root")), root)
            forget_old(cache, KEPT)
    return emulator(root)


def keep_used(source: Path, target: Path) -> Path:
    """Move what is used from `source` to `target`, and return that."""
    for name in USED:
        if (source / name).exists() and not (target / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).rename(target / name)
    return target


def emulator(root: Path) -> Emulator:
    """Return how the QEMU unpacked in `root` is started: by its own loader, which finds its own libraries."""
    command = with_libraries(root, f"usr/bin/{PROGRAM}")
    for name in FIRMWARE:
        command += ["-L", str(root / name)]
    modules = next((root / name / "qemu" for name in LIBRARIES if (root / name / "qemu").is_dir()), root)
    return Emulator(command, {"QEMU_MODULE_DIR": str(modules)})
