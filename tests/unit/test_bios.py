"""The BIOS's services, without a guest: registers in, registers and memory out; its code; and random calls.

PYVCPU_FUZZ=N makes N random calls of each service instead of 200.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvcpu.bios import AGAIN, WAIT, Bios, Call, rom
from pyvcpu.bios import layout as at
from pyvcpu.bios.drives import Drives, MemoryDisk, geometry_of
from pyvcpu.bios.keyboard import keys_of
from pyvcpu.devices.device import StateDataError
from pyvcpu.devices.rtc import Rtc, register_access
from pyvcpu.devices.serial import Serial
from pyvcpu.kvm.abi import basic as abi
from pyvcpu.memory import GuestMemory

CALLS = int(os.environ.get("PYVCPU_FUZZ", "200"))
STACK, FRAME = 0x7000, (0x1234, 0x0000, 0x0202)  # IP, CS and flags of a caller
MIB = 1 << 20


class Registers:
    """What a vCPU's registers are to the BIOS."""

    def __init__(self, values: Any) -> None:
        object.__setattr__(self, "values", values)

    def copy(self) -> Any:
        values: Any = self.values
        return type(values).from_buffer_copy(values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.values, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.values, name, value)


class Processor:
    """A vCPU in real mode."""

    def __init__(self) -> None:
        self.registers = Registers(abi.kvm_regs())
        self.sregs = Registers(abi.kvm_sregs())


class Machine:
    """A BIOS with memory, two disks and a floppy, and a vCPU that calls it."""

    def __init__(self, size: str = "2M") -> None:
        self.memory = GuestMemory(size)
        self.said, self.warned, self.ends = bytearray(), list[str](), list[tuple[str, str]]()
        self.listens = 0
        rtc = Rtc(lambda: 1_700_000_000.0)
        self.bios = Bios(
            self.memory,
            output=self.said.extend,
            say=self.warned.append,
            on_listen=self.listen,
            serial=Serial(self.said.extend),
            cmos=lambda: register_access(rtc),
            end=lambda reason, report: self.ends.append((reason, report)),
            sleeps=lambda: True,
            clock=lambda: 1_700_000_000.0,
        )
        for sectors in (2880, 3 * 63 * 16, 200_000):
            self.bios.drives.add(Sparse(sectors))
        for address, data in self.bios._segments():
            self.memory.write(address, data)
        self.cpu = Processor()

    def listen(self) -> None:
        self.listens += 1

    def call(self, number: int, **registers: int) -> Registers:
        """Make an interrupt; return the registers afterwards, with `cf` and `zf`."""
        regs, sregs = self.cpu.registers, self.cpu.sregs
        for name in ("es", "ds", "fs", "gs"):
            selector = registers.pop(name, 0)
            segment = abi.kvm_segment(base=selector << 4, selector=selector)
            setattr(sregs, name, segment)
        sregs.cs = abi.kvm_segment(base=at.ROM, selector=at.SEGMENT)
        sregs.ss = abi.kvm_segment()
        sregs.cr0 = 0x10
        for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp"):
            setattr(regs, name, registers.pop("e" + name[1:], registers.pop(name[1:], 0)))
        assert not registers, registers
        regs.rsp, regs.rip, regs.rflags = STACK, at.STUBS + number * at.STUB_SIZE + at.RETURN, 2
        self.memory.write(STACK, struct.pack("<3H", *FRAME))
        self.bios.serve(self.cpu)
        return regs

    @property
    def cf(self) -> bool:
        return bool(self.memory.read_int(STACK + 4, 2) & 1)

    @property
    def zf(self) -> bool:
        return bool(self.memory.read_int(STACK + 4, 2) & 0x40)


