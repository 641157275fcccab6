"""Files that are no images for this machine: each is named in one line, with what to do where there is something."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvcpu import ImageError
from pyvcpu.boot import Target, plan
from pyvcpu.boot.foreign import what_is
from tests.images import CODE, MIB, multiboot_header, ram

SECTOR = b"\xf4".ljust(510, b"\0") + b"\x55\xaa"
FIRMWARE = "a firmware image (a BIOS or UEFI), to be put where a processor starts"
LINUX = "a Linux kernel for {}; this machine runs those for x86"
NO_CODE = "a disk whose first sector has no code, made for other firmware than a BIOS"
CONVERT = "; qemu-img convert -O raw makes a disk of it"


def at(offset: int, signature: bytes, size: int = 0x11000) -> bytes:
    """Return a file with a signature at an offset."""
    image = bytearray(size)
    image[offset : offset + len(signature)] = signature
    return bytes(image)


def pe(
    machine: int = 0x8664, subsystem: int = 10, sections: tuple[bytes, ...] = (b".text",), offset: int = 0x80
) -> bytes:
    """Return the headers of a PE file."""
    optional = bytearray(0xF0)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<H", optional, 68, subsystem)
    image = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x80)
    image = image.ljust(0x80, b"\0") + b"PE\0\0" + struct.pack("<2H12x2H", machine, len(sections), len(optional), 2)
    return image + optional + b"".join(name.ljust(40, b"\0") for name in sections) + bytes(512)


def dos(size: int = 1024) -> bytes:
    return (b"MZ" + struct.pack("<4H", size % 512, -(-size // 512), 0, 4)).ljust(size, b"\x90")


def a_out(magic: int = 0o413, machine: int = 100, text: int = 0x1000, data: int = 0x800, file: int = 0x1820) -> bytes:
    header = struct.pack("<8I", machine << 16 | magic, text, data, 0x400, 0, 0x1020, 0, 0)
    return header.ljust(file, b"\x90")


def rom(tail: bytes, size: int = 256 << 10) -> bytes:
    return bytes(size - 16) + tail.ljust(16, b"\0")


def option_rom(units: int = 4, entry: bytes = b"\xe9", checksum: bool = True) -> bytes:
    image = bytearray((b"\x55\xaa" + bytes((units,)) + entry).ljust(units * 512, b"\0"))
    if checksum:
        image[-1] = -sum(image) & 0xFF
    return bytes(image)


FOREIGN = {
    "zstd": (b"\x28\xb5\x2f\xfd" + CODE, "compressed with zstd", "; unpack it: zstd -d"),
    "lz4": (b"\x04\x22\x4d\x18" + CODE, "compressed with lz4", "; unpack it: lz4 -d"),
    "lz4 of kernels": (b"\x02\x21\x4c\x18" + CODE, "compressed with lz4", "; unpack it: lz4 -d"),
    "lzop": (b"\x89LZO\0\r\n\x1a\n" + CODE, "compressed with lzop", "; unpack it: lzop -d"),
    "lzip": (b"LZIP\x01" + CODE, "compressed with lzip", "; unpack it: lzip -d"),
    "compress": (b"\x1f\x9d\x90" + CODE, "compressed with compress", "; unpack it: gzip -d"),
    "cpio": (b"070701000" + CODE, "a cpio archive", "; an initrd is given beside a kernel (--initrd)"),
    "squashfs": (b"hsqs" + CODE, "a squashfs file system", ""),
    "tar": (at(257, b"ustar\x0000"), "a tar archive", "; unpack it: tar -x"),
    "zip": (b"PK\x03\x04" + CODE, "a zip archive", "; unpack it: unzip"),
    "deb": (b"!<arch>\ndebian-binary   " + CODE, "a Debian package", "; unpack it: dpkg -x"),
    "ar": (b"!<arch>\nx.o/" + CODE, "an archive of objects (.a)", ""),
    "qcow2": (b"QFI\xfb\0\0\0\3" + CODE, "a qcow2 disk image", CONVERT),
    "vmdk": (b"KDMV" + CODE, "a VMDK disk image", CONVERT),
    "vmdk's description": (b"# Disk DescriptorFile\n", "the description of a VMDK disk image", CONVERT),
    "vhd": (b"conectix" + CODE, "a VHD disk image", CONVERT),
    "vhdx": (b"vhdxfile" + CODE, "a VHDX disk image", CONVERT),
    "vdi": (at(0x40, b"\x7f\x10\xda\xbe"), "a VDI disk image", CONVERT),
    "uimage": (b"\x27\x05\x19\x56" + CODE, "a U-Boot image (uImage)", "; dumpimage takes the kernel out"),
    "fit": (b"\xd0\x0d\xfe\xed" + CODE, "a device tree or an image tree (FIT)", "; dumpimage takes a kernel out"),
    "android": (b"ANDROID!" + CODE, "an Android boot image", "; unpack_bootimg takes the kernel out"),
    "iso": (at(0x8001, b"CD001"), "an ISO 9660 image, of a CD", ""),
    "ext4": (at(0x438, b"\x53\xef"), "an ext2, ext3 or ext4 file system", ""),
    "btrfs": (at(0x10040, b"_BHRfS_M"), "a btrfs file system", ""),
    "arm64": (
        at(0, b"MZ" + bytes(0x36) + b"ARM\x64"),
        LINUX.format("AArch64"),
        "",
    ),
    "riscv": (at(0x38, b"RSC\x05"), LINUX.format("RISC-V"), ""),
    "arm": (at(0x24, b"\x18\x28\x6f\x01"), LINUX.format("ARM"), ""),
    "uefi volume": (at(0x28, b"_FVH"), "a firmware image (a UEFI volume)", ""),
    "bios": (
        rom(b"\xea\x5b\xe0\x00\xf006/23/99"),
        FIRMWARE,
        "",
    ),
    "coreboot": (
        rom(b"\xe9\x40\xff", 1 << 20),
        FIRMWARE,
        "",
    ),
    "option rom": (option_rom(), "an option ROM, for a BIOS to find", ""),
    "option rom without jump": (option_rom(entry=b"\x90"), "an option ROM, for a BIOS to find", ""),
    "option rom without checksum": (option_rom(checksum=False), "an option ROM, for a BIOS to find", ""),
    "efi": (pe(), "an EFI application for x86-64", "; there is no EFI here"),
    "efi ia32": (pe(0x14C), "an EFI application for i386", "; there is no EFI here"),
    "efi arm64": (pe(0xAA64, 11), "an EFI driver for AArch64", "; there is no EFI here"),
    "efi of an unknown machine": (pe(0x1234, 13), "an EFI ROM for machine 0x1234", "; there is no EFI here"),
    "uki": (
        pe(sections=(b".text", b".osrel", b".linux", b".initrd")),
        "a unified kernel image for EFI (x86-64)",
        "; objcopy -O binary --only-section=.linux takes the kernel out",
    ),
    "zboot": (b"MZ\0\0zimg" + bytes(64), "an EFI zboot image, a kernel that only EFI unpacks", ""),
    "windows": (pe(subsystem=3), "a Windows program (PE) for x86-64", ""),
    "dos": (dos(), "a DOS program (MZ)", ""),
    "a.out zmagic": (a_out(), "an a.out program without a Multiboot header", ""),
    "a.out omagic": (a_out(0o407, 0), "an a.out program without a Multiboot header", ""),
    "a.out nmagic": (a_out(0o410, 134), "an a.out program without a Multiboot header", ""),
    "a.out qmagic": (a_out(0o314, file=0x1800), "an a.out program without a Multiboot header", ""),
    "script": (b"#!/bin/sh -e\nexit\n", "a script for /bin/sh", ""),
    "script with a space": (b"#! /usr/bin/env python3\n", "a script for /usr/bin/env", ""),
    "text": (b"CONFIG_X86=y\n" * 10, "a text file", ""),
    "gpt": (
        bytes(440) + b"\1\2\3\4" + bytes(66) + b"\x55\xaa",
        NO_CODE,
        "",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_named(name: str) -> None:
    image, what, advice = FOREIGN[name]
    with pytest.raises(ImageError) as caught:
        plan(image, Target(ram(MIB), 1))
    assert str(caught.value) == f"this is {what}, not an image that can be booted{advice}"
    assert "memory" not in str(caught.value)


@pytest.mark.parametrize("name", FOREIGN)
def test_whatever_is_said_to_be_flat_is(name: str) -> None:
    image = FOREIGN[name][0]
    assert plan(image, Target(ram(4 * MIB), 1, mode="protected")).format == "flat"


NATIVE = {
    "a flat image of 64 KiB that ends in a jump": rom(b"\xe9", 64 << 10),
    "a flat image of 192 KiB that ends in none": rom(b"\x90", 192 << 10),
    "a large image that ends in a far jump elsewhere": rom(b"\xea\x00\x7c\x00\x00", 128 << 10),
    "a boot sector that begins as a DOS program does": b"MZ".ljust(510, b"\x90") + b"\x55\xaa",
    "a boot sector with an ISO 9660 image behind": SECTOR.ljust(0x8001, b"\0") + b"CD001",
    "a boot sector with a file system behind": SECTOR.ljust(0x438, b"\0") + b"\x53\xef" + bytes(512),
    "code that begins with a number of a.out": b"\x07\x01\x90\x90" + CODE,
    "code that begins with a number of a.out, and is long": b"\x0b\x01\x64\x00" + bytes(0x2000),
    "code that begins with MZ": b"MZ" + CODE,
    "code that begins as an option ROM does": b"\x55\xaa\x90" + CODE,
    "short text": b"push\n",
    "text without a line": b"x" * 500,
    "a word that is no script": b"#!bin" + CODE,
}


@pytest.mark.parametrize("name", NATIVE)
def test_not_taken_for_something_else(name: str) -> None:
    assert what_is(NATIVE[name]) is None
    expected = "bootsector" if name.startswith("a boot sector") else "flat"
    assert plan(NATIVE[name], Target(ram(MIB), 1)).format == expected


def test_an_efi_application_with_a_multiboot_header_in_it() -> None:
    """Xen's is one."""
    with pytest.raises(ImageError, match=r"an EFI application for x86-64, not an image that can be booted; there is"):
        plan(pe() + multiboot_header() + CODE, Target(ram(8 * MIB), 1))


