"""A processor of pyvcpu.tcg with plain memory and no devices, for its tests and measurements."""

from __future__ import annotations

from threading import Lock

from pyvcpu.tcg.blocks import CodeCache
from pyvcpu.tcg.cpu import Cpu, Segment

CODE, DATA = 11, 3


class Memory:
    """Guest memory in one piece, from address 0; `base` tells where it begins."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.view = memoryview(self.data)
        self.generation = 0
        self.code: CodeCache | None = None
        self.pages = [self.view[at : at + 4096] for at in range(0, size, 4096)]
        self.read_only: set[int] = set()
        self.dirty: set[int] = set()

    def page(self, gfn: int) -> memoryview | None:
        """Return a page."""
        return self.pages[gfn] if gfn < len(self.pages) else None

    def writable(self, gfn: int) -> bool:
        """Tell whether a page may be written."""
        return gfn not in self.read_only

    def mark_dirty(self, gfn: int) -> None:
        """Note a written page."""
        self.dirty.add(gfn)


class Platform:
    """No devices: ports and device memory leave to the caller, unless they are in `ports`."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.vectors: list[int] = []
        self.msrs: dict[int, int] = {}
        self.cr8 = 0
        self.pauses = 0
        self.ticks = 0

    def port_read(self, port: int, size: int) -> int | None:
        """Leave it to the caller."""
        return None

    def port_write(self, port: int, size: int, value: int) -> bool:
        """Leave it to the caller."""
        return False

    def mmio_read(self, address: int, size: int) -> bytes | None:
        """Leave it to the caller."""
        return None

    def mmio_write(self, address: int, data: bytes) -> bool:
        """Leave it to the caller."""
        return False

    def interrupt(self) -> int | None:
        """Return the next vector of the list."""
        return self.vectors.pop(0) if self.vectors else None

    def check_msr(self, index: int, write: bool) -> None:
        """Allow all."""

    def read_msr(self, index: int) -> int | None:
        """Look in the table."""
        return self.msrs.get(index)

    def write_msr(self, index: int, value: int) -> bool:
        """Write what is in the table."""
        if index not in self.msrs:
            return False
        self.msrs[index] = value
        return True

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """Show a processor with what paging and CR4 ask for."""
        return {
            0: (7, 0x756E6547, 0x6C65746E, 0x49656E69),
            1: (0x600, 0, 1 << 26 | 1 << 17, 0),
            7: (0, 1 | 1 << 7 | 1 << 20, 4 | 1 << 16, 0),
            0x80000000: (0x80000008, 0, 0, 0),
            0x80000001: (0, 0, 0, 1 << 26),
            0x80000008: (40, 0, 0, 0),
        }.get(leaf, (0, 0, 0, 0))

    def tsc(self) -> int:
        """Return a number that grows."""
        self.ticks += 1
        return self.ticks

    def get_cr8(self) -> int:
        """Return CR8."""
        return self.cr8

    def set_cr8(self, value: int) -> None:
        """Set CR8."""
        self.cr8 = value

    def pause(self) -> None:
        """Count."""
        self.pauses += 1


class Machine:
    """A processor, its memory and its platform."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.memory, self.platform = Memory(size), Platform()
        self.cpu = Cpu(self.memory, self.platform)

    def put(self, address: int, data: bytes) -> None:
        """Write guest memory as the host does."""
        self.memory.data[address : address + len(data)] = data
        self.cpu.recheck()

    def get(self, address: int, size: int) -> int:
        """Read a little-endian number from guest memory."""
        return int.from_bytes(self.memory.data[address : address + size], "little")

    def table(self, address: int, *entries: int) -> None:
        """Write 8-byte entries: descriptors or page tables."""
        self.put(address, b"".join(entry.to_bytes(8, "little") for entry in entries))

    def real(self, ip: int = 0x1000, sp: int = 0x8000) -> Cpu:
        """Enter real mode with all segments at 0."""
        cpu = self.cpu
        for segment in cpu.segs[:6]:
            segment.selector = segment.base = 0
        cpu.rip, cpu.regs[4], cpu.idt_limit = ip, sp, 0x3FF
        cpu.state_changed()
        return cpu

    def flat(self, bits: int, ip: int = 0x1000, sp: int = 0x8000, cpl: int = 0) -> Cpu:
        """Enter flat 16-, 32- or 64-bit protected mode; 64: the first GB is mapped one to one by tables at 0x80000."""
        cpu = self.cpu
        cpu.cr0 |= 1
        for number, segment in enumerate(cpu.segs[:6]):
            fill(segment, CODE if number == 1 else DATA, cpl, bits)
            segment.selector = (8 if number == 1 else 16) | cpl
        cpu.rip, cpu.regs[4] = ip, sp
        if bits == 64:
            self.table(0x80000, 0x81007)
            self.table(0x81000, 0x82007)
            self.table(0x82000, *(at << 21 | 0x87 for at in range(512)))
            cpu.cr3, cpu.cr4, cpu.efer = 0x80000, cpu.cr4 | 0x220, 0xD01
            cpu.cr0 |= 0x80000000
        cpu.state_changed()
        return cpu


def fill(segment: Segment, kind: int, dpl: int, bits: int) -> None:
    """Fill a flat code or data segment."""
    segment.base, segment.limit, segment.g = 0, 0xFFFFFFFF, 1
    segment.type, segment.s, segment.dpl, segment.present, segment.unusable = kind, 1, dpl, 1, 0
    segment.l, segment.db = int(bits == 64 and kind == CODE), int(bits == 32)
