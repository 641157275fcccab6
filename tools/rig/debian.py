"""Debian packages of any release, on any Debian or Ubuntu: package lists of its own, nothing of the host's is changed.

Needs apt-get, apt-cache, dpkg and Debian's archive keys, and no rights beyond a user's. Lists are kept in the cache
folder and fetched anew when they are a day old.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"  # signed by Debian's keys, so http does
SECURITY = "http://deb.debian.org/debian-security"
KEYRING = Path("usr/share/keyrings/debian-archive-keyring.gpg")
RELEASES = {"12": "bookworm", "13": "trixie", "sid": "sid"}
LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
LOADER = "ld-linux-x86-64.so.2"  # in one of these; lib64 may have a link to the host's
MAXIMUM_AGE = 24 * 3600  # seconds that a package list is good for
ARCHITECTURE = "amd64"


class RigError(Exception):
    """What keeps the rig from running, in words for the user."""


def cache_folder() -> Path:
    """Return where images and package lists are kept: PYVCPU_RIG_CACHE, or a folder of the user's cache."""
    if chosen := os.environ.get("PYVCPU_RIG_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyvcpu-rig"


def say(text: str) -> None:
    """Tell the user what takes so long."""
    print(f"rig: {text}", file=sys.stderr, flush=True)


def output(command: list[str], cwd: Path | None = None) -> str:
    """Run a command that must succeed, and return what it says. Its language is C, its standard input is empty."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise RigError(
            f"{command[0]} is not installed: the rig is made of Debian packages, and needs Debian's tools"
        ) from None
    if done.returncode:
        said = f"{done.stdout}{done.stderr}".rstrip()
        raise RigError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{said}")
    return done.stdout


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path` against other processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def mirror() -> str:
    """Return where packages come from: PYVCPU_DEBIAN_MIRROR, or Debian's own name for the nearest one."""
    return os.environ.get("PYVCPU_DEBIAN_MIRROR") or MIRROR


def keyring() -> Path:
    """Return the file with Debian's archive keys; Ubuntu has it in a package, which is unpacked and not installed."""
    installed = Path("/") / KEYRING
    if installed.exists():
        return installed
    folder = cache_folder() / "keyring"
    if not (folder / KEYRING).exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            output(["apt-get", "-q", "download", "debian-archive-keyring"], cwd=folder)
        except RigError as error:
            raise RigError(f"Debian's archive keys are missing: install debian-archive-keyring\n{error}") from None
        unpack(folder, folder)
    return folder / KEYRING


def unpack(debs: Path, root: Path) -> None:
    """Unpack each package of the folder `debs` into `root`, and remove it."""
    for deb in sorted(debs.glob("*.deb")):
        output(["dpkg", "-x", str(deb), str(root)])
        deb.unlink()


def with_libraries(root: Path, program: str) -> list[str]:
    """Return the command that starts a program unpacked in `root` with the loader and the libraries there."""
    folders = [root / name for name in LIBRARIES if (root / name).is_dir()]
    loader = next(folder / LOADER for folder in folders if (folder / LOADER).exists())
    path = ":".join(map(str, folders))
    return [str(loader), "--inhibit-cache", "--library-path", path, str(root / program)]


class Release:
    """The packages of one Debian release, by its code name: "bookworm", "trixie", "sid"."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._folder = cache_folder() / "apt" / name
        self._fresh = False

    def sources(self) -> str:
        """Return the lines that tell apt where the packages are."""
        head = f"deb [arch={ARCHITECTURE} signed-by={keyring()}]"
        lines = [f"{head} {mirror()} {self.name} main"]
        if self.name != "sid":
            lines += [f"{head} {mirror()} {self.name}-updates main", f"{head} {SECURITY} {self.name}-security main"]
        return "\n".join(lines) + "\n"

    def uris(self, *packages: str) -> list[str]:
        """Return one line for each package's file, with its name, size and checksum."""
        return files(self._apt("apt-get", "download", "--print-uris", *packages))

    def closure(self, *packages: str) -> list[str]:
        """Return such lines for the packages and all that they depend on, as if nothing was installed."""
        return files(self._apt("apt-get", "install", "--yes", "--print-uris", *packages))

    def download(self, names: list[str], folder: Path) -> None:
        """Fetch packages, each `name` or `name=version`, into `folder`."""
        self._apt("apt-get", "download", *names, cwd=folder)

    def unpack(self, lines: list[str], root: Path) -> None:
        """Fetch and unpack what `uris` or `closure` listed into `root`, which is made."""
        root.mkdir(parents=True, exist_ok=True)
        self.download([name_and_version(line) for line in lines], root)
        unpack(root, root)

    def depends(self, package: str) -> list[str]:
        """Return the names of the packages that `package` depends on itself."""
        lines = self._apt("apt-cache", "depends", package).splitlines()
        return [line.split()[-1] for line in lines if line.strip().startswith("Depends:")]

    def version(self, package: str) -> str:
        """Return the version that the release has of `package`."""
        found = re.search(r"Candidate: (\S+)", self._apt("apt-cache", "policy", package))
        if found is None or found[1] == "(none)":
            raise RigError(f"Debian {self.name} has no package {package}")
        return found[1]

    def _apt(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        """Run an apt program on the release's lists; once more with fresh ones when a package's file has gone."""
        self._update(MAXIMUM_AGE)
        try:
            return output([program, *self._options(), *arguments], cwd)
        except RigError:
            if self._fresh:
                raise
            self._update(0)
            return output([program, *self._options(), *arguments], cwd)

    def _update(self, age: float) -> None:
        """Fetch the package lists unless those that are there are at most `age` seconds old."""
        stamp = self._folder / "updated"
        with locked(self._folder / "lock"):
            sources, wanted = self._folder / "sources.list", self.sources()
            there = stamp.exists() and sources.exists() and sources.read_text() == wanted
            if self._fresh or (there and time.time() - stamp.stat().st_mtime <= age):
                return
            for name in ("lists/partial", "cache/archives/partial"):
                (self._folder / name).mkdir(parents=True, exist_ok=True)
            (self._folder / "status").touch()
            sources.write_text(wanted)
            say(f"fetching the package lists of Debian {self.name}")
            try:
                output(["apt-get", *self._options(), "-o", "APT::Update::Error-Mode=any", "update"])
            except RigError as error:
                if not there:
                    raise
                say(f"{error}\nthe lists of {time.ctime(stamp.stat().st_mtime)} are used")
                return
            stamp.touch()
            self._fresh = True

    def _options(self) -> list[str]:
        """Return the options that keep apt to the release's own lists and to its own idea of what is installed."""
        folder = self._folder
        settings = {
            "Dir::State": folder,
            "Dir::State::lists": folder / "lists",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": ARCHITECTURE,
            "APT::Architectures": ARCHITECTURE,
            "APT::Default-Release": "",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            # A mirror may be a snapshot, and then old; its packages are signed all the same.
            "Acquire::Check-Valid-Until": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Debug::NoLocking": "true",
        }
        return ["-q", *(part for name, value in settings.items() for part in ("-o", f"{name}={value}"))]


def files(said: str) -> list[str]:
    """Return the lines of `apt-get --print-uris` that stand for files: 'URI' name size checksum."""
    return sorted(line.split(maxsplit=1)[1] for line in said.splitlines() if line.startswith("'"))


def name_and_version(line: str) -> str:
    """Return `name=version` of such a line, whose file is name_version_architecture.deb, with %3a for a colon."""
    name, version, _ = line.split()[0].split("_")
    return f"{name}={version.replace('%3a', ':')}"


def begins(version: str, wanted: str) -> bool:
    """Tell whether a version begins with the numbers of `wanted`: 10.0.2 with 10 and 10.0, not with 1."""
    return f"{version}.".startswith(f"{wanted}.")


def forget_old(folder: Path, keep: int) -> None:
    """Remove all but the `keep` sub-folders used last."""
    found = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in [path for path in found if path.is_dir()][keep:]:
        shutil.rmtree(path, ignore_errors=True)
