"""Multiboot 2: the header and its tags, the ways of loading, and the boot information with all that it points to."""

from __future__ import annotations

import struct

import pytest

from pyvcpu import ImageError
from pyvcpu.boot import Plan, Target, detect, plan
from pyvcpu.devices import acpi
from tests.images import (
    CODE,
    FOUR_GIB,
    GIB,
    MIB,
    Segment,
    elf,
    multiboot2_elf,
    multiboot2_flat,
    multiboot2_header,
    multiboot_header,
    pvh,
    ram,
    tag2,
)
from tests.loaded import Loaded

ADDRESS, ENTRY, CONSOLE, FRAMEBUFFER, ALIGN, EFI_BS, EFI32, EFI64, RELOCATABLE = range(2, 11)
HEADER = b"\xd6\x50\x52\xe8"


def registers(made: Plan) -> dict[str, int]:
    start = made.starts[0]
    assert start is not None
    assert start.mode == "protected"
    return start.registers


def entry(made: Plan) -> int:
    assert made.starts[0] is not None
    return made.starts[0].entry


def information(made: Plan) -> dict[int, list[bytes]]:
    """Return the bodies of the tags that EBX points to, by type; they must be aligned and end as they should."""
    memory, at = Loaded(made), registers(made)["rbx"]
    assert at % 8 == 0
    size = memory.u32(at)
    assert memory.u32(at + 4) == 0
    found: dict[int, list[bytes]] = {}
    tag = at + 8
    while (kind := memory.u32(tag)) != 0:
        length = memory.u32(tag + 4)
        found.setdefault(kind, []).append(memory.read(tag + 8, length - 8))
        tag += (length + 7) // 8 * 8
    assert (memory.u32(tag + 4), tag + 8 - at) == (8, size)
    return found


@pytest.mark.parametrize("bits", [32, 64])
def test_elf(bits: int) -> None:
    image = multiboot2_elf(bits=bits)
    assert detect(image) == "multiboot2"
    made = plan(image, Target(ram(8 * MIB), 2))
    assert (made.format, made.irqchip) == ("multiboot2", "kernel")
    assert made.starts[1] is None
    start = made.starts[0]
    assert start is not None
    assert (start.mode, start.registers["rax"]) == ("protected", 0x36D76289)
    assert Loaded(made).read(start.entry, len(CODE)) == CODE
    assert Loaded(made).read(start.entry - 24, 4) == HEADER
    assert Loaded(made).read(start.gdt, 8) == bytes(8)


def test_start_all() -> None:
    made = plan(multiboot2_elf(), Target(ram(8 * MIB), 2, start="all"))
    assert made.starts[0] is made.starts[1] is not None


@pytest.mark.parametrize("before", [0, 8, 32768 - 64])
def test_addresses_in_the_header(before: int) -> None:
    image = multiboot2_flat(before) + b"not loaded"
    assert detect(image) == "multiboot2"
    made = plan(image, Target(ram(8 * MIB), 1))
    assert entry(made) == MIB + before + 64
    assert Loaded(made).read(MIB, before + 64 + len(CODE)) == image[: -len(b"not loaded")]


def test_addresses_that_take_the_file_from_its_beginning() -> None:
    """A load address of -1: the header is 16 bytes into the file, and so the file begins 16 bytes below it."""
    body = struct.pack("<4I", MIB + 0x1010, 0xFFFF_FFFF, 0, 0)
    image = bytes(16) + multiboot2_header(tag2(ADDRESS, body), tag2(ENTRY, struct.pack("<I", MIB + 0x1050))) + CODE
    made = plan(image, Target(ram(8 * MIB), 1))
    assert Loaded(made).read(MIB + 0x1000, len(image)) == image
    assert entry(made) == MIB + 0x1050


def test_addresses_win_over_the_elf_header() -> None:
    image = elf([Segment(4 * MIB, bytes(0x100 - 84) + multiboot2_flat(0))], bits=32)
    made = plan(image, Target(ram(8 * MIB), 1))
    assert entry(made) == MIB + 64
    assert Loaded(made).read(MIB, 4) == HEADER


