"""State is data: each device gives it, takes it back, shows the guest the same afterwards, and refuses what is forged.

PYVCPU_FUZZ=N runs N examples of each instead of 30.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvcpu.bus import PORTS_SIZE, Bus
from pyvcpu.devices import virtio_mmio
from pyvcpu.devices.acpi_pm import PowerManagement
from pyvcpu.devices.debug import DebugConsole, DebugExit
from pyvcpu.devices.device import StateDataError
from pyvcpu.devices.disk_file import SECTOR
from pyvcpu.devices.fw_cfg import FwCfg, basic_items, directory
from pyvcpu.devices.ioapic import EOI, IOREGSEL, IOWIN, PINS, Ioapic
from pyvcpu.devices.pci import PciHost
from pyvcpu.devices.ports import FastControl, PostCode, PvPanic, SystemControl
from pyvcpu.devices.reset import COMMAND_PORT, DATA_PORT, KeyboardController, ResetControl
from pyvcpu.devices.rtc import Rtc
from pyvcpu.devices.serial import FCR, IER, IIR, LSR, MCR, RBR, THR, Serial
from pyvcpu.devices.virtio_blk import VirtioBlk
from pyvcpu.devices.virtio_mmio import VirtioMmio
from pyvcpu.devices.virtio_rng import VirtioRng
from pyvcpu.errors import PyvcpuError
from tests.virtio_driver import DATA, USED, Driver, readable, writable

if TYPE_CHECKING:
    from pyvcpu.devices.device import Device
    from pyvcpu.devices.virtio import VirtioDevice

EXAMPLES = int(os.environ.get("PYVCPU_FUZZ", "30"))


class Step(NamedTuple):
    """An access of the guest's, or something that the host does: `what` is a key of Subject.actions."""

    what: str
    where: int
    value: bytes


class Subject:
    """A device, what can be done to it, and what came of that: `log` has all that the outside saw."""

    device: Device

    def __init__(self) -> None:
        self.log: list[object] = []
        self.now = 1_700_000_000.25

    def take_world(self, other: Subject) -> None:
        """Make what surrounds the device the same as another's: the time, and memory."""
        self.now = other.now

    def note(self, kind: str) -> Callable[..., None]:
        return lambda *arguments: self.log.append((kind, *map(str, arguments)))

    def do(self, step: Step) -> None:
        raise NotImplementedError

    def do_all(self, steps: Sequence[Step]) -> list[object]:
        """Do all steps; return what was seen meanwhile."""
        self.log.clear()
        for step in steps:
            self.do(step)
        return self.log.copy()


class OnBus(Subject):
    """A device with read() and write()."""

    def __init__(self, device: Any = None) -> None:
        super().__init__()
        self.device = device

    def do(self, step: Step) -> None:
        device: Any = self.device
        if step.what == "read":
            self.log.append(device.read(step.where, max(len(step.value), 1)))
        elif step.value:
            device.write(step.where, step.value)


class ConsoleSubject(OnBus):
    def __init__(self) -> None:
        super().__init__()
        self.device = DebugConsole(self.note("out"))


class ExitSubject(OnBus):
    def __init__(self) -> None:
        super().__init__()
        self.device = DebugExit(self.note("exit"))


class Timers:
    """The timers of a loop, for a clock that a test sets."""

    def __init__(self) -> None:
        self.now = 5_000_000_000
        self.made: list[FakeTimer] = []

    def clock(self) -> int:
        return self.now

    def timer(self, callback: Callable[[], object]) -> FakeTimer:
        self.made.append(FakeTimer(callback))
        return self.made[-1]

    def pass_time(self, nanoseconds: int) -> None:
        """Let time pass, and call back at most a few of the timers that run out."""
        self.now += nanoseconds
        for timer in self.made:
            for _ in range(3):
                if timer.when is not None and timer.when <= self.now:
                    timer.when = None
                    timer.callback()


class FakeTimer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback = callback
        self.when: int | None = None

    def at(self, when: int) -> None:
        self.when = when

    def cancel(self) -> None:
        self.when = None


class PowerSubject(OnBus):
    def __init__(self) -> None:
        super().__init__()
        self.timers = Timers()
        self.device = PowerManagement(self.note("off"), self.note("irq"), self.timers.clock, self.timers.timer)

    def do(self, step: Step) -> None:
        if step.what == "host":
            self.timers.pass_time(step.where * 20_000_000_000)
            if step.where == 0:
                self.log.append(self.device.press_power_button())  # type: ignore[attr-defined]
        else:
            super().do(step)


