"""The machine's own `monitor` commands."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable, Sequence

    from ..machine import Machine


def run(machine: Machine, vcpu: int, words: Sequence[str]) -> str:
    """Do one command and return what it says; raise LookupError for one that there is not."""
    return COMMANDS[words[0]](machine, vcpu, words[1:])


def show_help(machine: Machine, vcpu: int, words: Sequence[str]) -> str:
    """help"""
    return "\n".join(f"{(function.__doc__ or '').strip()}" for name, function in COMMANDS.items() if name != "help")


def devices(machine: Machine, vcpu: int, words: Sequence[str]) -> str:
    """devices: what the machine consists of: memory and ports, who answers there, interrupt lines"""
    return machine.describe()


def methods(machine: Machine, vcpu: int, words: Sequence[str]) -> str:
    """methods: which kinds of stops this host's KVM reports"""
    return machine.debugger.methods.describe()


def symbol(machine: Machine, vcpu: int, words: Sequence[str]) -> str:
    """symbol ADDRESS|NAME: the symbol that an address is in, or the address of a symbol of the guest's image"""
    if len(words) != 1:
        return "usage: symbol ADDRESS|NAME"
    try:
        address = int(words[0], 0)
    except ValueError:
        return f"{machine.symbols[words[0]]:#x}" if words[0] in machine.symbols else f"there is no symbol {words[0]!r}"
    return machine.symbols.describe(address) or f"{address:#x} is in no symbol"


COMMANDS: dict[str, Callable[[Machine, int, Sequence[str]], str]] = {
    "help": show_help,
    "devices": devices,
    "methods": methods,
    "symbol": symbol,
}
