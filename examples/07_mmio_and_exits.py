"""Memory-mapped registers served by Python, and a look at each exit before it is served."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout: nothing need be installed

from pyvcpu import Machine, Vcpu
from pyvcpu.exits import ExitEvent
from pyvcpu.kvm.abi import Exit

SENSOR = 0xD000_0000  # no RAM there: the guest's accesses come to us
CODE = bytes.fromhex(  # for 32-bit protected mode
    "bf 00 00 00 d0"  #   mov  $0xd0000000, %edi
    "8b 07"  #            mov  (%edi), %eax         register 0: the temperature in tenths of a degree Celsius
    "83 e8 32"  #         sub  $50, %eax
    "66 89 47 04"  #      mov  %ax, 4(%edi)         register 4: the thermostat, as 16 bits
    "f4"  #               hlt                       wait for better times
    "c6 47 04 00"  #      movb $0, 4(%edi)
    "f4"  #               hlt
)


class Sensor:
    """Two registers. One vCPU here, so no lock."""

    thermostat = 0

    def read(self, vcpu: Vcpu, offset: int, size: int) -> int:
        return 215 if offset == 0 else self.thermostat

    def write(self, vcpu: Vcpu, offset: int, data: bytes) -> None:
        if offset == 4:
            self.thermostat = int.from_bytes(data, "little")


def main() -> None:
    sensor, halts = Sensor(), 0

    def trace(vcpu: Vcpu, event: ExitEvent) -> None:
        """Not True, so the exit is then served as without this handler."""
        print(f"  RIP {vcpu.registers.rip:#x}: {event!r}")

    def wake(vcpu: Vcpu, event: ExitEvent) -> bool:
        """True for the first HLT: it is dealt with, run on. The second one halts the vCPU as always."""
        nonlocal halts
        halts += 1
        print(f"  RIP {vcpu.registers.rip:#x}: {event!r} number {halts}, thermostat {sensor.thermostat}")
        return halts == 1

    with Machine(memory="1M") as machine:
        machine.load(CODE, mode="protected")
        machine.on_mmio(SENSOR, 8, read=sensor.read, write=sensor.write, name="sensor")
        machine.on_exit(Exit.MMIO, trace)
        machine.on_exit(Exit.HLT, wake)
        outcome = machine.run(timeout=5)
    print(f"{outcome.reason}; the thermostat says {sensor.thermostat}")


if __name__ == "__main__":
    main()