class ClockSubject(OnBus):
    """A real-time clock that interrupts."""

    def __init__(self) -> None:
        super().__init__()
        self.timers = Timers()
        self.device = Rtc(
            lambda: self.now,
            cmos={0x15: 0x80, 0x16: 2},
            set_irq=self.note("irq"),
            timers=(self.timers.clock, self.timers.timer),
        )

    def do(self, step: Step) -> None:
        if step.what == "host":
            self.now += step.where / 7
            self.timers.pass_time(round(step.where / 7 * 10**9))
        elif step.what == "write" and step.where > 1:  # to a register, as guests do
            self.device.write(0, bytes((step.where % 14,)) + step.value[:1])  # type: ignore[attr-defined]
        else:
            super().do(step)


class PciSubject(Subject):
    def __init__(self) -> None:
        super().__init__()
        self.bus = Bus("port", PORTS_SIZE)
        device = PciHost()
        device.attach_to(self.bus)
        self.device = device

    def do(self, step: Step) -> None:
        port = 0xCF8 if step.where & 4 else 0xCFC + (step.where & 3)
        if step.what == "read":
            self.log.append(self.bus.read(None, port, max(len(step.value), 1)))
        elif step.value:
            self.bus.write(None, port, step.value if port != 0xCF8 else b"\0" + step.value[1:3] + b"\x80")


class FwCfgSubject(OnBus):
    def __init__(self) -> None:
        super().__init__()
        memory = FlatMemory()
        self.device = FwCfg(basic_items(1 << 20, 2, 4) | directory([("opt/a", b"content")]), memory)


class FlatMemory:
    """64 KiB."""

    def __init__(self) -> None:
        self.data = bytearray(1 << 16)

    def read(self, address: int, length: int) -> bytes:
        if address + length > len(self.data):
            raise IndexError
        return bytes(self.data[address : address + length])

    def write(self, address: int, data: bytes) -> None:
        if address + len(data) > len(self.data):
            raise IndexError
        self.data[address : address + len(data)] = data


class SystemSubject(OnBus):
    def __init__(self) -> None:
        super().__init__()
        self.device = SystemControl(lambda: 20_000)


class PostSubject(OnBus):
    def __init__(self) -> None:
        super().__init__()
        self.device = PostCode()


class FastSubject(OnBus):
    def __init__(self) -> None:
        super().__init__()
        self.device = FastControl(self.note("reset"))


class PanicSubject(OnBus):
    def __init__(self) -> None:
        super().__init__()
        self.device = PvPanic(self.note("panic"))


class ControlSubject(OnBus):
    def __init__(self) -> None:
        super().__init__()
        self.device = ResetControl(self.note("reset"))


class RtcSubject(OnBus):
    def __init__(self) -> None:
        super().__init__()
        self.device = Rtc(lambda: self.now)

    def do(self, step: Step) -> None:
        if step.what == "host":
            self.now += step.where / 7
        else:
            super().do(step)


class KeyboardSubject(Subject):
    def __init__(self) -> None:
        super().__init__()
        self.bus = Bus("port", PORTS_SIZE)
        device = KeyboardController(self.note("reset"))
        device.attach_to(self.bus)
        self.device = device

    def do(self, step: Step) -> None:
        port = COMMAND_PORT if step.where & 1 else DATA_PORT
        if step.what == "read":
            self.log.append(self.bus.read(None, port, 1))
        elif step.value:
            self.bus.write(None, port, step.value)


class SerialSubject(OnBus):
    def __init__(self) -> None:
        super().__init__()
        self.device = Serial(self.note("out"), self.note("irq"), self.note("listen"))

    def do(self, step: Step) -> None:
        if step.what == "host":
            assert isinstance(self.device, Serial)
            self.log.append(self.device.receive(step.value))
        else:
            super().do(step)


