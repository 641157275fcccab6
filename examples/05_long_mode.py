"""64-bit mode from outside: control registers, segments, and the page tables walked by hand."""

import sys
from collections.abc import Iterator
from enum import IntFlag
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout: nothing need be installed

from pyvcpu import GuestMemory, Machine
from pyvcpu.x86.flags import CR0, CR4, EFER, PTE

IMAGES = Path(__file__).resolve().parent / "images"
LEVELS = ("PML4", "PDPT", "page directory", "page table")  # SDM vol. 3A, section 4.5
ADDRESS_BITS = 0x000F_FFFF_FFFF_F000


def walk(memory: GuestMemory, cr3: int, linear: int) -> Iterator[tuple[str, int, int]]:
    """Yield (level, address of the entry, entry) as the processor would look them up for `linear`."""
    table = cr3 & ADDRESS_BITS
    for depth, level in enumerate(LEVELS):
        shift = 39 - 9 * depth
        address = table + (linear >> shift & 0x1FF) * 8
        entry = memory.read_int(address, 8)
        yield level, address, entry
        if not entry & PTE.P or entry & PTE.PS:  # not mapped, or a large page: no table below
            return
        table = entry & ADDRESS_BITS


def show(name: str, value: int, flags: type[IntFlag]) -> None:
    """Print a register and the names of the bits that are set."""
    print(f"{name:<5} {value:#12x}  {' '.join(flag.name or '' for flag in flags if value & flag)}")


def main() -> None:
    with Machine(memory="16M") as machine:
        machine.load(IMAGES / "counter64.bin", mode="long")
        machine.start()  # paused before the first instruction
        vcpu = machine.vcpus[0]
        sregs = vcpu.sregs.copy()  # one structure, with one trip to the vCPU's thread

        show("CR0", sregs.cr0, CR0)
        show("CR4", sregs.cr4, CR4)
        show("EFER", sregs.efer, EFER)
        for name in ("cs", "ss"):
            segment = getattr(sregs, name)
            kind = "64-bit code" if segment.l else "data"
            print(f"{name.upper():<5} {segment.selector:#12x}  DPL {segment.dpl}, {kind}")

        rip = vcpu.registers.rip
        print(f"\nwhere RIP {rip:#x} leads, from CR3 {sregs.cr3:#x}:")
        for level, address, entry in walk(machine.memory, sregs.cr3, rip):
            print(f"  {level:<15} entry at {address:#8x}: {entry:#10x}  {PTE(entry & 0xFFF)!r}")
        told = vcpu.run_on_cpu(lambda vcpu: vcpu.fd.translate(rip))
        print(f"KVM_TRANSLATE says {told:#x}; the code there: {machine.memory.read(rip, 8).hex(' ')}\n")

        outcome = machine.run(timeout=5)
        print(f"{outcome.reason} at RIP {vcpu.registers.rip:#x}")


if __name__ == "__main__":
    main()
