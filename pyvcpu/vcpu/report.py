"""The crash report: all that is known of an exit that nobody can go on from, in lines for people."""

from __future__ import annotations

from ..errors import PyvcpuError
from ..exits import Shutdown, describe
from ..kvm.abi import basic as abi
from ..kvm.errors import KvmError
from ..x86.walk import OFF, Paging, mode
from .pieces import get_regs, get_sregs
from .virtual import VirtualMemory

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from ..exits import ExitEvent
    from .core import Cpu

CODE_BYTES, STACK_WORDS, STACK_PER_LINE = 16, 8, 4
LONG_MODE = 1 << 10  # EFER.LMA
CR0_PE, RFLAGS_VM = 1 << 0, 1 << 17
MOST_OTHERS = 32  # vCPUs that are told of
INIT_CS_BASE, INIT_RIP = 0xFFFF_0000, 0xFFF0  # SDM vol. 3A table 10-1


def crash_report(cpu: Cpu, event: ExitEvent) -> str:
    """Return what is known of a fatal exit; on the vCPU's thread."""
    try:
        regs = abi.kvm_regs.from_buffer_copy(get_regs(cpu))
        sregs = abi.kvm_sregs.from_buffer_copy(get_sregs(cpu))
    except KvmError as error:
        return f"vCPU {cpu.index}: {describe(event)}\nno registers: {error}"
    head = f"vCPU {cpu.index}: {describe(event)} at {sregs.cs.selector:#06x}:{regs.rip:#x}"
    symbol = _symbol(cpu, _linear(sregs, sregs.cs, regs.rip))
    lines = [head + (f" ({symbol})" if symbol else ""), *registers(regs, sregs)]
    if isinstance(event, Shutdown) and sregs.cs.base == INIT_CS_BASE and regs.rip == INIT_RIP:
        lines.append("after the triple fault KVM has put the vCPU into INIT state: the registers are not the guest's")
    else:
        lines += where(cpu, regs, sregs)
    return "\n".join([*lines, *_exits(cpu), *_others(cpu)])


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


def where(cpu: Cpu, regs: abi.kvm_regs, sregs: abi.kvm_sregs) -> list[str]:
    """Return the code at rip, the stack's top, and the page walks of rip and cr2."""
    paging = Paging(sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer)
    memory = VirtualMemory(cpu.context.memory, lambda: paging)
    code = _linear(sregs, sregs.cs, regs.rip)
    lines = [f"code {_code(memory, code)}", *_stack(cpu, memory, regs, sregs)]
    if mode(sregs.cr0, sregs.cr4, sregs.efer) != OFF:
        lines += [f"page walk of rip: {memory.walk(code)}"]
        if sregs.cr2:
            lines += [f"page walk of cr2: {memory.walk(sregs.cr2)}"]
    return lines


def _is_64_bit(sregs: abi.kvm_sregs) -> bool:
    return bool(sregs.efer & LONG_MODE and sregs.cs.l)


def _linear(sregs: abi.kvm_sregs, segment: abi.kvm_segment, offset: int) -> int:
    return int(offset) if _is_64_bit(sregs) else int(segment.base + offset) & 0xFFFF_FFFF


def _code(memory: VirtualMemory, linear: int) -> str:
    data = memory.read_some(linear, min(CODE_BYTES, 4096 - linear % 4096))
    if data:
        return data.hex(" ")
    return f"at {linear:#x} is not {'mapped' if memory.translate(linear) is None else 'in RAM'}"


def _stack(cpu: Cpu, memory: VirtualMemory, regs: abi.kvm_regs, sregs: abi.kvm_sregs) -> list[str]:
    """Return the words at the top of the stack, with the symbols of those that point into code or data."""
    size = 8 if _is_64_bit(sregs) else 4 if sregs.ss.db and sregs.cr0 & CR0_PE else 2
    offset = regs.rsp if size == 8 else regs.rsp & ((1 << 8 * size) - 1)
    top = _linear(sregs, sregs.ss, offset)
    data = memory.read_some(top, STACK_WORDS * size)
    if len(data) < size:
        return [f"stack at {top:#x} cannot be read"]
    words = [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data) - size + 1, size)]
    shown = [f"{word:0{2 * size}x}" + _in_brackets(_symbol(cpu, word)) for word in words]
    rows = [" ".join(shown[at : at + STACK_PER_LINE]) for at in range(0, len(shown), STACK_PER_LINE)]
    return [f"stack at {top:#x}: {rows[0]}", *(f"  {row}" for row in rows[1:])]


def _in_brackets(name: str) -> str:
    return f" ({name})" if name else ""


def _symbol(cpu: Cpu, address: int) -> str:
    """Return the symbol that an address is in, "" for none: a damaged file of symbols is no reason to say less."""
    try:
        symbols = cpu.context.symbols()
    except (PyvcpuError, OSError):
        return ""
    return "" if symbols is None else symbols.describe(address)


def _exits(cpu: Cpu) -> list[str]:
    recent = cpu.context.recent
    lines = recent.lines(cpu.index) if recent is not None else []
    return [f"the last {len(lines)} exits, the latest at the end:", *(f"  {line}" for line in lines)] if lines else []


def _others(cpu: Cpu) -> list[str]:
    """Return what the other vCPUs were doing, and their last exits where those are kept."""
    others = [vcpu for vcpu in cpu.control.vcpus if vcpu is not cpu.vcpu and vcpu.created][:MOST_OTHERS]
    recent, lines = cpu.context.recent, []
    for vcpu in others:
        last = recent.lines(vcpu.index)[-1:] if recent is not None else []
        lines.append(f"vCPU {vcpu.index}: {vcpu.state}" + "".join(f", last exit {line}" for line in last))
    return lines


_LETTERS = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")
_NAMES32 = [(f"E{n.upper()}", f"r{n}") for n in _LETTERS] + [("EIP", "rip"), ("EFL", "rflags")]
_NAMES64 = (
    [(f"R{n.upper()}", f"r{n}") for n in _LETTERS]
    + [(f"R{n:<2}", f"r{n}") for n in range(8, 16)]
    + [("RIP", "rip"), ("RFL", "rflags")]
)