class IoapicSubject(OnBus):
    def __init__(self) -> None:
        super().__init__()
        self.device = Ioapic(self.note("msi"), self.note("routes"))

    def do(self, step: Step) -> None:
        device = self.device
        assert isinstance(device, Ioapic)
        if step.what == "host":
            device.set_line(step.where % PINS, bool(step.value))
        elif step.what == "write":  # to a register, as guests do
            device.write(IOREGSEL, bytes((step.where,)))
            device.write(EOI if step.where == 0xFF else IOWIN, step.value)
        else:
            device.write(IOREGSEL, bytes((step.where,)))
            self.log.append(device.read(IOWIN, 4))


class VirtioSubject(OnBus):
    """A virtio device whose driver may do anything, with a memory that is like any other's at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver(self.make())
        self.driver.mmio = VirtioMmio(self.driver.mmio.device, self.driver.ram, self.note("irq"))
        self.driver.set_queue()
        self.driver.put(virtio_mmio.STATUS, 0)
        self.driver.ram.write(DATA, bytes(16))
        self.driver.chain(readable(DATA, 16), writable(DATA + 0x1000, SECTOR), writable(DATA + 0x100, 1))
        self.device = self.driver.mmio
        self.log.clear()

    def make(self) -> VirtioDevice:
        return VirtioBlk(Zeros())

    def take_world(self, other: Subject) -> None:
        assert isinstance(other, VirtioSubject)
        self.driver.ram.bytes[:] = other.driver.ram.bytes
        self.driver.offered, self.driver.seen = other.driver.offered, other.driver.seen

    def do(self, step: Step) -> None:
        if step.what == "host" and step.where < 3:
            self.driver.ram.bytes[:0x1000] = bytes(0x1000)
            self.driver.ram.bytes[0x3000:0x5000] = bytes(0x2000)
            self.driver.start()
        elif step.what == "host":
            self.driver.offer(step.where % 3 // 2)
            self.driver.put(virtio_mmio.QUEUE_NOTIFY, 0)
        elif step.what == "write" and step.value:
            self.driver.put(step.where * 4, step.value[0] % 16 if step.where < 0x20 else step.value[0] << 12)
        else:
            self.log.append(self.driver.get(step.where * 4))
        self.log.append(self.driver.ram.read(USED, 0x100))


class RngSubject(VirtioSubject):
    def make(self) -> VirtioDevice:
        return VirtioRng()


class Zeros:
    """A disk of zeros."""

    size, readonly = 64 * SECTOR, False

    def preadv(self, buffers: list[memoryview], offset: int) -> int:
        return sum(map(len, buffers))

    pwritev = preadv

    def fsync(self) -> None:
        pass


SUBJECTS: dict[str, type[Subject]] = {
    "disk": VirtioSubject,
    "entropy": RngSubject,
    "console": ConsoleSubject,
    "exit": ExitSubject,
    "power": PowerSubject,
    "clock": ClockSubject,
    "pci": PciSubject,
    "fw_cfg": FwCfgSubject,
    "system": SystemSubject,
    "post": PostSubject,
    "fast": FastSubject,
    "panic": PanicSubject,
    "control": ControlSubject,
    "rtc": RtcSubject,
    "keyboard": KeyboardSubject,
    "serial": SerialSubject,
    "ioapic": IoapicSubject,
}
LISTENING = "listen"  # what the port says to the host alone, once

OFFSETS = st.integers(0, 7) | st.integers(0x10, 0x3F) | st.just(0xFF)
STEPS = st.lists(
    st.builds(Step, st.sampled_from(["read", "write", "write", "host"]), OFFSETS, st.binary(max_size=4)), max_size=40
)
subjects = pytest.mark.parametrize("kind", SUBJECTS.values(), ids=SUBJECTS)


def guest_sees(log: list[object]) -> list[object]:
    return [entry for entry in log if entry != (LISTENING,)]


@subjects
@settings(max_examples=EXAMPLES)
@given(STEPS, STEPS)
def test_a_restored_device_is_the_one_that_was_saved(
    kind: type[Subject], before: list[Step], after: list[Step]
) -> None:
    used, fresh = kind(), kind()
    used.do_all(before)
    fresh.take_world(used)
    state = used.device.state()
    fresh.device.restore(deepcopy(state))
    assert fresh.device.state() == state == used.device.state()
    assert guest_sees(fresh.do_all(after)) == guest_sees(used.do_all(after))
    assert fresh.device.state() == used.device.state()


@subjects
@settings(max_examples=EXAMPLES)
@given(STEPS, STEPS)
def test_a_used_device_takes_any_state(kind: type[Subject], one: list[Step], other: list[Step]) -> None:
    """Nothing of its own stays behind."""
    saved, used = kind(), kind()
    saved.do_all(one)
    used.do_all(other)
    used.take_world(saved)
    used.device.restore(saved.device.state())
    assert used.device.state() == saved.device.state()
    assert guest_sees(used.do_all(other)) == guest_sees(saved.do_all(other))


@subjects
@settings(max_examples=EXAMPLES)
@given(STEPS, STEPS)
def test_a_reset_device_is_as_a_fresh_one(kind: type[Subject], before: list[Step], after: list[Step]) -> None:
    used, fresh = kind(), kind()
    used.do_all(before)
    fresh.take_world(used)
    used.device.reset()
    fresh.device.reset()
    if isinstance(used.device, Serial):  # the input that the guest has not read stays
        waiting = used.device.state()["waiting"]
        fresh.device.restore(fresh.device.state() | {"waiting": waiting})
    assert used.device.state() == fresh.device.state()
    assert guest_sees(used.do_all(after)) == guest_sees(fresh.do_all(after))


@subjects
def test_a_fresh_device_is_as_a_reset_one(kind: type[Subject]) -> None:
    subject = kind()
    state = subject.device.state()
    subject.device.reset()
    assert subject.device.state() == state
    assert subject.log in ([], [("irq", "False")])


@subjects
@given(STEPS)
def test_state_is_plain_data_and_a_copy(kind: type[Subject], steps: list[Step]) -> None:
    subject = kind()
    subject.do_all(steps)
    state = subject.device.state()
    copy = deepcopy(state)
    assert is_plain(state)
    subject.do_all(steps)
    subject.device.reset()
    assert state == copy


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(element) for key, element in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or type(value) in (int, bool, str, bytes)


# Forged data

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 0xFF, 0x100, 1 << 64, -1, 1 << 1000])
    | st.binary(max_size=40)
    | st.text(max_size=5)
    | st.floats()
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=5) | st.integers(), inner)
)
PLACES = st.integers(0, 1 << 16)


def mutate(state: Any, place: int, value: object, how: str) -> Any:
    """Replace, remove or add something, at the place that a number tells."""
    keys: list[Any] = list(state) if isinstance(state, dict) else list(range(len(state)))
    if not keys or how == "whole":
        return value
    key = keys[place % len(keys)]
    inner = state[key]
    if isinstance(inner, (dict, list)) and inner and place >> 4 & 3:
        state[key] = mutate(inner, place >> 6, value, how)
    elif how == "remove":
        del state[key]
    elif how == "add" and isinstance(state, dict):
        state["more"] = value
    elif how == "flip" and type(inner) is int and type(value) is int:
        state[key] = inner ^ (1 << (value % 70))
    else:
        state[key] = value
    return state


CHANGES = st.lists(
    st.tuples(PLACES, VALUES, st.sampled_from(["replace", "flip", "remove", "add", "whole"])), min_size=1, max_size=3
)


@subjects
@settings(max_examples=EXAMPLES)
@given(STEPS, CHANGES, STEPS)
def test_forged_data_is_refused_whole_or_taken(
    kind: type[Subject], steps: list[Step], changes: list[tuple[int, object, str]], after: list[Step]
) -> None:
    forger, victim, twin = kind(), kind(), kind()
    forger.do_all(steps)
    victim.do_all(after)
    twin.do_all(after)
    data: Any = forger.device.state()
    for place, value, how in changes:
        data = mutate(data, place, value, how) if isinstance(data, (dict, list)) else value
    refusal = None
    try:
        victim.device.restore(data)
    except StateDataError as error:
        refusal = str(error)
    if refusal is not None:
        assert len(refusal) < 300
        assert victim.device.state() == twin.device.state()
        assert victim.do_all(after) == twin.do_all(after)
        return
    assert is_plain(victim.device.state())
    victim.do_all(after)
    fresh = kind()
    fresh.device.restore(victim.device.state())  # what it has become can be saved in its turn
    victim.device.reset()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "reset control must be a dict, not list"),
        ({}, "reset control must have a key 'value'; is it of another device or version?"),
        ({"value": 0, "more": 1}, "reset control must have no key 'more'; is it of another device or version?"),
        ({"value": 0, 5: 1}, "reset control must have no key of type int; is it of another device or version?"),
        ({"value": True}, "reset control: value must be a whole number, not bool"),
        ({"value": 0x10}, "reset control: value must have no bits other than 0xe, not 0x10"),
        ({"value": -1}, "reset control: value must have no bits other than 0xe, not -0x1"),
        ({"value": 1 << 20000}, "reset control: value must have no bits other than 0xe, not a number of 20001 bits"),
    ],
)
def test_what_is_wrong_is_said(data: object, message: str) -> None:
    with pytest.raises(StateDataError) as caught:
        ResetControl(print).restore(data)
    assert str(caught.value) == message
    assert isinstance(caught.value, PyvcpuError)
    assert isinstance(caught.value, ValueError)


# The serial port: its line, and the input that nobody may lose


class Port(SerialSubject):
    """A serial port whose guest has enabled FIFO and receive interrupt."""

    def __init__(self) -> None:
        super().__init__()
        self.uart = self.device
        assert isinstance(self.uart, Serial)

    def boot(self) -> Serial:
        """Do as a driver that starts: clear the FIFO, connect and enable the interrupt."""
        uart = self.device
        assert isinstance(uart, Serial)
        for register, value in ((FCR, 0x07), (MCR, 0x0B), (IER, 0x01)):
            uart.write(register, bytes((value,)))
        return uart


def read_all(uart: Serial) -> bytes:
    """Read as a guest does, until there is nothing more."""
    received = b""
    while uart.read(LSR, 1)[0] & 1:
        received += uart.read(RBR, 1)
    return received


def test_restoring_drives_the_line_to_its_level() -> None:
    port = Port()
    port.boot().receive(b"x")
    high = port.device.state()
    fresh = Port()
    fresh.device.restore(high)
    assert fresh.log == [("irq", "True"), ("listen",)]
    fresh.device.restore(high)  # a controller that was restored before has it low, perhaps
    assert fresh.log[2:] == [("irq", "True")]
    fresh.device.restore(Port().device.state())
    assert fresh.log[3:] == [("irq", "False")]
    fresh.device.restore(high)
    fresh.device.reset()
    assert fresh.log[4:] == [("irq", "True"), ("irq", "False")]


def test_the_host_hears_once_of_a_guest_that_listened_before_it_was_saved() -> None:
    port = Port()
    port.boot()
    fresh = Port()
    for _ in range(2):
        fresh.device.restore(port.device.state())
    assert fresh.log.count(("listen",)) == 1
    assert fresh.boot().receive(b"x") == 1
    assert fresh.log.count(("listen",)) == 1


def test_a_reset_loses_no_input_whatever_the_driver_clears_as_it_starts() -> None:
    typed = bytes(range(1, 41))
    port = Port()
    uart = port.boot()
    received, given = b"", 0
    while len(received) < len(typed):
        given += uart.receive(typed[given:])
        received += uart.read(RBR, 1)
        uart.reset()
        given += uart.receive(typed[given:])
        port.boot()
    assert received == typed


def test_input_before_the_guest_listens_is_not_in_the_fifo_that_the_driver_clears() -> None:
    port = Port()
    assert isinstance(port.device, Serial)
    assert port.device.receive(b"abc") == 1
    assert read_all(port.boot()) == b"a"


def test_a_reset_drops_what_the_guest_sent_itself() -> None:
    port = Port()
    uart = port.boot()
    uart.receive(b"ab")
    uart.write(MCR, b"\x10")
    uart.write(THR, b"L")
    uart.write(MCR, b"\x0b")
    uart.receive(b"c")
    uart.reset()
    assert read_all(port.boot()) == b"abc"


def test_input_that_waits_for_the_fifo_interrupts_as_it_gets_there() -> None:
    port = Port()
    uart = port.boot()
    uart.receive(b"0123456789abcdef")
    uart.reset()
    uart.write(MCR, b"\x0b")
    uart.write(IER, b"\x01")  # without FIFOs: one character at a time
    received = b""
    for _ in range(16):
        assert uart.read(IIR, 1) == b"\x04"
        assert uart.receive(b"x") == 0
        received += uart.read(RBR, 1)
    assert received == b"0123456789abcdef"
    assert uart.read(IIR, 1) == b"\x01"
    assert port.log[-1] == ("irq", "False")
