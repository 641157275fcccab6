"""What the prompt has beside Python: helpers that look at the guest and let it do a step."""

from __future__ import annotations

from ..errors import ConfigError
from ..kvm.abi.basic import kvm_regs, kvm_sregs
from ..vcpu.report import registers
from ..x86 import segments
from ..x86.names import from_structures

TYPE_CHECKING = False
if TYPE_CHECKING:  # mypy reads this as True
    from collections.abc import Callable
    from typing import Any

    from ..machine import Machine
    from ..vcpu import Vcpu

LONGEST_INSTRUCTION = 15  # bytes
MOST_BYTES = 1 << 20
ARCHITECTURES = {16: "i8086", 32: "i386", 64: "i386:x86-64"}
PER_LINE = 16


def names(machine: Machine, index: int, leave: Callable[[], None]) -> dict[str, Any]:
    """Return what the prompt knows by name, while vCPU `index` is the one that is looked at."""
    helpers = Helpers(machine)
    known = helpers.names
    known |= {"machine": machine, "vcpus": machine.vcpus, "cont": leave, "exit": leave, "quit": leave}
    known |= {function.__name__: function for function in helpers.functions}
    helpers.vcpu(index)
    return known


def pc_of(cpu: Vcpu) -> tuple[int, int]:
    """Return the linear address of a vCPU's next instruction, and the size of its code in bits."""
    values = from_structures(cpu.registers.copy(), cpu.sregs.copy())
    return segments.linear(values, "cs", values["rip"]), segments.code_bits(values)


class Helpers:
    """The helpers, for the vCPU that the prompt knows as cpu. They print."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.names: dict[str, Any] = {}
        self.functions = (
            self.regs,
            self.dump,
            self.disas,
            self.walk,
            self.step,
            self.exits,
            self.vcpu,
            self.help_me,
        )

    @property
    def cpu(self) -> Vcpu:
        """The vCPU that is looked at: what the user has cpu be."""
        cpu: Vcpu = self.names["cpu"]
        return cpu

    def regs(self) -> None:
        """regs(): the registers of cpu"""
        general: kvm_regs = self.cpu.registers.copy()
        system: kvm_sregs = self.cpu.sregs.copy()
        mode = segments.mode_name(from_structures(general, system))
        print("\n".join([f"vCPU {self.cpu.index}, {self.cpu.state}: {mode}", *registers(general, system)]))

    def dump(self, address: int | str, n: int = 64) -> None:
        """dump(a, n): n bytes at linear address, or symbol, a"""
        start = self._address(address)
        data = self.cpu.memory.read_some(start, min(n, MOST_BYTES))
        for at in range(0, len(data), PER_LINE):
            part = data[at : at + PER_LINE]
            text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
            print(f"{start + at:#014x}  {part.hex(' '):<47}  {text}")
        if len(data) < n:
            print(f"{start + len(data):#x} cannot be read")

    def disas(self, address: int | str | None = None, n: int = 8) -> None:
        """disas(a, n): n instructions at a, or at the next one, by objdump"""
        pc, bits = pc_of(self.cpu)
        start = pc if address is None else self._address(address)
        for line in disassembled(self.cpu.memory.read_some(start, n * LONGEST_INSTRUCTION), start, bits)[:n]:
            print(("=> " if line.startswith(f"{pc:#x}:") else "   ") + line)

    def walk(self, address: int | str) -> None:
        """walk(a): the way through the page tables for a"""
        print(self.cpu.memory.walk(self._address(address)))

    def step(self, n: int = 1) -> None:
        """step(n): let cpu execute n instructions, and show the next one"""
        for _ in range(n):
            self.cpu.step()
        where = self._machine.debugger.describe(pc_of(self.cpu)[0])
        print(f"vCPU {self.cpu.index} is at {where}")

    def exits(self) -> None:
        """exits(): the last exits of cpu, the latest at the end"""
        print("\n".join(self._machine.last_exits(self.cpu.index)) or "there were none")

    def vcpu(self, index: int) -> None:
        """vcpu(i): look at vCPU i: sets cpu and mem"""
        cpu = self._machine.vcpus[index]
        self.names.update(cpu=cpu, mem=cpu.memory)

    def help_me(self) -> None:
        """help_me(): this list"""
        for function in self.functions:
            print(f"  {function.__doc__}")
        print("  cont(): let the guest go on; so do exit() and Ctrl-D")
        print("  machine.break_at(where, handler), machine.watch(...), machine.symbols, machine.translate(a), ...")

    def _address(self, address: int | str) -> int:
        return self._machine.symbols[address] if isinstance(address, str) else address


def disassembled(data: bytes, address: int, bits: int) -> list[str]:
    """Return code as lines of address and instruction, by objdump; raise ConfigError where that is not installed."""
    import re
    import subprocess
    import tempfile
    from shutil import which

    objdump = which("objdump")
    if objdump is None:
        raise ConfigError("disas() needs objdump, which comes with binutils")
    with tempfile.NamedTemporaryFile(prefix="pyvcpu-", suffix=".bin") as file:
        file.write(data)
        file.flush()
        command = [objdump, "-D", "-b", "binary", "-m", ARCHITECTURES[bits], f"--adjust-vma={address:#x}", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    found = re.findall(r"^ *([0-9a-f]+):\t(?:[0-9a-f]{2} )+ *\t(.*)$", done.stdout, re.MULTILINE)
    return [f"{int(at, 16):#x}:  {' '.join(what.split())}" for at, what in found]
