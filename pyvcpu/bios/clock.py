"""INT 1Ah: the ticks since midnight, and the real-time clock. INT 70h: the clock's interrupt.

Sources: Ralf Brown's interrupt list; IBM PC/AT Technical Reference.
"""

from __future__ import annotations

import struct

from . import layout as at

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .call import Call, Memory

    Cmos = tuple[Callable[[int], int], Callable[[int, int], object]]  # read a register, write one

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
DAY, MONTH, YEAR, CENTURY = 7, 8, 9, 0x32
REG_A, REG_B, REG_C = 10, 11, 12
B_SET, B_ALARM, B_BINARY, B_DAYLIGHT = 0x80, 0x20, 0x04, 0x01

QUIET = (0xB1, 0xBB)  # PCI and TCG: who asks can see that neither is there


class Clock:
    """The handler of INT 1Ah. `cmos`: how to read and write a register of the clock, None where there is none."""

    def __init__(self, memory: Memory, cmos: Callable[[], Cmos | None], say: Callable[[object, str], object]) -> None:
        self._memory = memory
        self._cmos = cmos
        self._say = say

    def __call__(self, call: Call) -> None:
        """Serve the call: AH is the function."""
        function, cmos = call.ah, self._cmos()
        if function == 0x00:
            ticks = int.from_bytes(self._memory.read(at.TICKS, 4), "little")
            call.cx, call.dx, call.al = ticks >> 16, ticks & 0xFFFF, self._memory.read(at.MIDNIGHT, 1)[0]
            self._memory.write(at.MIDNIGHT, b"\0")
            call.cf = False
        elif function == 0x01:
            self._memory.write(at.TICKS, struct.pack("<2HB", call.dx, call.cx, 0))
            call.cf = False
        elif function in SERVICES and cmos is not None:
            call.cf = not SERVICES[function](call, *cmos)
        else:
            call.cf = True
            if function not in QUIET and function not in SERVICES:
                self._say((0x1A, function), f"INT 1Ah AH={function:02X}h: no such service here")

    def interrupt(self, call: Call) -> None:
        """INT 70h, which IRQ 8 makes: hear the clock, so that it can interrupt again."""
        cmos = self._cmos()
        if cmos is not None:
            cmos[0](REG_C)


def get_time(call: Call, read: Callable[[int], int], write: Callable[[int, int], object]) -> bool:
    """AH=02h: hours, minutes and seconds in BCD."""
    call.ch, call.cl, call.dh = read(HOURS), read(MINUTES), read(SECONDS)
    call.dl = read(REG_B) & B_DAYLIGHT
    return True


def set_time(call: Call, read: Callable[[int], int], write: Callable[[int, int], object]) -> bool:
    """AH=03h."""
    control = read(REG_B)
    write(REG_B, control | B_SET)
    for register, value in ((HOURS, call.ch), (MINUTES, call.cl), (SECONDS, call.dh)):
        write(register, value)
    write(REG_B, control & ~(B_SET | B_DAYLIGHT) | call.dl & B_DAYLIGHT)
    return True


def get_date(call: Call, read: Callable[[int], int], write: Callable[[int, int], object]) -> bool:
    """AH=04h: century, year, month and day in BCD."""
    call.ch, call.cl, call.dh, call.dl = read(CENTURY), read(YEAR), read(MONTH), read(DAY)
    return True


def set_date(call: Call, read: Callable[[int], int], write: Callable[[int, int], object]) -> bool:
    """AH=05h."""
    control = read(REG_B)
    write(REG_B, control | B_SET)
    for register, value in ((CENTURY, call.ch), (YEAR, call.cl), (MONTH, call.dh), (DAY, call.dl)):
        write(register, value)
    write(REG_B, control & ~B_SET)
    return True


def set_alarm(call: Call, read: Callable[[int], int], write: Callable[[int, int], object]) -> bool:
    """AH=06h: fails where one is set."""
    control = read(REG_B)
    if control & B_ALARM:
        return False
    for register, value in ((HOURS_ALARM, call.ch), (MINUTES_ALARM, call.cl), (SECONDS_ALARM, call.dh)):
        write(register, value)
    write(REG_B, control | B_ALARM)
    return True


def drop_alarm(call: Call, read: Callable[[int], int], write: Callable[[int, int], object]) -> bool:
    """AH=07h."""
    write(REG_B, read(REG_B) & ~B_ALARM)
    return True


SERVICES = {0x02: get_time, 0x03: set_time, 0x04: get_date, 0x05: set_date, 0x06: set_alarm, 0x07: drop_alarm}
