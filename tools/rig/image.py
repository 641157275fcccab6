"""The rig's image: Debian packages unpacked into one archive that its kernel boots from. Built once, then cached.

Needs apt-get and dpkg, and no rights beyond a user's, except to install QEMU and to fetch package lists.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import io
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .cpio import Archive

HERE = Path(__file__).resolve().parent
PYTHON = "3.11"  # the one of Debian 12
PACKAGES = (
    "busybox-static",
    f"python{PYTHON}-minimal",
    f"libpython{PYTHON}-minimal",
    f"libpython{PYTHON}-stdlib",
    "libbz2-1.0",
    "libc6",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "liblzma5",
    "zlib1g",
)
WHEELS = ("pytest", "pytest-timeout", "hypothesis")  # in the versions of the Python that runs this
MODULES = ("kvm-amd.ko", "kvm.ko", "irqbypass.ko", "virtio_pci.ko", "virtio_console.ko")
VIRTIO = ("virtio.ko", "virtio_ring.ko", "virtio_pci_modern_dev.ko", "virtio_pci_legacy_dev.ko")
GUEST_MODULES = ("virtio.ko", "virtio_ring.ko", "virtio_mmio.ko", "virtio_blk.ko", "virtio-rng.ko", "rng-core.ko")
UNUSED = (
    "usr/share",
    "usr/lib/binfmt.d",
    "usr/lib/x86_64-linux-gnu/gconv",
    f"usr/lib/python{PYTHON}/test",
    f"usr/lib/python{PYTHON}/pydoc_data",
)
KEPT_IMAGES = 4

SITE = "usr/lib/python3/dist-packages"
GUEST_KERNEL, GUEST_INITRD = "guest/vmlinuz", "guest/initrd"


class RigError(Exception):
    """What keeps the rig from running, in words for the user."""


def cache_folder() -> Path:
    """Return where images are kept: PYVCPU_RIG_CACHE, or a folder of the user's cache."""
    if chosen := os.environ.get("PYVCPU_RIG_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyvcpu-rig"


def say(text: str) -> None:
    """Tell the user what takes so long."""
    print(f"rig: {text}", file=sys.stderr, flush=True)


def find_image() -> Path:
    """Return the folder with `vmlinuz` and `base.cpio` for today's packages; build them if they are not cached."""
    install_qemu()
    packages = [*PACKAGES, kernel_package()]
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]
    key = image_key(apt_get("download", "--print-uris", *packages), pins)
    cache = cache_folder()
    image = cache / key
    if image.is_dir():
        os.utime(image)
        return image
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "lock"):
        if not image.is_dir():  # or another process has built it meanwhile
            say(f"building its image in {image} (once for these package versions)")
            with tempfile.TemporaryDirectory(dir=cache, prefix="new-") as folder:
                os.rename(build(Path(folder), packages, pins), image)
            forget_old_images(cache)
    return image


def install_qemu() -> None:
    """Install QEMU when it is missing and we may."""
    if shutil.which("qemu-system-x86_64"):
        return
    if not shutil.which("apt-get"):
        raise RigError(
            "qemu-system-x86_64 is not installed, and the rig itself is made of Debian packages: use Debian 12"
        )
    if os.geteuid() != 0:
        raise RigError("qemu-system-x86_64 is not installed: apt-get install qemu-system-x86")
    say("installing qemu-system-x86")
    apt_get("install", "-y", "--no-install-recommends", "qemu-system-x86")


def kernel_package() -> str:
    """Return the package that today's linux-image-cloud-amd64 stands for."""
    lines = output(["apt-cache", "depends", "linux-image-cloud-amd64"]).splitlines()
    names = [line.split()[-1] for line in lines if line.strip().startswith("Depends: linux-image-")]
    if not names:
        apt_get("update")
        return kernel_package()
    return names[0]


def apt_get(*arguments: str, cwd: Path | None = None) -> str:
    """Run apt-get; once more with fresh package lists when it fails."""
    command = ["apt-get", "-q", *arguments]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode and arguments[0] != "update":
        apt_get("update")
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        hint = "" if os.geteuid() == 0 else "; as root, apt-get update may help"
        raise RigError(f"{' '.join(command)} failed{hint}:\n{done.stderr.strip()}")
    return done.stdout


