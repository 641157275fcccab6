"""Files that are no images for this machine, by their signatures: what they are, and what to do with them instead.

Nothing here decides that a file can be booted; loaders do. Sources: the formats' own specifications, file(1)'s magic.
"""

from __future__ import annotations

from ..errors import ImageError

UNPACK = "; unpack it: {}"
CONVERT = "; qemu-img convert -O raw makes a disk of it"
INITRD = "; an initrd is given beside a kernel (--initrd)"
OTHER_LINUX = "a Linux kernel for {}; this machine runs those for x86"

# What begins with these bytes, whatever may follow.
BEGINNINGS = (
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK.format("zstd -d")),
    (b"\x04\x22\x4d\x18", "compressed with lz4", UNPACK.format("lz4 -d")),
    (b"\x02\x21\x4c\x18", "compressed with lz4", UNPACK.format("lz4 -d")),
    (b"\x89LZO\0\r\n\x1a\n", "compressed with lzop", UNPACK.format("lzop -d")),
    (b"LZIP\x01", "compressed with lzip", UNPACK.format("lzip -d")),
    (b"\x1f\x9d\x90", "compressed with compress", UNPACK.format("gzip -d")),
    (b"070701", "a cpio archive", INITRD),
    (b"070702", "a cpio archive", INITRD),
    (b"070707", "a cpio archive", INITRD),
    (b"hsqs", "a squashfs file system", ""),
    (b"PK\x03\x04", "a zip archive", UNPACK.format("unzip")),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK.format("7z x")),
    (b"Rar!\x1a\x07", "a rar archive", ""),
    (b"!<arch>\ndebian-binary", "a Debian package", UNPACK.format("dpkg -x")),
    (b"!<arch>\n", "an archive of objects (.a)", ""),
    (b"\xed\xab\xee\xdb", "an RPM package", UNPACK.format("rpm2cpio")),
    (b"QFI\xfb", "a qcow2 disk image", CONVERT),
    (b"QED\0", "a QED disk image", CONVERT),
    (b"KDMV", "a VMDK disk image", CONVERT),
    (b"COWD", "a VMDK disk image", CONVERT),
    (b"# Disk DescriptorFile", "the description of a VMDK disk image", CONVERT),
    (b"conectix", "a VHD disk image", CONVERT),
    (b"vhdxfile", "a VHDX disk image", CONVERT),
    (b"WithoutFreeSpace", "a Parallels disk image", CONVERT),
    (b"WithouFreSpacExt", "a Parallels disk image", CONVERT),
    (b"\x27\x05\x19\x56", "a U-Boot image (uImage)", "; dumpimage takes the kernel out"),
    (b"\xd0\x0d\xfe\xed", "a device tree or an image tree (FIT)", "; dumpimage takes a kernel out"),
    (b"ANDROID!", "an Android boot image", "; unpack_bootimg takes the kernel out"),
    (b"VNDRBOOT", "an Android vendor boot image", ""),
    (b"\xcf\xfa\xed\xfe", "a Mach-O program", ""),
    (b"\xce\xfa\xed\xfe", "a Mach-O program", ""),
    (b"\xfe\xed\xfa\xcf", "a Mach-O program", ""),
    (b"\xca\xfe\xba\xbe", "a Java class or a Mach-O program", ""),
    (b"\0asm", "a WebAssembly module", ""),
    (b"KDUMP   ", "a dump of a crashed kernel", ""),
    (b"%PDF-", "a PDF document", ""),
)
# What has these bytes at an offset; those that are boot sectors, too, are taken for that.
ELSEWHERE = (
    (257, b"ustar", "a tar archive", UNPACK.format("tar -x")),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI disk image", CONVERT),
    (0x8001, b"CD001", "an ISO 9660 image, of a CD", ""),
    (0x438, b"\x53\xef", "an ext2, ext3 or ext4 file system", ""),
    (0x10040, b"_BHRfS_M", "a btrfs file system", ""),
    (0, b"XFSB\0\0", "an XFS file system", ""),
    (0x28, b"_FVH", "a firmware image (a UEFI volume)", ""),
    (0x38, b"ARM\x64", OTHER_LINUX.format("AArch64"), ""),
    (0x38, b"RSC\x05", OTHER_LINUX.format("RISC-V"), ""),
    (0x24, b"\x18\x28\x6f\x01", OTHER_LINUX.format("ARM"), ""),
)
BOOT_SIGNATURE = slice(510, 512)
CODE_OF_A_SECTOR = 440  # up to the disk's signature and its table of partitions


def refuse(image: bytes) -> None:
    """Raise ImageError when the image, which has no header of a protocol, is known to be something else."""
    _raise_for(what_is(image))


