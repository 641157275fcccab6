"""`monitor` commands: what gdb has no packets for. Those of the stub are here; the machine may add its own."""

from __future__ import annotations

from ..x86.segments import code_bits, mode_name
from ..x86.walk import Paging, walk
from .arguments import hex_bytes
from .registers import ARCHITECTURES, CONTROL, GENERAL64
from .session import EOPNOTSUPP, RequestError
from .target import TargetError

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable

    from .session import Session

MOST_TEXT = 1 << 20  # characters of an answer
MOST_BYTES = 4096  # that `monitor physical` shows
STALE = "gdb does not know it yet: `maintenance flush register-cache` makes it read anew"
REREAD = "`unset tdesc filename` makes gdb read it"
ALIASES = {"system_reset": "reset", "info": "help", "translate": "walk", "arch": "architecture"}


class UsageError(Exception):
    """A command that is not used right; the message says how it is."""


def command(session: Session, arguments: bytes) -> bytes:
    """qRcmd: the command in hex; the answer is output, then OK."""
    line = hex_bytes(arguments).decode("utf-8", "replace")
    session.output(run(session, line)[:MOST_TEXT])
    return b"OK"


def run(session: Session, line: str) -> str:
    """Do one command and return its answer, which ends with a newline."""
    name, *words = line.split() or ["help"]
    name = ALIASES.get(name, name)
    try:
        text = COMMANDS[name](session, words) if name in COMMANDS else _of_target(session, [name, *words])
    except UsageError as error:
        text = f"usage: {error}"
    except (TargetError, RequestError) as error:
        text = f"error: {error}"
    return text.rstrip("\n") + "\n"


def _of_target(session: Session, words: list[str]) -> str:
    session.forget_registers()
    try:
        return session.target.monitor(session.vcpu, words)
    except LookupError:
        return f"there is no command {words[0]!r}; `monitor help` lists them"


def show_help(session: Session, words: list[str]) -> str:
    """help: list the commands"""
    lines = [f"  {(function.__doc__ or '').strip()}" for function in COMMANDS.values()]
    try:
        theirs = session.target.monitor(session.vcpu, ["help"]).splitlines()
    except LookupError:
        theirs = []  # the machine has none of its own
    lines += [f"  {line}" for line in theirs]
    return "\n".join(["monitor commands; numbers are decimal, or hex behind 0x:", *lines])


def show_registers(session: Session, words: list[str]) -> str:
    """registers [VCPU]: all registers that are not of floating point, and the mode"""
    vcpu = _vcpu(session, words)
    values = session.raw_registers(vcpu)
    names = [name for name in (*GENERAL64, "rip", "rflags") if name in values]
    lines = [f"vCPU {vcpu}: {mode_name(values)}, cs:ip {values.get('cs', 0):#06x}:{values.get('rip', 0):#x}"]
    for start in range(0, len(names), 3):
        lines.append("  ".join(f"{name:<6} {values[name]:#018x}" for name in names[start : start + 3]))
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "ldtr", "tr"):
        if name in values:
            base, limit, access = (values.get(f"{name}_{part}", 0) for part in ("base", "limit", "access"))
            lines.append(f"{name:<6} {values[name]:#06x}  base {base:#018x}  limit {limit:#010x}  access {access:#07x}")
    for name in ("gdtr", "idtr"):
        base, limit = values.get(f"{name}_base", 0), values.get(f"{name}_limit", 0)
        lines.append(f"{name:<14}  base {base:#018x}  limit {limit:#010x}")
    lines += [f"{name:<6} {values[name]:#018x}" for name in CONTROL if name in values]
    return "\n".join(lines)


def show_vcpus(session: Session, words: list[str]) -> str:
    """vcpus: list the vCPUs, what each does and where"""
    lines = []
    for info in session.target.vcpus():
        values = session.registers(info.index)
        state = f" [{info.state}]" if info.state else ""
        lines.append(f"{info.index:>3}  {info.name}{state}  {mode_name(session.raw_registers(info.index))}")
        lines[-1] += f" at {values['rip']:#x}"
    return "\n".join(lines)