def test_entry_tag_wins_over_the_elf_header() -> None:
    assert entry(plan(multiboot2_elf(tag2(ENTRY, struct.pack("<I", MIB + 1))), Target(ram(8 * MIB), 1))) == MIB + 1


def test_a_multiboot_1_header_comes_first_and_the_format_can_be_said() -> None:
    image = elf([Segment(MIB, bytes(4) + multiboot_header(0) + bytes(156) + multiboot2_header() + CODE)], bits=32)
    assert image.index(HEADER) % 8 == 0
    assert plan(image, Target(ram(8 * MIB), 1)).format == "multiboot"
    assert plan(image, Target(ram(8 * MIB), 1), "multiboot2").format == "multiboot2"
    assert plan(image, Target(ram(8 * MIB), 1), "elf").format == "elf"


def test_boot_information() -> None:
    modules = [("mod1.bin a=b", b"1" * 4097), ("mod2", b"2")]
    tables = acpi.build([0])
    target = Target(
        ram(4 * GIB), 1, name="kernel.elf", append="debug x", initrd=modules, acpi=lambda: (0xE0000, tables)
    )
    made = plan(multiboot2_elf(tag2(ALIGN)), target)
    memory, tags = Loaded(made), information(made)
    assert sorted(tags) == [1, 2, 3, 4, 6, 15]
    assert tags[1] == [b"kernel.elf debug x\0"]
    assert tags[2] == [b"pyvcpu\0"]
    assert tags[4] == [struct.pack("<2I", 639, (3 * GIB - MIB) >> 10)]
    assert tags[6] == [
        struct.pack("<2I", 24, 0)
        + struct.pack("<2Q2I", 0, 0x9FC00, 1, 0)
        + struct.pack("<2Q2I", 0x9FC00, MIB - 0x9FC00, 2, 0)
        + struct.pack("<2Q2I", MIB, 3 * GIB - MIB, 1, 0)
        + struct.pack("<2Q2I", FOUR_GIB, GIB, 1, 0)
    ]
    assert len(tags[3]) == 2
    for body, (name, data) in zip(tags[3], modules, strict=True):
        start, end = struct.unpack_from("<2I", body)
        assert (memory.read(start, end - start), start % 4096) == (data, 0)
        assert body[8:] == name.encode() + b"\0"
    assert tags[15] == [tables[:36]]
    assert (0xE0000, tables) in made.segments


def rsdp(revision: int, rsdt: int) -> bytes:
    return b"RSD PTR \0PYVCPU" + bytes((revision,)) + struct.pack("<2IQ", rsdt, 36, 0xE0100) + bytes(4)


@pytest.mark.parametrize(
    ("revision", "rsdt", "kinds"), [(2, 0, [15]), (2, 0xE0080, [14, 15]), (0, 0xE0080, [14]), (0, 0, [])]
)
def test_acpi_root_pointers_are_those_that_there_are(revision: int, rsdt: int, kinds: list[int]) -> None:
    pointer = rsdp(revision, rsdt)
    made = plan(multiboot2_elf(), Target(ram(8 * MIB), 1, acpi=lambda: (0xE0000, pointer + bytes(100))))
    tags = information(made)
    assert [kind for kind in tags if kind in (14, 15)] == kinds
    assert tags.get(14, [pointer[:20]]) == [pointer[:20]]
    assert tags.get(15, [pointer]) == [pointer]


def test_no_tables_no_root_pointer() -> None:
    made = plan(multiboot2_flat(0, load=0x10000), Target(ram(0x9F000), 1, acpi=lambda: (0xE0000, rsdp(2, 0))))
    assert sorted(information(made)) == [1, 2, 4, 6]


