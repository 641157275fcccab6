"""Processors with a topology, without a feature, and one that is plugged later: what each finds in CPUID.

A guest in long mode asks leaf 0xB, which has a subleaf for each level, and tells its APIC id through a port.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout: nothing need be installed

from pyvcpu import Machine, Vcpu

PORT = 0x500
CODE = bytes.fromhex(
    "b8 0b 00 00 00"  # mov $0xb,%eax
    "31 c9"  # xor %ecx,%ecx
    "0f a2"  # cpuid: EAX how far to shift an id for its core, EDX the id
    "89 d0"  # mov %edx,%eax
    "66 ba 00 05"  # mov $0x500,%dx
    "ef"  # out %eax,(%dx)
    "f4"  # hlt
)


def main() -> None:
    with Machine(memory="1M", smp="4,sockets=2,cores=1,threads=2,maxcpus=6", cpu="host,-mtrr") as machine:
        told: dict[int, int] = {}

        def tell(vcpu: Vcpu, data: bytes) -> None:
            told[vcpu.index] = int.from_bytes(data, "little")

        machine.load(CODE, mode="long")
        machine.on_port(PORT, write=tell)
        machine.run(timeout=5)
        machine.plug(5)  # in the third package, which has room for two
        machine.run(timeout=5)
        for index, apic_id in sorted(told.items()):
            package, core, thread = machine.topology.place(index)
            print(f"vCPU {index}: APIC id {apic_id}, package {package}, core {core}, thread {thread}")


if __name__ == "__main__":
    main()
