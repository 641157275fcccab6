"""What a return from KVM_RUN means: struct kvm_run decoded, once, into a value that one can match on.

Pure functions; no ioctl is made here. The layout comes from api.rst section 5, "The kvm_run structure".

>>> match PortOut(0xE9, b"A"):
...     case PortOut(port=0xE9, data=data):
...         print(data)
b'A'
"""

from __future__ import annotations

from .kvm.abi.exits import Exit, InternalError, SystemEvent
from .kvm.abi.run import KVM_EXIT_IO_OUT, kvm_run

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    import mmap
    from typing import ClassVar

RUN_SIZE = 2352  # sizeof(struct kvm_run), without the data page that PIO points to
SHOWN_DATA = 16


class ExitEvent:
    """Base of all exits. `reason` is the exit_reason; two exits are equal when their kinds and fields are."""

    __slots__: tuple[str, ...] = ()
    reason: ClassVar[int] = -1

    def _fields(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__match_args__)

    __match_args__: ClassVar[tuple[str, ...]] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExitEvent) and type(self) is type(other) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash((type(self), self._fields()))

    def __repr__(self) -> str:
        shown = (f"{name}={_show(getattr(self, name))}" for name in self.__match_args__)
        return f"{type(self).__name__}({', '.join(shown)})"


def _show(value: object) -> str:
    return f"{value:#x}" if type(value) is int and value > 9 else repr(value)


class PortIn(ExitEvent):
    """The guest reads `count` times `size` bytes (1, 2, 4) from `port`: `in`, or `rep ins` where count is above 1."""

    __slots__ = __match_args__ = ("port", "size", "count")
    reason = Exit.IO

    def __init__(self, port: int, size: int = 1, count: int = 1) -> None:
        self.port = port
        self.size = size
        self.count = count


class PortOut(ExitEvent):
    """The guest writes `data` to `port`, `size` bytes at a time: `out`, or `rep outs` where data is longer."""

    __slots__ = __match_args__ = ("port", "data", "size")
    reason = Exit.IO

    def __init__(self, port: int, data: bytes, size: int = 1) -> None:
        self.port = port
        self.data = data
        self.size = size


class MmioRead(ExitEvent):
    """The guest reads `size` bytes (1 to 8) at guest physical `address`, which is not RAM."""

    __slots__ = __match_args__ = ("address", "size")
    reason = Exit.MMIO

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self.size = size


class MmioWrite(ExitEvent):
    """The guest writes `data` (1 to 8 bytes) at guest physical `address`, which is not RAM."""

    __slots__ = __match_args__ = ("address", "data")
    reason = Exit.MMIO

    def __init__(self, address: int, data: bytes) -> None:
        self.address = address
        self.data = data


class Halt(ExitEvent):
    """The guest executed HLT, and no local APIC in the kernel waits for its interrupts."""

    __slots__ = ()
    reason = Exit.HLT


class Shutdown(ExitEvent):
    """A triple fault: an exception while delivering a double fault, with no handler for either."""

    __slots__ = ()
    reason = Exit.SHUTDOWN


class IrqWindowOpen(ExitEvent):
    """The guest takes interrupts now: kvm_run.request_interrupt_window had asked for an exit as soon as it does."""

    __slots__ = ()
    reason = Exit.IRQ_WINDOW_OPEN


class FailEntry(ExitEvent):
    """The processor refused to enter the guest: `hardware_reason` is the VMX or SVM code, on host CPU `cpu`."""

    __slots__ = __match_args__ = ("hardware_reason", "cpu")
    reason = Exit.FAIL_ENTRY

    def __init__(self, hardware_reason: int, cpu: int) -> None:
        self.hardware_reason = hardware_reason
        self.cpu = cpu


class InternalFailure(ExitEvent):
    """KVM gave up: `suberror` is a KVM_INTERNAL_ERROR_*, `data` what it says, `instruction` its bytes if known."""

    __slots__ = __match_args__ = ("suberror", "data", "instruction")
    reason = Exit.INTERNAL_ERROR

    def __init__(self, suberror: int, data: tuple[int, ...] = (), instruction: bytes = b"") -> None:
        self.suberror = suberror
        self.data = data
        self.instruction = instruction


class Debug(ExitEvent):
    """A breakpoint or single step: the `exception` vector (1 or 3), `pc`, and debug registers 6 and 7."""

    __slots__ = __match_args__ = ("exception", "pc", "dr6", "dr7")
    reason = Exit.DEBUG

    def __init__(self, exception: int, pc: int, dr6: int, dr7: int) -> None:
        self.exception = exception
        self.pc = pc
        self.dr6 = dr6
        self.dr7 = dr7