def test_firmware_with_a_multiboot_header_in_it() -> None:
    """U-Boot's is one: the header has addresses just below 4 GiB."""
    load = (1 << 32) - (128 << 10)
    header = multiboot_header(0, (load + 16, load, 0, 0, load))
    image = (bytes(16) + header).ljust((128 << 10) - 16, b"\0") + b"\xe9".ljust(16, b"\0")
    with pytest.raises(ImageError, match="a firmware image"):
        plan(image, Target(ram(8 * MIB), 1))
    with pytest.raises(ImageError, match=r"0xfffe0000-0xfffffffe, which is not all RAM .*, nor can be; link"):
        plan(image[:-1], Target(ram(8 * MIB), 1))


@given(st.binary(max_size=200), st.sampled_from(sorted(FOREIGN)), st.integers(0, 300))
def test_cut_and_mixed(more: bytes, name: str, length: int) -> None:
    """Whatever follows: an answer, and never an exception."""
    for image in (FOREIGN[name][0][:length], FOREIGN[name][0][:length] + more, more):
        found = what_is(image)
        assert found is None or all(isinstance(text, str) for text in found)


@pytest.mark.parametrize("cut", range(0, 0x200, 3))
def test_cut_programs(cut: int) -> None:
    for image in (pe(), dos(), pe(sections=(b".linux",) * 3)):
        what_is(image[:cut])
        far = bytearray(image[:cut])
        far[0x3C:0x40] = b"\xf0\xff\xff\xff"
        what_is(bytes(far))
