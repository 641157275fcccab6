"""A machine for tests of the gdb stub: vCPUs that know ten instructions, memory, and a page of page tables.

It runs in a thread for as long as something runs, and has all that a Target has. Instructions: nop, jmp rel8, ud2 (the
machine ends), inc %rax, mov %al,(%rdi), mov (%rsi),%al, and what else is one byte long does nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from pyvcpu.gdb.target import (
    ACCESS,
    BREAKPOINT,
    CONTINUE,
    EXITED,
    HARDWARE,
    PAUSED,
    RAM,
    READ,
    ROM,
    SOFTWARE,
    STEPPED,
    WATCHPOINT,
    WRITE,
    Region,
    Stop,
    TargetError,
    VcpuInfo,
)
from pyvcpu.x86 import walk
from pyvcpu.x86.paging import identity_map
from tests.threads import DEADLINE

RAM_SIZE = 1 << 20
TABLES = 0x80000  # identity map of the first GiB, in long mode
CODE = 0x1000
MASK = (1 << 64) - 1
# nop; nop; inc %rax; jmp back to the first nop: what each vCPU starts with.
LOOP = b"\x90\x90\x48\xff\xc0\xeb\xf9"
UD2 = b"\x0f\x0b"


def long_registers() -> dict[str, int]:
    """Return registers in 64-bit mode, at CODE, with all that a description can offer up to AVX."""
    values = dict.fromkeys(("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{n}" for n in range(8, 16))), 0)
    values |= {"rsp": 0x70000, "rip": CODE, "rflags": 2}
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldtr"):
        code = name == "cs"
        values |= {name: 0x18 if code else 0x10, f"{name}_base": 0, f"{name}_limit": 0xFFFFFFFF}
        values[f"{name}_access"] = 0xA09B if code else 0xC093
    for name in ("gdtr", "idtr"):
        values |= {f"{name}_base": 0, f"{name}_limit": 0}
    values |= {"cr0": 0x8000_0011, "cr2": 0, "cr3": TABLES, "cr4": 0x20, "cr8": 0, "efer": 0x500, "k_gs_base": 0}
    values |= {f"st{n}": 0 for n in range(8)}
    values |= dict.fromkeys(("fstat", "fiseg", "fioff", "foseg", "fooff", "fop"), 0) | {"fctrl": 0x37F, "ftag": 0xFFFF}
    values |= {f"xmm{n}": n for n in range(16)} | {"mxcsr": 0x1F80} | {f"ymm{n}h": 0 for n in range(16)}
    return values


def real_registers() -> dict[str, int]:
    """Return registers in real mode, at CODE, in a segment with a base."""
    values = long_registers() | {"cr0": 0x10, "cr4": 0, "efer": 0, "rip": 0x10, "rsp": 0x1000}
    for name in ("cs", "ss", "ds", "es", "fs", "gs"):
        values |= {name: 0, f"{name}_base": 0, f"{name}_limit": 0xFFFF, f"{name}_access": 0x93}
    return values | {"cs": (CODE - 0x10) >> 4, "cs_base": CODE - 0x10}


class FakeTarget:
    """The machine. `count`: vCPUs; `refuses`: kinds of breakpoints that it cannot set, with the words for it."""

    def __init__(self, count: int = 2, registers: Callable[[], dict[str, int]] = long_registers) -> None:
        self.memory = bytearray(RAM_SIZE)
        tables = identity_map(TABLES, 1)
        self.memory[TABLES : TABLES + len(tables)] = tables
        self.memory[CODE : CODE + len(LOOP)] = LOOP
        self.cpus = [registers() for _ in range(count)]
        self.names = [f"CPU {index}/KVM" for index in range(count)]
        self.breakpoints: dict[tuple[str, int, int], str] = {}
        self.refuses: dict[str, str] = {}
        self.calls: list[str] = []
        self.crash: Stop | None = None  # what the next step brings
        self.stands_still_late = False  # interrupts are heard, and nothing follows
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._on_stop: Callable[[Stop], None] | None = None
        self._ended: Stop | None = None

    # For tests.

    def start(self) -> None:
        """Let all vCPUs run, with nobody attached."""
        self._run(dict.fromkeys(range(len(self.cpus)), CONTINUE))

    def close(self) -> None:
        """Stop the thread."""
        self._on_stop = None
        self._halt()

    def end(self, status: int) -> None:
        """End the machine by itself."""
        self._halt()
        self._ended = Stop(EXITED, status=status)
        self._tell(self._ended)

    # Target.

    @property
    def running(self) -> bool:
        return self._thread is not None

    def attach(self, on_stop: Callable[[Stop], None]) -> None:
        self.calls.append("attach")
        if self._ended:
            raise TargetError("the machine has ended")
        with self._lock:
            self._on_stop = on_stop
            if self._thread is None:
                self._tell(Stop(PAUSED))
                return
        self.interrupt()

    def detach(self, run: bool) -> None:
        self.calls.append(f"detach {run}")
        self._on_stop = None
        self.breakpoints.clear()
        self._halt()  # it may be about to: an interrupt must not outlive the debugger
        if run and not self._ended:
            self.start()

    def vcpus(self) -> Sequence[VcpuInfo]:
        return [VcpuInfo(index, name, "running" if self.running else "") for index, name in enumerate(self.names)]

    def resume(self, actions: Mapping[int, str]) -> None:
        self.calls.append(f"resume {dict(actions)}")
        self._standing()
        self._run(actions)

    def interrupt(self) -> None:
        if not self.stands_still_late:
            self._stop.set()

    def read_registers(self, vcpu: int) -> dict[str, int]:
        self._standing()
        return dict(self.cpus[vcpu])

    def write_registers(self, vcpu: int, values: Mapping[str, int]) -> None:
        self._standing()
        if "cr8" in values:
            raise TargetError("cr8 cannot be set")
        self.cpus[vcpu].update(values)

    def read_memory(self, vcpu: int, address: int, length: int) -> bytes:
        self._standing()
        paging, found = walk.Paging.of(self.cpus[vcpu]), b""
        for physical, size in walk.spans(self.read_physical, paging, address, length):
            part = bytes(self.memory[physical : physical + size])
            found += part
            if len(part) < size:
                break
        if not found:
            raise TargetError(f"{address:#x} is not mapped")
        return found

    def write_memory(self, vcpu: int, address: int, data: bytes) -> None:
        self._standing()
        spans = list(walk.spans(self.read_physical, walk.Paging.of(self.cpus[vcpu]), address, len(data)))
        if sum(size for _, size in spans) < len(data) or any(at + size > RAM_SIZE for at, size in spans):
            raise TargetError(f"{len(data)} bytes at {address:#x} are not all mapped")
        for physical, size in spans:
            self.memory[physical : physical + size] = data[:size]
            data = data[size:]

    def read_physical(self, address: int, length: int) -> bytes:
        data = bytes(self.memory[address : address + length])
        if not data:
            raise TargetError(f"there is no memory at {address:#x}")
        return data

    def write_physical(self, address: int, data: bytes) -> None:
        self.memory[address : address + len(data)] = data

    def memory_map(self) -> Sequence[Region]:
        return [Region(0, RAM_SIZE, RAM), Region(0xFFFF_0000, 1 << 32, ROM)]

    def insert(self, kind: str, address: int, length: int) -> str:
        self._standing()
        if kind in self.refuses:
            raise TargetError(self.refuses[kind])
        assert (kind, address, length) not in self.breakpoints
        method = "debug register" if kind != SOFTWARE else "single steps, which is slow"
        self.breakpoints[kind, address, length] = method
        return method

    def remove(self, kind: str, address: int, length: int) -> None:
        self._standing()
        del self.breakpoints[kind, address, length]

    def reset(self) -> None:
        self._standing()
        self.calls.append("reset")
        for cpu in self.cpus:
            cpu.update(long_registers())

    def kill(self) -> None:
        self.calls.append("kill")
        self._ended = Stop(EXITED, status=9)
        self._stop.set()

    def monitor(self, vcpu: int, words: Sequence[str]) -> str:
        if words[0] == "help":
            return "exits: how often each exit came"
        if words[0] == "exits":
            return f"vCPU {vcpu}: no exits"
        if words[0] == "bug":
            raise ZeroDivisionError("a mistake")
        raise LookupError(words[0])

    # The processor.

    def _standing(self) -> None:
        if self._thread is not None and threading.current_thread() is not self._thread:
            raise TargetError("the machine runs")
        if self._ended:
            raise TargetError("the machine has ended")

    def _tell(self, stop: Stop) -> None:
        if self._on_stop is not None:
            self._on_stop(stop)

    def _halt(self) -> None:
        thread = self._thread
        self._stop.set()
        if thread is not None:
            thread.join(DEADLINE)
            assert not thread.is_alive()

    def _run(self, actions: Mapping[int, str]) -> None:
        with self._lock:
            self._stop.clear()
            self._thread = threading.Thread(target=self._work, args=(dict(actions),), daemon=True)
            self._thread.start()

    def _work(self, actions: dict[int, str]) -> None:
        stop = None
        while stop is None:
            for index, action in actions.items():
                stop = self._step(index)
                if stop is None and action != CONTINUE:
                    stop = Stop(STEPPED, index)
                if stop is not None:
                    break
            if stop is None and self._stop.wait(0.0001 if self._on_stop is None else 0):
                stop = self._ended or Stop(PAUSED, min(actions))
        with self._lock:
            self._thread = None
            self._tell(stop)

    def _step(self, index: int) -> Stop | None:
        if self.crash is not None:
            stop, self.crash = self.crash, None
            return stop
        cpu = self.cpus[index]
        at = (cpu["cs_base"] + cpu["rip"]) & MASK
        for kind, address, _ in self.breakpoints:
            if kind in (SOFTWARE, HARDWARE) and address == at:
                return Stop(BREAKPOINT, index, kind=kind, address=address)
        code = bytes(self.memory[at : at + 3])
        length = 1
        touched: tuple[str, int] | None = None
        if code[:2] == UD2:
            self._ended = Stop(EXITED, index, status=3)
            return self._ended
        if code[:1] == b"\xeb":
            length = 2 + (code[1] ^ 0x80) - 0x80
        elif code == b"\x48\xff\xc0":
            cpu["rax"], length = (cpu["rax"] + 1) & MASK, 3
        elif code[:2] == b"\x88\x07":
            self.memory[cpu["rdi"]], length, touched = cpu["rax"] & 0xFF, 2, (WRITE, cpu["rdi"])
        elif code[:2] == b"\x8a\x06":
            cpu["rax"], length, touched = cpu["rax"] & ~0xFF | self.memory[cpu["rsi"]], 2, (READ, cpu["rsi"])
        cpu["rip"] = (cpu["rip"] + length) & MASK
        return self._watched(index, *touched) if touched else None

    def _watched(self, index: int, how: str, where: int) -> Stop | None:
        for kind, address, size in self.breakpoints:
            if kind in (how, ACCESS) and address <= where < address + size:
                return Stop(WATCHPOINT, index, kind=kind, address=where)
        return None
