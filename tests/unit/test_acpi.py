"""ACPI tables: their structure and checksums, what iasl makes of them, and the sleep registers."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyvcpu import ConfigError
from pyvcpu.devices import acpi
from pyvcpu.devices.acpi import BASE, SIZE, build

VIRTIO = [(0xD000_0000, 0x1000, 5), (0xD000_1000, 0x1000, 6)]


def tables(blob: bytes, base: int = BASE) -> dict[str, bytes]:
    """Walk from the RSDP to every table, as a guest does; each must have its place, and a sum of zero."""
    assert blob[:8] == b"RSD PTR "
    assert (sum(blob[:20]) & 255, sum(blob[:36]) & 255) == (0, 0)
    assert (blob[15], blob[20:24]) == (2, (36).to_bytes(4, "little"))
    found = {}

    def table(address: int) -> bytes:
        at = address - base
        (length,) = struct.unpack_from("<I", blob, at + 4)
        data = blob[at : at + length]
        assert len(data) == length
        assert sum(data) & 255 == 0
        assert at % 16 == 0
        found[data[:4].decode()] = data
        return data

    (xsdt,) = struct.unpack_from("<Q", blob, 24)
    for (address,) in struct.iter_unpack("<Q", table(xsdt)[36:]):
        table(address)
    facp = found["FACP"]
    (dsdt,) = struct.unpack_from("<Q", facp, 140)
    assert struct.unpack_from("<I", facp, 40) == (dsdt,)
    table(dsdt)
    return found


def madt_entries(madt: bytes) -> Iterator[tuple[int, bytes]]:
    at = 44
    while at < len(madt):
        yield madt[at], madt[at : at + madt[at + 1]]
        at += madt[at + 1]
    assert at == len(madt)


@pytest.mark.parametrize("count", [1, 4, 255, 256, 1024, 4096])
def test_structure(count: int) -> None:
    blob = build(range(count), virtio=VIRTIO)
    assert set(tables(blob)) == {"XSDT", "FACP", "APIC", "DSDT"}
    assert len(blob) <= SIZE


def test_elsewhere() -> None:
    assert set(tables(build([0], base=0x10_0000), 0x10_0000)) == {"XSDT", "FACP", "APIC", "DSDT"}


def test_too_many_processors() -> None:
    with pytest.raises(ConfigError, match="ACPI tables of 9000 processors take"):
        build(range(9000))


def test_processors() -> None:
    """APIC ids up to 254 are xAPIC entries (type 0), others x2APIC entries (type 9); NMIs at LINT1 for both kinds."""
    madt = tables(build([0, 2, 254, 255, 300]))["APIC"]
    entries = list(madt_entries(madt))
    assert struct.unpack_from("<2I", madt, 36) == (0xFEE0_0000, 1)
    assert [entry for kind, entry in entries if kind == 0] == [
        struct.pack("<4BI", 0, 8, uid, apic_id, 1) for uid, apic_id in enumerate((0, 2, 254))
    ]
    assert [entry for kind, entry in entries if kind == 9] == [
        struct.pack("<2BH3I", 9, 16, 0, apic_id, 1, uid) for uid, apic_id in ((3, 255), (4, 300))
    ]
    assert [entry for kind, entry in entries if kind == 1] == [struct.pack("<4B2I", 1, 12, 0, 0, 0xFEC0_0000, 0)]
    assert [entry.hex() for kind, entry in entries if kind in (4, 10)] == ["0406ff000001", "0a0c0000ffffffff01000000"]
    assert [entry for kind, entry in entries if kind == 2] == [SCI_OVERRIDE]


def test_few_processors_need_no_x2apic() -> None:
    kinds = {kind for kind, _ in madt_entries(tables(build(range(255)))["APIC"])}
    assert kinds == {0, 1, 2, 4}


def test_overrides_and_no_8259() -> None:
    madt = tables(build([0], overrides=[(0, 2), (5, 20)], pic=False))["APIC"]
    assert struct.unpack_from("<I", madt, 40) == (0,)
    assert [entry for kind, entry in madt_entries(madt) if kind == 2] == [
        struct.pack("<4BIH", 2, 10, 0, isa, gsi, 0) for isa, gsi in ((0, 2), (5, 20))
    ]


SCI_OVERRIDE = struct.pack("<4BIH", 2, 10, 0, 9, 9, 0x0D)  # active high, level-triggered


def test_fadt() -> None:
    """Revision 6: fixed hardware at 0x600, a 32-bit timer, a power button; a reset register; no legacy VGA."""
    blob = build([0])
    fadt = tables(blob)["FACP"]
    assert (len(fadt), fadt[8]) == (276, 6)
    facs, _, sci = struct.unpack_from("<2IxxH", fadt, 36)
    assert (facs % 64, sci) == (0, 9)
    assert blob[facs - BASE : facs - BASE + 64] == b"FACS\x40" + bytes(27) + b"\x02" + bytes(31)
    assert struct.unpack_from("<2I2I2I2I", fadt, 48) == (0, 0, 0x600, 0, 0x604, 0, 0, 0x608)
    assert struct.unpack_from("<4B", fadt, 88) == (4, 2, 0, 4)
    assert struct.unpack_from("<2H", fadt, 96) == (101, 1001)
    boot, flags = struct.unpack_from("<HxI", fadt, 109)
    assert (flags, boot) == (1 << 12 | 1 << 10 | 1 << 8 | 1 << 6 | 1 << 5 | 1 << 2 | 1 << 0, 1 << 0 | 1 << 2)
    assert struct.unpack_from("<4BQB", fadt, 116) == (1, 8, 0, 1, 0xCF9, 6)
    assert struct.unpack_from("<4BQ", fadt, 148) == (1, 32, 0, 2, 0x600)
    assert struct.unpack_from("<4BQ", fadt, 172) == (1, 16, 0, 2, 0x604)
    assert struct.unpack_from("<4BQ", fadt, 208) == (1, 32, 0, 3, 0x608)
    assert fadt[108] == 0x32
    without = tables(build([0], rtc=False))["FACP"]
    assert (without[108], without[109] & 1 << 5) == (0, 1 << 5)


def test_reduced_fadt() -> None:
    """Without 8259s: hardware-reduced (bit 20), no fixed buttons (bits 4, 5), sleep registers in place of PM1."""
    found = tables(build([0], pic=False))
    fadt = found["FACP"]
    assert (len(fadt), fadt[8], fadt[36:40], fadt[46:108]) == (276, 6, bytes(4), bytes(62))
    boot, flags = struct.unpack_from("<HxI", fadt, 109)
    assert (flags, boot) == (1 << 20 | 1 << 12 | 1 << 10 | 1 << 5 | 1 << 4 | 1 << 0, 1 << 0 | 1 << 2)
    assert struct.unpack_from("<4BQ", fadt, 244) == (1, 8, 0, 1, 0x604)
    assert struct.unpack_from("<4BQ", fadt, 256) == (1, 8, 0, 1, 0x605)
    assert b"_S5_\x12\x07\x04\x0a\x05" in found["DSDT"]


@pytest.mark.parametrize("length", [1, 61, 62, 63, 4092, 4093, 4094, (1 << 20) - 4, (1 << 20) - 3])
def test_package_lengths(length: int) -> None:
    """Section 20.2.4: one byte up to 63, else the low 4 bits and up to 3 bytes more; they count themselves."""
    body = bytes(length)
    sized = acpi._sized(body)
    more = sized[0] >> 6
    value = sized[0] & 0x3F if not more else sized[0] & 0xF | int.from_bytes(sized[1 : 1 + more], "little") << 4
    assert value == len(sized) == 1 + more + length
    assert more == (0 if length < 63 else 1 if length < 4094 else 2 if length < (1 << 20) - 3 else 3)


CASES = {
    "one processor": build([0]),
    "no clock": build([0], rtc=False, pic=False),
    "devices": build(range(4), virtio=VIRTIO, overrides=[(0, 2)]),
    "many": build([*range(300)], virtio=[(0xD000_0000 + i * 0x1000, 0x200, i) for i in range(24)]),
}


@pytest.mark.parametrize("case", CASES)
def test_iasl_finds_nothing_to_complain_about(case: str, tool: Callable[[str], str], tmp_path: Path) -> None:
    """Disassemble every table, and compile what comes out."""
    iasl = tool("iasl")
    for name, data in tables(CASES[case]).items():
        path = tmp_path / f"{name}.aml"
        path.write_bytes(data)
        for arguments in (("-d", path.name), ("-p", f"{name}.again", f"{name}.dsl")):
            done = subprocess.run([iasl, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
            said = done.stdout + done.stderr
            assert done.returncode == 0, said
            assert not re.search(r"\b(?!0 )\d+ (Errors|Warnings|Remarks)|\bwarning\b|\berror\b", said, re.I | re.M), (
                said
            )


def has_resources(text: str, symbolic: str, data: bytes) -> bool:
    """Tell whether what iasl wrote has these resources: as descriptors, or, newer versions, as their bytes."""
    return symbolic in text or ",".join(f"0x{byte:02X}" for byte in data) in text


def test_dsdt_says_what_the_machine_has(tool: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "dsdt.aml").write_bytes(tables(CASES["devices"])["DSDT"])
    subprocess.run([tool("iasl"), "-d", "dsdt.aml"], cwd=tmp_path, capture_output=True, check=True)
    text = re.sub(r"/\*.*?\*/|//[^\n]*|\s+", "", (tmp_path / "dsdt.dsl").read_text(), flags=re.S)
    assert 'Device(COM1){Name(_HID,EisaId("PNP0501"))' in text
    symbolic = "IO(Decode16,0x03F8,0x03F8,0x01,0x08,)Interrupt(ResourceConsumer,Edge,ActiveHigh,Exclusive,,,)"
    assert has_resources(text, symbolic, bytes.fromhex("47 01 f8 03 f8 03 01 08 89 06 00 03 01 04 00 00 00 79 00"))
    assert 'Device(RTC){Name(_HID,EisaId("PNP0B00"))' in text
    assert 'Device(PEVT){Name(_HID,"QEMU0001")' in text
    for index, (address, length, gsi) in enumerate(VIRTIO):
        uid = ("Zero", "One")[index]
        assert f'Device(V{index:03}){{Name(_HID,"LNRO0005")Name(_UID,{uid})' in text
        symbolic = (
            f"Memory32Fixed(ReadWrite,0x{address:08X},0x{length:08X},)"
            f"Interrupt(ResourceConsumer,Level,ActiveHigh,Exclusive,,,){{0x{gsi:08X},}}"
        )
        data = struct.pack("<BHBIIBHBBI", 0x86, 9, 1, address, length, 0x89, 6, 1, 1, gsi)
        assert has_resources(text, symbolic, data)
    assert "Name(_S5,Package(0x04){Zero,Zero,Zero,Zero})" in text
