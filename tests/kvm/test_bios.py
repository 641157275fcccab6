"""Boot sectors of our own that call the BIOS: tests/guests/bios_*.S, each of which states what it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvcpu import ConfigError, Machine, StateError
from pyvcpu.bios import WAIT, Call
from pyvcpu.bios.drives import MemoryDisk
from tests.kvm.support import DEVICE, GUESTS, boot
from tests.threads import DEADLINE

SECTOR = 512
ENDED = 3  # the status of a guest that writes 1 to the debug-exit port


class Run:
    """A machine with one of the guests, run to its end: what it said, wrote to port 0x50, and was told of."""

    def __init__(self, guest: str, disk: bytes = b"", keys: bytes = b"", **options: object) -> None:
        self.said, self.shown, self.warned = bytearray(), list[int](), list[str]()
        content = (GUESTS / f"bios_{guest}.bin").read_bytes() + disk
        self.keys = keys
        with Machine(
            "64M",
            kvm=DEVICE,
            output=self.said.extend,
            warn=self.warned.append,
            on_listen=self.listen,
            **options,  # type: ignore[arg-type]
        ) as self.machine:
            self.machine.on_port(0x50, write=lambda vcpu, data: self.shown.append(int.from_bytes(data, "little")))
            self.machine.load(content)
            self.outcome = self.machine.run(timeout=DEADLINE)

    def listen(self) -> None:
        taken = self.machine.board.input.receive(self.keys)
        self.keys = self.keys[taken:]


@pytest.fixture(params=["kernel", "none"])
def irqchip(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_screen(irqchip: str) -> None:
    run = Run("screen", irqchip=irqchip)
    assert bytes(run.said) == b"teletype\r\n  string\r\nxxx"
    assert run.shown == [80 << 8 | 3, 0x1E78, 0x0200, 0x0222, 639, 1]
    assert run.warned == ["INT 69h, called at 0000:7C5B: nobody serves it"]
    assert (run.outcome.reason, run.outcome.status) == ("exit", ENDED)


def disk_of(sectors: int) -> bytes:
    """Return what is behind the first sector; each begins with its number."""
    return b"".join((b"sector%2d" % number).ljust(SECTOR, b".") for number in range(1, sectors))


def test_a_disk(irqchip: str) -> None:
    run = Run("disk", disk_of(63 * 16 * 20), irqchip=irqchip)
    assert bytes(run.said) == b"sector 2sector 3"
    assert run.shown == [19 << 8 | 63, 15 << 8 | 1, 4 << 8]
    assert (run.outcome.status, run.warned) == (ENDED, [])


def test_a_floppy_has_no_extensions() -> None:
    run = Run("disk", disk_of(2880))
    assert bytes(run.said) == b"sector 2"
    assert run.outcome.status == 1 << 1 | 1


def test_a_file_is_read_and_written(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes((GUESTS / "bios_disk.bin").read_bytes() + disk_of(100))
    done = boot(image)
    assert (done.stdout, done.stderr, done.returncode) == (b"sector 2sector 3", b"", ENDED)
    content = image.read_bytes()
    assert content[4 * SECTOR : 5 * SECTOR] == content[3 * SECTOR : 4 * SECTOR]
    assert content[5 * SECTOR :] == disk_of(100)[4 * SECTOR :]


def test_a_drive_that_cannot_be_written_says_so() -> None:
    content = (GUESTS / "bios_disk.bin").read_bytes() + disk_of(100)
    disk, said = MemoryDisk(content), bytearray()
    disk.readonly = True
    with Machine(kvm=DEVICE, output=said.extend) as machine:
        machine.bios.drives.add(disk, first=True)
        machine.load(content)
        assert machine.run(timeout=DEADLINE).status == 3 << 1 | 1
    assert bytes(said) == b"sector 2sector 3"


def test_keys(irqchip: str) -> None:
    run = Run("keys", keys=b"aZ\x1b[A\r1 \x1b", irqchip=irqchip)
    assert bytes(run.said) == b"aZ\xe01 "
    assert run.shown == [0x1E61, 0x2C5A, 0x48E0, 0x1C0D, 0x0231, 0x3920, 0x011B]
    assert run.outcome.status == 7 << 1 | 1


def test_keys_of_the_command() -> None:
    done = boot(GUESTS / "bios_keys.bin", input=b"hello\n" * 30 + b"\x1b")
    assert done.stdout == b"hello" * 30
    assert (done.stderr, done.returncode) == (b"", (181 << 1 | 1) & 0xFF)


@pytest.mark.parametrize(
    ("memory", "above", "kib", "sizes"),
    [("64M", 63 << 20, 63 << 10, (15 << 10, 48 << 4)), ("1M", 0, 0, (0, 0)), ("2M", 1 << 20, 1 << 10, (1 << 10, 0))],
)
def test_memory(memory: str, above: int, kib: int, sizes: tuple[int, int]) -> None:
    shown: list[int] = []
    with Machine(memory, kvm=DEVICE, output=bytes) as machine:
        machine.on_port(0x50, write=lambda vcpu, data: shown.append(int.from_bytes(data, "little")))
        machine.load(GUESTS / "bios_memory.bin")
        assert machine.run(timeout=DEADLINE).status == ENDED
    entries = [0, 0x9FC00, 1, 0x9FC00, 0x400, 2, 0xE0000, 0x20000, 2] + ([1 << 20, above, 1] if above else [])
    assert shown == [*entries, 0xFFFF_FFFF, kib, *sizes, 0x9FC0]


def test_ticks() -> None:
    run = Run("ticks")
    assert run.outcome.reason == "exit"
    assert run.outcome.status in (4 << 1 | 1, 5 << 1 | 1, 6 << 1 | 1)


def test_a_handler_of_ones_own() -> None:
    said: list[int] = []
    with Machine(kvm=DEVICE, output=bytes) as machine:
        machine.bios.on_interrupt(0x10, lambda call: said.append(call.al))
        machine.load(GUESTS / "bios_keys.bin")
        machine.board.input.receive(b"abc\x1b")
        assert machine.run(timeout=DEADLINE).reason == "exit"
    assert bytes(said) == b"abc"


def test_a_handler_that_looks_on_and_waits() -> None:
    seen: list[tuple[int, int]] = []

    def look(call: Call) -> object:
        seen.append((call.vector or 0, call.ah))
        if len(seen) == 1:
            return WAIT
        return call.default()

    with Machine(kvm=DEVICE, output=bytes) as machine:
        machine.load(GUESTS / "bios_keys.bin")
        machine.bios.on_interrupt(0x16, look)
        machine.board.input.receive(b"\x1b")
        assert machine.run(timeout=DEADLINE).status == 3
    assert seen == [(0x16, 0x10), (0x16, 0x10), (0x16, 0x11)]


def test_what_a_handler_raises_comes_out_of_run() -> None:
    def fail(call: Call) -> object:
        raise StateError("mine")

    with Machine(kvm=DEVICE, output=bytes) as machine:
        machine.bios.on_interrupt(0x16, fail)
        machine.load(GUESTS / "bios_keys.bin")
        with pytest.raises(StateError, match="mine"):
            machine.run(timeout=DEADLINE)


@pytest.mark.parametrize("number", [-1, 0x100])
def test_a_number_that_no_interrupt_has(number: int) -> None:
    with (
        Machine(kvm=DEVICE) as machine,
        pytest.raises(ConfigError, match="an interrupt has a number from 0x00 to 0xff"),
    ):
        machine.bios.on_interrupt(number, bool)


def test_a_flat_image_has_a_bios_if_it_is_asked_for() -> None:
    code = b"\xb8\x41\x0e\xcd\x10\xf4"  # mov $0x0e41, %ax; int $0x10; hlt
    said: list[bytes] = []
    with Machine(kvm=DEVICE, output=said.append) as machine:
        assert machine.bios is not None
        machine.bios.drives.add(MemoryDisk(bytes(512)))
        machine.load(code)
        assert machine.run(timeout=DEADLINE).reason == "halted"
    assert said == [b"A"]


def test_it_boots_again() -> None:
    """INT 19h, and a reset of the machine."""
    code = b"\xb8\x41\x0e\xcd\x10\xfe\x06\x00\x05\x80\x3e\x00\x05\x03\x74\x02\xcd\x19\xe6\xf4"
    said: list[bytes] = []
    with Machine(kvm=DEVICE, output=said.append) as machine:
        machine.load(code.ljust(510, b"\0") + b"\x55\xaa")
        for _ in range(2):
            assert machine.run(timeout=DEADLINE).reason == "exit"
            machine.reset(reload=True)
    assert b"".join(said) == b"AAA" * 2


def test_an_error_that_would_come_for_ever_ends_it() -> None:
    with Machine(kvm=DEVICE, output=bytes) as machine:
        machine.load(b"\x0f\x0b".ljust(510, b"\0") + b"\x55\xaa")
        outcome = machine.run(timeout=DEADLINE)
    assert (outcome.reason, outcome.status) == ("crashed", 6)
    assert outcome.report == "the guest has made an invalid instruction at 0000:7C00, and serves no INT 6"
