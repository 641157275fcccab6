"""INT 10h: a text screen of 80 columns and 25 rows, whose characters go to the machine's output.

The screen is in guest memory, as on a PC: cursor and mode in the data area, characters and attributes at B8000h. The
output gets each character as it is written. Where the guest moves the cursor forward, the output gets blanks and new
lines; where it moves it back, or clears the screen, what a terminal knows for that (ECMA-48: CUP, ED).

Sources: Ralf Brown's interrupt list; IBM PC/AT Technical Reference.
"""

from __future__ import annotations

import struct

from . import layout as at

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .call import Call, Memory

COLUMN_COUNT, ROW_COUNT = 80, 25
LINE = 2 * COLUMN_COUNT
PAGES, PAGE_BYTES = 8, 0x1000
TEXT_MODES = (0, 1, 2, 3, 7)
BEL, BS, LF, CR = 7, 8, 10, 13
NORMAL = 0x07
BLANK = b" \x07"


class Video:
    """The handler of INT 10h. `out(data)` gets what is on the screen; `say(key, text)` tells people something once.

    `place`: row and column at which the output stands.
    """

    def __init__(self, memory: Memory, out: Callable[[bytes], object], say: Callable[[object, str], object]) -> None:
        self._memory = memory
        self._out = out
        self._say = say
        self.reset()

    def reset(self) -> None:
        """Begin with an empty screen; what the output shows above it stays."""
        self.place = [0, 0]
        self._written = False

    def clear(self) -> None:
        """Make the screen in guest memory empty."""
        self._memory.write(at.TEXT_MEMORY, BLANK * (PAGES * PAGE_BYTES // 2))

    def __call__(self, call: Call) -> None:
        """Serve the call: AH is the function."""
        service = SERVICES.get(call.ah)
        if service is not None:
            service(self, call)
        elif call.ah not in SILENT:
            self._say((0x10, call.ah), f"INT 10h AH={call.ah:02X}h: no such service here")

    # The data area

    def _byte(self, address: int) -> int:
        return self._memory.read(address, 1)[0]

    def _cursor(self, page: int) -> tuple[int, int]:
        column, row = self._memory.read(at.CURSORS + 2 * (page % PAGES), 2)
        return min(row, ROW_COUNT - 1), min(column, COLUMN_COUNT - 1)

    def _set_cursor(self, page: int, row: int, column: int) -> None:
        self._memory.write(at.CURSORS + 2 * (page % PAGES), bytes((column & 0xFF, row & 0xFF)))

    def _cell(self, page: int, row: int, column: int) -> int:
        return at.TEXT_MEMORY + page % PAGES * PAGE_BYTES + row * LINE + 2 * column

    def _is_shown(self, page: int) -> bool:
        return page % PAGES == self._byte(at.PAGE) % PAGES

    # The output

    def emit(self, row: int, column: int, data: bytes) -> None:
        """Have the output show `data`, characters without control, at this place."""
        at_row, at_column = self.place
        if row == at_row and column >= at_column:
            move = b" " * (column - at_column)
        elif row > at_row:
            move = b"\r\n" * (row - at_row) + b" " * column
        else:
            move = b"\x1b[%d;%dH" % (row + 1, column + 1)
        self._out(move + data)
        self._written = True
        self.place = [row, min(column + len(data), COLUMN_COUNT)]

    def _clear_output(self) -> None:
        if self._written:
            self._out(b"\x1b[H\x1b[2J")
            self._written = False
        self.place = [0, 0]

    # Services

    def set_mode(self, call: Call) -> None:
        """AH=00h: text modes; of others, the data area says so, and nothing is shown."""
        mode = call.al & 0x7F
        if mode not in TEXT_MODES:
            self._say((0x10, "mode"), f"INT 10h: graphics mode {mode:02X}h cannot be shown; only text is")
        self._memory.write(at.MODE, struct.pack("<BHHH", mode, COLUMN_COUNT, PAGE_BYTES, 0))
        self._memory.write(at.CURSORS, bytes(2 * PAGES))
        self._memory.write(at.PAGE, b"\0")
        self._memory.write(at.ROWS, struct.pack("<BH", ROW_COUNT - 1, 16))
        if not call.al & 0x80:
            self.clear()
            self._clear_output()
        call.al = 0x30

    def set_shape(self, call: Call) -> None:
        """AH=01h."""
        self._memory.write(at.CURSOR_SHAPE, struct.pack("<H", call.cx))

    def set_cursor(self, call: Call) -> None:
        """AH=02h."""
        self._set_cursor(call.bh, call.dh, call.dl)

    def get_cursor(self, call: Call) -> None:
        """AH=03h."""
        call.dl, call.dh = self._memory.read(at.CURSORS + 2 * (call.bh % PAGES), 2)
        call.cx = int.from_bytes(self._memory.read(at.CURSOR_SHAPE, 2), "little")
        call.ax = 0

    def set_page(self, call: Call) -> None:
        """AH=05h."""
        self._memory.write(at.PAGE, bytes((call.al % PAGES,)))
        self._memory.write(at.PAGE_OFFSET, struct.pack("<H", call.al % PAGES * PAGE_BYTES))

    def scroll(self, call: Call) -> None:
        """AH=06h (up), 07h (down): a window, by AL lines; by all of them for 0."""
        top, left = call.ch, call.cl
        bottom, right = min(call.dh, ROW_COUNT - 1), min(call.dl, COLUMN_COUNT - 1)
        if top > bottom or left > right:
            return
        page, up = self._byte(at.PAGE), call.ah == 0x06
        lines, height = call.al, bottom - top + 1
        whole = (top, left, bottom, right) == (0, 0, ROW_COUNT - 1, COLUMN_COUNT - 1)
        if lines == 0 or lines >= height:
            lines = height
            if whole:
                self._clear_output()
        elif whole and up:  # what the output shows is higher up now
            self.place[0] = max(self.place[0] - lines, -1)
        self._scroll(page, (top, left, bottom, right), lines, up, bytes((0x20, call.bh)))

    def _scroll(self, page: int, window: tuple[int, int, int, int], lines: int, up: bool, blank: bytes) -> None:
        top, left, bottom, right = window
        width = right - left + 1
        rows = range(top, bottom + 1) if up else range(bottom, top - 1, -1)
        for row in rows:
            source = row + lines if up else row - lines
            line = blank * width
            if top <= source <= bottom:
                line = self._memory.read(self._cell(page, source, left), 2 * width)
            self._memory.write(self._cell(page, row, left), line)

    def read_character(self, call: Call) -> None:
        """AH=08h: the character and its attribute under the cursor."""
        call.al, call.ah = self._memory.read(self._cell(call.bh, *self._cursor(call.bh)), 2)

    def write_characters(self, call: Call) -> None:
        """AH=09h, 0Ah: CX times, at the cursor, which stays."""
        row, column = self._cursor(call.bh)
        count = min(call.cx, ROW_COUNT * COLUMN_COUNT - (row * COLUMN_COUNT + column))
        if not count:
            return
        address = self._cell(call.bh, row, column)
        if call.ah == 0x09:
            cells = bytearray((call.al, call.bl)) * count
        else:
            cells = bytearray(self._memory.read(address, 2 * count))
            cells[::2] = bytes((call.al,)) * count
        self._memory.write(address, bytes(cells))
        # Blanks in a line that the output has not come to yet are nothing to see: programs clear lines so.
        if self._is_shown(call.bh) and (call.al not in (0, 0x20) or self._is_behind(row, column)):
            self._show(row, column, bytes((call.al,)) * count)

    def _is_behind(self, row: int, column: int) -> bool:
        return [row, column] < self.place

    def _show(self, row: int, column: int, data: bytes) -> None:
        data = bytes(value if value >= 0x20 and value != 0x7F else 0x20 for value in data)
        while data:
            part, data = data[: COLUMN_COUNT - column], data[COLUMN_COUNT - column :]
            self.emit(row, column, part)
            row, column = row + 1, 0

    def teletype(self, call: Call) -> None:
        """AH=0Eh."""
        self.write(self._byte(at.PAGE), bytes((call.al,)))

    def write(self, page: int, data: bytes, attributes: bytes | None = None) -> None:
        """Write characters where the cursor is, and move it on; BEL, BS, LF and CR act."""
        shown = self._is_shown(page)
        row, column = self._cursor(page)
        for index, value in enumerate(data):
            if value in (BEL, BS, LF, CR):
                if value == BS:
                    column = max(column - 1, 0)
                elif value == CR:
                    column = 0
                elif value == LF:
                    row += 1
                if shown:
                    self._control(value, row, column)
            else:
                address = self._cell(page, row, column)
                cell = bytes((value,)) if attributes is None else bytes((value, attributes[index]))
                self._memory.write(address, cell)
                if shown:
                    self.emit(row, column, bytes((value,)))
                column += 1
                if column == COLUMN_COUNT:
                    row, column = row + 1, 0
                    if shown:
                        self.place = [row, 0]  # as on a terminal, and in a file the line goes on
            if row == ROW_COUNT:
                row = ROW_COUNT - 1
                self._scroll(page, (0, 0, row, COLUMN_COUNT - 1), 1, True, BLANK)
                if shown:
                    self.place[0] -= 1
        self._set_cursor(page, row, column)

    def _control(self, value: int, row: int, column: int) -> None:
        """Pass a control character on, from where the guest believes the output to be."""
        at_row, at_column = self.place
        self._written = True
        if value == LF and at_row == row - 1 and at_column <= COLUMN_COUNT:
            self._out(b"\n")
            self.place[0] = row
        elif value == CR and at_row == row:
            self._out(b"\r")
            self.place[1] = 0
        elif value == BS and at_row == row:
            self._out(b"\b")
            self.place[1] = max(at_column - 1, 0)
        elif value == BEL:
            self._out(b"\a")

    def get_mode(self, call: Call) -> None:
        """AH=0Fh."""
        call.al, call.ah, call.bh = self._byte(at.MODE), COLUMN_COUNT, self._byte(at.PAGE)

    def font(self, call: Call) -> None:
        """AH=11h: the one font there is has 16 lines; AL=30h asks for that."""
        if call.al == 0x30:
            call.cx, call.dl = 16, ROW_COUNT - 1
            call.bp = 0
            call.set_segment("es", at.SEGMENT)

    def alternate(self, call: Call) -> None:
        """AH=12h: BL=10h, what adapter; BL=30h to 36h, nothing to choose."""
        if call.bl == 0x10:
            call.bx, call.cx = 0x0003, 0x0009
        elif 0x30 <= call.bl <= 0x36:
            call.al = 0x12

    def write_string(self, call: Call) -> None:
        """AH=13h: CX characters at ES:BP, from DH, DL on; AL bit 0 moves the cursor, bit 1: attributes in between."""
        count, mode, page = call.cx, call.al, call.bh
        each = 2 if mode & 2 else 1
        text = self._memory.read(call.far("es", call.bp), count * each)
        before = self._memory.read(at.CURSORS + 2 * (page % PAGES), 2)
        self._set_cursor(page, min(call.dh, ROW_COUNT - 1), min(call.dl, COLUMN_COUNT - 1))
        if each == 2:
            self.write(page, text[::2], text[1::2])
        else:
            self.write(page, text, bytes((call.bl,)) * count)
        if not mode & 1:
            self._memory.write(at.CURSORS + 2 * (page % PAGES), before)

    def combination(self, call: Call) -> None:
        """AH=1Ah: AL=00h, a VGA with a screen in colour."""
        if call.al == 0:
            call.bx = 0x0008
        call.al = 0x1A


# Palettes, pixels, fonts' tables, states, VESA and others: nothing happens, and programs that look can see that.
SILENT = (0x04, 0x0B, 0x0C, 0x0D, 0x10, 0x1B, 0x1C, 0x4F, 0x6F, 0xFA, 0xFE, 0xFF)
SERVICES: dict[int, Callable[[Video, Call], None]] = {
    0x00: Video.set_mode,
    0x01: Video.set_shape,
    0x02: Video.set_cursor,
    0x03: Video.get_cursor,
    0x05: Video.set_page,
    0x06: Video.scroll,
    0x07: Video.scroll,
    0x08: Video.read_character,
    0x09: Video.write_characters,
    0x0A: Video.write_characters,
    0x0E: Video.teletype,
    0x0F: Video.get_mode,
    0x11: Video.font,
    0x12: Video.alternate,
    0x13: Video.write_string,
    0x1A: Video.combination,
}
