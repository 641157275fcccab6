"""ACPI: the tables that describe the machine.

Pure functions from numbers to bytes. The machine has ACPI's fixed hardware (acpi_pm.py) where
it has 8259s; without, it is of the hardware-reduced kind. docs/pc.md says why.
Source: ACPI Specification 6.4; chapter 5 for the tables, 6.4 for resources, 20 for the byte code (AML).
"""

from __future__ import annotations

import struct

from ..errors import ConfigError
from .acpi_pm import CONTROL, EVENT, PM_BASE, REDUCED_S5, SCI, SLEEP_TYPE_S5, TIMER
from .ports import PANIC_PORT
from .reset import RESET_CONTROL_PORT, RESET_CPU, RESET_SYSTEM

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterable, Sequence

BASE, SIZE = 0xE0000, 0x1C000  # where guests search for the RSDP (section 5.2.5.1), up to SMBIOS and BIOS
OEM, OEM_TABLE, CREATOR = b"PYVCPU", b"PYVCPUPC", b"PYVC"
HEADER = struct.Struct("<4sIBB6s8sI4sI")
RSDP = struct.Struct("<8sB6sBIIQB3x")
XSDP_SIZE_BEFORE_64_BITS = 20  # what the RSDP's first checksum covers

LOCAL_APIC, IO_APIC = 0xFEE0_0000, 0xFEC0_0000
LAST_XAPIC_ID = 254  # 255 is the broadcast

COM1_PORT, COM1_LENGTH, COM1_IRQ = 0x3F8, 8, 4
RTC_PORT, RTC_LENGTH, RTC_IRQ = 0x70, 2, 8


def build(
    apic_ids: Sequence[int],
    *,
    base: int = BASE,
    virtio: Iterable[tuple[int, int, int]] = (),
    overrides: Iterable[tuple[int, int]] = (),
    pic: bool = True,
    rtc: bool = True,
) -> bytes:
    """Return the tables, to be put at guest physical `base`: RSDP first, then FACS, DSDT, FADT, MADT and XSDT.

    `apic_ids`: the processors' local APIC ids, the boot processor's first. `virtio`: address, length and interrupt
    (GSI) of each virtio-mmio device. `overrides`: (ISA interrupt, GSI) pairs where they differ. `pic`: there is an 8259
    pair. `rtc`: there is a CMOS clock. Raises ConfigError when there are more processors than the tables have room for.
    """
    blob = bytearray(_up(RSDP.size))

    def add(table: bytes) -> int:
        address = base + len(blob)
        blob.extend(table.ljust(_up(len(table)), b"\0"))
        return address

    facs = 0
    if pic:
        blob.extend(bytes(-(base + len(blob)) % FACS_SIZE))
        facs = add(_facs())
    dsdt = add(_dsdt(virtio, rtc, SLEEP_TYPE_S5 if pic else REDUCED_S5))
    fadt = add(_fadt(facs, dsdt, rtc) if pic else _reduced_fadt(dsdt, rtc))
    madt = add(_madt(apic_ids, overrides, pic))
    xsdt = add(_table(b"XSDT", 1, struct.pack("<2Q", fadt, madt)))
    blob[: RSDP.size] = _rsdp(xsdt)
    if len(blob) > SIZE:
        raise ConfigError(
            f"the ACPI tables of {len(apic_ids)} processors take {len(blob)} bytes of the {SIZE} there are"
        )
    return bytes(blob)


def _up(size: int) -> int:
    return (size + 15) // 16 * 16


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """Return a table with the header of section 5.2.6."""
    table = bytearray(
        HEADER.pack(signature, HEADER.size + len(body), revision, 0, OEM, OEM_TABLE, 1, CREATOR, 1) + body
    )
    table[9] = _checksum(table)
    return bytes(table)


def _rsdp(xsdt: int) -> bytes:
    """Return the root pointer, revision 2; there is no RSDT."""
    rsdp = bytearray(RSDP.pack(b"RSD PTR ", 0, OEM, 2, 0, RSDP.size, xsdt, 0))
    rsdp[8] = _checksum(rsdp[:XSDP_SIZE_BEFORE_64_BITS])
    rsdp[32] = _checksum(rsdp)
    return bytes(rsdp)


# FACS (section 5.2.10): it has no checksum, and lies at a multiple of its size.
FACS_SIZE, FACS_VERSION = 64, 2


def _facs() -> bytes:
    return struct.pack("<4sI24xB31x", b"FACS", FACS_SIZE, FACS_VERSION)