def output(command: list[str]) -> str:
    """Run a command that must succeed, and return what it says."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise RigError(
            f"{command[0]} is not installed: the rig is made of Debian packages, and needs Debian's tools"
        ) from None
    if done.returncode:
        raise RigError(
            f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}".rstrip()
        )
    return done.stdout


def image_key(uris: str, pins: list[str]) -> str:
    """Return a name that changes with everything the image is made of."""
    key = hashlib.sha256()
    files = sorted(line.split(maxsplit=1)[1] for line in uris.splitlines() if line.startswith("'"))
    for part in [*files, *pins]:
        key.update(part.encode() + b"\n")
    for name in ("image.py", "cpio.py", "init", "guest-init", "hold.py"):
        key.update((HERE / name).read_bytes())
    return key.hexdigest()[:16]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path` against other processes."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def forget_old_images(cache: Path) -> None:
    """Remove all but the images used last."""
    images = [path for path in cache.iterdir() if (path / "base.cpio").exists()]
    images.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for image in images[KEPT_IMAGES:]:
        shutil.rmtree(image, ignore_errors=True)


def build(folder: Path, packages: list[str], pins: list[str]) -> Path:
    """Make an image below `folder`, which has nothing in it, and return where."""
    root, image, debs = folder / "root", folder / "image", folder / "debs"
    image.mkdir()
    debs.mkdir()
    apt_get("download", *packages, cwd=debs)
    for deb in sorted(debs.glob("*.deb")):
        output(["dpkg", "-x", str(deb), str(root)])
    for name in UNUSED:
        shutil.rmtree(root / name, ignore_errors=True)
    install_wheels(root, pins)
    compile_python(root)

    kernel = next((root / "boot").glob("vmlinuz-*")).rename(image / "vmlinuz")
    version = next((root / "lib/modules").iterdir()).name
    modules = {path.name: path for path in (root / "lib/modules").rglob("*.ko")}
    shutil.rmtree(root / "boot")
    all_modules = (root / "lib/modules").rename(folder / "modules")
    kept = {name: all_modules / path.relative_to(root / "lib/modules") for name, path in modules.items()}

    with open(image / "base.cpio", "wb") as file:
        archive = Archive(file)
        archive.tree(root, "")
        add_busybox(archive, root)
        add_modules(archive, root, version, kept, MODULES + VIRTIO)
        archive.link("usr/bin/python3", f"python{PYTHON}")
        archive.add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
        archive.add("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
        archive.add("etc/hosts", b"127.0.0.1 localhost rig\n")
        archive.add("init", (HERE / "init").read_bytes(), stat.S_IFREG | 0o755)
        archive.add("rig/hold.py", (HERE / "hold.py").read_bytes())
        archive.add(GUEST_KERNEL, kernel.read_bytes())
        archive.add(GUEST_INITRD, guest_initrd(root, version, kept))
        archive.close()
    return image


def install_wheels(root: Path, pins: list[str]) -> None:
    """Unpack pytest and its friends, for the Python inside, whatever Python this is."""
    platform = ["--python-version", PYTHON, "--implementation", "cp", "--platform", "manylinux_2_17_x86_64"]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-compile", "--only-binary=:all:"]
    output([sys.executable, "-m", "pip", "install", *quiet, *platform, "--target", str(root / SITE), *pins])


def compile_python(root: Path) -> None:
    """Compile every Python file with the Python inside: emulated, that would take minutes."""
    libraries = ":".join(str(root / name) for name in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"))
    python = [
        str(root / "lib64/ld-linux-x86-64.so.2"),
        "--library-path",
        libraries,
        str(root / f"usr/bin/python{PYTHON}"),
    ]
    options = ["-q", "-s", str(root), "-p", "/", "--invalidation-mode", "unchecked-hash"]
    folders = [str(root / f"usr/lib/python{PYTHON}"), str(root / SITE)]
    environment = f"PYTHONHOME={root / 'usr'}"
    output(["env", environment, *python, "-m", "compileall", *options, *folders])


def add_busybox(archive: Archive, root: Path) -> None:
    """Add a link for each of busybox's programs."""
    archive.folder("bin")
    for name in output([str(root / "bin/busybox"), "--list"]).split():
        if name != "busybox":
            archive.link(f"bin/{name}", "busybox")
    archive.link("usr/bin/env", "../../bin/busybox")


def add_modules(archive: Archive, root: Path, version: str, modules: dict[str, Path], names: tuple[str, ...]) -> None:
    """Add kernel modules and the list that modprobe wants; a name that the kernel has built in is passed over."""
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base, "lib/modules", version)
        folder.mkdir(parents=True)
        for name in names:
            if name in modules:
                shutil.copy(modules[name], folder / name)
        output([str(root / "bin/busybox"), "depmod", "-b", base, version])
        archive.tree(folder, f"lib/modules/{version}")


def guest_initrd(root: Path, version: str, modules: dict[str, Path]) -> bytes:
    """Return a small initrd for Linux guests: busybox, and the drivers of virtio-mmio disks."""
    file = io.BytesIO()
    archive = Archive(file)
    archive.add("bin/busybox", (root / "bin/busybox").read_bytes(), stat.S_IFREG | 0o755)
    add_busybox(archive, root)
    add_modules(archive, root, version, modules, GUEST_MODULES)
    for name in ("dev", "proc", "sys", "mnt", "tmp"):
        archive.folder(name)
    archive.add("init", (HERE / "guest-init").read_bytes(), stat.S_IFREG | 0o755)
    archive.close()
    return file.getvalue()
