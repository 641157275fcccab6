"""INT 16h and INT 9h: keys, from the machine's input to the ring in the BIOS data area, and to the guest.

The input is characters, as from a terminal; each becomes the key of a US keyboard that gives it. ESC sequences of
terminals become cursor and function keys. Sources: Ralf Brown's interrupt list; IBM PS/2 Technical Reference, section
11, for scan codes; ECMA-48 and xterm's control sequences.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from time import monotonic

from . import layout as at
from .call import WAIT

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import Protocol

    from .call import Call, Memory

    class Input(Protocol):
        """What input can be given to, as to a serial port; registers can be looked at."""

        def receive(self, data: bytes) -> int: ...
        def wait_room(self, timeout: float | None = None) -> bool: ...
        def read(self, offset: int, size: int) -> bytes: ...

    class Sink(Input, Protocol):
        """Where else input may go: a serial port, which knows whether the guest listens there."""

        @property
        def listens(self) -> bool: ...


LOOK = 0.25  # seconds after which a wait for room looks whether the guest listens elsewhere
IER, IER_RECEIVE = 1, 0x01
ROOM = 16  # characters, as of the serial port
MOST_WAITING = 64

# Rows of a US keyboard: scan code of the first key, characters without and with shift.
ROWS = (
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1E, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (0x39, " ", " "),
)
BY_CHARACTER = {
    ord(c): first + i for first, plain, shifted in ROWS for row in (plain, shifted) for i, c in enumerate(row)
}
# Ctrl with a letter gives the letter's scan code.
BY_CHARACTER |= {number: BY_CHARACTER[ord("a") + number - 1] for number in range(1, 27)}
BY_CHARACTER |= {0x1B: 0x01, 0x08: 0x0E, 0x09: 0x0F, 0x0D: 0x1C, 0x1C: 0x2B, 0x1D: 0x1B, 0x1E: 0x07, 0x1F: 0x0C}
ALIASES = {0x0A: 0x0D, 0x7F: 0x08}  # Enter in a file, and Backspace of most terminals

# What terminals send for keys that give no character, to their codes (scan code above, 0 or E0h below).
SEQUENCES = {
    b"\x1b[A": 0x48E0,
    b"\x1b[B": 0x50E0,
    b"\x1b[C": 0x4DE0,
    b"\x1b[D": 0x4BE0,
    b"\x1b[H": 0x47E0,
    b"\x1b[F": 0x4FE0,
    b"\x1b[1~": 0x47E0,
    b"\x1b[2~": 0x52E0,
    b"\x1b[3~": 0x53E0,
    b"\x1b[4~": 0x4FE0,
    b"\x1b[5~": 0x49E0,
    b"\x1b[6~": 0x51E0,
    b"\x1b[Z": 0x0F00,
    b"\x1bOH": 0x47E0,
    b"\x1bOF": 0x4FE0,
    **{b"\x1bO" + bytes((letter,)): (0x3B + index) << 8 for index, letter in enumerate(b"PQRS")},
    **{b"\x1b[%d~" % number: (0x3F + i) << 8 for i, number in enumerate((15, 17, 18, 19, 20, 21))},
    b"\x1b[23~": 0x8500,
    b"\x1b[24~": 0x8600,
}
_BEGINNINGS = {sequence[:length] for sequence in SEQUENCES for length in range(1, len(sequence))}


def keys_of(data: bytes) -> tuple[list[int], bytes]:
    """Return the codes of the keys that give `data`, and what may be the beginning of a sequence."""
    codes, at_byte = [], 0
    while at_byte < len(data):
        rest = data[at_byte:]
        sequence = next((known for known in SEQUENCES if rest.startswith(known)), None)
        if sequence is not None:
            codes.append(SEQUENCES[sequence])
            at_byte += len(sequence)
            continue
        if rest in _BEGINNINGS and len(rest) > 1:
            return codes, rest
        value = ALIASES.get(data[at_byte], data[at_byte])
        codes.append(BY_CHARACTER.get(value, 0) << 8 | value)
        at_byte += 1
    return codes, b""


class Keyboard:
    """The handler of INT 16h, and the input of the guest that calls it.

    The host's side is that of a serial port: receive() and wait_room(), so that the same source feeds either. Once the
    guest listens at `serial`, all goes there. `press(level)` drives IRQ 1; `on_listen()` is called, on the vCPU's
    thread, when the guest asks for a key and there is none.

    receive() goes through `gate`, which is shut while the world is held still.

    Threads: `_lock` guards what waits; no callable is called while it is held.
    """

    def __init__(
        self,
        memory: Memory,
        press: Callable[[bool], object],
        on_listen: Callable[[], object],
        say: Callable[[object, str], object],
        serial: Sink | None = None,
        gate: AbstractContextManager[object] | None = None,
    ) -> None:
        self._memory = memory
        self._press = press
        self._on_listen = on_listen
        self._say = say
        self._serial = serial
        self._gate = gate
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._waiting: deque[int] = deque()
        self._begun = b""
        self._closed = False

    # The host's side

    def _other(self) -> Sink | None:
        """Return where input goes when it does not come here."""
        serial = self._serial
        return serial if serial is not None and serial.listens else None

    def receive(self, data: bytes) -> int:
        """Take the first bytes of `data`, as many as there is room for; return how many."""
        other = self._other()
        if other is not None:
            return other.receive(data)
        if self._gate is None:
            return self._receive(data)
        with self._gate:
            return self._receive(data)

    def _receive(self, data: bytes) -> int:
        with self._lock:
            if self._closed:
                return 0
            taken = min(len(data), max(ROOM - len(self._waiting), 0))
            codes, self._begun = keys_of(self._begun + data[:taken])
            self._waiting += codes
        if codes:
            self._press(True)
            self._press(False)
        return taken

    def wait_room(self, timeout: float | None = None) -> bool:
        """Wait until the guest has taken all, at most `timeout` seconds; return whether it has. False once closed."""
        end = None if timeout is None else monotonic() + timeout
        while True:
            left = LOOK if end is None else max(min(end - monotonic(), LOOK), 0)
            other = self._other()
            if other is not None and other.wait_room(left):
                return True
            with self._lock:
                if other is None:
                    self._room.wait_for(lambda: self._closed or not self._waiting, left)
                if self._closed:
                    return False
                if other is None and self._other() is None and not self._waiting:
                    return True
            if end is not None and monotonic() >= end:
                return False

    def read(self, offset: int, size: int) -> bytes:
        """Show what a serial port would whose guest takes input, to those who look before they feed it."""
        other = self._other()
        if other is not None:
            return other.read(offset, size)
        return bytes((IER_RECEIVE if offset == IER else 0,)).ljust(size, b"\0")

    def close(self) -> None:
        """Take no more input, and wake all who wait for room."""
        with self._lock:
            self._closed = True
            self._room.notify_all()

    # State

    def reset(self) -> None:
        """Keep the input that nobody has read."""
        with self._lock:
            self._begun = b""

    def state(self) -> list[int]:
        """Return the keys that wait."""
        with self._lock:
            return list(self._waiting)

    def restore(self, keys: list[int]) -> None:
        """Take over the keys that waited."""
        with self._lock:
            self._waiting = deque(keys)
            self._room.notify_all()

    # The guest's side

    def interrupt(self, call: Call) -> None:
        """INT 9h, which IRQ 1 makes: move what has come to the ring."""
        self.fill()

    def fill(self) -> None:
        """Move keys from what waits to the ring, as many as that has room for."""
        if not self._waiting:
            return
        head, tail, first, last = self._ring()
        moved = []
        while True:
            after = tail + 2 if tail + 2 < last else first
            if after == head:
                break
            with self._lock:
                if not self._waiting:
                    break
                code = self._waiting.popleft()
                if not self._waiting:
                    self._room.notify_all()
            self._memory.write(at.BDA + tail, struct.pack("<H", code))
            moved.append(code)
            tail = after
        if moved:
            self._memory.write(at.KEY_TAIL, struct.pack("<H", tail))

    def _ring(self) -> tuple[int, int, int, int]:
        """Return head, tail, first and last of the ring, as offsets from 400h; what a guest has spoiled is mended."""
        head, tail = struct.unpack("<2H", self._memory.read(at.KEY_HEAD, 4))
        first, last = struct.unpack("<2H", self._memory.read(at.KEYS_FIRST, 4))
        if not (first + 4 <= last <= 0x1000 and first % 2 == last % 2 == 0 and first >= 0x1E):
            first, last = at.KEYS - at.BDA, at.KEYS_END - at.BDA
        if not (first <= head < last and first <= tail < last and head % 2 == tail % 2 == 0):
            head = tail = first
            self._memory.write(at.KEY_HEAD, struct.pack("<2H", head, tail))
        return head, tail, first, last

    def _next(self, *, take: bool) -> int | None:
        """Return the code of the next key, None without one."""
        self.fill()
        head, tail, first, last = self._ring()
        if head == tail:
            return None
        code = int.from_bytes(self._memory.read(at.BDA + head, 2), "little")
        if take:
            head = head + 2 if head + 2 < last else first
            self._memory.write(at.KEY_HEAD, struct.pack("<H", head))
            self.fill()
        return code

    def __call__(self, call: Call) -> object:
        """Serve INT 16h: AH is the function."""
        function = call.ah
        if function in (0x00, 0x10, 0x20):
            return self._get(call, extended=function != 0x00)
        if function in (0x01, 0x11, 0x21):
            self._peek(call, extended=function != 0x01)
        elif function in (0x02, 0x12, 0x22):
            call.al = self._memory.read(at.SHIFTS, 1)[0]
            if function != 0x02:
                call.ah = 0
        elif function == 0x05:
            self._store(call)
        elif function == 0x09:
            call.al = 0x30  # what AH=0Ah, 10h to 12h and 20h to 22h can be used for
        elif function == 0x0A:
            call.bx = 0x41AB  # an MF2 keyboard, translated
        elif function == 0x92:
            call.ah = 0x80  # AH=10h to 12h are there
        elif function == 0xA2:
            pass  # AH=20h to 22h are
        elif function not in (0x03, 0x04):
            self._say((0x16, function), f"INT 16h AH={function:02X}h: no such service here")
        return None

    def _get(self, call: Call, *, extended: bool) -> object:
        code = self._next(take=True)
        if code is None:
            self._on_listen()
            code = self._next(take=True)
        if code is None:
            return WAIT
        call.ax = code if extended else _plain(code)
        return None

    def _peek(self, call: Call, *, extended: bool) -> None:
        code = self._next(take=False)
        if code is None:
            self._on_listen()
            code = self._next(take=False)
        call.zf = code is None
        if code is not None:
            call.ax = code if extended else _plain(code)

    def _store(self, call: Call) -> None:
        """AH=05h: put a key into the ring."""
        head, tail, first, last = self._ring()
        after = tail + 2 if tail + 2 < last else first
        call.al = int(after == head)
        if after != head:
            self._memory.write(at.BDA + tail, struct.pack("<H", call.cx))
            self._memory.write(at.KEY_TAIL, struct.pack("<H", after))


def _plain(code: int) -> int:
    """Return the code as of a keyboard without extra cursor keys."""
    return code & 0xFF00 if code & 0xFF == 0xE0 and code >> 8 else code