# FADT (section 5.2.9).
FADT_SIZE = 276
FADT_REVISION, FADT_MINOR = 6, 4
BOOT_LEGACY_DEVICES, BOOT_8042, BOOT_NO_VGA, BOOT_NO_CMOS_RTC = 1 << 0, 1 << 1, 1 << 2, 1 << 5
FLAG_WBINVD, FLAG_C1, FLAG_NO_SLEEP_BUTTON, FLAG_NO_RTC_WAKE = 1 << 0, 1 << 2, 1 << 5, 1 << 6
FLAG_TIMER_32_BITS, FLAG_RESET_REGISTER, FLAG_HEADLESS = 1 << 8, 1 << 10, 1 << 12
EVENT_LENGTH, CONTROL_LENGTH, TIMER_LENGTH = 4, 2, 4
NO_C2, NO_C3 = 101, 1001  # latencies in microseconds that say so
CMOS_CENTURY = 0x32
SYSTEM_IO, BYTE_ACCESS, WORD_ACCESS, DWORD_ACCESS = 1, 1, 2, 3


def _fadt(facs: int, dsdt: int, rtc: bool) -> bytes:
    table = bytearray(FADT_SIZE)
    flags = FLAG_WBINVD | FLAG_C1 | FLAG_NO_SLEEP_BUTTON | FLAG_NO_RTC_WAKE
    flags |= FLAG_TIMER_32_BITS | FLAG_RESET_REGISTER | FLAG_HEADLESS
    boot = BOOT_LEGACY_DEVICES | BOOT_NO_VGA | (0 if rtc else BOOT_NO_CMOS_RTC)
    struct.pack_into("<2IxxH", table, 36, facs, dsdt, SCI)
    struct.pack_into("<I4xI8xI", table, 56, PM_BASE + EVENT, PM_BASE + CONTROL, PM_BASE + TIMER)
    struct.pack_into("<BBxB", table, 88, EVENT_LENGTH, CONTROL_LENGTH, TIMER_LENGTH)
    struct.pack_into("<2H", table, 96, NO_C2, NO_C3)
    struct.pack_into("<BHxI", table, 108, CMOS_CENTURY if rtc else 0, boot, flags)
    struct.pack_into("<12sBHB", table, 116, _register(RESET_CONTROL_PORT), RESET_SYSTEM | RESET_CPU, 0, FADT_MINOR)
    struct.pack_into("<Q", table, 140, dsdt)  # X_FIRMWARE_CTRL stays 0: the other one counts
    struct.pack_into("<12s", table, 148, _register(PM_BASE + EVENT, 8 * EVENT_LENGTH, WORD_ACCESS))
    struct.pack_into("<12s", table, 172, _register(PM_BASE + CONTROL, 8 * CONTROL_LENGTH, WORD_ACCESS))
    struct.pack_into("<12s", table, 208, _register(PM_BASE + TIMER, 8 * TIMER_LENGTH, DWORD_ACCESS))
    return _table(b"FACP", FADT_REVISION, bytes(table[HEADER.size :]))


FLAG_NO_POWER_BUTTON, FLAG_HARDWARE_REDUCED = 1 << 4, 1 << 20


def _reduced_fadt(dsdt: int, rtc: bool) -> bytes:
    table = bytearray(FADT_SIZE)
    flags = FLAG_WBINVD | FLAG_NO_POWER_BUTTON | FLAG_NO_SLEEP_BUTTON
    flags |= FLAG_RESET_REGISTER | FLAG_HEADLESS | FLAG_HARDWARE_REDUCED
    boot = BOOT_LEGACY_DEVICES | BOOT_NO_VGA | (0 if rtc else BOOT_NO_CMOS_RTC)
    struct.pack_into("<I", table, 40, dsdt)
    struct.pack_into("<BHxI", table, 108, CMOS_CENTURY if rtc else 0, boot, flags)
    struct.pack_into("<12sBHB", table, 116, _register(RESET_CONTROL_PORT), RESET_SYSTEM | RESET_CPU, 0, FADT_MINOR)
    struct.pack_into("<Q", table, 140, dsdt)
    sleep = PM_BASE + CONTROL  # the sleep control register, the status register after it
    struct.pack_into("<12s12s", table, 244, _register(sleep), _register(sleep + 1))
    return _table(b"FACP", FADT_REVISION, bytes(table[HEADER.size :]))


def _register(port: int, width: int = 8, access: int = BYTE_ACCESS) -> bytes:
    """Return the generic address structure of a register of so many bits in I/O space (section 5.2.3.2)."""
    return struct.pack("<4BQ", SYSTEM_IO, width, 0, access, port)


# MADT (section 5.2.12).
MADT_REVISION = 5
PCAT_COMPAT = 1 << 0  # there is an 8259 pair
ENABLED = 1 << 0
ALL_PROCESSORS, ALL_X2APIC_PROCESSORS = 0xFF, 0xFFFF_FFFF
LINT1 = 1
ACTIVE_HIGH, LEVEL_TRIGGERED = 1 << 0, 3 << 2


