"""Call: one interrupt that a guest has made in real mode, as its handler sees it: registers, flags, memory."""

from __future__ import annotations

from .layout import ROM, STARTED, STUB_SIZE, STUBS

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Any, Protocol

    class Processor(Protocol):
        """What the BIOS needs of a vCPU: its registers by name, read and written on its own thread."""

        @property
        def registers(self) -> Any: ...
        @property
        def sregs(self) -> Any: ...

    class Memory(Protocol):
        """Guest memory, at most 2 GiB of it below 4 GiB; methods raise GuestMemoryError outside of it."""

        @property
        def ranges(self) -> list[tuple[int, int, int]]: ...
        def read(self, address: int, length: int) -> bytes: ...
        def write(self, address: int, data: bytes) -> None: ...
        def view(self, address: int, length: int) -> memoryview: ...


CF, ZF, IF = 1 << 0, 1 << 6, 1 << 9
CR0_PE, RFLAGS_VM = 1 << 0, 1 << 17

# What a handler may return, beside None.
WAIT = "wait"  # nothing to return yet: sleep until an interrupt, and then ask again
AGAIN = "again"  # let interrupts in, and ask again at once
JUMP = "jump"  # the handler has set where the guest goes on

WIDE = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp")
BYTES = ("rax", "rbx", "rcx", "rdx")
SEGMENTS = ("ds", "es", "fs", "gs", "cs", "ss")


def vector_at(linear: int) -> int | None:
    """Return the number of the interrupt whose stub is at a linear address, None where no stub is.

    KVM stops behind an OUT that it interprets, and at one that the processor ran.
    """
    number = (linear - ROM - STUBS) // STUB_SIZE
    return number if 0 <= number <= STARTED else None


