"""Run boot and the tests in fresh Debian systems: a folder for each, entered by chroot (docs/rig.md).

    python -m tools.roots                                          # Debian 12, 13 and sid, each with and without
    python -m tools.roots --release 13 --tools no --kvm yes        # tools and /dev/kvm; or only one of them
    python -m tools.roots --release sid --python 3.14 -- tests/unit
    python -m tools.roots --release 12 --shell 'ls -l /dev'

Needs root, debootstrap and a kernel with overlayfs. What is downloaded and unpacked stays in ~/.cache/pyvcpu-roots (or
$PYVCPU_ROOTS_CACHE) for a week. A run writes into memory and into a copy of the checkout, and ends with everything
that it started: it has mounts and process numbers of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.rig.debian import ARCHITECTURE, RELEASES, RigError, forget_old, keyring, locked, mirror, output
from tools.rig.run import skip_in_checkout

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ca-certificates", "make", "python3", "python3-venv")
TOOLS = ("acpica-tools", "binutils", "gcc", "gdb", "git", "libc6-dev", "lldb", "qemu-utils", "tmux")
TESTERS = ("hypothesis", "pytest", "pytest-timeout")  # the others may not be built for a new Python yet
MAXIMUM_AGE = 7 * 24 * 3600  # seconds
KEPT = 12
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
# A proxy or a package index of the host is the root's, too.
PASSED_ON = re.compile(r"(PIP_\w+|PYVCPU_\w+|HYPOTHESIS_PROFILE|\w+_proxy|\w+_PROXY)")
HOST_FILES = ("/etc/resolv.conf", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
HELLO = "python3 -m pyvcpu boot examples/images/hello.bin --smp 4"
GREETINGS = [f"hello from vCPU {index} of 4" for index in range(4)]
COUNTS = re.compile(r"=+ (.* in [\d.]+s.*?) =+$", re.MULTILINE)

# Everything is mounted in a name space of its own: it is gone when its first process ends, with all the others.
SETUP = """
set -e
mount --make-rprivate /
cd "$WORK"
mkdir -p tree memory
if [ -n "$CHANGE" ]; then
    mount --bind "$BASE" tree
else
    mount -t tmpfs -o mode=755 memory memory
    mkdir memory/upper memory/work
    mount -t overlay overlay -o "lowerdir=$BASE,upperdir=memory/upper,workdir=memory/work" tree
fi
mount -t proc proc tree/proc
mount --rbind /sys tree/sys
mount -t tmpfs -o mode=755 dev tree/dev
for name in $NODES; do touch tree/dev/$name; mount --bind /dev/$name tree/dev/$name; done
mkdir tree/dev/pts tree/dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts tree/dev/pts
mount -t tmpfs -o mode=1777 shm tree/dev/shm
mount -t tmpfs -o mode=1777 tmp tree/tmp
ln -s pts/ptmx tree/dev/ptmx
ln -s /proc/self/fd tree/dev/fd
for number in 0:stdin 1:stdout 2:stderr; do ln -s "fd/${number%:*}" "tree/dev/${number#*:}"; done
for path in $BOUND; do
    mkdir -p "tree${path#*=}"
    mount --bind "${path%%=*}" "tree${path#*=}"
done
for path in $COPIED; do
    if [ -e "$path" ]; then mkdir -p "tree${path%/*}"; rm -f "tree$path"; cat "$path" >"tree$path"; fi
