"""Keys that are for us and not for the guest: those behind Ctrl-A, as in QEMU's and minicom's consoles."""

from __future__ import annotations

ESCAPE = 0x01  # Ctrl-A
INTERRUPT = 0x03  # Ctrl-C
QUIT, HELP, PROMPT, SNAPSHOT = "x", "h", "c", "s"

SUMMARY = "Ctrl-A X leaves, Ctrl-A H helps"
HELP_LINES = (
    "Ctrl-A X  end the machine, with status 0",
    "Ctrl-A A  send Ctrl-A to the guest",
    "Ctrl-A S  take a snapshot into the file of --snapshot",
    "Ctrl-A H  show this help",
)
PROMPT_LINE = "Ctrl-A C  stop the guest and open a Python prompt"


class Keys:
    """Sorts what a terminal sends into input for the guest and commands. For one thread."""

    __slots__ = ("_escaped",)

    def __init__(self) -> None:
        self._escaped = False  # the last key was ESCAPE

    def take(self, data: bytes) -> tuple[bytes, str]:
        """Return what of `data` is for the guest, and the commands in it: QUIT, HELP, PROMPT and SNAPSHOT, in order.

        ESCAPE may be the end of one call's data and its command the start of the next one's. Where no command
        follows, both keys are dropped.

        >>> keys = Keys()
        >>> keys.take(b"ls\\x01a\\x01"), keys.take(b"Xpwd")
        ((b'ls\\x01', ''), (b'pwd', 'x'))
        """
        if ESCAPE not in data and not self._escaped:
            return data, ""
        passed, commands = bytearray(), ""
        for key in data:
            if not self._escaped:
                self._escaped = key == ESCAPE
                if key != ESCAPE:
                    passed.append(key)
                continue
            self._escaped = False
            letter = chr(key).lower()
            if key == ESCAPE or letter == "a":
                passed.append(ESCAPE)
            elif letter in (QUIT, HELP, PROMPT, SNAPSHOT):
                commands += letter
        return bytes(passed), commands