def with_sections(bits: int, extra: list[tuple[int, int, int, int, int]]) -> bytes:
    """Append section headers: a null one, then (type, flags, address, offset, size) each; names are in the last."""
    image = bytearray(multiboot2_elf(bits=bits))
    at = len(image) + -len(image) % 8
    image = image.ljust(at, b"\0")
    for kind, flags, address, offset, size in [(0, 0, 0, 0, 0), *extra]:
        if bits == 32:
            image += struct.pack("<10I", 0, kind, flags, address, offset, size, 0, 0, 1, 0)
        else:
            image += struct.pack("<2I4Q2I2Q", 0, kind, flags, address, offset, size, 0, 0, 1, 0)
    counts = (64 if bits == 64 else 40, 1 + len(extra), len(extra))
    struct.pack_into("<I" if bits == 32 else "<Q", image, 32 if bits == 32 else 40, at)
    struct.pack_into("<3H", image, 46 if bits == 32 else 58, *counts)
    return bytes(image)


@pytest.mark.parametrize("bits", [32, 64])
def test_elf_sections(bits: int) -> None:
    """Symbols and strings, which no segment loads, are put into memory, and their headers say where."""
    image = with_sections(
        bits,
        [
            (1, 2, MIB, 0x100, 64),  # loaded with its segment
            (2, 0, 0, 0x100, 48),  # symbols
            (8, 0, 0, 0x100, 1 << 20),  # takes no room in the file
            (1, 0, 0, len(multiboot2_elf(bits=bits)), 1 << 30),  # beyond the file's end
            (3, 0, 0, 0x1F0, 0),  # empty
            (3, 0, 0, 0x10, 33),  # strings
        ],
    )
    made = plan(image, Target(ram(8 * MIB), 1, initrd=[("m", b"m" * 5000)]))
    memory = Loaded(made)
    (body,) = information(made)[9]
    size = 40 if bits == 32 else 64
    assert struct.unpack_from("<3I", body) == (7, size, 6)
    assert len(body) == 12 + 7 * size
    form = struct.Struct("<10I" if bits == 32 else "<2I4Q2I2Q")
    addresses = [form.unpack_from(body, 12 + i * size)[3] for i in range(7)]
    assert addresses[0:2] == [0, MIB]
    assert addresses[3:6] == [0, 0, 0]
    assert memory.read(addresses[2], 48) == image[0x100:0x130]
    assert memory.read(addresses[6], 33) == image[0x10:0x31]


def test_sections_without_room_or_out_of_proportion_are_left_out() -> None:
    many = with_sections(32, [(3, 0, 0, 0, 0x100)] * 64)
    made = plan(many, Target(ram(8 * MIB), 1))
    (body,) = information(made)[9]
    addresses = [struct.unpack_from("<10I", body, 12 + i * 40)[3] for i in range(65)]
    assert sum(map(bool, addresses)) * 0x100 <= len(many) < (sum(map(bool, addresses)) + 1) * 0x100
    assert addresses[0] == 0
    full = with_sections(32, [(3, 0, 0, 0, 0x100)])
    tight = plan(full, Target([(0, MIB + 0x2000)], 1))
    (body,) = information(tight)[9]
    assert struct.unpack_from("<10I", body, 12 + 40)[3] == 0


@pytest.mark.parametrize(("at", "value"), [(32, 0), (32, 0xFFFF_FFF0), (46, 41), (48, 0), (48, 0xFFFF)])
def test_sections_that_are_none(at: int, value: int) -> None:
    image = bytearray(with_sections(32, [(3, 0, 0, 0, 16)]))
    struct.pack_into("<I" if at == 32 else "<H", image, at, value)
    assert 9 not in information(plan(bytes(image), Target(ram(8 * MIB), 1)))


def relocatable(lowest: int, highest: int, align: int, preference: int) -> bytes:
    return tag2(RELOCATABLE, struct.pack("<4I", lowest, highest, align, preference))


