"""QEMU's pc-testdev, with which KVM's unit tests drive the machine: interrupt lines, a register, RAM in MMIO, an exit.

Source: QEMU, hw/misc/pc-testdev.c. Here a guest of 15 bytes stands in for such a test.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout: nothing need be installed

from pyvcpu import Machine

IO, EXIT, FLUSH, LINES, MMIO = 0xE0, 0xF4, 0xE4, 0x2000, 0xFF00_0000
PAGE = 4096


def add_testdev(machine: Machine) -> None:
    """Put the device on the machine's buses; the exit port is one that every machine has."""
    register, ram = bytearray(4), bytearray(16 * PAGE)

    def store(where: bytearray, offset: int, data: bytes) -> None:
        where[offset : offset + len(data)] = data[: len(where) - offset]

    machine.on_port(
        IO,
        4,
        read=lambda vcpu, offset, size: bytes(register[offset : offset + size]).ljust(size, b"\0"),
        write=lambda vcpu, offset, data: store(register, offset, data),
        name="testdev register",
    )
    machine.on_port(FLUSH, write=lambda vcpu, data: None, name="testdev flush")
    machine.on_port(LINES, 24, write=lambda vcpu, line, data: machine.set_line(line, any(data)), name="testdev lines")
    machine.on_mmio(
        MMIO,
        len(ram),
        read=lambda vcpu, offset, size: bytes(ram[offset : offset + size]).ljust(size, b"\0"),
        write=lambda vcpu, offset, data: store(ram, offset, data),
        name="testdev RAM",
    )


# mov $0xe0,%dx; mov $0x12345678,%eax; out %eax,%dx; in %dx,%al; out %al,$0xf4; hlt
CODE = bytes.fromhex("bae000 66b878563412 66ef ec e6f4 f4")

if __name__ == "__main__":
    with Machine() as machine:
        add_testdev(machine)
        machine.load(CODE)
        outcome = machine.run(timeout=10)
        print(f"the register gave {outcome.status >> 1:#x} back")
