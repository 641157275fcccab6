"""Run one command in the rig: QEMU around it, its output as it comes, its exit status."""

from __future__ import annotations

import os
import secrets
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

from .cpio import Archive
from .debian import RigError, say
from .emulator import Emulator, find_emulator
from .image import DEFAULT_KERNEL, GUEST_INITRD, GUEST_KERNEL, find_image

ROOT = Path(__file__).resolve().parents[2]
# What a guest inside cannot use with QEMU 7.2 is not offered: AVX, which gives #UD there, and XSAVE, because XSETBV is
# not intercepted, so that KVM does not learn what the guest has enabled, and takes it away. And qemu64 has no nested
# paging.
CPUS = {"nested": "max,-avx,-avx2,-f16c,-fma,-vaes,-xsave", "shadow": "qemu64,+svm"}
KERNEL_OPTIONS = "console=ttyS0 panic=-1 mitigations=off tsc=reliable"
SKIPPED = {".git", "__pycache__", "build", "dist", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache"}
PASSED_ON = (
    *("PYVCPU_REPEAT", "PYVCPU_FUZZ", "PYVCPU_PLUG_CYCLES", "PYVCPU_LINUX_BOOTS", "PYVCPU_LINUX_PASTED"),
    "HYPOTHESIS_PROFILE",
)
FEWER = {"PYVCPU_PLUG_CYCLES": "100"}  # repetitions, unless something else is asked for: emulation is slow

STATUS_DIED, STATUS_TIMEOUT, STATUS_PIPE = 125, 124, 128 + signal.SIGPIPE
CHUNK = 1 << 16
CONSOLE_LINES, CONSOLE_BYTES = 40, 1 << 14


class Stream:
    """Takes what comes through a port, and hands all of it on but the last line: the token and the status."""

    def __init__(self, token: bytes, target: BinaryIO) -> None:
        self.status: int | None = None
        self._token = token
        self._target = target
        self._held = b""  # may be the beginning of the token

    def feed(self, data: bytes) -> None:
        """Hand on what is certainly the command's."""
        data = self._held + data
        before, token, after = data.partition(self._token)
        if token:
            self._held = token + after
            if after.endswith(b"\n"):
                self.status = int(after)
        else:
            held = next((n for n in range(len(self._token) - 1, 0, -1) if data.endswith(self._token[:n])), 0)
            before, self._held = data[: len(data) - held], data[len(data) - held :]
        if before:
            self._target.write(before)
            self._target.flush()

    def end(self) -> None:
        """Hand on what looked like the beginning of the token, and was not: nothing more comes."""
        if self.status is None:
            self._target.write(self._held)
            self._target.flush()
            self._held = b""


def run(
    command: str,
    *,
    mmu: str = "nested",
    add: str | None = None,
    memory: str = "2G",
    smp: int = 2,
    timeout: float | None = None,
    silence: float | None = None,
    console: str | None = None,
    kernel: str = DEFAULT_KERNEL,
    emulator: str | None = None,
) -> int:
    """Run a shell command in the checkout, inside; return its status, 124 after `timeout` seconds, 125 without one.

    `add`: a folder that is /add inside. `silence`: the rig counts as dead after so many seconds without output.
    `console`: a file for what the kernel says. `kernel`, `emulator`: the kernel and the QEMU, by what their versions
    begin with.
    """
    if add is not None and not Path(add).is_dir():
        raise RigError(f"{add} is no folder")
    image = find_image(kernel)
    program = find_emulator(emulator, mmu)
    with tempfile.TemporaryDirectory(prefix="pyvcpu-rig-") as name:
        folder = Path(name)
        token = secrets.token_hex(16)
        write_initrd(folder / "initrd", image, command, token, mmu, add)
        log = folder / "console"
        started = time.monotonic()
        try:
            status = drive(program, machine(image, folder, mmu, memory, smp), folder, token.encode(), timeout, silence)
        finally:
            if console is not None and log.exists():
                shutil.copyfile(log, console)
        if said := tail(folder / "qemu"):
            say(f"QEMU said:\n{said}")
        if status is None:
            expired = timeout is not None and time.monotonic() - started >= timeout
            say(f"the time of {timeout} s is up" if expired else "QEMU ended before the command did, or stood still")
            say("its kernel said last:\n" + (tail(log) or "nothing"))
            return STATUS_TIMEOUT if expired else STATUS_DIED
        return status


def tail(path: Path) -> str:
    """Return the last lines of a file, an empty string where there is none."""
    if not path.exists():
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - CONSOLE_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-CONSOLE_LINES:])