@pytest.mark.parametrize(
    ("wish", "base"),
    [
        ((MIB, 8 * MIB - 1, 0x1000, 0), MIB),
        ((MIB, MIB + 0x1FFF, 0x1000, 0), MIB),
        ((2 * MIB, 8 * MIB - 1, 0x1000, 0), 2 * MIB),
        ((MIB, 8 * MIB - 1, 2 * MIB, 0), 2 * MIB),
        ((0, 0xFFFF_FFFF, 4, 1), MIB),
        ((0, 0xFFFF_FFFF, 2 * MIB, 1), 2 * MIB),
        ((0x8001, 0x7FFFF, 0x1000, 1), 0x9000),
        ((0, 0xFFFF_FFFF, 0x1000, 2), 8 * MIB - 0x2000),
        ((0, 6 * MIB + 0x2FFE, 0x1000, 2), 6 * MIB),
        ((MIB, 8 * MIB - 1, 0, 2), 8 * MIB - 0x2000),
    ],
)
def test_relocatable_images(wish: tuple[int, int, int, int], base: int) -> None:
    """The image lies where it wishes, moved as a whole, and is told so."""
    image = multiboot2_elf(relocatable(*wish))
    made = plan(image, Target(ram(8 * MIB), 1))
    fixed = plan(
        multiboot2_elf(tag2(RELOCATABLE, bytes(16), 1).replace(b"\x0a\0\1", b"\x0b\0\1")), Target(ram(8 * MIB), 1)
    )
    assert entry(made) == entry(fixed) - MIB + base
    assert information(made)[21] == [struct.pack("<I", base)]
    assert 21 not in information(fixed)
    assert Loaded(made).read(entry(made), len(CODE)) == CODE


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ((MIB, MIB + 0x1FFE, 1, 0), r"\(8192 bytes\) between 0x100000 and 0x101ffe$"),
        ((9 * MIB, 16 * MIB, 1, 0), "give the guest more memory"),
        ((9 * MIB, 16 * MIB, 1, 1), "give the guest more memory"),
        ((9 * MIB, 16 * MIB, 1, 2), "between 0x900000 and 0x1000000"),
        ((3 * GIB, 0xFFFF_FFFF, 1, 1), "between 0xc0000000 and 0xffffffff$"),
        ((0, 0xFFFF_FFFF, 0xFFFF_FFFF, 1), "between 0x0 and 0xffffffff$"),
        ((0, 0, 1, 2), "no room for the relocatable image"),
    ],
)
def test_relocatable_images_without_room(wish: tuple[int, int, int, int], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        plan(multiboot2_elf(relocatable(*wish)), Target(ram(8 * MIB), 1))


# Tags of the header.
NOT_HERE = [
    (FRAMEBUFFER, bytes(12), "requires a framebuffer"),
    (EFI_BS, b"", "requires EFI boot services"),
    (EFI32, bytes(4), r"requires an EFI entry \(i386\)"),
    (EFI64, bytes(4), r"requires an EFI entry \(amd64\)"),
    (CONSOLE, b"\1\0\0\0", "requires a console of its own"),
    (11, b"", "what version 2.0 does not have: a tag of type 11"),
    (1, struct.pack("<2I", 4, 22), "requests information that version 2.0 does not have: type 22"),
    (1, struct.pack("<I", 0), "does not have: type 0"),
]


@pytest.mark.parametrize(("kind", "body", "words"), NOT_HERE)
def test_what_is_not_here_is_refused_by_name_unless_it_is_optional(kind: int, body: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        plan(multiboot2_elf(tag2(kind, body)), Target(ram(8 * MIB), 1))
    assert plan(multiboot2_elf(tag2(kind, body, 1)), Target(ram(8 * MIB), 1)).format == "multiboot2"


def test_what_can_be_asked_for() -> None:
    """All that version 2.0 knows may be requested; what is not there, such as EFI's tables, is left out."""
    tags = [tag2(1, struct.pack("<21I", *range(1, 22))), tag2(CONSOLE, b"\2\0\0\0"), tag2(ALIGN)]
    assert sorted(information(plan(multiboot2_elf(*tags), Target(ram(8 * MIB), 1)))) == [1, 2, 4, 6]


@pytest.mark.parametrize("at", [4, 32768 - 12, 32768])
def test_headers_where_they_may_not_be(at: int) -> None:
    assert detect(bytes(at) + multiboot2_header() + bytes(64)) == "flat"


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (bytes(4) + multiboot2_header(), "a Multiboot 2 header at offset 0x7c .* multiple of 8, in the first 32 KiB"),
        (bytes(1) + multiboot_header(), "a Multiboot header at offset 0x79 .* multiple of 4, in the first 8 KiB"),
        (bytes(8192) + multiboot_header(), "a Multiboot header at offset 0x2078"),
        (bytes(32768) + multiboot2_header(), "a Multiboot 2 header at offset 0x8078"),
    ],
)
def test_elf_images_whose_header_nobody_finds(header: bytes, words: str) -> None:
    """They would start as plain ELF images, with other registers than they expect."""
    with pytest.raises(ImageError, match=words):
        plan(elf([Segment(MIB, header + CODE)]), Target(ram(8 * MIB), 1))


