"""Where a guest asks a PC for a reset: the keyboard controller and the reset control register."""

from __future__ import annotations

import threading

from .device import bits, checked, integer, optional

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from ..bus import Bus, Region
    from .device import State

DATA_PORT = 0x60
COMMAND_PORT = 0x64
RESET_CONTROL_PORT = 0xCF9

# Status register (Intel 8042, read of port 0x64)
STATUS_OUTPUT_FULL = 0x01  # a byte for the guest waits in port 0x60
STATUS_SYSTEM = 0x04  # the self test has passed
STATUS_COMMAND = 0x08  # the last byte was written to port 0x64
STATUS_UNLOCKED = 0x10

READ_COMMAND_BYTE = 0x20
WRITE_COMMAND_BYTE = 0x60
READ_OUTPUT_PORT = 0xD0
WRITE_OUTPUT_PORT = 0xD1
PULSE_OUTPUT_PORT = 0xF0  # to 0xFF: the bits that are clear are pulsed low
OUTPUT_RESET = 0x01  # bit 0 of the output port: low holds the processor in reset

OUTPUT_A20 = 0x02
STATUS_MOUSE = 0x20  # the byte comes from the mouse's side
STATUS_TIMEOUT = 0x40  # what was sent to keyboard or mouse was not answered

SELF_TEST, KEYBOARD_TEST, MOUSE_TEST = 0xAA, 0xAB, 0xA9
DISABLE_MOUSE, ENABLE_MOUSE, DISABLE_KEYBOARD, ENABLE_KEYBOARD = 0xA7, 0xA8, 0xAD, 0xAE
READ_INPUT_PORT, ECHO_KEYBOARD, ECHO_MOUSE, WRITE_MOUSE = 0xC0, 0xD2, 0xD3, 0xD4
DISABLE_A20, ENABLE_A20 = 0xDD, 0xDF
KEYBOARD_OFF, MOUSE_OFF = 0x10, 0x20  # in the command byte

# Commands that answer at once with a byte: boot code waits for these answers without a time limit.
_ANSWERS = {
    SELF_TEST: 0x55,  # passed
    KEYBOARD_TEST: 0x01,  # clock line stuck low: there is no keyboard
    MOUSE_TEST: 0x01,
    READ_INPUT_PORT: 0x80,  # not locked
}
# Commands that change bits of the command byte: those to clear, those to set.
_CHANGES = {
    DISABLE_MOUSE: (0, MOUSE_OFF),
    ENABLE_MOUSE: (MOUSE_OFF, 0),
    DISABLE_KEYBOARD: (0, KEYBOARD_OFF),
    ENABLE_KEYBOARD: (KEYBOARD_OFF, 0),
}
OUTPUT_PORT = 0xCF  # after power-on: reset high, A20 open, which code that opens A20 looks for
NOBODY = 0xFE  # the controller's answer for a keyboard that does not answer: "send it again"


_KEYBOARD_STATE = {
    "command": integer(0, 0xFF),
    "command_byte": integer(0, 0xFF),
    "output": optional(integer(0, 0xFF)),
    "source": bits(STATUS_MOUSE | STATUS_TIMEOUT),
    "output_port": bits(0xFF),
}


