"""SMBIOS: tables that say what the machine is called, and what it consists of (dmidecode shows them).

A pure function. Source: SMBIOS Reference Specification 3.0 (DMTF DSP0134): entry points 5.2, structures 7.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Iterator, Sequence

BASE, SIZE = 0xFC000, 0x1000  # where guests search for the entry points: at multiples of 16 from 0xF0000 on
BIOS, SYSTEM, CHASSIS, PROCESSOR, ARRAY, MODULE, MAPPED, BOOT, END = 0, 1, 3, 4, 16, 17, 19, 32, 127
MAKER, PRODUCT = "pyvcpu", "virtual PC"
ENTRY_32, ENTRY_64 = 31, 24
MIB = 1 << 20
UNKNOWN, OTHER = 2, 1


def build(ranges: Sequence[tuple[int, int]], sockets: int, cores: int, threads: int, version: str) -> bytes:
    """Return the entry points and the tables, for guest physical BASE.

    `ranges`: RAM as (start, end) pairs. `cores` and `threads` of each socket. Where there are too many processors for
    SIZE, the last are left out.
    """
    tables = bytearray()
    first = BASE + 64
    largest = count = 0
    structures = [*_structures(ranges, sockets, cores, threads, version), _structure(END, 0xFEFF, b"")]
    end = structures.pop()
    for structure in structures:
        if 64 + len(tables) + len(structure) + len(end) > SIZE:
            break
        tables += structure
        largest, count = max(largest, len(structure)), count + 1
    tables += end
    entry = _entry_32(first, len(tables), largest, count + 1).ljust(32, b"\0") + _entry_64(first, len(tables))
    return entry.ljust(64, b"\0") + bytes(tables)


def _entry_32(address: int, length: int, largest: int, count: int) -> bytes:
    entry = bytearray(struct.pack("<4sBBBBHB5s", b"_SM_", 0, ENTRY_32, 2, 8, largest, 0, b""))
    entry += struct.pack("<5sBHIHB", b"_DMI_", 0, length, address, count, 0x28)
    entry[21] = -sum(entry[16:]) & 0xFF
    entry[4] = -sum(entry) & 0xFF
    return bytes(entry)


def _entry_64(address: int, length: int) -> bytes:
    entry = bytearray(struct.pack("<5s6BxIQ", b"_SM3_", 0, ENTRY_64, 3, 0, 0, 1, length, address))
    entry[5] = -sum(entry) & 0xFF
    return bytes(entry)


def _structure(kind: int, handle: int, body: bytes, *strings: str) -> bytes:
    head = struct.pack("<BBH", kind, 4 + len(body), handle)
    texts = b"".join(text.encode("ascii", "replace") + b"\0" for text in strings) or b"\0"
    return head + body + texts + b"\0"


def _structures(
    ranges: Sequence[tuple[int, int]], sockets: int, cores: int, threads: int, version: str
) -> Iterator[bytes]:
    ram = sum(end - start for start, end in ranges)
    yield _structure(BIOS, 0x0000, _bios(), MAKER, version, "01/01/2026")
    power_switch = 6
    system = _fields("4B16s3B", 1, 2, 3, 0, bytes(16), power_switch, 0, 0)
    yield _structure(SYSTEM, 0x0100, system, MAKER, PRODUCT, version)
    safe = 3  # the states of chassis, supply and temperature
    chassis = _fields("9BI5B", 1, OTHER, 0, 0, 0, safe, safe, safe, UNKNOWN, 0, 0, 0, 0, 0, 0)
    yield _structure(CHASSIS, 0x0300, chassis, MAKER)
    system_memory, no_errors_corrected, in_bytes, no_error = 3, 3, 0x8000_0000, 0xFFFE
    array = _fields("3BIHHQ", OTHER, system_memory, no_errors_corrected, in_bytes, no_error, 1, ram)
    yield _structure(ARRAY, 0x1000, array)
    yield _structure(MODULE, 0x1100, _module(ram // MIB, no_error), "DIMM 0", MAKER)
    for index, (start, end) in enumerate(ranges):
        mapped = _fields("IIHBQQ", 0xFFFF_FFFF, 0xFFFF_FFFF, 0x1000, 1, start, end - 1)
        yield _structure(MAPPED, 0x1300 + index, mapped)
    yield _structure(BOOT, 0x2000, bytes(7))
    for socket in range(sockets):
        yield _structure(PROCESSOR, 0x0400 + socket, _processor(cores, cores * threads), f"CPU {socket}", MAKER)


def _fields(format: str, *values: int | bytes) -> bytes:
    return struct.pack("<" + format, *values)


def _bios() -> bytes:
    """Strings, place, size; a characteristic that says that none is told, and that this is a virtual machine."""
    none_told, virtual_machine, no_version = 1 << 3, 1 << 4, 0xFF
    place, blocks_of_64_kib = 0xF000, 0
    head = _fields("BBHBB", 1, 2, place, 3, blocks_of_64_kib)
    return head + _fields("Q6B", none_told, 0, virtual_machine, 0, 0, no_version, no_version)


def _module(mib: int, no_error: int) -> bytes:
    """All memory as one module."""
    extended = mib >= 0x7FFF
    dimm, ram, other = 9, 7, 2
    head = _fields("5H", 0x1000, no_error, 64, 64, 0x7FFF if extended else mib)
    return head + _fields("5BHH5BI4H", dimm, 0, 1, 0, ram, other, 0, 2, 0, 0, 0, 0, mib if extended else 0, 0, 0, 0, 0)


def _processor(cores: int, threads: int) -> bytes:
    """A processor in a socket, enabled."""
    central, unknown_family, enabled, socket_other = 3, 2, 0x41, 1
    many = [min(number, 0xFFFF) for number in (cores, cores, threads)]
    head = _fields("4BQBB3HBB", 1, central, unknown_family, 2, 0, 0, 0, 0, 0, 0, enabled, socket_other)
    caches = _fields("3H3B", 0xFFFF, 0xFFFF, 0xFFFF, 0, 0, 0)
    bits_64 = 1 << 2
    return head + caches + _fields("3BHH3H", *(min(number, 0xFF) for number in many), bits_64, 2, *many)