class Call:
    """An interrupt that waits for its handler.

    `vector`: its number. `vcpu`: who called. `memory`: guest memory. `al`, `ah`, `ax`, `eax` and the like, and the
    segment registers, read and write the guest's; as in real mode, a write of a narrow register leaves the rest.
    `cf`, `zf`: the flags that the guest finds when the handler has returned.

    `default()` does what the BIOS itself does, for handlers that only look on or change a little.
    """

    if not TYPE_CHECKING:  # mypy takes the registers, which are properties, for attributes without a slot
        __slots__ = ("_changed", "_frame", "_regs", "_sregs", "_system", "builtin", "memory", "vcpu", "vector")

    if TYPE_CHECKING:
        al: int
        ah: int
        bl: int
        bh: int
        cl: int
        ch: int
        dl: int
        dh: int
        ax: int
        bx: int
        cx: int
        dx: int
        si: int
        di: int
        bp: int
        eax: int
        ebx: int
        ecx: int
        edx: int
        esi: int
        edi: int
        ebp: int
        ds: int
        es: int
        fs: int
        gs: int
        cs: int
        ss: int

    def __init__(self, vcpu: Processor, memory: Memory) -> None:
        self.vcpu = vcpu
        self.memory = memory
        self.builtin: Callable[[Call], object] = bool
        self._regs = vcpu.registers.copy()
        self._sregs = vcpu.sregs.copy()
        self._changed: set[str] = set()
        self._system: set[str] = set()
        self._frame = self._sregs.ss.base + (self._regs.rsp & 0xFFFF)
        real = not self._sregs.cr0 & CR0_PE or self._regs.rflags & RFLAGS_VM
        self.vector = vector_at(self._sregs.cs.base + self._regs.rip) if real else None

    def default(self) -> object:
        """Do what the BIOS does at this interrupt; return what that returns, for the handler to return in its turn."""
        return self.builtin(self)

    # Registers

    def get(self, name: str) -> int:
        """Return a register of struct kvm_regs."""
        value: int = getattr(self._regs, name)
        return value

    def put(self, name: str, value: int) -> None:
        """Set a register of struct kvm_regs."""
        setattr(self._regs, name, value)
        self._changed.add(name)

    def base(self, segment: str) -> int:
        """Return the linear address of a segment."""
        value: int = getattr(self._sregs, segment).base
        return value

    def far(self, segment: str, offset: int) -> int:
        """Return the linear address of an offset in a segment."""
        return self.base(segment) + (offset & 0xFFFF)

    def set_segment(self, segment: str, selector: int) -> None:
        """Load a segment register as real mode does."""
        register = getattr(self._sregs, segment)
        register.selector, register.base = selector, selector << 4
        self._system.add(segment)

    @property
    def caller(self) -> tuple[int, int]:
        """CS and IP behind the INT, or of the instruction that failed."""
        frame = self.memory.read(self._frame, 4)
        return int.from_bytes(frame[2:], "little"), int.from_bytes(frame[:2], "little")

    def holds_frame(self) -> bool:
        """Whether the caller's stack, with its flags, is in memory."""
        return any(start <= self._frame and self._frame + 6 <= end for start, end, _ in self.memory.ranges)

    # Flags: those that IRET will take from the stack

    def flag(self, mask: int) -> bool:
        """Return whether a flag of the caller's is set."""
        return bool(int.from_bytes(self.memory.read(self._frame + 4, 2), "little") & mask)

    def set_flag(self, mask: int, value: bool) -> None:
        """Set or clear a flag of the caller's."""
        flags = int.from_bytes(self.memory.read(self._frame + 4, 2), "little")
        self.memory.write(self._frame + 4, (flags | mask if value else flags & ~mask).to_bytes(2, "little"))

    @property
    def cf(self) -> bool:
        """The carry flag: most services set it when they failed."""
        return self.flag(CF)

    @cf.setter
    def cf(self, value: bool) -> None:
        self.set_flag(CF, value)

    @property
    def zf(self) -> bool:
        """The zero flag: INT 16h sets it when there is no key."""
        return self.flag(ZF)

    @zf.setter
    def zf(self, value: bool) -> None:
        self.set_flag(ZF, value)

    # Where the guest goes on

    def go(self, selector: int, offset: int) -> None:
        """Go on at a real-mode address, with an empty stack below 0x7C00 and interrupts on."""
        for name in SEGMENTS:
            self.set_segment(name, 0)
        self.set_segment("cs", selector)
        self.put("rip", offset)
        self.put("rsp", 0x7C00)
        self.put("rflags", 0x2 | IF)

    def stay(self, offset: int) -> None:
        """Go on at an offset of the stub."""
        assert self.vector is not None
        self.put("rip", STUBS + self.vector * STUB_SIZE + offset)

    def finish(self) -> None:
        """Give the vCPU what was changed."""
        for name in self._changed:
            setattr(self.vcpu.registers, name, getattr(self._regs, name))
        for name in self._system:
            setattr(self.vcpu.sregs, name, getattr(self._sregs, name))
        self._changed.clear()
        self._system.clear()


def _register(name: str, shift: int, width: int) -> property:
    mask = (1 << width) - 1

    def get(call: Call) -> int:
        return call.get(name) >> shift & mask

    def put(call: Call, value: int) -> None:
        call.put(name, call.get(name) & ~(mask << shift) | (value & mask) << shift)

    return property(get, put)


def _segment(name: str) -> property:
    def get(call: Call) -> int:
        value: int = getattr(call._sregs, name).selector
        return value

    return property(get, lambda call, selector: call.set_segment(name, selector & 0xFFFF))


for _name in WIDE:
    setattr(Call, _name[1:], _register(_name, 0, 16))
    setattr(Call, "e" + _name[1:], _register(_name, 0, 32))
for _name in BYTES:
    setattr(Call, _name[1] + "l", _register(_name, 0, 8))
    setattr(Call, _name[1] + "h", _register(_name, 8, 8))
for _name in SEGMENTS:
    setattr(Call, _name, _segment(_name))