done
echo "127.0.0.1 localhost" >tree/etc/hosts
exec chroot tree /bin/sh -c 'cd "$0" && exec "$@"' "$FOLDER" "$@"
"""


@dataclass(frozen=True)
class Kind:
    """One kind of system to run in."""

    release: str  # "12", "13" or "sid"
    tools: bool = True
    kvm: bool = True
    python: str | None = None  # a version other than the system's own

    def __str__(self) -> str:
        python = f", Python {self.python}" if self.python else ""
        having = f"{'with' if self.tools else 'without'} tools, {'with' if self.kvm else 'without'} /dev/kvm"
        return f"Debian {self.release}{python}, {having}"

    def packages(self) -> list[str]:
        """Return what is installed beside the base system."""
        python = [f"python{self.python}", f"python{self.python}-venv"] if self.python else []
        return sorted({*PACKAGES, *(TOOLS if self.tools else ()), *python})


def say(text: str) -> None:
    """Tell the user what takes so long."""
    print(f"roots: {text}", file=sys.stderr, flush=True)


def cache_folder() -> Path:
    """Return where packages and unpacked systems are kept."""
    if chosen := os.environ.get("PYVCPU_ROOTS_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyvcpu-roots"


def find_system(kind: Kind) -> Path:
    """Return the folder with an installed system; it is made when none, or only an old one, is cached."""
    suite = RELEASES[kind.release]
    base = cached(suite, lambda folder: debootstrap(suite, folder))
    packages = kind.packages()
    key = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:8]

    def install(folder: Path) -> None:
        say(f"installing {' '.join(packages)} for Debian {kind.release}")
        output(["cp", "-a", "--reflink=auto", str(base), str(folder)])
        # A mirror may be a snapshot, and then old.
        settings = ["APT::Sandbox::User=root", "APT::Install-Recommends=false", "Acquire::Check-Valid-Until=false"]
        settings += host_proxies()
        apt = shlex.join(["apt-get", "-q", *(word for setting in settings for word in ("-o", setting))])
        command = f"{apt} update && {apt} install -y {shlex.join(packages)}"
        archives = cache_folder() / "debs" / suite
        with tempfile.TemporaryDirectory(prefix="pyvcpu-root-") as work:
            bound = {archives: "/var/cache/apt/archives"}
            done = enter(Path(work), folder, ["sh", "-c", command], change=True, bound=bound, quiet=True)
        if done.returncode:
            raise RigError(f"{command} ended with {done.returncode}:\n{done.stdout}")

    return cached(f"{suite}-{key}", install)


def host_proxies() -> list[str]:
    """Return the settings of the host's apt that say which proxies it uses."""
    found = re.findall(r'^(Acquire::https?::Proxy) "(.+)";$', output(["apt-config", "dump"]), re.MULTILINE)
    return [f"{name}={value}" for name, value in found]


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder `name` of the cache, made by `make` when it is missing or old."""
    cache = cache_folder() / "systems"
    cache.mkdir(parents=True, exist_ok=True)
    target, made = cache / name, cache / name / "etc/pyvcpu-made"
    with locked(cache_folder() / f"lock-{name}"):
        if made.exists() and time.time() - made.stat().st_mtime < MAXIMUM_AGE:
            os.utime(target)
            return target
        shutil.rmtree(target, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="new-") as folder:
            make(Path(folder, "tree"))
            Path(folder, "tree/etc/pyvcpu-made").touch()
            os.rename(Path(folder, "tree"), target)
        forget_old(cache, KEPT)
    return target


def debootstrap(suite: str, folder: Path) -> None:
    """Install the smallest system of a release."""
    if not shutil.which("debootstrap"):
        raise RigError("debootstrap is not installed: apt-get install debootstrap")
    say(f"installing the base system of {suite}")
    archives = cache_folder() / "debs" / suite
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    options = [f"--arch={ARCHITECTURE}", "--variant=minbase", f"--keyring={keyring()}", f"--cache-dir={archives}"]
    output(["debootstrap", *options, suite, str(folder), mirror()])


def enter(
    work: Path,
    base: Path,
    command: list[str],
    *,
    folder: str = "/",
    change: bool = False,
    kvm: bool = False,
    bound: dict[Path, str] | None = None,
    variables: dict[str, str] | None = None,
    quiet: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a command in the system `base`, with the empty folder `work` for its mounts, and return how it ended.

    `change`: what it writes stays. `bound`: folders of the host, and where they are inside. `quiet`: what it says is
    kept back; else it is shown, too.
    """
    nodes = [*DEVICES, *["kvm"] * kvm]
    setting = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "DEBIAN_FRONTEND": "noninteractive",
        **{name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)},
        **(variables or {}),
        "WORK": str(work),
        "BASE": str(base),
        "CHANGE": "yes" if change else "",
        "NODES": " ".join(nodes),
        "BOUND": " ".join(f"{source}={target}" for source, target in (bound or {}).items()),
        "COPIED": " ".join(HOST_FILES),
        "FOLDER": folder,
    }
    process = subprocess.Popen(
        [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            SETUP,
            "root",
            *command,
        ],
        env=setting,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    said = []
    assert process.stdout is not None
    try:
        for line in process.stdout:
            said.append(line)
            if not quiet:
                print(line, end="", flush=True)
        return subprocess.CompletedProcess(command, process.wait(), "".join(said))
    finally:
        process.kill()
        process.wait()


def run(kind: Kind, arguments: list[str], shell: str | None) -> tuple[bool, str]:
    """Run boot and the tests, or a shell command, in a fresh system; tell whether it passed, and what is to be said."""
    base = find_system(kind)
    say(f"{kind}: {shell or 'boot and tests'}")
    with tempfile.TemporaryDirectory(prefix="pyvcpu-root-") as name:
        copy, work = Path(name, "src"), Path(name, "work")
        copy_checkout(copy)
        pip = cache_folder() / "pip"
        pip.mkdir(exist_ok=True)

        def inside(command: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
            work.mkdir(exist_ok=True)
            variables = {"PYVCPU_REQUIRE_KVM": str(int(kind.kvm)), "PYVCPU_REQUIRE_TOOLS": str(int(kind.tools))}
            bound = {copy: "/src", pip: "/root/.cache/pip"}
            words = ["sh", "-c", command]
            return enter(work, base, words, folder="/src", kvm=kind.kvm, bound=bound, variables=variables, quiet=quiet)

        if shell is not None:
            done = inside(shell)
            return done.returncode == 0, f"status {done.returncode}"
        if problem := boot_problem(inside(HELLO.replace("python3", interpreter(kind)), quiet=True), kind.kvm):
            return False, problem
        done = inside(test_command(kind, arguments))
        counts = COUNTS.findall(done.stdout)
        return done.returncode == 0, counts[-1] if counts else f"status {done.returncode}"


def interpreter(kind: Kind) -> str:
    """Return the name of the Python that runs the tests."""
    return f"python{kind.python}" if kind.python else "python3"


def boot_problem(done: subprocess.CompletedProcess[str], kvm: bool) -> str | None:
    """Return what is wrong with how the README's first command ended, None when nothing is."""
    lines = done.stdout.splitlines()
    notes = [line for line in lines if line not in GREETINGS]
    right = done.returncode == 0 and sorted(line for line in lines if line in GREETINGS) == GREETINGS
    # Without KVM it goes on in software, and says so.
    if right and (notes == [] if kvm else len(notes) == 1 and "/dev/kvm" in notes[0]):
        return None
    return f"boot {'with' if kvm else 'without'} /dev/kvm ended with {done.returncode}:\n{done.stdout}"


def test_command(kind: Kind, arguments: list[str]) -> str:
    """Return the shell command that runs the tests: the README's, but for a Python that not all tools know yet."""
    words = shlex.join(arguments)
    if not kind.python:
        target = "pytest" if arguments else "test"
        return f"make {target} VENV=/tmp/venv ARGS={shlex.quote(words)}"
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    wanted = shlex.join(pin for pin in pins if re.split(r"[<>=]", pin)[0] in TESTERS)
    python = "/tmp/venv/bin/python"
    pip = f"{python} -m pip install --quiet"
    return f"{interpreter(kind)} -m venv /tmp/venv && {pip} {wanted} && {pip} -e . && {python} -m pytest {words}"


def copy_checkout(target: Path) -> None:
    """Copy what is on disk, without what it can do without."""

    def ignore(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if skip_in_checkout(name)]

    shutil.copytree(ROOT, target, symlinks=True, ignore=ignore)


def main() -> int:
    """Run in all kinds of system that are asked for; return 1 when one failed."""
    arguments = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if os.geteuid() != 0:
        say("only root can mount and chroot: run it with sudo")
        return 1
    answers = {"yes": True, "no": False}
    pythons = arguments.python or [None]
    kinds = [
        Kind(release, answers[tools], answers[kvm], python)
        for release, python, tools, kvm in itertools.product(
            arguments.release or RELEASES, pythons, arguments.tools or answers, arguments.kvm or answers
        )
    ]
    results = []
    for kind in kinds:
        started = time.monotonic()
        try:
            passed, told = run(kind, arguments.arguments, arguments.shell)
        except RigError as error:
            passed, told = False, str(error)
        results.append(passed)
        say(f"{kind}: {'passed' if passed else 'FAILED'} in {time.monotonic() - started:.0f} s: {told}")
    return int(not all(results))


def parser() -> argparse.ArgumentParser:
    """Return the reader of the command line."""
    top = argparse.ArgumentParser(prog="python -m tools.roots", description="Boot and tests in fresh Debian systems.")
    top.add_argument("--release", choices=RELEASES, action="append", help="only this release")
    top.add_argument(
        "--tools", choices=("yes", "no"), action="append", help="only with, or without, compiler and tools"
    )
    top.add_argument("--kvm", choices=("yes", "no"), action="append", help="only with, or without, /dev/kvm")
    top.add_argument("--python", metavar="VERSION", action="append", help="with this Python, and not the release's own")
    top.add_argument("--shell", metavar="COMMAND", help="run this, and not boot and tests")
    top.add_argument("arguments", nargs="*", metavar="ARG", help="goes to pytest, which then is all that runs")
    return top


if __name__ == "__main__":
    sys.exit(main())