class Sparse:
    """A disk of so many sectors, each filled with its number; what is written is counted."""

    readonly = False

    def __init__(self, sectors: int) -> None:
        self.size = sectors * 512
        self.written = 0

    def preadv(self, buffers: list[memoryview], offset: int) -> int:
        (buffer,) = buffers
        for place in range(0, len(buffer), 512):
            buffer[place : place + 512] = struct.pack("<I", (offset + place) // 512) * 128
        return len(buffer)

    def pwritev(self, buffers: list[memoryview], offset: int) -> int:
        self.written += len(buffers[0])
        return len(buffers[0])


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.memory.close()


# The code


@pytest.mark.parametrize("name", ["STUB", "END_FIRST", "END_BOTH", "COUNT", "SET_UP", "RESTART"])
def test_the_bytes_are_what_the_assembly_says(name: str, tool: Callable[[str], str], tmp_path: Path) -> None:
    code = getattr(rom, name)
    source, assembled, flat = (tmp_path / f"code.{end}" for end in ("S", "o", "bin"))
    source.write_text(".code16\n" + "\n".join(line for _, line in code) + "\n")
    subprocess.run([tool("as"), "--32", "-o", assembled, source], check=True)
    subprocess.run([tool("objcopy"), "-O", "binary", "-j", ".text", assembled, flat], check=True)
    assert rom.machine_code(code).hex(" ") == flat.read_bytes().hex(" ")


def test_where_programs_look() -> None:
    image = rom.rom()
    assert len(image) == 0x10000 - at.STUBS

    def bytes_at(offset: int, length: int) -> bytes:
        return image[offset - at.STUBS : offset - at.STUBS + length]

    assert bytes_at(0xFFF0, 5) == bytes.fromhex("ea 5b e0 00 f0")
    assert bytes_at(0xFFF5, 8) == b"01/01/26"
    assert bytes_at(0xFFFE, 1) == b"\xfc"
    assert bytes_at(at.STUBS + 0x13 * 16, 3) == bytes.fromhex("e6 ec cf")
    vectors = rom.vectors()
    assert vectors[4 * 0x60 : 4 * 0x68] == bytes(32)
    assert struct.unpack_from("<2H", vectors, 4 * 0x1E) == (0xEFC7, 0xF000)


def test_every_vector_leads_to_its_own_number() -> None:
    for number in (*range(0x60), *range(0x68, 0x100)):
        offset = rom.default_vector(number, {0x08, 0x1C, 0x1E})
        cpu, memory = Processor(), GuestMemory("64K")
        cpu.sregs.cs = abi.kvm_segment(base=at.ROM)
        for behind in (0, at.RETURN):  # at the OUT, or behind it
            cpu.registers.rip = offset + behind
            assert Call(cpu, memory).vector == number
        memory.close()


@pytest.mark.parametrize("rip", [at.STUBS - 1, at.STUBS + 0x101 * 16, 0x7C00])
def test_an_out_of_somebody_elses_is_left_alone(machine: Machine, rip: int) -> None:
    regs = machine.cpu.registers
    machine.cpu.sregs.cs = abi.kvm_segment(base=at.ROM if rip > 0x8000 else 0)
    regs.rip, regs.rax = rip, 0x0E41
    machine.bios.serve(machine.cpu)
    assert (regs.rip, regs.rax, bytes(machine.said)) == (rip, 0x0E41, b"")


def test_no_call_in_protected_mode(machine: Machine) -> None:
    cpu = machine.cpu
    cpu.sregs.cs, cpu.sregs.cr0 = abi.kvm_segment(base=at.ROM), 0x11
    cpu.registers.rip = at.STUBS + 0x10 * 16
    assert Call(cpu, machine.memory).vector is None


# Services


def test_registers_by_name(machine: Machine) -> None:
    machine.cpu.registers.rax = 0x1122334455667788
    call = Call(machine.cpu, machine.memory)
    assert (call.eax, call.ax, call.ah, call.al) == (0x55667788, 0x7788, 0x77, 0x88)
    call.ah = 0x1FF
    call.ebx = 0xDEADBEEF
    assert machine.cpu.registers.rbx == 0
    call.finish()
    assert machine.cpu.registers.rax == 0x112233445566FF88
    assert machine.cpu.registers.rbx == 0xDEADBEEF
    with pytest.raises(AttributeError):
        call.axx = 1  # type: ignore[attr-defined]


def teletype(machine: Machine, text: bytes) -> None:
    for value in text:
        machine.call(0x10, ax=0x0E00 | value)


def test_teletype_gives_every_byte_and_nothing_else(machine: Machine) -> None:
    text = b"one\r\ntwo\b \x07" + b"x" * 200 + b"\r\n" * 30 + b"end\r\n"
    teletype(machine, text)
    assert bytes(machine.said) == text
    assert machine.memory.read(at.TEXT_MEMORY + 23 * 160, 6)[::2] == b"end"
    assert machine.memory.read(at.CURSORS, 2) == bytes((0, 24))


def test_the_cursor_moved_forward_is_blanks_and_lines(machine: Machine) -> None:
    teletype(machine, b"a")
    machine.call(0x10, ax=0x0200, dx=0x0205)
    teletype(machine, b"b")
    machine.call(0x10, ax=0x0200, dx=0x0208)
    teletype(machine, b"c")
    machine.call(0x10, ax=0x0200, dx=0x0000)
    teletype(machine, b"d")
    assert bytes(machine.said) == b"a\r\n\r\n     b  c\x1b[1;1Hd"


def test_modes(machine: Machine) -> None:
    teletype(machine, b"a")
    machine.call(0x10, ax=0x0003)
    assert bytes(machine.said) == b"a\x1b[H\x1b[2J"
    machine.call(0x10, ax=0x0013)
    machine.call(0x10, ax=0x0013)
    assert machine.warned == ["INT 10h: graphics mode 13h cannot be shown; only text is"]
    assert machine.call(0x10, ax=0x0F00).rax & 0xFF == 0x13


def test_disk_parameters(machine: Machine) -> None:
    regs = machine.call(0x13, ax=0x0800, dx=0x80)
    assert (machine.cf, regs.rcx, regs.rdx) == (False, 2 << 8 | 63, 15 << 8 | 2)
    regs = machine.call(0x13, ax=0x0800, dx=0)
    assert (machine.cf, regs.rbx, regs.rcx, regs.rdx) == (False, 4, 79 << 8 | 18, 1 << 8 | 1)
    machine.call(0x13, ax=0x0800, dx=0x82)
    assert machine.cf
    regs = machine.call(0x13, ax=0x1500, dx=0x81)
    assert (regs.rax >> 8, regs.rcx << 16 | regs.rdx) == (3, 198 * 16 * 63)
    machine.memory.write(0x5000, struct.pack("<H", 0x1A))
    machine.call(0x13, ax=0x4800, dx=0x81, si=0x5000)
    assert struct.unpack("<HHIIIQH", machine.memory.read(0x5000, 0x1A)) == (0x1A, 2, 198, 16, 63, 200_000, 512)


@pytest.mark.parametrize(("drive", "head", "cylinder", "sector"), [(0x80, 15, 2, 63), (0, 1, 79, 18), (0x81, 0, 0, 1)])
def test_reading_by_cylinder_head_and_sector(
    machine: Machine, drive: int, head: int, cylinder: int, sector: int
) -> None:
    number = {0x80: 3 * 16 * 63 - 1, 0: 2879, 0x81: 0}[drive]
    regs = machine.call(0x13, ax=0x0201, cx=cylinder << 8 | sector, dx=head << 8 | drive, es=0x500, bx=0x10)
    assert (machine.cf, regs.rax) == (False, 1)
    assert machine.memory.read(0x5010, 512) == struct.pack("<I", number) * 128


def test_reads_that_fail(machine: Machine) -> None:
    packet = struct.pack("<BBHHHQ", 16, 0, 127, 0, 0xFFFF, 0)
    machine.memory.write(0x5000, packet)
    for registers, status in (
        ({"ax": 0x0201, "cx": 0, "dx": 0x80}, 0x04),
        ({"ax": 0x0200, "cx": 1, "dx": 0x80}, 0x01),
        ({"ax": 0x0201, "cx": 1, "dx": 0x90}, 0x01),
        ({"ax": 0x0201, "cx": 1, "dx": 0x01}, 0x80),
        ({"ax": 0x4200, "si": 0x5000, "dx": 0}, 0x01),
        ({"ax": 0x6600, "dx": 0x80}, 0x01),
    ):
        regs = machine.call(0x13, **registers)
        assert (machine.cf, regs.rax >> 8) == (True, status), registers
    machine.call(0x13, ax=0x0100, dx=0x80)
    assert machine.cpu.registers.rax >> 8 == 1
    assert len(machine.warned) == 3  # two drives that there are not, one service


def test_memory_map_in_order() -> None:
    machine = Machine("64M")
    entries, index = [], 0
    while True:
        regs = machine.call(0x15, eax=0xE820, ebx=index, ecx=20, edx=0x534D4150, es=0x600)
        assert (machine.cf, regs.rax, regs.rcx) == (False, 0x534D4150, 20)
        entries.append(struct.unpack("<QQI", machine.memory.read(0x6000, 20)))
        index = regs.rbx
        if not index:
            break
    assert entries == [(0, 0x9FC00, 1), (0x9FC00, 0x400, 2), (0xE0000, 0x20000, 2), (MIB, 63 * MIB, 1)]
    machine.call(0x15, eax=0xE820, ebx=99, ecx=20, edx=0x534D4150)
    assert machine.cf
    machine.memory.close()


def test_what_is_above_4_gib_is_in_the_map() -> None:
    from pyvcpu.bios.system import e820

    assert e820([(0, 3 << 30), (4 << 30, 5 << 30)])[-2:] == [(MIB, (3 << 30) - MIB, 1), (4 << 30, 1 << 30, 1)]


def test_a_block_is_moved(machine: Machine) -> None:
    machine.memory.write(0x8000, b"block move")
    table = bytearray(0x30)
    for place, address in ((0x10, 0x8000), (0x18, 0x12_3456)):
        table[place : place + 6] = struct.pack("<HI", 0xFFFF, address | 0x93 << 24)
    machine.memory.write(0x5000, bytes(table))
    machine.call(0x15, ax=0x8700, cx=5, es=0, si=0x5000)
    assert (machine.cf, machine.memory.read(0x12_3456, 10)) == (False, b"block move")
    machine.memory.write(0x5000 + 0x18, struct.pack("<HI", 0xFFFF, 0x93FF_FFF0))
    machine.call(0x15, ax=0x8700, cx=0x8000, es=0, si=0x5000)
    assert machine.warned == [
        "INT 15h AH=87h: it points outside of memory (65536 bytes at 0xfffff0 are not all guest RAM,"
        " which is 0x0-0x1fffff)"
    ]
    assert machine.cf


def test_time_and_date(machine: Machine) -> None:
    regs = machine.call(0x1A, ax=0x0200)
    assert (machine.cf, regs.rcx, regs.rdx >> 8) == (False, 0x2213, 0x20)
    regs = machine.call(0x1A, ax=0x0400)
    assert (regs.rcx, regs.rdx) == (0x2023, 0x1114)
    machine.call(0x1A, ax=0x0500, cx=0x1999, dx=0x1231)
    machine.call(0x1A, ax=0x0300, cx=0x2359, dx=0x5800)
    assert (machine.call(0x1A, ax=0x0200).rcx, machine.call(0x1A, ax=0x0400).rdx) == (0x2359, 0x1231)
    machine.call(0x1A, ax=0x0100, cx=0x12, dx=0x3456)
    regs = machine.call(0x1A)
    assert (regs.rcx, regs.rdx, regs.rax) == (0x12, 0x3456, 0)


def test_the_serial_port(machine: Machine) -> None:
    assert machine.call(0x14, ax=0x0141).rax >> 8 == 0x60
    assert bytes(machine.said) == b"A"
    assert machine.call(0x14, ax=0x0200).rax >> 8 & 0x80
    assert machine.call(0x14, ax=0x0141, dx=1).rax >> 8 == 0x80


# Keys


@pytest.mark.parametrize(
    ("data", "codes", "rest"),
    [
        (b"aA", [0x1E61, 0x1E41], b""),
        (b"\n\x7f\t", [0x1C0D, 0x0E08, 0x0F09], b""),
        (b"\x1b", [0x011B], b""),
        (b"\x1b[A\x1b[24~x", [0x48E0, 0x8600, 0x2D78], b""),
        (b"a\x1b[", [0x1E61], b"\x1b["),
        (b"\x03\x1a", [0x2E03, 0x2C1A], b""),
        (b"\xc3\xa4", [0x00C3, 0x00A4], b""),
        (b"\x1bOP", [0x3B00], b""),
    ],
)
def test_keys_of(data: bytes, codes: list[int], rest: bytes) -> None:
    assert keys_of(data) == (codes, rest)


def test_no_key_waits_or_sets_zf(machine: Machine) -> None:
    regs = machine.call(0x16, ax=0x0000)
    assert regs.rip == at.STUBS + 0x16 * 16 + at.SLEEP
    machine.call(0x16, ax=0x0100)
    assert (machine.zf, machine.listens) == (True, 2)
    assert machine.bios.keyboard.receive(b"ab") == 2
    regs = machine.call(0x16, ax=0x0100)
    assert (machine.zf, regs.rax) == (False, 0x1E61)
    assert [machine.call(0x16).rax for _ in range(2)] == [0x1E61, 0x3062]
    assert machine.bios.keyboard.wait_room(0)


def test_more_keys_than_the_ring_holds_wait(machine: Machine) -> None:
    keyboard = machine.bios.keyboard
    typed = b"0123456789abcdefghijklmnopqrstuvwxyz"
    got, given = b"", 0
    while len(got) < len(typed):
        given += keyboard.receive(typed[given:])
        machine.call(0x09)
        got += bytes((machine.call(0x16).rax & 0xFF,))
    assert got == typed
    assert machine.call(0x16).rip == at.STUBS + 0x16 * 16 + at.SLEEP


def test_a_key_of_the_guests_own(machine: Machine) -> None:
    assert machine.call(0x16, ax=0x0500, cx=0x1E61).rax & 0xFF == 0
    assert machine.call(0x16, ax=0x1000).rax == 0x1E61


def test_input_goes_where_the_guest_listens_last() -> None:
    from pyvcpu.bios.keyboard import Keyboard

    serial, memory = Serial(bytes), GuestMemory("64K")
    keyboard = Keyboard(memory, bool, bool, print, serial)
    assert keyboard.receive(b"a") == 1
    assert keyboard.read(1, 1) == b"\x01"
    serial.read(5, 1)
    assert keyboard.receive(b"b") == 1
    assert serial.read(0, 1) == b"b"
    assert keyboard.read(1, 1) == b"\0"
    memory.close()


# Drives


@pytest.mark.parametrize(
    ("sectors", "geometry"),
    [
        (1, (1, 1, 63)),
        (100, (2, 1, 63)),
        (1008, (1, 16, 63)),
        (1_032_192, (1024, 16, 63)),
        (1_032_193, (512, 32, 63)),
        (8_257_537, (514, 255, 63)),
        (1 << 40, (1024, 255, 63)),
    ],
)
def test_geometry_by_size(sectors: int, geometry: tuple[int, int, int]) -> None:
    assert geometry_of(sectors, bytes(512)) == geometry


def test_geometry_by_partitions() -> None:
    sector = bytearray(512)
    sector[446:462] = struct.pack("<8BII", 0x80, 1, 1, 0, 6, 7, 32, 9, 32, 2528)
    sector[510:] = b"\x55\xaa"
    assert geometry_of(2560, bytes(sector)) == (10, 8, 32)


def test_numbers_of_drives() -> None:
    drives = Drives()
    assert drives.boots_nothing
    floppy, disk = MemoryDisk(bytes(1440 << 10)), MemoryDisk(bytes(5000))
    assert [drive.number for drive in (drives.add(disk), drives.add(floppy)) if drive] == [0x80, 0]
    first = drives.add(MemoryDisk(bytes(512)), first=True)
    assert first is not None
    assert (first.number, drives.boot, drives.boots_nothing, drives.disks, drives.floppies) == (0x80, 0x80, False, 2, 1)
    assert [drive.count for drive in drives] == [2880, 1, 10]
    for _ in range(20):
        drives.add(MemoryDisk(bytes(512)))
    assert drives.disks == 16


# State, and calls of all kinds


def test_state(machine: Machine) -> None:
    teletype(machine, b"ab")
    machine.bios.keyboard.receive(b"x")
    state = machine.bios.state()
    assert state == {"keys": [0x2D78], "place": [0, 2]}
    other = Machine()
    other.bios.restore(state)
    assert other.bios.state() == state
    for forged in (None, {}, state | {"keys": [1 << 20]}, state | {"place": [0]}, state | {"more": 1}):
        with pytest.raises(StateDataError):
            other.bios.restore(forged)
    assert other.bios.state() == state
    other.memory.close()


SERVICES = (0x09, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x18, 0x19, 0x1A, 0x70, 0x00, 0x06, 0x42)
KNOWN = {0x15: (0x24, 0x87, 0x88, 0xC0, 0xE8, 0x8A), 0x13: range(0x50), 0x10: range(0x20), 0x16: range(0x24)}


@pytest.mark.parametrize("number", SERVICES, ids=lambda number: f"{number:02X}h")
def test_random_calls(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the registers and the memory hold: no exception, no memory but the guest's, little to be told."""
    monkeypatch.setattr("pyvcpu.bios.system.sleep", lambda seconds: None)
    chance, machine = random.Random(number), Machine()
    for _ in range(CALLS):
        function = chance.choice([chance.randrange(256), *KNOWN.get(number, ())])
        if chance.random() < 0.05:
            machine.memory.write(chance.randrange(0x400, 0x500), chance.randbytes(chance.randrange(1, 16)))
        machine.memory.write(0x5000, chance.randbytes(64))
        machine.bios.keyboard.receive(chance.randbytes(2))
        registers = {f"e{name}": chance.choice([0, 0x5000, chance.getrandbits(32)]) for name in ("bx", "cx", "dx")}
        registers |= {name: chance.choice([0x5000, chance.getrandbits(16)]) for name in ("si", "di", "bp")}
        registers |= {name: chance.choice([0, 0xFFFF, chance.getrandbits(16)]) for name in ("es", "ds")}
        if chance.random() < 0.5:
            registers["edx"] = registers["edx"] & ~0xFF | chance.choice([0, 0x80, 0x81])
        machine.call(number, eax=function << 8 | chance.randrange(256), **registers)
        machine.said.clear()
    assert len(machine.warned) <= 100
    assert all(len(line) < 200 for line in machine.warned)
    machine.bios.restore(machine.bios.state())
    machine.memory.close()


def test_what_handlers_may_return(machine: Machine) -> None:
    for answer, offset in ((WAIT, at.SLEEP), (AGAIN, at.AGAIN), (None, at.RETURN), (True, at.RETURN)):
        machine.bios.on_interrupt(0x42, lambda call, answer=answer: answer)  # type: ignore[misc]
        assert machine.call(0x42).rip == at.STUBS + 0x42 * 16 + offset
    machine.bios.on_interrupt(0x42, None)
    machine.call(0x42)
    assert machine.warned == ["INT 42h, called at 0000:1234: nobody serves it"]


# What is taken for a disk


def partitioned(*entries: tuple[int, int, int, int]) -> bytes:
    """Return a first sector with partitions: flag, type, first sector, sectors."""
    table = b"".join(struct.pack("<B3xB3xII", *entry) for entry in entries).ljust(64, b"\0")
    return b"\xfa".ljust(446, b"\x90") + table + b"\x55\xaa"


@pytest.mark.parametrize(
    ("sector", "expected"),
    [
        (partitioned((0x80, 0x0C, 2048, 4096)), "bootsector"),
        (partitioned((0, 0, 0, 0), (0, 0x83, 63, 1)), "bootsector"),
        (partitioned((0x81, 0x0C, 2048, 4096)), "multiboot"),
        (partitioned((0x80, 0x0C, 0, 4096)), "multiboot"),
        (partitioned(), "multiboot"),
    ],
)
def test_a_disk_with_partitions_is_no_kernel(sector: bytes, expected: str) -> None:
    """Whatever lies behind its first sector: GRUB's core has a Multiboot header there."""
    from pyvcpu import boot

    header = struct.pack("<3I", 0x1BADB002, 0x10000, -(0x1BADB002 + 0x10000) & 0xFFFF_FFFF)
    addresses = struct.pack("<5I", 0x10_0000, 0x10_0000, 0x10_0100, 0, 0x10_0000)
    assert boot.detect(sector + header + addresses + bytes(256)) == expected