def write_initrd(path: Path, image: Path, command: str, token: str, mmu: str, add: str | None) -> None:
    """Write what the kernel unpacks: the image, then the checkout and the command."""
    with open(path, "wb") as file:
        with open(image / "base.cpio", "rb") as base:
            shutil.copyfileobj(base, file, 1 << 20)
        archive = Archive(file)
        archive.tree(ROOT, "src", skip_in_checkout)
        if add is not None:
            archive.tree(Path(add), "add")
        archive.add("rig/command", command.encode() + b"\n")
        archive.add("rig/token", token.encode() + b"\n")
        archive.add("rig/environment", environment(mmu).encode())
        archive.close()


def skip_in_checkout(path: str) -> bool:
    """Tell what of the checkout stays outside."""
    name = os.path.basename(path)
    return name in SKIPPED or name.startswith(".venv") or name.endswith(".egg-info")


def environment(mmu: str) -> str:
    """Return the shell lines that set the command's environment."""
    variables = {
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PYVCPU_HOST": "amd",
        "PYVCPU_MMU": mmu,
        "PYVCPU_REQUIRE_KVM": "1",
        "PYVCPU_GUEST_KERNEL": f"/{GUEST_KERNEL}",
        "PYVCPU_GUEST_INITRD": f"/{GUEST_INITRD}",
        **FEWER,
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
    }
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


def machine(image: Path, folder: Path, mmu: str, memory: str, smp: int) -> list[str]:
    """Return QEMU's options but for the two ports."""
    return [
        *("-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", CPUS[mmu]),
        *("-m", memory, "-smp", str(smp)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(image / "vmlinuz"), "-initrd", str(folder / "initrd"), "-append", KERNEL_OPTIONS),
        *("-serial", f"file:{folder / 'console'}", "-device", "virtio-serial-pci"),
    ]


def drive(
    program: Emulator,
    options: list[str],
    folder: Path,
    token: bytes,
    timeout: float | None,
    silence: float | None = None,
) -> int | None:
    """Run QEMU until the command inside has ended, and return its status; None when it has none.

    What QEMU itself says goes to the file `qemu` in `folder`: neither stream of ours is its.
    """
    command = [*program.command, *options]
    ends = [socket.socketpair(), socket.socketpair()]
    streams = [Stream(token, sys.stdout.buffer), Stream(token, sys.stderr.buffer)]
    for number, (_, theirs) in enumerate(ends, 1):
        command += ["-chardev", f"socket,id=port{number},fd={theirs.fileno()}"]
        command += ["-device", f"virtserialport,chardev=port{number},nr={number}"]
    # Out of reach of the terminal's Ctrl-C, which is ours to handle; and never left behind, however we end.
    with open(folder / "qemu", "wb") as said:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={**os.environ, **program.environment},
            pass_fds=[theirs.fileno() for _, theirs in ends],
            start_new_session=True,
        )
    try:
        with selectors.DefaultSelector() as selector:
            for (ours, theirs), stream in zip(ends, streams, strict=True):
                theirs.close()
                selector.register(ours, selectors.EVENT_READ, stream)
            pump(selector, None if timeout is None else time.monotonic() + timeout, silence)
        for stream in streams:
            stream.end()
    finally:
        process.kill()
        process.wait()
        for ours, _ in ends:
            ours.close()
    return streams[0].status if streams[1].status is not None else None


def pump(selector: selectors.BaseSelector, deadline: float | None, silence: float | None) -> None:
    """Hand on what comes through the ports until both have said the status, or are closed, or time is up."""
    while selector.get_map():
        limits = [] if deadline is None else [deadline - time.monotonic()]
        limits += [] if silence is None else [silence]
        left = min(limits, default=None)
        ready = selector.select(left) if left is None or left > 0 else []
        if not ready:
            return
        for key, _ in ready:
            assert isinstance(key.fileobj, socket.socket)
            stream: Stream = key.data
            try:
                data = key.fileobj.recv(CHUNK)
            except ConnectionError:
                data = b""
            if data:
                stream.feed(data)
            if not data or stream.status is not None:
                selector.unregister(key.fileobj)
