"""Kernel modules as a Debian package has them, plain or compressed, with those that they need."""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
from pathlib import Path

from .debian import RigError

ENDS = (".ko", ".ko.xz", ".ko.zst")
DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")  # of section .modinfo, which is strings that end with a zero


def read_module(path: Path) -> bytes:
    """Return what a module's file holds, uncompressed; .zst needs the program zstd."""
    data = path.read_bytes()
    if path.name.endswith(".ko.xz"):
        try:
            return lzma.decompress(data)
        except lzma.LZMAError as error:
            raise RigError(f"{path} cannot be unpacked: {error}") from None
    if path.name.endswith(".ko.zst"):
        if not shutil.which("zstd"):
            raise RigError(f"{path.name} is compressed: install zstd")
        done = subprocess.run(["zstd", "-dc"], input=data, capture_output=True)
        if done.returncode:
            raise RigError(f"{path} cannot be unpacked: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout
    return data


def plain_name(name: str) -> str:
    """Return a module's name as the kernel has it: `virtio-rng.ko.xz` is virtio_rng."""
    return name.partition(".")[0].replace("-", "_")


class Modules:
    """The modules of one kernel, below the folder lib/modules/VERSION."""

    def __init__(self, folder: Path) -> None:
        self.version = folder.name
        self._files = {plain_name(path.name): path for path in folder.rglob("*.ko*") if path.name.endswith(ENDS)}
        builtin = folder / "modules.builtin"
        self.builtin = builtin.read_bytes() if builtin.exists() else b""
        self._builtin = {plain_name(Path(line).name) for line in self.builtin.decode().splitlines()}

    def select(self, names: tuple[str, ...]) -> dict[str, bytes]:
        """Return the named modules and all that they need, file name -> plain content. What is built in is left out.

        Raises RigError when the kernel does not have one at all.
        """
        found: dict[str, bytes] = {}
        wanted = [plain_name(name) for name in names]
        while wanted:
            name = wanted.pop()
            if f"{name}.ko" in found or name in self._builtin:
                continue
            if name not in self._files:
                raise RigError(f"the kernel {self.version} has no module {name}")
            data = found[f"{name}.ko"] = read_module(self._files[name])
            if needs := DEPENDS.search(data):
                wanted += [plain_name(other) for other in needs[1].decode().split(",") if other]
        return found