def refuse_rom(image: bytes) -> None:
    """Raise ImageError when the image is one of firmware."""
    _raise_for(_rom(image))


def _raise_for(kind: tuple[str, str] | None) -> None:
    if kind is not None:
        what, advice = kind
        raise ImageError(f"this is {what}, not an image that can be booted{advice}")


def what_is(image: bytes) -> tuple[str, str] | None:
    """Return what a file is and what to do with it, or None."""
    for beginning, what, advice in BEGINNINGS:
        if image.startswith(beginning):
            return what, advice
    is_sector = image[BOOT_SIGNATURE] == b"\x55\xaa"
    if not is_sector:
        for at, signature, what, advice in ELSEWHERE:
            if image.startswith(signature, at):
                return what, advice
    if image.startswith(b"MZ"):
        from .pe import what_is as what_program

        found = what_program(image)
        if found is not None and not (is_sector and found[0].startswith("a DOS")):
            return found
    if is_sector:
        empty = not any(image[:CODE_OF_A_SECTOR])
        return ("a disk whose first sector has no code, made for other firmware than a BIOS", "") if empty else None
    return _script(image) or _rom(image) or _a_out(image) or _text(image)


def _script(image: bytes) -> tuple[str, str] | None:
    """Recognise a script by its first line."""
    if not image.startswith((b"#!/", b"#! /")):
        return None
    words = image[2:130].split(b"\n", 1)[0].split()
    name = words[0].decode("ascii", "backslashreplace") if words else ""
    return f"a script for {name}", ""


TEXT = bytes(range(32, 127)) + b"\t\n\r"
TEXT_LEAST, TEXT_LOOK = 64, 4096


def _text(image: bytes) -> tuple[str, str] | None:
    """Recognise text by its characters: code has others, too."""
    head = image[:TEXT_LOOK]
    if len(head) < TEXT_LEAST or b"\n" not in head or head.translate(None, TEXT):
        return None
    return "a text file", ""


# Firmware: a processor starts 16 bytes below the end of the ROM (SDM vol. 3A section 9.1.4), with a jump.
ROM_UNIT, ROM_LARGEST = 64 << 10, 16 << 20
ROM_SMALLEST = 128 << 10  # a flat image of 64 KiB is not so rare, and may end in anything
RESET_JUMPS = (b"\xe9", b"\xeb", b"\x90\x90\xe9", b"\x90\x90\xeb", b"\x0f\x09\xe9", b"\xfa\xe9", b"\xfa\xfc\xe9")
OPTION_ROM, OPTION_UNIT = b"\x55\xaa", 512


def _rom(image: bytes) -> tuple[str, str] | None:
    """Recognise a BIOS by size and reset vector, and an option ROM by signature, size and checksum."""
    size = len(image)
    if image.startswith(OPTION_ROM) and size > 2:
        length = image[2] * OPTION_UNIT
        if 0 < length <= size and (image[3:4] in (b"\xe9", b"\xeb") or sum(image[:length]) & 0xFF == 0):
            return "an option ROM, for a BIOS to find", ""
    if size % ROM_UNIT or not ROM_SMALLEST <= size <= ROM_LARGEST:
        return None
    vector = image[-16:]
    far = vector[0] == 0xEA and vector[3:5] == b"\x00\xf0"  # ljmp $0xf000, ...
    if far or vector.startswith(RESET_JUMPS):
        return "a firmware image (a BIOS or UEFI), to be put where a processor starts", ""
    return None


# a.out (BSD and old Linux, a.out.h): magic, text, data, bss, symbols, entry, relocations of text and of data.
A_OUT_MAGICS = (0o407, 0o410, 0o413, 0o314)
A_OUT_MACHINES = (0, 100, 134)  # none, M_386, MID_I386
A_OUT_HEADER, A_OUT_PAGE = 32, 4096


def _a_out(image: bytes) -> tuple[str, str] | None:
    """Recognise an a.out by its header. Its magic number may be anybody's code, so the sizes must fit the file, too."""
    if len(image) < A_OUT_HEADER:
        return None
    words = [int.from_bytes(image[at : at + 4], "little") for at in range(0, A_OUT_HEADER, 4)]
    magic, text, data, bss, symbols, _, *relocations = words
    if magic & 0xFFFF not in A_OUT_MAGICS or magic >> 16 & 0x3FF not in A_OUT_MACHINES:
        return None
    said = text + data + symbols + sum(relocations)
    if not text or bss >= 1 << 30 or not len(image) - A_OUT_PAGE <= said + A_OUT_HEADER <= len(image) + A_OUT_PAGE:
        return None
    return "an a.out program without a Multiboot header", ""
