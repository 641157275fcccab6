"""The crash report: reason, registers, and the bytes at the instruction pointer."""

from __future__ import annotations

from ..exits import describe
from ..kvm.abi import basic as abi
from ..kvm.errors import KvmError
from ..memory import GuestMemoryError
from .pieces import get_regs, get_sregs

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from ..exits import ExitEvent
    from .core import Cpu

CODE_BYTES = 16
LONG_MODE = 1 << 10  # EFER.LMA


def crash_report(cpu: Cpu, event: ExitEvent) -> str:
    """Return what is known of a fatal exit, in lines for people; on the vCPU's thread."""
    try:
        regs = abi.kvm_regs.from_buffer_copy(get_regs(cpu))
        sregs = abi.kvm_sregs.from_buffer_copy(get_sregs(cpu))
    except KvmError as error:
        return f"vCPU {cpu.index}: {describe(event)}\nno registers: {error}"
    head = f"vCPU {cpu.index}: {describe(event)} at {sregs.cs.selector:#06x}:{regs.rip:#x}"
    return "\n".join([head, *registers(regs, sregs), f"code {_code(cpu, regs, sregs)}"])


def registers(regs: abi.kvm_regs, sregs: abi.kvm_sregs) -> list[str]:
    """Return the registers in lines, 32 bits wide where the processor is not in long mode."""
    long = bool(sregs.efer & LONG_MODE)
    names, digits = (_NAMES64, 16) if long else (_NAMES32, 8)
    values = [f"{label}={getattr(regs, name):0{digits}x}" for label, name in names]
    per_line = 4
    lines = [" ".join(values[i : i + per_line]) for i in range(0, len(values), per_line)]
    lines += [
        _segment(name, getattr(sregs, name.lower())) for name in ("ES", "CS", "SS", "DS", "FS", "GS", "LDT", "TR")
    ]
    tables = (("GDT", sregs.gdt), ("IDT", sregs.idt))
    lines.append(" ".join(f"{name}={table.base:0{digits}x} {table.limit:04x}" for name, table in tables))
    lines.append(
        " ".join(f"{name.upper()}={getattr(sregs, name):08x}" for name in ("cr0", "cr2", "cr3", "cr4", "efer"))
    )
    return lines


def _segment(name: str, segment: abi.kvm_segment) -> str:
    bits = " ".join(f"{bit}={getattr(segment, bit):x}" for bit in ("type", "dpl", "present", "s", "l", "db", "g"))
    return f"{name:<3}={segment.selector:04x} base={segment.base:08x} limit={segment.limit:08x} {bits}"


def _code(cpu: Cpu, regs: abi.kvm_regs, sregs: abi.kvm_sregs) -> str:
    linear = regs.rip if sregs.efer & LONG_MODE else (sregs.cs.base + regs.rip) & 0xFFFF_FFFF
    try:
        physical = cpu.fd.translate(linear)
        if physical is None:
            return f"at {linear:#x} is not mapped"
        in_page = 4096 - physical % 4096
        return cpu.context.memory.read(physical, min(CODE_BYTES, in_page)).hex(" ")
    except (KvmError, GuestMemoryError):
        return f"at {linear:#x} is not in RAM"


_LETTERS = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")
_NAMES32 = [(f"E{n.upper()}", f"r{n}") for n in _LETTERS] + [("EIP", "rip"), ("EFL", "rflags")]
_NAMES64 = (
    [(f"R{n.upper()}", f"r{n}") for n in _LETTERS]
    + [(f"R{n:<2}", f"r{n}") for n in range(8, 16)]
    + [("RIP", "rip"), ("RFL", "rflags")]
)
