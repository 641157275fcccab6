"""Bios: the handlers of all interrupts, what they share, and the way from the first instruction to the guest's."""

from __future__ import annotations

from time import localtime, sleep
from time import time as now

from ..boot.plan import Plan
from ..errors import ConfigError
from ..memory import GuestMemoryError
from ..x86.start import StartState, set_start
from . import layout as at
from . import rom
from .call import AGAIN, IF, JUMP, WAIT, Call
from .clock import Clock
from .disk import Disk
from .drives import FIRST_DISK, SECTOR, Drives
from .keyboard import MOST_WAITING, Keyboard
from .system import SerialService, System
from .video import Video

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import Any

    from .call import Memory, Processor
    from .clock import Cmos
    from .system import SerialPort

    Handler = Callable[[Call], object]

MIB = 1 << 20
NAP = 0.005  # seconds between two looks for what an interrupt cannot tell
SAID_MOST = 100
FAIL_BY_CARRY = (0x13, 0x15, 0x1A)
FAULTS = {0x00: "a division error", 0x06: "an invalid instruction"}


class Bios:
    """The BIOS of one machine.

    `output(data)` gets the screen; `say(line)` what people should know: once for each thing. `press(level)` drives
    IRQ 1. `on_listen()` is called, on a vCPU's thread, whenever the guest asks for keys and there are none. `serial`:
    COM1. `gate`: shut while the world is held still. `cmos()`: how to read and write a register of the clock, None
    where there is none. `end(reason, report)` ends the machine. `sleeps()`: there are interrupts, so that a HLT ends.

    Handlers run on the thread of the vCPU that calls.
    """

    name = "BIOS"

    def __init__(
        self,
        memory: Memory,
        *,
        output: Callable[[bytes], object],
        say: Callable[[str], object],
        press: Callable[[bool], object] = bool,
        on_listen: Callable[[], object] = bool,
        serial: SerialPort | None = None,
        gate: AbstractContextManager[object] | None = None,
        cmos: Callable[[], Cmos | None] = lambda: None,
        end: Callable[[str, str], object] = lambda reason, report: None,
        sleeps: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = now,
    ) -> None:
        self.memory = memory
        self._said: set[object] = set()
        self._say_line = say
        self._end = end
        self._sleeps = sleeps
        self._clock = clock
        self._start: StartState | None = None
        self._format = ""
        self.drives = Drives()
        self.video = Video(memory, output, self.say)
        self.keyboard = Keyboard(memory, press, on_listen, self.say, serial, gate)
        self._system = System(memory, self.say, sleeps)
        clock_service = Clock(memory, cmos, self.say)
        self._builtin: dict[int, Handler] = {
            0x09: self.keyboard.interrupt,
            0x10: self.video,
            0x11: self._system.equipment,
            0x12: self._system.conventional,
            0x13: Disk(self.drives, memory, self.say),
            0x14: SerialService(serial, self.say),
            0x15: self._system,
            0x16: self.keyboard,
            0x18: self._nothing_to_boot,
            0x19: self._boot,
            0x1A: clock_service,
            0x70: clock_service.interrupt,
            at.STARTED: self._started,
            **dict.fromkeys(FAULTS, self._fault),
            **dict.fromkeys((0x1B, 0x1C, 0x4A), bool),  # Ctrl-Break, tick and alarm: for the guest's own
        }
        self._replaced: dict[int, Handler] = {}

    # What the machine's builder calls

    def on_interrupt(self, number: int, handler: Handler | None) -> None:
        """Have `handler(call)` serve interrupt `number`, in place of the BIOS; None: the BIOS again.

        See Call for what it gets. It runs on the vCPU's thread; what it raises stops the machine and comes out of
        run(). It may return WAIT: the guest sleeps until an interrupt comes, and then calls again.
        """
        if not 0 <= number < 0x100:
            raise ConfigError(f"an interrupt has a number from 0x00 to 0xff, not {number:#x}")
        before = self._pointer(number)
        if handler is None:
            self._replaced.pop(number, None)
        else:
            self._replaced[number] = handler
        if self._start is not None and self.memory.read(4 * number, 4) == before:  # and no guest's own is there
            self.memory.write(4 * number, self._pointer(number))

    def _pointer(self, number: int) -> bytes:
        return rom.vectors(self._replaced)[4 * number : 4 * number + 4]

    def take_over(self, plan: Plan, irqchip: str) -> Plan:
        """Return `plan` with the BIOS in its memory; the first vCPU sets up what there is of 8259s and timer before.

        `irqchip`: what the machine will have, none, kernel or split; the others have neither.
        """
        start = plan.starts[0]
        assert start is not None
        if plan.format == "bootsector":
            start.registers["rdx"] = self.drives.boot
        self._start, self._format = start, plan.format
        plan = plan.with_segments(self._segments())
        if irqchip != "kernel":
            return plan
        begin = StartState("real", at.ROM + at.START, code_base=at.ROM, stack=at.LOAD)
        return Plan(plan.format, plan.segments, [begin, *plan.starts[1:]], plan.irqchip)

    def _segments(self) -> list[tuple[int, bytes]]:
        data = rom.data_area(floppies=self.drives.floppies, disks=self.drives.disks, ticks=self._ticks())
        return [
            (0, rom.vectors(self._replaced)),
            (at.BDA, data),
            (rom.EBDA, bytes((rom.EBDA_KIB,))),
            (at.TEXT_MEMORY, b" \x07" * 0x4000),
            (at.ROM + at.STUBS, rom.rom()),
        ]

    def _ticks(self) -> int:
        today = localtime(self._clock())
        seconds = today.tm_hour * 3600 + today.tm_min * 60 + today.tm_sec
        return min(seconds * at.TICKS_A_DAY // 86400, at.TICKS_A_DAY - 1)

    def say(self, key: object, text: str) -> None:
        """Tell people something, once for each `key`."""
        if key not in self._said and len(self._said) < SAID_MOST:
            self._said.add(key)
            self._say_line(text)

    # The device

    def reset(self) -> None:
        """Return to how it was when the machine was built; the memory is somebody else's."""
        self.video.reset()
        self.keyboard.reset()
        self._system.reset()

    def state(self) -> dict[str, Any]:
        """Return what is not in guest memory: the keys that wait, and where the output stands."""
        return {"keys": self.keyboard.state(), "place": list(self.video.place)}

    def restore(self, data: object) -> None:
        """Take over what state() gave; raise StateDataError for anything else."""
        from ..devices.device import checked, integer, sequence

        place, keys = sequence(integer(-1, 80), 2, 2), sequence(integer(0, 0xFFFF), 0, MOST_WAITING)
        values = checked(self.name, {"keys": keys, "place": place}, data)
        self.keyboard.restore(values["keys"])
        self.video.place = values["place"]
        self._system.reset()

    # The guest's calls

    def serve(self, vcpu: Processor) -> None:
        """Serve the interrupt whose stub the vCPU is in; called when it has written to PORT."""
        call = Call(vcpu, self.memory)
        if call.vector is None:
            return  # somebody else's OUT
        builtin = self._builtin.get(call.vector, self._unknown)
        call.builtin = lambda call: self._serve_builtin(builtin, call)
        result = self._replaced.get(call.vector, call.builtin)(call)
        if result == WAIT and not self._sleeps():
            sleep(NAP)
            result = AGAIN
        if result == WAIT:
            call.stay(at.SLEEP)
        elif result == AGAIN:
            call.stay(at.AGAIN)
        call.finish()

    def _serve_builtin(self, handler: Handler, call: Call) -> object:
        try:
            return handler(call)
        except GuestMemoryError as error:
            where = f"INT {call.vector:02X}h AH={call.ah:02X}h"
            self.say((call.vector, call.ah, "memory"), f"{where}: it points outside of memory ({error})")
            if call.vector in FAIL_BY_CARRY and call.holds_frame():
                call.cf = True
            return None

    def _unknown(self, call: Call) -> None:
        number = call.vector
        assert number is not None
        if number not in at.IRQS:
            selector, offset = call.caller
            self.say((number,), f"INT {number:02X}h, called at {selector:04X}:{offset:04X}: nobody serves it")

    def _fault(self, call: Call) -> None:
        """End a machine that would make the same error for ever."""
        assert call.vector is not None
        selector, offset = call.caller
        what = FAULTS[call.vector]
        self._end(
            "crashed", f"the guest has made {what} at {selector:04X}:{offset:04X}, and serves no INT {call.vector}"
        )

    def _nothing_to_boot(self, call: Call) -> object:
        self.say((0x18,), "INT 18h: the guest has found nothing to boot")
        self._end("halted", "")
        return WAIT

    def _started(self, call: Call) -> object:
        """Go where the image begins."""
        start = self._start
        assert start is not None
        regs, sregs = call.vcpu.registers.copy(), call.vcpu.sregs.copy()
        for name in regs_cleared:
            setattr(regs, name, 0)
        set_start(start, regs, sregs)
        for name in (*regs_cleared, "rip", "rsp"):
            call.put(name, getattr(regs, name))
        call.put("rflags", regs.rflags | (IF if self._format == "bootsector" else 0))
        call._sregs = sregs
        call._system.update(("cs", "ds", "es", "fs", "gs", "ss"))
        return JUMP

    def _boot(self, call: Call) -> object:
        """INT 19h: load the first sector of the drive to boot from, and go there."""
        drive = self.drives.get(self.drives.boot)
        sector = bytearray(SECTOR)
        try:
            if drive is not None:
                drive.read(0, memoryview(sector))
        except OSError as error:
            self.say((0x19,), f"drive {self.drives.boot:02X}h: {error}")
        if drive is None or sector[510:] != b"\x55\xaa":
            return self._nothing_to_boot(call)
        self.memory.write(at.LOAD, bytes(sector))
        for name in regs_cleared:
            call.put(name, 0)
        call.go(0, at.LOAD)
        call.dl = drive.number
        return JUMP


regs_cleared = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp")
__all__ = ["AGAIN", "FIRST_DISK", "WAIT", "Bios", "Call"]
