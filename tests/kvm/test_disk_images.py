"""A disk with partitions, a file system and a boot loader, made here: it boots through INT 13h to its kernel.

Needs grub-mkimage with GRUB's modules for a BIOS (grub-pc-bin), mkfs.fat and mcopy; skipped without them. PYVCPU_GRUB
names the folder of the modules.
"""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kvm.support import GUESTS, pyvcpu

MODULES = Path(os.environ.get("PYVCPU_GRUB", "/usr/lib/grub/i386-pc"))
SECTORS, FIRST = 16 * 2048, 2048
COMMANDS = """
set root=(hd0,msdos1)
echo booting
multiboot /kernel.bin from a disk
boot
"""


def make_disk(path: Path, tool: Callable[[str], str]) -> None:
    """Install GRUB and tests/guests/multiboot.bin on a new disk with one partition, of FAT."""
    mkimage, mkfs, mcopy = tool("grub-mkimage"), tool("mkfs.fat"), tool("mcopy")
    config, core = path.with_suffix(".cfg"), path.with_suffix(".core")
    config.write_text(COMMANDS)
    modules = ("biosdisk", "part_msdos", "fat", "multiboot", "echo", "boot")
    options = ["-d", str(MODULES), "-O", "i386-pc", "-p", "(hd0,msdos1)/", "-c", str(config), "-o", str(core)]
    subprocess.run([mkimage, *options, *modules], check=True)
    sector = bytearray((MODULES / "boot.img").read_bytes()[:440]).ljust(512, b"\0")
    unused = b"\xfe\xff\xff"  # cylinder, head and sector
    sector[446:462] = struct.pack("<B3sB3sII", 0x80, unused, 0x0E, unused, FIRST, SECTORS - FIRST)
    sector[510:] = b"\x55\xaa"
    with path.open("wb") as file:
        file.write(bytes(sector) + core.read_bytes())
        file.truncate(SECTORS * 512)
    kib = (SECTORS - FIRST) // 2
    subprocess.run([mkfs, "--offset", str(FIRST), "-F", "16", path, str(kib)], check=True, capture_output=True)
    kernel = GUESTS / "multiboot.bin"
    subprocess.run([mcopy, "-i", f"{path}@@{FIRST * 512}", kernel, "::kernel.bin"], check=True)


@pytest.mark.timeout(600)
def test_grub_boots_a_kernel_from_a_disk(tmp_path: Path, tool: Callable[[str], str]) -> None:
    """GRUB unpacks itself, which takes a minute where real mode is interpreted."""
    if not (MODULES / "boot.img").exists():
        pytest.skip(f"no GRUB for a BIOS in {MODULES}")
    disk = tmp_path / "disk.img"
    make_disk(disk, tool)
    done = pyvcpu("boot", disk, timeout=550)
    assert done.stderr == b""
    assert b"GRUB loading" in done.stdout
    assert done.stdout.endswith(b"/kernel.bin from a disk\n") or b"from a disk" in done.stdout
    assert done.returncode == 4 << 1 | 1, "the memory map has four entries"