def _madt(apic_ids: Sequence[int], overrides: Iterable[tuple[int, int]], pic: bool) -> bytes:
    entries = [struct.pack("<2I", LOCAL_APIC, PCAT_COMPAT if pic else 0)]
    for uid, apic_id in enumerate(apic_ids):
        if apic_id <= LAST_XAPIC_ID and uid <= LAST_XAPIC_ID:
            entries.append(struct.pack("<4BI", 0, 8, uid, apic_id, ENABLED))
        else:
            entries.append(struct.pack("<2B2x3I", 9, 16, apic_id, ENABLED, uid))
    io_apic_id = 0  # as KVM's own has it
    entries.append(struct.pack("<4B2I", 1, 12, io_apic_id, 0, IO_APIC, 0))
    entries += [struct.pack("<4BIH", 2, 10, 0, isa, gsi, 0) for isa, gsi in overrides]
    if pic:
        entries.append(struct.pack("<4BIH", 2, 10, 0, SCI, SCI, ACTIVE_HIGH | LEVEL_TRIGGERED))
    entries.append(struct.pack("<3BHB", 4, 6, ALL_PROCESSORS, 0, LINT1))
    if max(len(apic_ids) - 1, *apic_ids) > LAST_XAPIC_ID:
        entries.append(struct.pack("<2BHIB3x", 10, 12, 0, ALL_X2APIC_PROCESSORS, LINT1))
    return _table(b"APIC", MADT_REVISION, b"".join(entries))


# DSDT: a definition block in AML (section 20.2).
DSDT_REVISION = 2  # 64-bit integers


def _dsdt(virtio: Iterable[tuple[int, int, int]], rtc: bool, sleep_type: int) -> bytes:
    devices = [
        _device("COM1", _dword(_eisa_id("PNP0501")), 1, _io(COM1_PORT, COM1_LENGTH) + _interrupt(COM1_IRQ, edge=True))
    ]
    if rtc:
        resources = _io(RTC_PORT, RTC_LENGTH) + _interrupt(RTC_IRQ, edge=True)
        devices.append(_device("RTC", _dword(_eisa_id("PNP0B00")), 0, resources))
    devices.append(_device("PEVT", _string("QEMU0001"), 0, _io(PANIC_PORT, 1)))
    for index, (address, length, gsi) in enumerate(virtio):
        resources = _memory(address, length) + _interrupt(gsi, edge=False)
        devices.append(_device(f"V{index:03X}", _string("LNRO0005"), index, resources))
    s5 = _package(*map(_integer, (sleep_type, 0, 0, 0)))
    return _table(b"DSDT", DSDT_REVISION, _scope("\\_SB_", b"".join(devices)) + _named("_S5", s5))


def _device(name: str, hardware_id: bytes, uid: int, resources: bytes) -> bytes:
    body = _named("_HID", hardware_id) + _named("_UID", _integer(uid)) + _named("_CRS", _buffer(resources + END_TAG))
    return b"\x5b\x82" + _sized(_segment(name) + body)


def _scope(name: str, body: bytes) -> bytes:
    return b"\x10" + _sized(name.encode() + body)


def _named(name: str, value: bytes) -> bytes:
    return b"\x08" + _segment(name) + value


def _segment(name: str) -> bytes:
    return name.encode().ljust(4, b"_")


def _sized(body: bytes) -> bytes:
    """Put the package length before `body`: 1 to 4 bytes, which count themselves."""
    if len(body) + 1 < 1 << 6:
        return bytes((len(body) + 1,)) + body
    more = 1 if len(body) + 2 < 1 << 12 else 2 if len(body) + 3 < 1 << 20 else 3
    length = len(body) + 1 + more
    return bytes((more << 6 | length & 0xF,)) + (length >> 4).to_bytes(more, "little") + body


def _integer(value: int) -> bytes:
    if value <= 1:
        return bytes((value,))  # ZeroOp, OneOp
    if value < 1 << 8:
        return b"\x0a" + value.to_bytes(1, "little")
    return b"\x0b" + value.to_bytes(2, "little")


def _dword(value: int) -> bytes:
    return b"\x0c" + value.to_bytes(4, "little")


def _string(text: str) -> bytes:
    return b"\x0d" + text.encode() + b"\0"


def _buffer(data: bytes) -> bytes:
    return b"\x11" + _sized(_integer(len(data)) + data)


def _package(*elements: bytes) -> bytes:
    return b"\x12" + _sized(bytes((len(elements),)) + b"".join(elements))


def _eisa_id(text: str) -> int:
    """Return a compressed id: three letters of 5 bits and four hexadecimal digits, big-endian (section 19.3.4)."""
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | ord(letter) - ord("@")
    return int.from_bytes((letters << 16 | int(text[3:], 16)).to_bytes(4, "big"), "little")


# Resource descriptors (section 6.4).
END_TAG = b"\x79\0"
DECODE_16 = READ_WRITE = CONSUMER = 1
EDGE = 1 << 1  # active high and exclusive otherwise


def _io(port: int, length: int) -> bytes:
    return struct.pack("<2B2H2B", 0x47, DECODE_16, port, port, 1, length)


def _memory(address: int, length: int) -> bytes:
    return struct.pack("<BHB2I", 0x86, 9, READ_WRITE, address, length)


def _interrupt(gsi: int, *, edge: bool) -> bytes:
    return struct.pack("<BH2BI", 0x89, 6, CONSUMER | (EDGE if edge else 0), 1, gsi)