class KeyboardController:
    """An 8042 without a keyboard or mouse: its own commands are QEMU's, and what is sent to either times out.

    So the wait loops of boot code end. No byte interrupts. A20, in the output port, is always on. The input buffer is
    always empty. `reset` is called in the thread of the vCPU that asks.
    Threads: `_lock` guards the registers; it is not held during `reset`.
    """

    __slots__ = ("_command", "_command_byte", "_lock", "_output", "_output_port", "_reset", "_source")
    name = "keyboard controller"

    def __init__(self, reset: Callable[[], object]) -> None:
        self._reset = reset
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Return to the state after power-on."""
        with self._lock:
            self._command = 0  # the last command, while it waits for its data byte
            self._command_byte = STATUS_SYSTEM
            self._output: int | None = None  # the output buffer
            self._source = 0  # of what is in it: bits of the status
            self._output_port = OUTPUT_PORT

    def state(self) -> State:
        """Return the registers as plain data."""
        with self._lock:
            return {
                "command": self._command,
                "command_byte": self._command_byte,
                "output": self._output,
                "source": self._source,
                "output_port": self._output_port,
            }

    def restore(self, data: object) -> None:
        """Take over what state() gave; raise StateDataError for anything else."""
        values = checked(self.name, _KEYBOARD_STATE, data)
        with self._lock:
            self._command, self._command_byte = values["command"], values["command_byte"]
            self._output, self._source = values["output"], values["source"]
            self._output_port = values["output_port"]

    def attach_to(self, bus: Bus) -> tuple[Region, Region]:
        """Claim ports 0x60 and 0x64, and not those between: 0x61 is another device's."""
        return (
            bus.claim(DATA_PORT, 1, read=self._read_data, write=self._write_data, name=self.name),
            bus.claim(COMMAND_PORT, 1, read=self._read_status, write=self._write_command, name=self.name),
        )

    def _read_data(self, initiator: object, offset: int, size: int) -> bytes:
        with self._lock:
            value, self._output, self._source = self._output or 0, None, 0
        return bytes((value,)).ljust(size, b"\xff")

    def _read_status(self, initiator: object, offset: int, size: int) -> bytes:
        with self._lock:
            full = 0 if self._output is None else STATUS_OUTPUT_FULL | self._source
        return bytes((STATUS_UNLOCKED | STATUS_COMMAND | STATUS_SYSTEM | full,)).ljust(size, b"\xff")

    def _write_data(self, initiator: object, offset: int, data: bytes) -> None:
        value = data[0]
        with self._lock:
            command, self._command = self._command, 0
            if command == WRITE_COMMAND_BYTE:
                self._command_byte = value
            elif command == WRITE_OUTPUT_PORT:
                self._output_port = value | OUTPUT_RESET
            elif command in (ECHO_KEYBOARD, ECHO_MOUSE):
                self._answer(value, STATUS_MOUSE if command == ECHO_MOUSE else 0)
            else:
                self._answer(NOBODY, STATUS_TIMEOUT | (STATUS_MOUSE if command == WRITE_MOUSE else 0))
        if command == WRITE_OUTPUT_PORT and not value & OUTPUT_RESET:
            self._reset()

    def _write_command(self, initiator: object, offset: int, data: bytes) -> None:
        command = data[0]
        with self._lock:
            self._command = command if command in _WITH_DATA else 0
            if command == READ_COMMAND_BYTE:
                self._answer(self._command_byte)
            elif command == READ_OUTPUT_PORT:
                self._answer(self._output_port)
            elif command in _ANSWERS:
                self._answer(_ANSWERS[command])
            elif command in _CHANGES:
                clear, new = _CHANGES[command]
                self._command_byte = self._command_byte & ~clear | new
            elif command == DISABLE_A20:
                self._output_port &= ~OUTPUT_A20
            elif command == ENABLE_A20:
                self._output_port |= OUTPUT_A20
        if command >= PULSE_OUTPUT_PORT and not command & OUTPUT_RESET:
            self._reset()

    def _answer(self, value: int, source: int = 0) -> None:
        """Put a byte into the output buffer; _lock held."""
        self._output, self._source = value, source


_WITH_DATA = (WRITE_COMMAND_BYTE, WRITE_OUTPUT_PORT, ECHO_KEYBOARD, ECHO_MOUSE, WRITE_MOUSE)


# Reset control register (Intel PIIX3; ICH10, 13.7.5)
RESET_SYSTEM = 0x02  # hard instead of soft reset
RESET_CPU = 0x04  # its rising edge starts the reset
RESET_FULL = 0x08  # ICH: with a power cycle
RESET_BITS = RESET_SYSTEM | RESET_CPU | RESET_FULL

_CONTROL_STATE = {"value": bits(RESET_BITS)}


class ResetControl:
    """The reset control register at port 0xCF9: a rising edge of bit 2 resets.

    The other bits say how thoroughly; here every kind is the same. `reset` is called in the thread of the
    vCPU that asks.
    Threads: `_lock` guards the register; it is not held during `reset`.
    """

    __slots__ = ("_lock", "_reset", "_value")
    name = "reset control"
    LENGTH = 1

    def __init__(self, reset: Callable[[], object]) -> None:
        self._reset = reset
        self._lock = threading.Lock()
        self._value = 0

    def reset(self) -> None:
        """Return to the state after power-on."""
        with self._lock:
            self._value = 0

    def state(self) -> State:
        """Return the register as plain data."""
        with self._lock:
            return {"value": self._value}

    def restore(self, data: object) -> None:
        """Take over what state() gave; raise StateDataError for anything else."""
        values = checked(self.name, _CONTROL_STATE, data)
        with self._lock:
            self._value = values["value"]

    def read(self, offset: int, size: int) -> bytes:
        """Return the bits written last, without the reserved ones."""
        with self._lock:
            value = self._value
        return bytes((value,)).ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:
        """Store the register and start a reset when bit 2 rises."""
        value = data[0] & RESET_BITS
        with self._lock:
            rising = value & ~self._value
            self._value = value
        if rising & RESET_CPU:
            self._reset()
