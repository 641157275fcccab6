"""What a loader plans, and a guest that reads what it was handed: a Multiboot image with a module."""

import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout: nothing need be installed

from pyvcpu import Machine
from pyvcpu.boot import Target, detect, plan

LOAD = 0x10_0000
MAGIC, ADDRESSES_GIVEN = 0x1BADB002, 1 << 16
HEADER_SIZE = 32

CODE = (
    b"\x8b\x73\x18"  #     mov  24(%ebx), %esi     the list of modules, from the boot information at EBX
    b"\x8b\x3e"  #         mov  (%esi), %edi       where the first one starts
    b"\x8b\x4e\x04"  #     mov  4(%esi), %ecx      and where it ends
    b"\x8a\x07"  #      1: mov  (%edi), %al
    b"\xe6\xe9"  #         out  %al, $0xe9
    b"\x47"  #             inc  %edi
    b"\x39\xcf"  #         cmp  %ecx, %edi
    b"\x72\xf7"  #         jb   1b
    b"\xfa\xf4"  #         cli; hlt
)


def image() -> bytes:
    """Return a Multiboot image: the header says where it is loaded and entered, and the code follows."""
    header = struct.pack("<3I", MAGIC, ADDRESSES_GIVEN, -(MAGIC + ADDRESSES_GIVEN) & 0xFFFF_FFFF)
    return header + struct.pack("<5I", LOAD, LOAD, 0, 0, LOAD + HEADER_SIZE) + CODE


def main() -> None:
    modules = [("greeting with=arguments", b"hello from a module\n")]

    # A loader is a function from bytes to a plan; it needs no KVM.
    planned = plan(image(), Target([(0, 16 << 20)], vcpus=2, initrd=modules))
    print(f"a {detect(image())} image, which wants irqchip={planned.irqchip!r}")
    for address, data in planned.segments:
        print(f"  {address:#8x}  {len(data):4} bytes")
    for index, start in enumerate(planned.starts):
        print(f"  vCPU {index}: {f'{start.mode} mode at {start.entry:#x}' if start else 'waits for a SIPI'}")

    with Machine(memory="16M", smp=2, irqchip="none") as machine:  # with none, HLT ends it
        machine.load(image(), initrd=modules)
        print(machine.run(timeout=30).reason)


if __name__ == "__main__":
    main()
