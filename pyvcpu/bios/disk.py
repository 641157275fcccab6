"""INT 13h: reading and writing drives, by cylinder, head and sector, and by number (the LBA extensions).

Sources: Ralf Brown's interrupt list; BIOS Enhanced Disk Drive Specification 3.0 (Phoenix, 1998).
"""

from __future__ import annotations

import struct

from . import layout as at
from .drives import FIRST_DISK, SECTOR, Drive

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .call import Call, Memory
    from .drives import Drives

# Statuses, in AH.
OK, BAD_COMMAND, NOT_FOUND, PROTECTED, NO_SECTOR, BOUNDARY = 0x00, 0x01, 0x02, 0x03, 0x04, 0x09
CONTROLLER, NOT_READY, NOT_REMOVABLE = 0x20, 0x80, 0xB2
BAD_DRIVE = BAD_COMMAND

EXTENSIONS = (0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4E)
VERSION_3, FIXED_DISK_ACCESS, ENHANCED_SUPPORT, BITS_64 = 0x30, 1, 4, 8
PACKET, LONG_PACKET = 0x10, 0x18
TYPE_NONE, TYPE_FLOPPY, TYPE_FLOPPY_CHANGES, TYPE_DISK = range(4)
FILLER = b"\xf6"  # what a formatted sector holds