def test_numbers_that_are_chance() -> None:
    image = elf([Segment(MIB, CODE + HEADER + bytes(12) + b"\x02\xb0\xad\x1b" * 3 + CODE)])
    assert plan(image, Target(ram(8 * MIB), 1)).format == "elf"
    assert plan(pvh() + multiboot2_header(), Target(ram(8 * MIB), 1)).format == "pvh"


def damaged(at: int, value: int) -> bytes:
    """Return an image with 4 bytes of its header overwritten, behind the checksum."""
    image = bytearray(multiboot2_elf(tag2(ENTRY, struct.pack("<I", MIB))))
    struct.pack_into("<I", image, 0x100 + at, value)
    return bytes(image)


def addresses(*values: int, entry: int = MIB) -> bytes:
    tags = tag2(ADDRESS, struct.pack("<4I", *values)), tag2(ENTRY, struct.pack("<I", entry))
    return multiboot2_header(*tags) + CODE


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (multiboot2_header() + CODE, "must be an ELF image, or its header must have addresses"),
        (multiboot2_header(architecture=4) + CODE, "for MIPS, not for i386"),
        (multiboot2_header(architecture=7) + CODE, "for architecture 7, not"),
        (struct.pack("<4I", 0xE85250D6, 0, 8, -(0xE85250DE) % (1 << 32)), "header, of 8 bytes, does not end"),
        (multiboot2_header()[:-1], "header, of 24 bytes, does not end"),
        (bytes(32768 - 16) + multiboot2_header(), "header, of 24 bytes, does not end"),
        (damaged(20, 7), "damaged: its tag of type 3 has 7 bytes"),
        (damaged(20, 11), "damaged: its tag of type 3 has 11 bytes"),
        (damaged(20, 0xFFFF_FFFF), "damaged: its tag of type 3 has 4294967295 bytes"),
        (damaged(24, MIB - 1), "entry 0xfffff must be in what it loads, 0x100000-0x101fff"),
        (multiboot2_header(tag2(ADDRESS, bytes(16))) + CODE, "so must have an entry address tag"),
        (addresses(MIB, MIB + 1, 0, 0), "cannot be at 0x100000 when loading starts at 0x100001"),
        (addresses(MIB, MIB, MIB, 0), "load end 0x100000 must be above"),
        (addresses(MIB, MIB, 0, MIB + 9), "bss end 0x100009 must not be below"),
        (addresses(MIB, MIB, MIB + 999, 0), "cut short: its header wants 999 bytes from offset 0x0"),
        (addresses(MIB, MIB, 0, 0, entry=MIB + 0x80), "entry 0x100080 must be in"),
        (addresses(MIB, MIB, 0, 9 * MIB), "not all RAM"),
        (multiboot2_elf(bits=64, address=FOUR_GIB), "entry must be below 4 GiB"),
        (multiboot2_elf()[:-1], "cut short"),
    ],
)
def test_refused(image: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        plan(image, Target(ram(8 * MIB), 1), "multiboot2")


def test_no_header() -> None:
    with pytest.raises(ImageError, match=r"0xE85250D6.*this image has none"):
        plan(CODE, Target(ram(8 * MIB), 1), "multiboot2")


def test_a_header_without_an_end_tag() -> None:
    """The length says where it ends, too."""
    image = multiboot2_flat()
    whole = image[32:96]
    header = multiboot2_header(whole[16:40], whole[40:56], end=b"")
    assert plan(image[:32] + header + bytes(8) + CODE, Target(ram(8 * MIB), 1)).format == "multiboot2"
