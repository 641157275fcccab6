"""INT 11h, 12h and 15h: what the machine consists of, its memory, and waiting. INT 14h: the serial port.

Sources: Ralf Brown's interrupt list; ACPI Specification 6.4, section 15.1 (E820).
"""

from __future__ import annotations

import struct
from time import monotonic, sleep

from ..boot.layout import RESERVED, memory_map
from . import layout as at
from .call import AGAIN, WAIT, Call
from .rom import EBDA

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Protocol

    from .call import Memory

    class SerialPort(Protocol):
        """A 16550A, as its registers: devices.serial.Serial is one."""

        @property
        def listens(self) -> bool: ...
        def receive(self, data: bytes) -> int: ...
        def wait_room(self, timeout: float | None = None) -> bool: ...
        def read(self, offset: int, size: int) -> bytes: ...
        def write(self, offset: int, data: bytes) -> None: ...


SMAP = 0x534D4150
UNSUPPORTED = 0x86
KIB, MIB, HOLE_15 = 1 << 10, 1 << 20, 16 << 20
ROM_START = 0xE0000
NAP = 0.005  # seconds: a vCPU that waits is not away for longer
LONG = 0.12  # seconds: two ticks of the timer, after which a sleeping vCPU looks again

# What programs try that have another way: APM, the mouse, Micro Channel, SpeedStep, x86-64's hint, joysticks.
QUIET = (0x41, 0x53, 0xC1, 0xC2, 0xC3, 0xC4, 0xD8, 0xE9, 0xEC, 0x84, 0x4F)


