"""The registers of a PC that guests poll: each answers as its specification, or QEMU, says."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvcpu.bus import PORTS_SIZE, Bus
from pyvcpu.cli.files import boots_as_disk, read_fw_cfg
from pyvcpu.devices import acpi_pm, fw_cfg
from pyvcpu.devices.cmos import contents
from pyvcpu.devices.pci import PciHost
from pyvcpu.devices.ports import FastControl, PostCode, PvPanic, SystemControl
from pyvcpu.devices.reset import KeyboardController
from pyvcpu.devices.rtc import Rtc
from pyvcpu.devices.smbios import build as build_smbios
from pyvcpu.errors import ConfigError
from tests.unit.test_device_state import FlatMemory, Timers

SECOND = 10**9

# fw_cfg


class Guest:
    """A guest that uses fw_cfg as its specification says."""

    def __init__(self, items: dict[int, bytes]) -> None:
        self.memory = FlatMemory()
        self.device = fw_cfg.FwCfg(items, self.memory)

    def get(self, key: int, length: int) -> bytes:
        self.device.write(0, struct.pack("<H", key))
        return b"".join(self.device.read(1, 1) for _ in range(length))

    def dma(self, control: int, length: int, target: int, at: int = 0x100) -> int:
        self.memory.write(at, struct.pack(">IIQ", control, length, target))
        self.device.write(4, bytes(4))
        self.device.write(8, struct.pack(">I", at))
        return int.from_bytes(self.memory.read(at, 4), "big")


ITEMS = fw_cfg.basic_items(3 << 30, 2, 8) | fw_cfg.directory([("opt/b", b"bbb"), ("etc/a", b"aa")])


def test_fw_cfg_items() -> None:
    guest = Guest(ITEMS)
    assert guest.get(0, 6) == b"QEMU\0\0"
    assert guest.get(1, 4) == b"\x03\0\0\0"
    assert guest.get(3, 8) == struct.pack("<Q", 3 << 30)
    assert (guest.get(5, 2), guest.get(0xF, 2)) == (b"\x02\0", b"\x08\0")
    assert guest.get(0x4444, 2) == b"\0\0"
    entries = guest.get(0x19, 4 + 2 * 64)
    assert struct.unpack_from(">I", entries) == (2,)
    assert [struct.unpack_from(">IHH56s", entries, 4 + 64 * i) for i in range(2)] == [
        (2, 0x20, 0, b"etc/a".ljust(56, b"\0")),
        (3, 0x21, 0, b"opt/b".ljust(56, b"\0")),
    ]
    assert guest.get(0x21, 4) == b"bbb\0"


def test_fw_cfg_dma() -> None:
    guest = Guest(ITEMS)
    assert guest.device.read(4, 4) + guest.device.read(8, 4) == b"QEMU CFG"
    assert guest.dma(0x21 << 16 | fw_cfg.DMA_SELECT | fw_cfg.DMA_READ, 5, 0x200) == 0
    assert guest.memory.read(0x200, 5) == b"bbb\0\0"
    assert guest.dma(0x21 << 16 | fw_cfg.DMA_SELECT | fw_cfg.DMA_SKIP, 2, 0) == 0
    assert guest.dma(fw_cfg.DMA_READ, 1, 0x200) == 0
    assert guest.memory.read(0x200, 1) == b"b"
    assert guest.dma(fw_cfg.DMA_READ, 5, 0xFFFE) == fw_cfg.DMA_ERROR
    assert guest.dma(fw_cfg.DMA_READ, 0xFFFF_FFFF, 0x8000) == fw_cfg.DMA_ERROR
    assert guest.dma(fw_cfg.DMA_WRITE, 1, 0x200) == fw_cfg.DMA_ERROR
    guest.device.write(4, b"\xff" * 4)
    guest.device.write(8, b"\xff" * 4)  # a request outside of memory: nobody to tell


def test_fw_cfg_of_a_kernel() -> None:
    image = bytes(0x1F1) + b"\x02" + bytes(range(256)) * 14
    items = fw_cfg.kernel_items(image, b"quiet\0", b"initrd")
    assert [struct.unpack("<I", items[key])[0] for key in (0x17, 0x08, 0x14, 0x0B)] == [1536, len(image) - 1536, 6, 6]
    assert (items[0x18] + items[0x11], items[0x15], items[0x12]) == (image, b"quiet\0", b"initrd")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("x" * 56, b"")], "a name of 1 to 55 bytes"),
        ([("", b"")], "a name of 1 to 55 bytes"),
        ([("a", b""), ("a", b"")], "two fw_cfg files 'a'"),
        ([(str(i), b"") for i in range(0x2001)], "room for 8192 files"),
    ],
)
def test_fw_cfg_files_that_cannot_be(files: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fw_cfg.directory(files)


def test_fw_cfg_options(tmp_path: Path) -> None:
    path = tmp_path / "a,b"
    path.write_bytes(b"content")
    assert read_fw_cfg("name=opt/x,string=a,,b=c") == ("opt/x", b"a,b=c")
    assert read_fw_cfg("opt/x,string=") == ("opt/x", b"")
    assert read_fw_cfg(f"name=opt/x,file={str(path).replace(',', ',,')}") == ("opt/x", b"content")
    for text in (
        "",
        "name=x",
        "name=x,string=a,file=b",
        "string=a",
        "name=x,more=1",
        "name=x,string=a,string=b",
        "x,y",
    ):
        with pytest.raises(ConfigError, match="--fw-cfg takes"):
            read_fw_cfg(text)
    with pytest.raises(ConfigError, match="--fw-cfg /nowhere: No such file"):
        read_fw_cfg("name=x,file=/nowhere")


def test_what_is_a_disk(tmp_path: Path) -> None:
    sector = bytes([0xFA]).ljust(510, b"\0") + b"\x55\xaa"
    path = tmp_path / "image"
    for content, format, expected in (
        (sector, None, False),
        (sector * 2, None, True),
        (sector * 2, "flat", False),
        (sector * 2, "bootsector", True),
        (sector * 2 + b"x", None, False),
        (bytes(1024), None, False),
    ):
        path.write_bytes(content)
        assert boots_as_disk(str(path), content, format) is expected
    assert not boots_as_disk(str(tmp_path), sector * 2, None)


# ACPI's fixed hardware


class Pm:
    def __init__(self) -> None:
        self.timers, self.irq, self.offs = Timers(), list[bool](), 0
        self.device = acpi_pm.PowerManagement(self.off, self.irq.append, self.timers.clock, self.timers.timer)

    def off(self) -> None:
        self.offs += 1


def test_the_pm_timer_counts() -> None:
    pm = Pm()
    assert pm.device.read(8, 4) == bytes(4)
    pm.timers.pass_time(SECOND)
    assert pm.device.read(8, 4) == struct.pack("<I", 3_579_545)
    pm.timers.pass_time(1200 * SECOND)
    assert pm.device.read(8, 4) == struct.pack("<I", 1201 * 3_579_545 % (1 << 32))


def test_the_pm_timer_interrupts_when_its_top_bit_changes() -> None:
    pm = Pm()
    pm.device.write(2, b"\x01\x00")
    pm.timers.pass_time(599 * SECOND)
    assert pm.irq == []
    pm.timers.pass_time(2 * SECOND)
    assert (pm.irq, pm.device.read(0, 2)) == ([True], b"\x01\x00")
    pm.device.write(0, b"\x01\x00")
    assert pm.irq == [True, False]
    pm.timers.pass_time(600 * SECOND)
    assert pm.irq == [True, False, True]


def test_the_power_button() -> None:
    pm = Pm()
    assert not pm.device.press_power_button()
    assert (pm.device.read(0, 2), pm.irq) == (b"\x00\x01", [])
    pm.device.write(2, b"\x20\x01")
    assert pm.irq == [True]
    pm.device.write(0, b"\x00\x01")
    assert pm.irq == [True, False]
    assert pm.device.press_power_button()


@pytest.mark.parametrize(
    ("offset", "data", "offs"),
    [
        (4, b"\x00\x20", 1),
        (4, b"\x01\x20", 1),
        (4, b"\x00\x34", 0),  # S5 is type 0
        (4, b"\x00", 0),
        (5, b"\x20", 1),
        (4, b"\x34", 1),  # the sleep control register of hardware-reduced ACPI
        (4, b"\x14", 0),
        (2, b"\x00\x00\x00\x20", 1),
        (0, b"\x00\x20", 0),
    ],
)
def test_power_off(offset: int, data: bytes, offs: int) -> None:
    pm = Pm()
    pm.device.write(offset, data)
    assert pm.offs == offs
    assert pm.device.read(4, 2)[0] & 1, "ACPI stays on"


# The real-time clock


class Clock:
    """A clock at 2023-11-14 22:13:20 UTC, whose interrupts are counted."""

    def __init__(self) -> None:
        self.timers, self.irq = Timers(), list[bool]()
        self.start = self.timers.now
        self.device = Rtc(
            lambda: 1_700_000_000 + (self.timers.now - self.start) / SECOND,
            set_irq=self.irq.append,
            timers=(self.timers.clock, self.timers.timer),
        )

    def write(self, register: int, value: int) -> None:
        self.device.write(0, bytes((register, value)))

    def read(self, register: int) -> int:
        self.device.write(0, bytes((register,)))
        return self.device.read(1, 1)[0]

    def passes(self, seconds: float) -> None:
        self.timers.pass_time(round(seconds * SECOND))


def test_the_alarm() -> None:
    clock = Clock()
    for register, value in ((5, 0x22), (3, 0x15), (1, 0x10)):  # 22:15:10, 110 seconds from now
        clock.write(register, value)
    clock.write(11, 0x22)
    clock.passes(109)
    assert clock.irq == []
    clock.passes(1.5)
    assert clock.irq == [True]
    assert clock.read(12) == 0x80 | 0x40 | 0x20 | 0x10
    assert clock.irq == [True, False]
    assert clock.read(12) == 0
    clock.passes(86_400)
    assert clock.irq == [True, False, True], "every day"


@pytest.mark.parametrize(
    ("alarm", "seconds"), [((0xFF, 0xFF, 0x30), 10), ((0xFF, 0x14, 0x00), 40), ((0xC0, 0xC0, 0xC0), 1)]
)
def test_an_alarm_register_may_match_any(alarm: tuple[int, int, int], seconds: int) -> None:
    clock = Clock()
    for register, value in zip((5, 3, 1), alarm, strict=True):
        clock.write(register, value)
    clock.write(11, 0x22)
    clock.passes(seconds - 0.5)
    assert clock.irq == []
    clock.passes(0.6)
    assert clock.irq == [True]


def test_an_alarm_that_no_time_matches_never_comes() -> None:
    clock = Clock()
    clock.write(5, 0x30)
    clock.write(11, 0x22)
    clock.passes(200_000)
    assert clock.irq == []


def test_the_update_and_the_periodic_interrupt() -> None:
    clock = Clock()
    clock.write(11, 0x12)
    clock.passes(0.9)
    assert clock.irq == []
    clock.passes(0.2)
    assert clock.irq == [True]
    assert clock.read(12) & 0xB0 == 0x90
    clock.write(11, 0x42)
    clock.read(12)
    clock.irq.clear()
    for _ in range(5):
        clock.passes(1 / 1024)
        assert clock.read(12) & 0xC0 == 0xC0
    assert clock.irq == [True, False] * 5


def test_cmos_sizes() -> None:
    found = contents([(0, 3 << 30, 0), (4 << 30, 5 << 30, 0)], [1440 << 10, 100 << 20], 4)
    assert [found[register] for register in (0x10, 0x14, 0x15, 0x16, 0x17, 0x18)] == [0x40, 0x23, 0x80, 2, 0xFF, 0xFF]
    assert [found[register] for register in (0x34, 0x35, 0x5B, 0x5C, 0x5D, 0x5F)] == [0, 0xBF, 0, 0x40, 0, 3]


# Others


class Controller:
    def __init__(self) -> None:
        self.bus, self.resets = Bus("port", PORTS_SIZE), 0
        KeyboardController(self.reset).attach_to(self.bus)

    def reset(self) -> None:
        self.resets += 1

    def command(self, *values: int) -> None:
        for port, value in zip((0x64, 0x60), values, strict=False):
            self.bus.write(None, port, bytes((value,)))

    def answer(self) -> tuple[int, int]:
        """Return the status while a byte waits, and the byte."""
        return self.bus.read(None, 0x64, 1)[0], self.bus.read(None, 0x60, 1)[0]


WAITS = 0x1D  # output full, system, command, unlocked


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ((0x20,), (WAITS, 0x04)),
        ((0xAA,), (WAITS, 0x55)),
        ((0xAB,), (WAITS, 0x01)),
        ((0xA9,), (WAITS, 0x01)),
        ((0xC0,), (WAITS, 0x80)),
        ((0xD0,), (WAITS, 0xCF)),
        ((0xD2, 0x5A), (WAITS, 0x5A)),
        ((0xD3, 0x5A), (WAITS | 0x20, 0x5A)),
        ((0xD4, 0xF4), (WAITS | 0x60, 0xFE)),
        ((0x00, 0xF4), (WAITS | 0x40, 0xFE)),
    ],
)
def test_commands_that_answer(values: tuple[int, ...], answer: tuple[int, int]) -> None:
    controller = Controller()
    controller.command(*values)
    assert controller.answer() == answer
    assert controller.bus.read(None, 0x64, 1)[0] == WAITS & ~1
    assert controller.resets == 0


@pytest.mark.parametrize(
    ("values", "ask", "value"),
    [
        ((0xAD,), 0x20, 0x14),
        ((0xA7,), 0x20, 0x24),
        ((0x60, 0x47), 0x20, 0x47),
        ((0xDD,), 0xD0, 0xCD),
        ((0xDF,), 0xD0, 0xCF),
        ((0xD1, 0xDD), 0xD0, 0xDD),
    ],
)
def test_commands_that_change_something(values: tuple[int, ...], ask: int, value: int) -> None:
    controller = Controller()
    controller.command(*values)
    controller.command(ask)
    assert controller.answer() == (WAITS, value)
    controller.command(0xAE)
    controller.command(0xA8)
    controller.command(0x20)
    assert controller.answer()[1] & 0x30 == 0


@pytest.mark.parametrize(
    ("values", "resets"), [((0xFE,), 1), ((0xF0,), 1), ((0xFF,), 0), ((0xD1, 0xFE), 1), ((0xD1, 0x03), 0)]
)
def test_commands_that_reset(values: tuple[int, ...], resets: int) -> None:
    controller = Controller()
    controller.command(*values)
    assert controller.resets == resets


def test_port_92h() -> None:
    resets: list[int] = []
    device = FastControl(lambda: resets.append(1))
    assert device.read(0, 1) == b"\x02"
    for value in (0x02, 0x03, 0x03, 0x00, 0x01):
        device.write(0, bytes((value,)))
    assert (device.read(0, 1), len(resets)) == (b"\x01", 2)


def test_ports_61h_and_80h() -> None:
    now = [0]
    device, post = SystemControl(lambda: now[0]), PostCode()
    device.write(0, b"\xff")
    seen = set()
    for now[0] in range(0, 60_000, 5_000):
        seen.add(device.read(0, 1)[0])
    assert seen == {0x2F, 0x3F}
    post.write(0, b"\x42")
    assert post.read(0, 1) == b"\x42"


def test_pvpanic() -> None:
    panics: list[int] = []
    device = PvPanic(lambda: panics.append(1))
    assert device.read(0, 1) == b"\x03"
    device.write(0, b"\x02")
    assert panics == []
    device.write(0, b"\x01")
    assert panics == [1]


def test_configuration_space() -> None:
    bus = Bus("port", PORTS_SIZE)
    PciHost().attach_to(bus)

    def address(value: int) -> None:
        bus.write(None, 0xCF8, struct.pack("<I", value))

    assert bus.read(None, 0xCFC, 4) == b"\xff" * 4, "not enabled"
    address(0x8000_0000)
    assert bus.read(None, 0xCF8, 4) == b"\0\0\0\x80"
    assert bus.read(None, 0xCFC, 4) == struct.pack("<HH", 0x1B36, 0x0008)
    assert bus.read(None, 0xCFE, 2) == b"\x08\0"
    address(0x8000_0008)
    assert bus.read(None, 0xCFC, 4) == b"\0\0\0\x06"
    address(0x8000_0004)
    bus.write(None, 0xCFC, b"\xff\xff")
    assert bus.read(None, 0xCFC, 4) == b"\x07\x05\0\0"
    address(0x8000_00FC)
    assert bus.read(None, 0xCFF, 4) == bytes(4)
    for absent in (0x8000_0800, 0x8000_0100, 0x8001_0000):
        address(absent)
        assert bus.read(None, 0xCFC, 4) == b"\xff" * 4
        bus.write(None, 0xCFC, b"\0" * 4)


@pytest.mark.parametrize("sockets", [1, 2, 1000])
def test_smbios(sockets: int) -> None:
    """Both entry points sum up to zero and lead to tables that end where they should."""
    data = build_smbios([(0, 3 << 30), (4 << 30, 8 << 30)], sockets, 2, 2, "1.0")
    assert len(data) <= 0x1000
    assert [sum(part) & 0xFF for part in (data[:31], data[16:31], data[32:56])] == [0, 0, 0]
    length, address, count = struct.unpack_from("<HIH", data, 22)
    assert (address, length) == (0xFC000 + 64, len(data) - 64)
    assert struct.unpack_from("<IQ", data, 44) == (length, address)
    kinds, place = [], 64
    while place < len(data):
        kind, size = data[place], data[place + 1]
        kinds.append(kind)
        place = data.index(b"\0\0", place + size) + 2
    assert (place, len(kinds), kinds[-1]) == (len(data), count, 127)
    assert kinds[:8] == [0, 1, 3, 16, 17, 19, 19, 32]
    assert set(kinds[8:-1]) == {4}


def test_callables_are_not_called_for_nothing() -> None:
    calls: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *arguments: calls.append(name)

    timers = Timers()
    acpi_pm.PowerManagement(note("off"), note("irq"), timers.clock, timers.timer).reset()
    Rtc(set_irq=note("irq"), timers=(timers.clock, timers.timer)).reset()
    KeyboardController(note("reset")).reset()
    assert calls == []
