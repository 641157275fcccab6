"""The same with the library: a Machine has memory, vCPUs, and the devices of a small PC."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout: nothing need be installed

from pyvcpu import Machine

IMAGES = Path(__file__).resolve().parent / "images"

# What load() does with bytes that are of no other format: put them at 0x1000 and start there in 16-bit real mode.
CODE = bytes.fromhex(
    "b0 2a"  #  mov  $42, %al
    "e6 f4"  #  out  %al, $0xf4     the debug-exit port ends the machine
)


def main() -> None:
    # A program from a file. What it writes to the debug console and to COM1 goes to standard output.
    with Machine(memory="1M") as machine:
        machine.load(IMAGES / "hello.bin")
        outcome = machine.run(timeout=5)
        print(f"{outcome.reason}, with exit status {outcome.status}")

    # A program of two instructions, and what is left of it in the registers. `output` would get what it prints.
    with Machine(memory="1M", output=lambda data: None) as machine:
        machine.load(CODE)
        outcome = machine.run(timeout=5)
        vcpu = machine.vcpus[0]
        print(f"{outcome.reason}, with exit status {outcome.status} = (42 << 1) | 1")
        print(f"RIP {vcpu.registers.rip:#x}, RAX {vcpu.registers.rax}, CR0 {vcpu.sregs.cr0:#x}")


if __name__ == "__main__":
    main()