def e820(ranges: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Return (start, length, kind) of the memory, by address; what is no RAM below 1 MiB is left out, but the ROM."""
    entries = []
    for start, end, kind in memory_map(ranges):
        if kind == RESERVED:
            entries.append((start, 0xA0000 - start, kind))
            entries.append((ROM_START, end - ROM_START, kind))
        else:
            entries.append((start, end - start, kind))
    return entries


class System:
    """The handlers of INT 11h, 12h and 15h.

    `sleeps()`: an interrupt of the timer ends a HLT. `extended` memory is what is above 1 MiB and below 4 GiB.
    """

    def __init__(self, memory: Memory, say: Callable[[object, str], object], sleeps: Callable[[], bool]) -> None:
        self._memory = memory
        self._say = say
        self._sleeps = sleeps
        ranges = [(start, end) for start, end, _ in memory.ranges]
        self._map = e820(ranges)
        self._extended = max(ranges[0][1] - MIB, 0)
        self._deadlines: dict[object, float] = {}

    def reset(self) -> None:
        """Forget who waits."""
        self._deadlines.clear()

    def equipment(self, call: Call) -> None:
        """INT 11h."""
        call.ax = int.from_bytes(self._memory.read(at.EQUIPMENT, 2), "little")

    def conventional(self, call: Call) -> None:
        """INT 12h: KiB of memory below the EBDA."""
        call.ax = int.from_bytes(self._memory.read(at.KIB, 2), "little")

    def __call__(self, call: Call) -> object:
        """Serve INT 15h: AH is the function."""
        function = call.ah
        service = SERVICES.get(function)
        if service is not None:
            return service(self, call)
        if function not in QUIET:
            self._say((0x15, function), f"INT 15h AH={function:02X}h: no such service here")
        self._unsupported(call)
        return None

    def _unsupported(self, call: Call) -> None:
        if call.ah != 0x4F:  # which leaves the scan code to INT 9h by CF set
            call.ah = UNSUPPORTED
        call.cf = True

    def a20(self, call: Call) -> None:
        """AH=24h: the address line is always on."""
        if call.al in (0x00, 0x01):
            call.ah, call.cf = 0, False
        elif call.al == 0x02:
            call.ax, call.cf = 0x0001, False
        elif call.al == 0x03:
            call.ax, call.bx, call.cf = 0, 3, False  # by the keyboard controller, and by port 92h
        else:
            self._unsupported(call)

    def nothing(self, call: Call) -> None:
        """AH=80h to 82h, 85h, 90h, 91h: what an operating system may hook."""
        call.ah, call.cf = 0, False

    def wait(self, call: Call) -> object:
        """AH=86h: wait for CX:DX microseconds."""
        now = monotonic()
        end = self._deadlines.setdefault(call.vcpu, now + (call.cx << 16 | call.dx) / 1e6)
        left = end - now
        if left <= 0:
            del self._deadlines[call.vcpu]
            call.ah, call.cf = 0, False
            return None
        if left > LONG and self._sleeps():
            return WAIT
        sleep(min(left, NAP))
        return AGAIN

    def event_wait(self, call: Call) -> None:
        """AH=83h: a flag after some time; there is none to set."""
        self._unsupported(call)

    def move(self, call: Call) -> None:
        """AH=87h: copy CX words by the descriptors at ES:SI."""
        table = self._memory.read(call.far("es", call.si), 0x30)
        length = call.cx * 2
        source, target = (int.from_bytes(table[i + 2 : i + 5], "little") | table[i + 7] << 24 for i in (0x10, 0x18))
        if call.cx > 0x8000:
            call.ah, call.cf = 0x02, True
            return
        self._memory.write(target, self._memory.read(source, length))
        call.ah, call.cf = 0, False

    def extended(self, call: Call) -> None:
        """AH=88h: KiB above 1 MiB, as far as programs of its time believe it."""
        call.ax, call.cf = min(self._extended // KIB, 0xFC00), False

    def extended_long(self, call: Call) -> None:
        """AH=8Ah: the same in DX:AX."""
        kib = self._extended // KIB
        call.dx, call.ax, call.cf = kib >> 16, kib & 0xFFFF, False

    def configuration(self, call: Call) -> None:
        """AH=C0h: a table at ES:BX."""
        call.set_segment("es", at.SEGMENT)
        call.bx, call.ah, call.cf = at.CONFIGURATION, 0, False

    def extended_area(self, call: Call) -> None:
        """AH=C1h: the segment of the EBDA in ES."""
        call.set_segment("es", EBDA >> 4)
        call.cf = False

    def sizes(self, call: Call) -> None:
        """AH=E8h: AL=01h, sizes below and above 16 MiB; AL=20h, the memory map; AL=81h, 01h with 32 bits."""
        if call.al in (0x01, 0x81):
            low = min(self._extended, HOLE_15 - MIB) // KIB
            high = max(self._extended - (HOLE_15 - MIB), 0) >> 16
            if call.al == 0x81:
                call.eax = call.ecx = low
                call.ebx = call.edx = high
            else:
                call.ax = call.cx = low
                call.bx = call.dx = high
            call.cf = False
        elif call.al == 0x20:
            self._entry(call)
        else:
            self._unsupported(call)

    def _entry(self, call: Call) -> None:
        index, room = call.ebx, call.ecx
        if call.edx != SMAP or room < 20 or index >= len(self._map):
            self._unsupported(call)
            return
        start, length, kind = self._map[index]
        entry = struct.pack("<QQII", start, length, kind, 1)[: 24 if room >= 24 else 20]
        self._memory.write(call.far("es", call.di), entry)
        call.eax, call.ecx = SMAP, len(entry)
        call.ebx = index + 1 if index + 1 < len(self._map) else 0
        call.cf = False


SERVICES: dict[int, Callable[[System, Call], object]] = {
    0x24: System.a20,
    0x80: System.nothing,
    0x81: System.nothing,
    0x82: System.nothing,
    0x85: System.nothing,
    0x90: System.nothing,
    0x91: System.nothing,
    0x83: System.event_wait,
    0x86: System.wait,
    0x87: System.move,
    0x88: System.extended,
    0x8A: System.extended_long,
    0xC0: System.configuration,
    0xC1: System.extended_area,
    0xE8: System.sizes,
}


# INT 14h

IER, LCR, MCR, LSR, MSR = 1, 3, 4, 5, 6
LSR_DATA, LSR_EMPTY = 0x01, 0x20
TIMED_OUT = 0x80


class SerialService:
    """The handler of INT 14h."""

    def __init__(self, port: SerialPort | None, say: Callable[[object, str], object]) -> None:
        self._port = port
        self._say = say

    def _read(self, register: int) -> int:
        return 0 if self._port is None else self._port.read(register, 1)[0]

    def _write(self, register: int, value: int) -> None:
        if self._port is not None:
            self._port.write(register, bytes((value,)))

    def __call__(self, call: Call) -> None:
        """Serve the call: AH is the function, DX the port; AH says the line's status."""
        function = call.ah
        if call.dx != 0 or self._port is None:
            call.ah = TIMED_OUT
        elif function == 0x00:
            self._write(LCR, call.al & 0x1F)
            call.ah, call.al = self._read(LSR), self._read(MSR)
        elif function == 0x01:
            self._write(0, call.al)
            call.ah = self._read(LSR)
        elif function == 0x02:
            status = self._read(LSR)
            if status & LSR_DATA:
                call.al, call.ah = self._read(0), status & 0x1E
            else:
                call.ah = TIMED_OUT | status
        elif function == 0x03:
            call.ah, call.al = self._read(LSR), self._read(MSR)
        else:
            self._say((0x14, function), f"INT 14h AH={function:02X}h: no such service here")