class System(ExitEvent):
    """The guest asks for power-off, reset, ...: `event` is a KVM_SYSTEM_EVENT_*."""

    __slots__ = __match_args__ = ("event", "data")
    reason = Exit.SYSTEM_EVENT

    def __init__(self, event: int, data: tuple[int, ...] = ()) -> None:
        self.event = event
        self.data = data


class Msr(ExitEvent):
    """The guest reads (`write` False) or writes `data` to MSR `index`, which KVM leaves to us for `why` (a flag)."""

    __slots__ = __match_args__ = ("index", "write", "data", "why")
    reason = Exit.X86_RDMSR

    def __init__(self, index: int, write: bool, data: int, why: int) -> None:
        self.index = index
        self.write = write
        self.data = data
        self.why = why


class Other(ExitEvent):
    """Any other exit reason, `code`; `hardware_reason` is what the processor gave for KVM_EXIT_UNKNOWN, else 0."""

    __slots__ = __match_args__ = ("code", "hardware_reason")

    def __init__(self, code: int, hardware_reason: int = 0) -> None:
        self.code = code
        self.hardware_reason = hardware_reason


def decode(page: bytes | mmap.mmap) -> ExitEvent:
    """Decode the mapping of a vCPU after a KVM_RUN that returned 0 (never after one that failed: it is stale then)."""
    run = kvm_run.from_buffer_copy(page[:RUN_SIZE])
    match run.exit_reason:
        case Exit.IO:
            io = run.io
            if io.direction != KVM_EXIT_IO_OUT:
                return PortIn(io.port, io.size, io.count)
            return PortOut(io.port, page[io.data_offset : io.data_offset + io.size * io.count], io.size)
        case Exit.MMIO:
            mmio = run.mmio
            if not mmio.is_write:
                return MmioRead(mmio.phys_addr, mmio.len)
            return MmioWrite(mmio.phys_addr, bytes(mmio.data)[: mmio.len])
        case Exit.FAIL_ENTRY:
            return FailEntry(run.fail_entry.hardware_entry_failure_reason, run.fail_entry.cpu)
        case Exit.INTERNAL_ERROR:
            return _internal_failure(run)
        case Exit.DEBUG:
            arch = run.debug.arch
            return Debug(arch.exception, arch.pc, arch.dr6, arch.dr7)
        case Exit.SYSTEM_EVENT:
            event = run.system_event
            return System(event.type, tuple(event.data[: event.ndata]))
        case Exit.X86_RDMSR | Exit.X86_WRMSR as reason:
            return Msr(run.msr.index, reason == Exit.X86_WRMSR, run.msr.data, run.msr.reason)
        case Exit.UNKNOWN:
            return Other(Exit.UNKNOWN, run.hw.hardware_exit_reason)
    simple = SIMPLE.get(run.exit_reason)
    return simple() if simple else Other(run.exit_reason)


SIMPLE: dict[int, type[ExitEvent]] = {kind.reason: kind for kind in (Halt, Shutdown, IrqWindowOpen)}


def _internal_failure(run: kvm_run) -> InternalFailure:
    data = tuple(run.internal.data[: min(run.internal.ndata, 16)])
    failure = run.emulation_failure
    told = run.internal.suberror == InternalError.EMULATION and run.internal.ndata >= 3 and failure.flags & 1
    instruction = bytes(failure.insn_bytes)[: failure.insn_size] if told else b""
    return InternalFailure(run.internal.suberror, data, instruction)


def describe(event: ExitEvent) -> str:
    """Return one line for people: the kernel's name of the exit, and what happened in words."""
    match event:
        case Shutdown():
            return "triple fault (KVM_EXIT_SHUTDOWN)"
        case FailEntry(hardware_reason, cpu):
            return f"failed entry into the guest: reason {hardware_reason:#x} on host CPU {cpu} (KVM_EXIT_FAIL_ENTRY)"
        case InternalFailure(suberror, data, instruction):
            name = _name(InternalError, suberror)
            what = "KVM could not emulate an instruction" if suberror == InternalError.EMULATION else "KVM gave up"
            bytes_ = f", instruction {instruction.hex(' ')}" if instruction else ""
            numbers = f", data {' '.join(f'{d:#x}' for d in data[:SHOWN_DATA])}" if data and not instruction else ""
            return f"{what}: suberror {suberror} {name}{bytes_}{numbers} (KVM_EXIT_INTERNAL_ERROR)"
        case System(event=kind):
            return f"system event {kind} {_name(SystemEvent, kind)} (KVM_EXIT_SYSTEM_EVENT)"
        case Other(code, hardware_reason):
            tail = f", hardware reason {hardware_reason:#x}" if code == Exit.UNKNOWN else ""
            return f"exit reason {code} {_name(Exit, code)} that nothing here handles{tail}"
    return repr(event)


def _name(table: type[Exit] | type[InternalError] | type[SystemEvent], value: int) -> str:
    try:
        return table(value).name
    except ValueError:
        return "(unknown)"