def show_walk(session: Session, words: list[str]) -> str:
    """walk ADDRESS [VCPU]: follow the page tables for a linear address (also: translate)"""
    if not words:
        raise UsageError("walk ADDRESS [VCPU]")
    address, vcpu = _number(words[0]), _vcpu(session, words[1:])
    return str(walk(session.target.read_physical, Paging.of(session.raw_registers(vcpu)), address))


def show_physical(session: Session, words: list[str]) -> str:
    """physical ADDRESS [LENGTH]: bytes of physical memory"""
    if not 1 <= len(words) <= 2:
        raise UsageError("physical ADDRESS [LENGTH]")
    address, length = _number(words[0]), _number(words[1]) if len(words) > 1 else 64
    data = session.target.read_physical(address, min(length, MOST_BYTES))
    lines = []
    for start in range(0, len(data), 16):
        part = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{address + start:#014x}  {part.hex(' '):<47}  {text}")
    return "\n".join(lines)


def show_memory(session: Session, words: list[str]) -> str:
    """memory: the map of physical memory"""
    return "\n".join(f"{r.start:#014x}-{r.end - 1:#014x}  {r.kind}" for r in session.target.memory_map())


def show_breakpoints(session: Session, words: list[str]) -> str:
    """breakpoints: those that are set now, how each works, and why others were refused"""
    lines = [f"{kind} at {at:#x}, {size} bytes: {how}" for (kind, at, size), how in session.breakpoints.items()]
    lines += [f"refused: {text}" for text in session.failures]
    return "\n".join(lines or ["none is set while the machine stands still; gdb sets them when it goes on"])


def set_architecture(session: Session, words: list[str]) -> str:
    """architecture [16|32|64|auto|default]: which target description to offer (auto: by the code that runs)"""
    choices = {"16": 16, "32": 32, "64": 64, "default": 0}
    values = session.raw_registers(session.vcpu)
    if not words:
        return f"the description is for {ARCHITECTURES[session.layout.bits]}"
    if len(words) > 1 or words[0] not in (*choices, "auto"):
        raise UsageError("architecture [16|32|64|auto|default]")
    bits = code_bits(values) if words[0] == "auto" else choices[words[0]]
    own = 64 if "r8" in values else 32
    if bits > own:
        raise RequestError(EOPNOTSUPP, "this processor has no long mode")
    session.bits = bits
    text = f"the description is for {ARCHITECTURES[bits or own]}"
    return text + (f"; {REREAD}" if session.layout.bits != (bits or own) else "")


def reset(session: Session, words: list[str]) -> str:
    """reset: reset the machine, which then stands at its start"""
    session.require_stopped()
    session.forget_registers()
    session.target.reset()
    return f"the machine is reset; {STALE}"


def _number(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise UsageError(f"a number is decimal, or hex behind 0x, not {text!r}") from None
    if not 0 <= value < 1 << 64:
        raise UsageError(f"a number is at most 64 bits, not {text!r}")
    return value


def _vcpu(session: Session, words: list[str]) -> int:
    if len(words) > 1:
        raise UsageError("the index of a vCPU is the last word")
    if not words:
        return session.vcpu
    index = _number(words[0])
    if index not in [info.index for info in session.target.vcpus()]:
        raise UsageError(f"there is no vCPU {index}")
    return index


COMMANDS: dict[str, Callable[[Session, list[str]], str]] = {
    "help": show_help,
    "registers": show_registers,
    "vcpus": show_vcpus,
    "walk": show_walk,
    "physical": show_physical,
    "memory": show_memory,
    "breakpoints": show_breakpoints,
    "architecture": set_architecture,
    "reset": reset,
}