class Disk:
    """The handler of INT 13h. `say(key, text)` tells people something once."""

    def __init__(self, drives: Drives, memory: Memory, say: Callable[[object, str], object]) -> None:
        self._drives = drives
        self._memory = memory
        self._say = say

    def __call__(self, call: Call) -> None:
        """Serve the call: AH is the function, DL the drive; CF and AH say how it went."""
        function, number = call.ah, call.dl
        drive = self._drives.get(number)
        if function == 0x01:
            status = self._last(number)
            call.ah, call.cf = status, status != OK
            return
        if function == 0x4B:  # El Torito: there is no CD
            status = BAD_COMMAND
        elif function in (0x08, 0x15):
            status = (self._parameters if function == 0x08 else self._type)(call, drive)
        elif drive is None:
            status = self._no_drive(function, number)
        elif function in SERVICES and (function not in EXTENSIONS or not drive.is_floppy):
            status = SERVICES[function](self, call, drive)
        else:
            status = BAD_COMMAND
            if function not in EXTENSIONS:
                self._say((0x13, function), f"INT 13h AH={function:02X}h: no such service here")
        self._finish(call, number, function, status)

    def _finish(self, call: Call, number: int, function: int, status: int) -> None:
        if function != 0x15 or status:
            call.ah = call.ah if function in (0x41,) and not status else status
        call.cf = status != OK
        address = at.DISKETTE_STATUS if number < FIRST_DISK else at.DISK_STATUS
        self._memory.write(address, bytes((status,)))

    def _last(self, number: int) -> int:
        return self._memory.read(at.DISKETTE_STATUS if number < FIRST_DISK else at.DISK_STATUS, 1)[0]

    def _no_drive(self, function: int, number: int) -> int:
        if function in (0x02, 0x03, 0x42, 0x43):
            self._say((0x13, "drive", number), f"INT 13h: the guest reads or writes drive {number:02X}h: there is none")
        return BAD_DRIVE if number >= FIRST_DISK else NOT_READY

    # Sectors

    def _move(self, drive: Drive, sector: int | None, count: int, address: int, how: str) -> int:
        """Move `count` sectors and return the status."""
        if sector is None or sector + count > drive.count:
            return NO_SECTOR
        if how == "write" and drive.backend.readonly:
            return PROTECTED
        if how == "verify":
            return OK
        if not any(start <= address and address + count * SECTOR <= end for start, end, _ in self._memory.ranges):
            return BOUNDARY
        view = self._memory.view(address, count * SECTOR)
        try:
            (drive.write if how == "write" else drive.read)(sector, view)
        except OSError as error:
            self._say((0x13, "error", drive.number), f"drive {drive.number:02X}h: {error.strerror or error}")
            return CONTROLLER
        return OK

    def _chs(self, call: Call, drive: Drive, how: str) -> int:
        count = call.al
        cylinder, sector = call.ch | (call.cl & 0xC0) << 2, call.cl & 0x3F
        if not 1 <= count <= 128:
            call.al = 0
            return BAD_COMMAND
        status = self._move(drive, drive.sector_of(cylinder, call.dh, sector), count, call.far("es", call.bx), how)
        call.al = count if status == OK else 0
        return status

    def read(self, call: Call, drive: Drive) -> int:
        """AH=02h."""
        return self._chs(call, drive, "read")

    def write(self, call: Call, drive: Drive) -> int:
        """AH=03h."""
        return self._chs(call, drive, "write")

    def verify(self, call: Call, drive: Drive) -> int:
        """AH=04h."""
        return self._chs(call, drive, "verify")

    def format(self, call: Call, drive: Drive) -> int:
        """AH=05h: fill a track of a floppy."""
        if not drive.is_floppy:
            return BAD_COMMAND
        start = drive.sector_of(call.ch | (call.cl & 0xC0) << 2, call.dh, 1)
        if start is None or start + drive.sectors > drive.count:
            return NO_SECTOR
        if drive.backend.readonly:
            return PROTECTED
        try:
            drive.write(start, memoryview(bytearray(FILLER * SECTOR * drive.sectors)))
        except OSError as error:
            self._say((0x13, "error", drive.number), f"drive {drive.number:02X}h: {error.strerror or error}")
            return CONTROLLER
        return OK

    # What drives there are

    def _parameters(self, call: Call, drive: Drive | None) -> int:
        """AH=08h: the geometry. Of a floppy drive that is not there, that there is none."""
        floppy = call.dl < FIRST_DISK
        if drive is None:
            if not floppy:
                return BAD_DRIVE
            call.ax = call.bx = call.cx = call.di = 0
            call.set_segment("es", 0)
            call.dx = self._drives.floppies
            return OK
        last = drive.cylinders - 1
        call.ch = last & 0xFF
        call.cl = last >> 2 & 0xC0 | drive.sectors
        call.dh = drive.heads - 1
        call.dl = self._drives.floppies if floppy else self._drives.disks
        call.al = 0
        if floppy:
            call.bx = drive.kind
            call.di = at.DISKETTE
            call.set_segment("es", at.SEGMENT)
        return OK

    def _type(self, call: Call, drive: Drive | None) -> int:
        """AH=15h: the kind in AH, of a disk the sectors in CX:DX."""
        if drive is None:
            call.ah = TYPE_NONE
            return OK if call.dl < FIRST_DISK else BAD_DRIVE
        if drive.is_floppy:
            call.ah = TYPE_FLOPPY
            return OK
        count = min(drive.count, drive.cylinders * drive.heads * drive.sectors)
        call.cx, call.dx, call.ah = count >> 16, count & 0xFFFF, TYPE_DISK
        return OK

    def ready(self, call: Call, drive: Drive) -> int:
        """AH=00h, 0Dh (reset), 0Ch (seek), 10h (ready?), 11h (recalibrate), 14h (self test): at once."""
        return OK

    def initialize(self, call: Call, drive: Drive) -> int:
        """AH=09h: disks only."""
        return BAD_COMMAND if drive.is_floppy else OK

    def changed(self, call: Call, drive: Drive) -> int:
        """AH=16h: no floppy is ever changed."""
        return OK if drive.is_floppy else BAD_COMMAND

    def set_media(self, call: Call, drive: Drive) -> int:
        """AH=17h, 18h: the medium is of the kind that it is."""
        if not drive.is_floppy:
            return BAD_COMMAND
        if call.ah == 0x18:
            if (call.ch | (call.cl & 0xC0) << 2, call.cl & 0x3F) != (drive.cylinders - 1, drive.sectors):
                return 0x0C  # no such medium
            call.di = at.DISKETTE
            call.set_segment("es", at.SEGMENT)
        return OK

    # The extensions

    def check(self, call: Call, drive: Drive) -> int:
        """AH=41h: the extensions are there."""
        if call.bx != 0x55AA:
            return BAD_COMMAND
        call.bx, call.cx, call.ah = 0xAA55, FIXED_DISK_ACCESS | ENHANCED_SUPPORT | BITS_64, VERSION_3
        return OK

    def _extended(self, call: Call, drive: Drive, how: str) -> int:
        packet_at = call.far("ds", call.si)
        packet = self._memory.read(packet_at, PACKET)
        size, _, count, offset, segment, sector = struct.unpack("<BBHHHQ", packet)
        if size < PACKET:
            return BAD_COMMAND
        address = (segment << 4) + offset
        if (segment, offset) == (0xFFFF, 0xFFFF) and size >= LONG_PACKET:
            address = int.from_bytes(self._memory.read(packet_at + PACKET, 8), "little")
        status = self._move(drive, sector, count, address, how)
        if status != OK:
            self._memory.write(packet_at + 2, b"\0\0")  # sectors moved
        return status

    def read_extended(self, call: Call, drive: Drive) -> int:
        """AH=42h."""
        return self._extended(call, drive, "read")

    def write_extended(self, call: Call, drive: Drive) -> int:
        """AH=43h."""
        return self._extended(call, drive, "write")

    def verify_extended(self, call: Call, drive: Drive) -> int:
        """AH=44h, and 47h, which only seeks."""
        return self._extended(call, drive, "verify")

    def locked(self, call: Call, drive: Drive) -> int:
        """AH=45h, 46h, 49h: disks cannot be removed."""
        return NOT_REMOVABLE if call.ah in (0x45, 0x46) else OK

    def parameters_extended(self, call: Call, drive: Drive) -> int:
        """AH=48h: geometry and size, in a buffer of the caller's at DS:SI."""
        address = call.far("ds", call.si)
        room = int.from_bytes(self._memory.read(address, 2), "little")
        if room < 0x1A:
            return BAD_COMMAND
        cylinders = drive.count // (drive.heads * drive.sectors)
        flags = 0x02 if cylinders <= 16383 else 0  # the geometry is valid
        cylinders = min(cylinders, 0xFFFF_FFFF)
        table = struct.pack("<HHIIIQH", 0x1A, flags, cylinders, drive.heads, drive.sectors, drive.count, SECTOR)
        if room >= 0x1E:
            table = struct.pack("<H", 0x1E) + table[2:] + b"\xff\xff\xff\xff"  # no EDD configuration
        self._memory.write(address, table)
        return OK

    def set_hardware(self, call: Call, drive: Drive) -> int:
        """AH=4Eh: nothing to set."""
        return OK


SERVICES: dict[int, Callable[[Disk, Call, Drive], int]] = {
    0x00: Disk.ready,
    0x02: Disk.read,
    0x03: Disk.write,
    0x04: Disk.verify,
    0x05: Disk.format,
    0x09: Disk.initialize,
    0x0C: Disk.ready,
    0x0D: Disk.ready,
    0x10: Disk.ready,
    0x11: Disk.ready,
    0x14: Disk.ready,
    0x16: Disk.changed,
    0x17: Disk.set_media,
    0x18: Disk.set_media,
    0x41: Disk.check,
    0x42: Disk.read_extended,
    0x43: Disk.write_extended,
    0x44: Disk.verify_extended,
    0x45: Disk.locked,
    0x46: Disk.locked,
    0x47: Disk.verify_extended,
    0x48: Disk.parameters_extended,
    0x49: Disk.locked,
    0x4E: Disk.set_hardware,
}
