"""The rig's image: Debian packages unpacked into one archive that its kernel boots from. Built once, then cached.

What runs inside is Debian 12's, whatever the host is; the kernel may be a later release's.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

from .cpio import Archive
from .debian import Release, RigError, begins, cache_folder, forget_old, locked, output, say, with_libraries
from .modules import Modules

HERE = Path(__file__).resolve().parent
BASE = "bookworm"
PYTHON = "3.11"  # the one of that release
KERNELS = {"6.1": "bookworm", "6.12": "trixie"}  # the one of sid has a new version every few weeks
DEFAULT_KERNEL = "6.1"
PARTS = ("linux-base-", "linux-binary-", "linux-modules-")  # of which newer images are made
CLOUD = "linux-image-cloud-amd64"
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
MODULES = ("kvm-amd", "virtio_pci", "virtio_console")  # and what these need
GUEST_MODULES = ("virtio_mmio", "virtio_blk", "virtio-rng")
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


def find_image(kernel: str = DEFAULT_KERNEL) -> Path:
    """Return the folder with `vmlinuz` and `base.cpio` for today's packages; build them if they are not cached.

    `kernel`: how the version of the kernel begins, or "sid" for the newest.
    """
    base = Release(BASE)
    newer = kernel_release(kernel)
    lines, kernel_lines = base.uris(*PACKAGES), newer.uris(*kernel_packages(newer))
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]
    key = image_key([*lines, *kernel_lines], pins)
    cache = cache_folder() / "images"
    image = cache / key
    with locked(cache_folder() / "lock"):
        if image.is_dir():
            os.utime(image)
            return image
        cache.mkdir(parents=True, exist_ok=True)
        say(f"building its image in {image} (once for these package versions)")
        with tempfile.TemporaryDirectory(dir=cache, prefix="new-") as name:
            root, kernel_root = Path(name, "root"), Path(name, "kernel")
            base.unpack(lines, root)
            newer.unpack(kernel_lines, kernel_root)
            os.rename(build(Path(name), root, kernel_root, pins), image)
        forget_old(cache, KEPT_IMAGES)
    return image


def kernel_release(kernel: str) -> Release:
    """Return the Debian release that has the kernel; raises RigError when none has."""
    release = Release(KERNELS.get(kernel, "sid"))
    if kernel not in (*KERNELS, "sid"):
        there = release.version(CLOUD)
        if not begins(there.partition("-")[0], kernel):
            known = " or ".join(f"KERNEL={name}" for name in KERNELS)
            raise RigError(
                f"no Debian release has a kernel {kernel}: sid has {there}, which is KERNEL=sid; else {known}"
            )
    return release


def kernel_packages(release: Release) -> list[str]:
    """Return the packages that linux-image-cloud-amd64 stands for: the image; in newer releases modules apart."""
    found = [name for name in release.depends(CLOUD) if name.startswith("linux-image-")]
    for name in list(found):
        found += [other for other in release.depends(name) if other.startswith(PARTS)]
    return found


def image_key(lines: list[str], pins: list[str]) -> str:
    """Return a name that changes with everything the image is made of."""
    key = hashlib.sha256()
    for part in [*lines, *pins]:
        key.update(part.encode() + b"\n")
    for name in ("image.py", "modules.py", "cpio.py", "init", "guest-init", "hold.py"):
        key.update((HERE / name).read_bytes())
    return key.hexdigest()[:16]


def build(folder: Path, root: Path, kernel: Path, pins: list[str]) -> Path:
    """Make an image below `folder` of the unpacked packages in `root` and `kernel`, and return where."""
    image = folder / "image"
    image.mkdir()
    for name in UNUSED:
        shutil.rmtree(root / name, ignore_errors=True)
    install_wheels(root, pins)
    compile_python(root)
    # Newer packages have all of it in usr/lib/modules.
    (modules,) = [Modules(path) for path in (*kernel.glob("lib/modules/*"), *kernel.glob("usr/lib/modules/*"))]
    (program,) = [*kernel.glob("boot/vmlinuz-*"), *kernel.glob("usr/lib/modules/*/vmlinuz")]
    shutil.copyfile(program, image / "vmlinuz")

    with open(image / "base.cpio", "wb") as file:
        archive = Archive(file)
        archive.tree(root, "")
        add_busybox(archive, root)
        add_modules(archive, root, modules, MODULES)
        archive.link("usr/bin/python3", f"python{PYTHON}")
        archive.add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
        archive.add("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
        archive.add("etc/hosts", b"127.0.0.1 localhost rig\n")
        archive.add("init", (HERE / "init").read_bytes(), stat.S_IFREG | 0o755)
        archive.add("rig/hold.py", (HERE / "hold.py").read_bytes())
        archive.add(GUEST_KERNEL, (image / "vmlinuz").read_bytes())
        archive.add(GUEST_INITRD, guest_initrd(root, modules))
        archive.close()
    return image


def install_wheels(root: Path, pins: list[str]) -> None:
    """Unpack pytest and its friends, for the Python inside, whatever Python this is."""
    platform = ["--python-version", PYTHON, "--implementation", "cp", "--platform", "manylinux_2_17_x86_64"]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-compile", "--only-binary=:all:"]
    output([sys.executable, "-m", "pip", "install", *quiet, *platform, "--target", str(root / SITE), *pins])


def compile_python(root: Path) -> None:
    """Compile every Python file with the Python inside: emulated, that would take minutes."""
    python = with_libraries(root, f"usr/bin/python{PYTHON}")
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


def add_modules(archive: Archive, root: Path, modules: Modules, names: tuple[str, ...]) -> None:
    """Add kernel modules and the lists that modprobe wants."""
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base, "lib/modules", modules.version)
        folder.mkdir(parents=True)
        for name, data in modules.select(names).items():
            (folder / name).write_bytes(data)
        (folder / "modules.builtin").write_bytes(modules.builtin)
        output([str(root / "bin/busybox"), "depmod", "-b", base, modules.version])
        archive.tree(folder, f"lib/modules/{modules.version}")


def guest_initrd(root: Path, modules: Modules) -> bytes:
    """Return a small initrd for Linux guests: busybox, and the drivers of virtio-mmio disks."""
    file = io.BytesIO()
    archive = Archive(file)
    archive.add("bin/busybox", (root / "bin/busybox").read_bytes(), stat.S_IFREG | 0o755)
    add_busybox(archive, root)
    add_modules(archive, root, modules, GUEST_MODULES)
    for name in ("dev", "proc", "sys", "mnt", "tmp"):
        archive.folder(name)
    archive.add("init", (HERE / "guest-init").read_bytes(), stat.S_IFREG | 0o755)
    archive.close()
    return file.getvalue()
